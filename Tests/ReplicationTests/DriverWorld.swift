// The production session, driver and stream between a pool and a target in memory, on one thread. The
// pool changes in the middle of everything: while a chunk is read, while it is staged, between the two.
// What the target commits must be what the pool showed at that sequence.

import BlockCore
import Replication
import SystemIO
import TestSupport

final class DriverWorld: SessionSource, @unchecked Sendable {  // one thread
    static let imageCount = 2
    static let blockCount = 24
    /// What a block shows that is read while it is written.
    private static let torn = UInt64.max

    var random: SeededRandom
    let stream = WriteStream(capacityBytes: 256 << 10, lastSequence: .zero)
    let id = TargetID(rawValue: 1)
    private(set) var live = PoolContent(
        repeating: [UInt64](repeating: 0, count: DriverWorld.blockCount),
        count: DriverWorld.imageCount)
    /// What the pool showed after each operation.
    private(set) var history: [SequenceNumber: PoolContent] = [:]
    private(set) var snapshots: [SnapshotInfo] = []
    let target: MemoryTarget
    /// The target as the session has it, where it fails by plan.
    private var faulty: FaultyTarget?
    private(set) var driver: SessionDriver!
    private var nowNs: Int64 = 1
    private var nextStamp: UInt64 = 1
    private var nextName = 0
    private var isStaleUnrecorded = false
    /// Changes come in the middle of things.
    var isTracing = false
    var isBusy = true
    /// Now and then more changes at once than the ring holds.
    var comesInBursts = false
    var readCount = 0

    var hasStruck: Bool { faulty?.hasStruck ?? false }

    init(seed: UInt64, fault: TargetFault? = nil) {
        random = SeededRandom(seed: seed)
        history[.zero] = live
        target = MemoryTarget(live)
        stream.attachTracking(id)
        target.world = self
        if let fault {
            faulty = FaultyTarget(target, fault, timeoutMs: SessionOptions().timeoutMs) {
                [unowned self] ms in
                // Others write meanwhile, and the clock of the session's keeper ticks.
                for _ in 0..<4 {
                    nowNs += ms * 250_000
                    changeSometimes(50)
                    driver.tick()
                }
            }
        }
        makeDriver(seed)
    }

    private func makeDriver(_ seed: UInt64) {
        var options = SessionOptions()
        options.mode = seed % 2 == 0 ? .async : .flush
        if seed % 6 == 0 { options.intervalMs = 400 }
        options.chunkBlocks = 5
        options.blocksPerSync = 15
        options.streamBytesPerSync = 30_000
        if seed % 5 == 0 { options.bytesPerSecond = 1 << 20 }
        let connects: any ReplicaTarget = faulty ?? target
        driver = SessionDriver(
            id: id, options: options, seed: seed, counts: false, stream: stream, source: self,
            clock: { [unowned self] in nowNs }
        ) { [connects] () throws(TargetError) in connects }
    }

    /// As when a target's settings change: another session goes on with what this one leaves.
    private func replaceDriver() {
        _ = driver.stop(timeoutMs: 0)
        if isStaleUnrecorded { driver.staleRecorded() }
        isStaleUnrecorded = false
        makeDriver(random.next())
        driver.start(onThread: false)
    }

    // MARK: One thing after the other

    func run(steps: Int) throws {
        for _ in 0..<20 { change() }
        driver.start(onThread: false)
        for _ in 0..<steps {
            nowNs += Int64(random.below(50)) * 1_000_000
            if comesInBursts, random.chance(1) { for _ in 0..<60 { change() } }
            switch random.below(100) {
            case ..<30: change()
            case ..<93: driver.step()
            case ..<94: target.failsNext = true
            case ..<95: target.goBack(&random)
            case ..<96: deleteSnapshot()
            case ..<97: if random.chance(20) { replaceDriver() }
            default: tick()
            }
            try target.check()
        }
        try settle()
    }

    func tick() {
        if isStaleUnrecorded {
            isStaleUnrecorded = false
            driver.staleRecorded()
        }
        driver.tick()
    }

    /// Nothing fails, and nobody writes.
    func settle() throws {
        isBusy = false
        // A target that went back while nobody asked it for anything is noticed when it is connected.
        driver.pause()
        while driver.step() {}
        driver.resume()
        for _ in 0..<5000 {
            nowNs += 100_000_000
            tick()
            driver.wantFlush(stream.lastSequence)
            var steps = 0
            while driver.step() {
                try target.check()
                steps += 1
                if steps > 10_000 { throw Violation("it never ends: \(driver.snapshot)") }
            }
            if isInStep, target.checkpoint == stream.lastSequence { break }
        }
        guard isInStep, target.content == live else {
            throw Violation(
                "in the end it is \(driver.snapshot.state), at \(target.checkpoint.rawValue) of "
                    + "\(stream.lastSequence.rawValue)")
        }
        for info in snapshots
        where target.snapshots[info.name] != history[info.sequence]
            && !target.lostSnapshots.contains(info.name)
        {
            throw Violation("snapshot \(info.name) is not on the target")
        }
    }

    /// The target is away, and an unclean end left what it lacks unknown.
    func end(leaving unknown: [ImageID: BlockSet], after change: () -> Void) {
        driver.pause()
        while driver.step() {}
        tick()
        change()
        let cuts = Dictionary(uniqueKeysWithValues: snapshots.map { ($0.sequence, $0) })
        _ = stream.withLegs(id) { legs in
            var states = legs.legs.map {
                DirtyLegState(number: $0.number, cut: $0.snapshot?.sequence)
            }
            states.append(DirtyLegState(number: 1 << 20, isUnknown: true, blocks: unknown))
            legs = DirtyLegs(states) { cuts[$0] }
        }
    }

    private var isInStep: Bool {
        let session = driver.snapshot
        return session.isInStep(nowNs: nowNs) && session.state != .resyncing
    }

    func trace(_ text: @autoclosure () -> String) {
        if isTracing { print("[\(stream.lastSequence.rawValue)] \(text())") }
    }

    // MARK: The pool

    func changeSometimes(_ percent: Int) {
        while isBusy, random.chance(percent) { change() }
    }

    private func change() {
        switch random.below(100) {
        case ..<75: write(at: anyPlace(), count: 1 + random.below(3))
        case ..<88: zero(at: anyPlace(), count: 1 + random.below(6))
        case ..<93: cut()
        default: restore()
        }
    }

    private func anyPlace() -> (image: Int, block: Int) {
        (random.below(Self.imageCount), random.below(Self.blockCount))
    }

    private func range(_ block: Int, _ count: Int) -> BlockRange {
        BlockRange(start: UInt64(block), count: UInt64(min(count, Self.blockCount - block)))
    }

    private func set(_ image: Int, _ range: BlockRange, _ stamp: UInt64) {
        for block in range.start..<range.end { live[image][Int(block)] = stamp }
    }

    func write(at place: (image: Int, block: Int), count: Int) {
        let range = range(place.block, count)
        let stamp = takeStamp()
        set(place.image, range, stamp)
        tellWritten(place.image, range, stamp)
    }

    private func takeStamp() -> UInt64 {
        nextStamp += 1
        return nextStamp
    }

    private func tellWritten(_ image: Int, _ range: BlockRange, _ stamp: UInt64) {
        let sequence = stream.append(
            .data, image: Self.id(image), range: range, imageSizeBytes: Self.sizeBytes,
            payloadBytes: Int(range.lengthBytes)
        ) { $0.bindMemory(to: UInt64.self).update(repeating: stamp) }
        history[sequence] = live
    }

    private func zero(at place: (image: Int, block: Int), count: Int) {
        let range = range(place.block, count)
        set(place.image, range, 0)
        let sequence = stream.append(
            .zero, image: Self.id(place.image), range: range, imageSizeBytes: Self.sizeBytes)
        history[sequence] = live
    }

    func cut() {
        guard snapshots.count < 4 else { return }
        nextName += 1
        let info = stream.cut(name: "s\(nextName)", createdNs: nowNs, origin: "user", atNs: nowNs)
        snapshots.append(info)
        trace("cut \(info.name)")
        history[info.sequence] = live
    }

    func deleteSnapshot() {
        guard !snapshots.isEmpty else { return }
        let gone = snapshots.remove(at: random.below(snapshots.count))
        trace("delete \(gone.name)")
        stream.snapshotDeleted(gone.sequence)
    }

    /// Blocks change that the stream does not carry.
    func restore() {
        var changed: [ImageID: BlockSet] = [:]
        for _ in 0..<3 {
            let (image, block) = anyPlace()
            let range = range(block, 1 + random.below(4))
            set(image, range, random.chance(30) ? 0 : takeStamp())
            changed.insert(range, of: Self.id(image))
        }
        history[stream.dirty(changed)] = live
    }

    // MARK: The source

    static func id(_ image: Int) -> ImageID { ImageID(rawValue: Int64(image + 1)) }
    static func index(_ id: ImageID) -> Int { Int(id.rawValue) - 1 }
    static let sizeBytes = UInt64(blockCount) * 4096

    func hello(for target: TargetID, having incarnationID: String?) -> PrimaryHello { hello }
    let hello = PrimaryHello(
        poolID: "pool",
        generation: Generation(number: 1, id: "first", parentID: nil, startSequence: .zero),
        incarnation: 1, incarnationID: "incarnation")

    private func shape(_ sequence: SequenceNumber) -> PoolShape {
        PoolShape(
            sequence: sequence,
            images: (0..<Self.imageCount).map {
                .init(id: Self.id($0), sizeBytes: Self.sizeBytes, modifiedNs: 0)
            }, names: [])
    }

    func captureHead(
        for target: TargetID
    ) throws(TargetError) -> (shape: PoolShape, streamFrom: SequenceNumber) {
        let from = stream.beginStreaming(target)
        let shape = shape(from)
        changeSometimes(30)
        return (shape, from)
    }

    func capture(_ snapshot: SnapshotInfo) throws(TargetError) -> PoolShape? {
        snapshots.contains(snapshot) ? shape(snapshot.sequence) : nil
    }
    func release(_ snapshot: SnapshotInfo) {}

    func read(
        _ chunk: BlockChunk, in snapshot: SnapshotInfo?, at sequence: SequenceNumber,
        into records: RecordBuffer
    ) throws(TargetError) -> SequenceNumber {
        readCount += 1
        if let snapshot {
            guard snapshots.contains(snapshot) else { throw TargetError(.absent, "it is gone") }
            append(chunk, at: sequence, to: records) { history[snapshot.sequence]![$0][$1] }
            return snapshot.sequence
        }
        changeSometimes(20)
        // Somebody writes meanwhile: the new content is there, in part, before it has its place.
        let (image, block) = anyPlace()
        let written = isBusy && random.chance(30) ? range(block, 1 + random.below(3)) : range(0, 0)
        let (before, stamp) = (live, takeStamp())
        append(chunk, at: sequence, to: records) { index, block in
            if index == image, written.contains(UInt64(block)) {
                return [before[image][block], stamp, Self.torn][random.below(3)]
            }
            return live[index][block]
        } between: {
            // Nobody else writes to the same blocks.
            if written.isEmpty { changeSometimes(20) }
        }
        if !written.isEmpty {
            set(image, written, stamp)
            tellWritten(image, written, stamp)
        }
        changeSometimes(20)
        return stream.lastSequence
    }

    private func append(
        _ chunk: BlockChunk, at sequence: SequenceNumber, to records: RecordBuffer,
        content: (Int, Int) -> UInt64, between: () -> Void = {}
    ) {
        for range in chunk.ranges {
            // What a target says that it has may lie behind an image's end: there is nothing to be read.
            let end = min(range.end, UInt64(Self.blockCount))
            for block in range.start..<max(range.start, end) {
                let stamp = content(Self.index(chunk.image), Int(block))
                let record = StreamRecord(
                    stamp == 0 ? .zero : .data, sequence: sequence, image: chunk.image,
                    range: BlockRange(start: block, count: 1), imageSizeBytes: Self.sizeBytes,
                    payloadBytes: stamp == 0 ? 0 : 4096)
                records.append(record) {
                    $0.bindMemory(to: UInt64.self).update(repeating: stamp)
                }
                between()
            }
        }
    }

    func blockHashes(
        of image: ImageID, in range: BlockRange, of snapshot: SnapshotInfo?
    ) throws(TargetError) -> [UInt64] {
        let content = snapshot.map { history[$0.sequence]! } ?? live
        defer { changeSometimes(20) }
        return content[Self.index(image)].hashes(range)
    }

    func wholeImages() throws(TargetError) -> [ImageID: BlockSet] {
        var all: [ImageID: BlockSet] = [:]
        for image in 0..<Self.imageCount {
            all.insert(range(0, Self.blockCount), of: Self.id(image))
        }
        return all
    }

    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        var all = live.written
        for info in snapshots { all.formUnion(history[info.sequence]!.written) }
        return all
    }

    func hasNews(for target: TargetID) -> Bool { false }
    func legsChanged(of target: TargetID) {}
    func recordStale(_ target: TargetID, since sequence: SequenceNumber, reason: String) {
        isStaleUnrecorded = true
    }
    func tell(_ target: TargetID, kind: String, message: String) {
        trace("\(kind): \(message)")
    }
    func fence(_ target: TargetID, reason: String) {}
    func acknowledged(_ target: TargetID, _ point: AckPoint, _ sequence: SequenceNumber) {}
    func answer() {}
    var waitingCount: Int { 0 }
    func retracted(_ target: TargetID) {}
    func withhold(_ target: TargetID, _ isWithheld: Bool) {}
    func lost(_ target: TargetID) {}
    func found(_ target: TargetID) {}
    func counts(_ target: TargetID, _ policy: TargetPolicy, durable: SequenceNumber) {}
    func policyChanged(_ target: TargetID, _ policy: TargetPolicy) {}
    func releaseWaiters(of target: TargetID) {}
}

extension PoolContent {
    /// Blocks that are not zeros.
    var written: [ImageID: BlockSet] {
        var result: [ImageID: BlockSet] = [:]
        for (image, blocks) in enumerated() {
            for (block, stamp) in blocks.enumerated() where stamp != 0 {
                result.insert(
                    BlockRange(start: UInt64(block), count: 1), of: DriverWorld.id(image))
            }
        }
        return result
    }
}

extension [UInt64] {
    /// A block's stamp serves as its hash, but for 0; past the end everything is zeros.
    func hashes(_ range: BlockRange) -> [UInt64] {
        (range.start..<range.end).map { ($0 < UInt64(count) ? self[Int($0)] : 0) + 1 }
    }
}
