// A pool, its stream and one target around the production session core. Every operation of the
// session takes its time, may fail, and may meet a crash of either side; after each, what the target
// would show must be what the pool showed at that sequence.

import BlockCore
import Replication
import TestSupport

struct SessionWorld {
    static let imageCount = 2
    static let blockCount = 12

    var random: SeededRandom
    let bug: ModelBug?
    var now: Int64 = 0
    var session: TargetSession
    var target: ModelTarget
    var seenTransitions: Set<String> = []
    /// The last events and effects, for whoever reads a violation.
    var trace: [String] = []

    // The pool.
    var incarnation = 1
    var sequence: UInt64 = 0
    var live: PoolContent
    /// What the pool showed after each operation.
    var history: [UInt64: PoolContent] = [:]
    var snapshots: [(info: SnapshotInfo, content: PoolContent)] = []
    var nextName = 0
    /// Blocks written since they were last known durable here and there.
    var active: Set<Int> = []
    /// Blocks that were active at an unclean end and were not compared with the target since.
    var suspects: Set<Int> = []

    // The stream and what is tracked for the target.
    static let ringCapacity = 40
    var ring: [ModelRecord] = []
    var isHeld = false
    var heldFrom: UInt64 = 0
    var legs: [(end: SnapshotInfo?, blocks: Set<Int>)] = [(nil, [])]
    /// Blocks of the leg that the session has taken; dirty until it is committed.
    var takenBlocks: Set<Int> = []
    var takenEnd: LegEnd?
    var acknowledged: UInt64 = 0
    var acks = AckTracker<ModelRequest>()
    /// It is written down that the target is stale.
    var isStale = false
    /// Everybody is let go of, for somebody asked for it.
    var isReleased = false
    /// When the target was last left behind by this session.
    var leftBehindNs: Int64 = 0
    /// Requests that were done, by what they asked for.
    var doneCounts: [AckPoint: Int] = [:]
    let targetID = TargetID(rawValue: 1)

    /// What every cut had, also of snapshots that are gone.
    var cuts: [Int: PoolContent] = [:]
    var stagedThrough: UInt64 = 0
    /// When dirty blocks were last taken out of the legs.
    var takenAt: UInt64 = 0

    var operation: SessionOperation?
    var staleRecordWanted = false
    /// What is on its way to a target that is given more meanwhile; nil for one that answers each call.
    var wire: [ModelCall]?
    /// What the target said on this connection.
    var told = (written: UInt64(0), durable: UInt64(0))

    init(
        seed: UInt64, policy: AckPolicy, intervalMs: Int64? = nil, budgetMs: Int64? = nil,
        isPipelined: Bool = false, bug: ModelBug? = nil
    ) {
        random = SeededRandom(seed: seed)
        wire = isPipelined ? [] : nil
        self.bug = bug
        let empty = PoolContent(
            repeating: [UInt64](repeating: 0, count: Self.blockCount), count: Self.imageCount)
        live = empty
        history[0] = empty
        target = ModelTarget(content: empty)
        var options = SessionOptions()
        options.policy = TargetPolicy(policy)
        options.intervalMs = intervalMs
        options.latencyBudgetUs = budgetMs.map { $0 * 1000 }
        options.rearmMs = 60
        options.longestRearmMs = 500
        options.chunkBlocks = 3
        options.blocksPerSync = 9
        session = TargetSession(options: options, seed: seed)
    }

    private func number(_ image: Int, _ block: Int) -> Int { image * Self.blockCount + block }

    // MARK: The session

    mutating func tell(_ event: SessionEvent) throws {
        let before = session.state
        let effects = session.apply(event, now: now)
        if !effects.isEmpty || session.state != before {
            trace.append("\(sequence) \(event) -> \(session.state.rawValue) \(effects)")
            if trace.count > 30 { trace.removeFirst() }
        }
        if session.state != before {
            seenTransitions.insert("\(before.rawValue) > \(session.state.rawValue)")
        }
        for effect in effects { try carryOut(effect) }
        if session.options.intervalMs != nil {
            // P1, and what is level is level.
            guard session.state != .streaming, session.state != .scheduled || !isHeld else {
                throw Violation("it is \(session.state) and the stream is held: \(isHeld)")
            }
            if case .looked(true, _) = event, session.state == .scheduled {
                seenTransitions.insert("level > scheduled")
                guard target.content == live else { throw Violation("it is not level") }
            }
        }
    }

    private mutating func carryOut(_ effect: SessionEffect) throws {
        switch effect {
        case .run(let next):
            guard operation == nil else { throw Violation("two operations at once") }
            operation = next
        case .acknowledge(let point, let through):
            try acknowledge(point, through.rawValue)
        case .retract:
            if bug != .believesWhatWasLost { acks.retract(targetID) }
        case .stopStreaming: stopHolding()
        case .recordStale:
            staleRecordWanted = true
            leftBehindNs = now
            if bug == .releasesBeforeStale { acks.forget(targetID) }
            try checkDone()
        case .countForAcknowledgements:
            acks.count(
                targetID, session.policy, durable: SequenceNumber(rawValue: acknowledged))
            isStale = false
            seenTransitions.insert("counts")
            if now - leftBehindNs < session.options.rearmMs * 1_000_000, leftBehindNs > 0 {
                throw Violation("it counts again at once after it was left behind")
            }
            try checkDone()
        case .lose:
            if bug == .goesOnWithoutIt { acks.forget(targetID) } else { acks.isLost(targetID) }
            while acks.takeFailed() != nil { seenTransitions.insert("waiting > failed") }
            seenTransitions.insert("\(session.options.policy.all.onTimeout) > lost")
            try checkDone()
        case .policyChanged(let policy):
            seenTransitions.insert("\(policy.all.mode) in force")
            acks.setPolicy(targetID, policy)
            try checkDone()
        case .find:
            acks.isInStep(targetID)
            seenTransitions.insert("lost > found")
            try checkDone()
        case .releaseWaiters:
            acks.forget(targetID)
            isReleased = true
            defer { isReleased = false }
            try checkDone()
        case .joinLegs(let through):
            while let end = legs[0].end, end.sequence <= through {
                legs[1].blocks.formUnion(legs[0].blocks)
                legs.removeFirst()
            }
        case .legIsClean:
            if case .snapshot(let info)? = takenEnd, legs[0].end == info {
                legs[1].blocks.formUnion(legs[0].blocks)
                legs.removeFirst()
            }
            takenBlocks = []
            takenEnd = nil
        case .settleStaged(let through): settleStaged(through.rawValue)
        case .wake, .tell, .fence: break
        }
    }

    private mutating func acknowledge(_ point: AckPoint, _ through: UInt64) throws {
        guard has(ModelRequest(sequence: through, point: point)) else {
            throw Violation(
                "\(through) is confirmed as \(point); the target is at \(target.checkpoint)")
        }
        if point == .durable {
            acknowledged = through
            if isHeld {
                heldFrom = max(heldFrom, through)
                ring.removeAll { $0.sequence <= heldFrom }
            }
        }
        acks.acknowledge(
            targetID, bug == .takesWrittenForDurable ? .durable : point,
            SequenceNumber(rawValue: through))
        try checkDone()
    }

    /// The target has it as it was asked for.
    private func has(_ request: ModelRequest) -> Bool {
        if target.checkpoint >= request.sequence { return true }
        guard request.point < .durable, let last = target.unsynced.last else { return false }
        return last.sequence >= request.sequence
    }

    /// Whoever is told that all is well: it is, or it is written down that the target is stale.
    private mutating func checkDone() throws {
        while let request = acks.takeDone() {
            let mayLack = isStale && (isReleased || session.policy.isLeftBehind)
            // Who waited for more in another mode is answered as the one in force has it.
            let now = session.policy.all.mode.flushPoint ?? .received
            guard
                mayLack
                    || has(.init(sequence: request.sequence, point: min(request.point, now)))
            else {
                throw Violation(
                    "\(request) is done; the target is at \(target.checkpoint) and not stale")
            }
            doneCounts[request.point, default: 0] += 1
        }
    }

    /// A request that comes now.
    private mutating func wait(isFlush: Bool) throws {
        let mode = session.policy.all.mode
        guard session.counts, let point = isFlush ? mode.flushPoint : mode.writePoint else {
            return
        }
        let request = ModelRequest(sequence: sequence, point: point)
        let place = SequenceNumber(rawValue: sequence)
        if acks.isDone(place, isFlush: isFlush) {
            guard isStale || has(request) else { throw Violation("\(request) need not wait") }
            return
        }
        acks.wait(for: place, isFlush: isFlush, request)
        if isFlush { try tell(.flushWanted(place)) }
    }

    mutating func stopHolding() {
        guard isHeld else { return }
        isHeld = false
        // What barriers stand for may lie before or after any cut that the ring still has.
        let barred = takenEnd == .head ? legs[0].blocks.union(takenBlocks) : legs[0].blocks
        for record in ring where record.sequence > heldFrom {
            if bug == .forgetsUnconfirmed, record.sequence <= session.sent.rawValue { continue }
            track(record)
        }
        for index in legs.indices { legs[index].blocks.formUnion(barred) }
        ring = []
    }

    private mutating func settleStaged(_ through: UInt64) {
        for record in ring where record.sequence <= through {
            if case .write(let image, let block) = record.operation {
                takenBlocks.insert(number(image, block))
            }
        }
        heldFrom = max(heldFrom, through)
        ring.removeAll { $0.sequence <= heldFrom }
    }

    private mutating func track(_ record: ModelRecord) {
        switch record.operation {
        case .write(let image, let block): legs[legs.count - 1].blocks.insert(number(image, block))
        case .cut(let info):
            legs[legs.count - 1].end = info
            legs.append((nil, []))
        case .barrier: break
        }
    }

    // MARK: The pool

    private mutating func append(_ operation: ModelRecord.Operation) throws {
        sequence += 1
        let record = ModelRecord(sequence: sequence, operation: operation)
        switch operation {
        case .write(let image, let block):
            live[image][block] = sequence
            active.insert(number(image, block))
        case .cut(let info):
            snapshots.append((info, live))
            cuts[nextName] = live
        case .barrier: break
        }
        history[sequence] = live
        if isHeld {
            ring.append(record)
            if ring.count > Self.ringCapacity {
                stopHolding()
                try tell(.ringOverflowed)
            } else {
                try tell(.recordsWaiting)
            }
        } else if bug != .forgetsMark || random.chance(70) {
            track(record)
        }
    }

    mutating func write() throws {
        // Held, or failed, before anything changes.
        guard acks.obstacle(for: nil) == nil else { return }
        try append(
            .write(image: random.below(Self.imageCount), block: random.below(Self.blockCount)))
        try wait(isFlush: false)
    }

    mutating func cut() throws {
        guard snapshots.count < 4 else { return }
        nextName += 1
        try append(
            .cut(
                SnapshotInfo(
                    name: "s\(nextName)", createdNs: now, origin: "user",
                    sequence: SequenceNumber(rawValue: sequence + 1))))
    }

    mutating func deleteSnapshot() {
        guard !snapshots.isEmpty else { return }
        let gone = snapshots.remove(at: random.below(snapshots.count)).info
        guard let index = legs.firstIndex(where: { $0.end == gone }) else { return }
        legs[index + 1].blocks.formUnion(legs[index].blocks)
        legs.remove(at: index)
    }

    /// As a restore does: blocks change outside the stream.
    mutating func changeOutsideTheStream() throws {
        for _ in 0..<3 {
            let (image, block) = (random.below(Self.imageCount), random.below(Self.blockCount))
            live[image][block] = sequence + 1
            legs[legs.count - 1].blocks.insert(number(image, block))
            active.insert(number(image, block))
        }
        try append(.barrier)
    }

    /// The activity log lets go of what is durable here and confirmed there, or durably known dirty.
    mutating func settleActivity() {
        let dirty = legs.reduce(into: takenBlocks) { $0.formUnion($1.blocks) }
        active = active.filter { number in
            let written = live[number / Self.blockCount][number % Self.blockCount]
            return written > acknowledged && !dirty.contains(number)
        }
    }

    mutating func fsync() throws { try wait(isFlush: true) }

    mutating func recordStale() throws {
        staleRecordWanted = false
        isStale = true
        try tell(.staleRecorded)
    }

    /// The pool's process and memory are gone; it comes back as of some moment since it was last
    /// durable, and only blocks written since then may differ from what the target has.
    mutating func crashPool() throws {
        incarnation += 1
        for image in 0..<Self.imageCount {
            for block in 0..<Self.blockCount
            where active.contains(number(image, block)) && random.chance(30) {
                live[image][block] = random.chance(50) ? 0 : live[image][block]
            }
        }
        suspects.formUnion(active)
        sequence = (sequence | 0xffff) + 1
        history[sequence] = live
        // What streamed and was not confirmed is in active regions, its cuts in the dirty file, which
        // also has every leg that was not committed.
        stopHolding()
        returnTakenLeg()
        operation = nil
        staleRecordWanted = false
        endWire()
        acks = AckTracker()
        isStale = true
        target.crash(&random)
        session = TargetSession(options: session.options, seed: random.next())
        leftBehindNs = 0
        try tell(.start)
    }

    /// A leg that was not committed is dirty again.
    private mutating func returnTakenLeg() {
        legs[0].blocks.formUnion(takenBlocks)
        takenBlocks = []
        takenEnd = nil
    }
}
