// What the session's operations do to the model's target, and what may go wrong with them.

import BlockCore
import Replication

extension SessionWorld {
    private var incarnationID: String { "incarnation \(incarnation)" }

    /// Ends the operation under way, somehow.
    mutating func answer(canFail: Bool = true) throws {
        guard let current = operation else { return }
        let lostBefore = canFail && random.below(200) == 0
        if lostBefore || (target.isAbsent && current != .disconnect) {
            operation = nil
            endWire()
            return try tell(.failed(TargetError(.absent, "it is not there")))
        }
        let event = try perform(current)
        operation = nil
        if canFail, random.below(200) == 0 {
            // Whoever took blocks out of the legs for an answer that never came puts them back.
            switch event {
            case .legOpened(let leg): putBack(leg.blocks)
            case .streamStaged(let stretch), .blocksStaged(_, let stretch):
                putBack(stretch.dirtied)
            default: break
            }
            endWire()
            return try tell(.failed(TargetError(.io, "the answer was lost")))
        }
        try tell(event)
    }

    private mutating func perform(_ operation: SessionOperation) throws -> SessionEvent {
        switch operation {
        case .connect:
            endWire()
            return connect()
        case .disconnect:
            endWire()
            target.flush()
            return .disconnected
        case .compare, .markEverything: return compare(everything: operation == .markEverything)
        case .send: return send()
        case .flush where wire != nil:
            wire!.append(.flush)
            return .flushAsked(through: session.sent)
        case .flush:
            let through = target.unsynced.last?.sequence ?? target.checkpoint
            if bug != .confirmsTooEarly { target.flush() }
            try checkTarget()
            return .flushed(through: SequenceNumber(rawValue: through))
        case .look:
            return .looked(
                isLevel: !isHeld && !isDirty, through: SequenceNumber(rawValue: sequence))
        case .openLeg(let id): return openLeg(id)
        case .stageStream: return .streamStaged(stageStream(upTo: .max))
        case .stageBlocks(let chunk, _): return stageBlocks(chunk)
        case .syncStaging:
            target.staging!.synced = target.staging!.content
            if bug == .cleansTooEarly { takenBlocks = [] }
            return .stagingSynced
        case .commitLeg(let id, let at, let end):
            var name: String?
            if case .snapshot(let info) = end { name = info.name }
            try target.commit(id, at: at.rawValue, as: name, by: incarnationID)
            try checkTarget()
            return .legCommitted
        }
    }

    private mutating func putBack(_ blocks: [ImageID: BlockSet]) {
        for (image, set) in blocks {
            for range in set.ranges {
                for block in range.start..<range.end {
                    legs[0].blocks.insert(Int(image.rawValue) * Self.blockCount + Int(block))
                }
            }
        }
    }

    // MARK: What is on its way

    private var hasRoom: Bool { wire!.count < 12 }

    /// Some of what is on its way arrives, and is heard of.
    mutating func deliver() throws {
        guard let count = wire?.count, !target.isAbsent else { return }
        try arrive(min(count, 1 + random.below(4)))
        guard session.state == .streaming else { return }
        if random.chance(20) {
            try tell(.becameDurable(through: SequenceNumber(rawValue: told.durable)))
        }
        if bug == .hearsTooEarly { told.written = max(told.written, session.sent.rawValue) }
        try tell(
            .heard(
                TargetProgress(
                    written: SequenceNumber(rawValue: told.written),
                    durable: SequenceNumber(rawValue: told.durable), hasRoom: hasRoom)))
    }

    private mutating func arrive(_ count: Int) throws {
        for call in wire!.prefix(count) {
            switch call {
            case .record(let record):
                target.unsynced.append(record)
                told.written = record.sequence
            case .flush:
                told.durable = target.unsynced.last?.sequence ?? target.checkpoint
                if bug != .confirmsTooEarly { target.flush() }
            }
        }
        wire!.removeFirst(count)
        try checkTarget()
    }

    /// The connection is over; some of what was on its way had arrived.
    mutating func endWire() {
        guard let count = wire?.count else { return }
        try? arrive(target.isAbsent ? 0 : random.below(count + 1))
        wire = []
        told = (0, 0)
    }

    private var isDirty: Bool {
        legs.count > 1 || !legs[0].blocks.isEmpty || !takenBlocks.isEmpty || !suspects.isEmpty
    }

    private mutating func connect() -> SessionEvent {
        let holds =
            isHeld ? heldFrom <= target.checkpoint : target.checkpoint == sequence
        let isDirty = legs.count > 1 || !legs[0].blocks.isEmpty || !takenBlocks.isEmpty
        if holds, !isDirty, !isHeld, target.incarnation == incarnationID,
            session.options.intervalMs == nil
        {
            isHeld = true
            heldFrom = target.checkpoint
        }
        return .connected(
            ReplicaReport(
                incarnationID: target.incarnation, generation: nil,
                checkpoint: SequenceNumber(rawValue: target.checkpoint), snapshots: [],
                staging: target.staging.map { .init(id: $0.id, durableBatch: 0) }),
            StreamPosition(
                isSameIncarnation: target.incarnation == incarnationID,
                holdsAllAfterCheckpoint: holds, isDirty: isDirty,
                acknowledged: SequenceNumber(rawValue: acknowledged)))
    }

    /// The target may hold something newer than the first leg's end: that is what it is compared
    /// with. What lies between the ends of the legs is not known for these blocks either.
    private mutating func compare(everything: Bool) -> SessionEvent {
        let first = legs[0].end.map { history[$0.sequence.rawValue]! } ?? live
        for image in live.indices {
            for block in live[image].indices {
                let number = image * Self.blockCount + block
                guard everything || suspects.contains(number) else { continue }
                if first[image][block] != target.content[image][block] {
                    legs[0].blocks.insert(number)
                }
                for index in legs.indices.dropFirst() { legs[index].blocks.insert(number) }
            }
        }
        suspects = []
        return .compared
    }

    private mutating func send() -> SessionEvent {
        let given = session.sent.rawValue
        var last: UInt64?
        if wire != nil { return give(after: given) }
        for record in ring.filter({ $0.sequence > given }).prefix(1 + random.below(6)) {
            if case .barrier = record.operation {
                if bug == .passesBarrier { continue }
                return .sent(through: last.map { .init(rawValue: $0) }, isBarrierNext: true)
            }
            target.unsynced.append(record)
            last = record.sequence
        }
        return .sent(through: last.map { .init(rawValue: $0) }, isBarrierNext: false)
    }

    private mutating func give(after given: UInt64) -> SessionEvent {
        guard hasRoom else { return .noRoom }
        var last: UInt64?
        for record in ring.filter({ $0.sequence > given }).prefix(1 + random.below(6)) {
            if case .barrier = record.operation {
                if bug == .passesBarrier { continue }
                if last == nil { return .sent(through: nil, isBarrierNext: true) }
                break
            }
            wire!.append(.record(record))
            last = record.sequence
        }
        return last.map { .given(through: .init(rawValue: $0), bytes: 1) }
            ?? .sent(through: nil, isBarrierNext: false)
    }

    private func blocks(_ numbers: some Sequence<Int>) -> [ImageID: BlockSet] {
        var result: [ImageID: BlockSet] = [:]
        for number in numbers {
            let image = ImageID(rawValue: Int64(number / Self.blockCount))
            result[image, default: BlockSet()].insert(
                BlockRange(start: UInt64(number % Self.blockCount), count: 1))
        }
        return result
    }

    private mutating func openLeg(_ id: UInt64) -> SessionEvent {
        // A cut that the ring holds must not end a leg whose shape is newer. (With the bug the ring is
        // kept, and its records count for what was taken after them.)
        if bug != .coversTooEarly { stopHolding() }
        let first = legs[0]
        // A suspended leg's end may be gone: what was taken belongs to the first leg that is there.
        takenBlocks.formUnion(first.blocks)
        target.beginStaging(id)
        if let info = first.end {
            // The leg stays in its place until it is committed.
            legs[0].blocks = []
            takenEnd = .snapshot(info)
            return .legOpened(
                LegSummary(
                    end: .snapshot(info), blocks: blocks(first.blocks),
                    shapeSequence: info.sequence, streamFrom: info.sequence))
        }
        legs[0].blocks = []
        takenEnd = .head
        takenAt = sequence
        if !isHeld {
            isHeld = true
            heldFrom = sequence
            stagedThrough = sequence
        } else {
            stagedThrough = max(heldFrom, session.sent.rawValue)
        }
        return .legOpened(
            LegSummary(
                end: .head, blocks: blocks(first.blocks),
                shapeSequence: SequenceNumber(rawValue: sequence),
                streamFrom: SequenceNumber(rawValue: stagedThrough)))
    }

    private mutating func stageStream(upTo limit: UInt64) -> StagedStretch {
        var stretch = StagedStretch()
        var (covered, carried): (Set<Int>, Set<Int>) = ([], [])
        let limitCount = limit == .max ? 1 + random.below(6) : Int.max
        for record in ring.filter({ $0.sequence > stagedThrough && $0.sequence <= limit })
            .prefix(limitCount)
        {
            stagedThrough = record.sequence
            stretch.through = SequenceNumber(rawValue: record.sequence)
            switch record.operation {
            case .write(let image, let block):
                target.staging!.content[image][block] = record.sequence
                carried.insert(image * Self.blockCount + block)
                if record.sequence > takenAt || bug == .coversTooEarly {
                    covered.insert(image * Self.blockCount + block)
                }
            case .cut(let info):
                if bug == .missesCut { continue }
                // What was taken after the cut was made may have become dirty after it, too.
                if info.sequence.rawValue <= takenAt { legs[0].blocks.formUnion(takenBlocks) }
                takenEnd = .snapshot(info)
                stretch.cut = info
            case .barrier:
                takenBlocks.formUnion(legs[0].blocks)
                takenAt = sequence
                for (image, set) in blocks(legs[0].blocks) {
                    stretch.dirtied[image, default: BlockSet()].formUnion(set)
                }
                legs[0].blocks = []
            }
            if stretch.cut != nil { break }
        }
        stretch.covered = blocks(covered)
        if bug != .forgetsCarried { stretch.carried = blocks(carried) }
        return stretch
    }

    private mutating func stageBlocks(_ chunk: BlockChunk) -> SessionEvent {
        if case .snapshot(let info)? = takenEnd {
            // Pinned: a snapshot that is deleted meanwhile can still be read.
            copy(chunk, from: history[info.sequence.rawValue]!)
            return .blocksStaged(chunk, StagedStretch())
        }
        var stretch = StagedStretch()
        if bug != .stagesAhead {
            stretch = stageStream(upTo: sequence)
            if stretch.cut != nil { return .streamStaged(stretch) }
        }
        copy(chunk, from: live)
        return .blocksStaged(chunk, stretch)
    }

    private mutating func copy(_ chunk: BlockChunk, from source: PoolContent) {
        let image = Int(chunk.image.rawValue)
        for range in chunk.ranges {
            for block in range.start..<range.end {
                target.staging!.content[image][Int(block)] = source[image][Int(block)]
            }
        }
    }

    // MARK: Checks

    /// G2: what a mount of the target would show is what the pool showed at that sequence.
    func checkTarget() throws {
        guard let expected = history[target.checkpoint] else {
            throw Violation("the target is at \(target.checkpoint), which never was")
        }
        guard expected == target.content else {
            throw Violation(
                "at \(target.checkpoint) the target shows \(target.content), "
                    + "the pool showed \(expected)")
        }
        for (name, content) in target.snapshots {
            guard let number = Int(name.dropFirst()), let shown = cuts[number] else { continue }
            guard shown == content else {
                throw Violation("snapshot \(name) on the target differs from the pool's")
            }
        }
    }
}
