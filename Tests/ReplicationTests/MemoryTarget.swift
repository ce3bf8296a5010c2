import BlockCore
import Replication
import TestSupport

/// A target that holds stamps, and notes what it should never have shown.
final class MemoryTarget: ReplicaTarget, @unchecked Sendable {  // one thread
    weak var world: DriverWorld?
    private(set) var content: PoolContent
    private(set) var checkpoint = SequenceNumber.zero
    private(set) var snapshots: [String: PoolContent] = [:]
    private var incarnation: String?
    private var appended: [(StreamRecord, stamp: UInt64)] = []
    private var staging:
        (id: UInt64, content: PoolContent, synced: PoolContent, highest: SequenceNumber)?
    /// Staged on this connection.
    private var isStaging = false
    /// States it was in, for going back.
    private var past: [(SequenceNumber, PoolContent, [String: PoolContent])] = []
    /// Those that it had before it went back: they are not sent twice.
    private(set) var lostSnapshots: Set<String> = []
    private var violation: Violation?
    var failsNext = false
    /// Called once, when hashes are asked for.
    var whenHashed: (() -> Void)?
    /// The same for a flush, before it is answered.
    var whenFlushed: (() -> Void)?
    /// The same for connecting, and for the beginning of a staging.
    var whenConnected: (() -> Void)?
    var whenStaging: (() -> Void)?
    /// A bug built in: what was staged already is taken for what a cut has, and is not replaced by it.
    var takesNewerForClean = false
    private var stagedPlaces: Set<[Int]> = []
    /// Blocks that came otherwise than in the stream.
    private(set) var stagedBlocks = 0

    init(_ content: PoolContent) { self.content = content }

    func check() throws {
        if let violation { throw violation }
        guard let shown = world?.history[checkpoint] else {
            throw Violation("it is at \(checkpoint.rawValue), which never was")
        }
        guard shown == content else {
            throw Violation(
                "at \(checkpoint.rawValue) it shows \(content), the pool showed \(shown)")
        }
    }

    /// Its disk is an older copy of itself.
    func goBack(_ random: inout SeededRandom) {
        guard staging == nil, !past.isEmpty else { return }
        let index = random.below(past.count)
        lostSnapshots.formUnion(snapshots.keys)
        (checkpoint, content, snapshots) = past[index]
        past.removeSubrange(index...)
        world?.trace("goes back to \(checkpoint.rawValue)")
        appended = []
        failsNext = true
    }

    private func begin() throws(TargetError) {
        guard failsNext else { return }
        failsNext = false
        if let world, world.random.chance(50) { losePower(&world.random) }
        throw TargetError(.io, "it fails")
    }

    /// Of what was not synced any part may be gone; of the stream, what came last.
    private func losePower(_ random: inout SeededRandom) {
        appended.removeLast(random.below(appended.count + 1))
        guard var lost = staging else { return }
        for image in lost.content.indices {
            for block in lost.content[image].indices where random.chance(50) {
                lost.content[image][block] = lost.synced[image][block]
            }
        }
        staging = random.chance(30) ? nil : lost
        world?.trace("loses power, \(staging == nil ? "and the staging" : "not the staging")")
    }

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        try begin()
        isStaging = false
        flushAppended()
        whenConnected?()
        whenConnected = nil
        return ReplicaReport(
            incarnationID: incarnation, generation: nil, checkpoint: checkpoint,
            snapshots: [], staging: staging.map { .init(id: $0.id, durableBatch: 0) })
    }

    func append(_ batch: RecordBatch) throws(TargetError) {
        try begin()
        batch.forEach { record, payload in
            appended.append((record, payload.isEmpty ? 0 : payload.load(as: UInt64.self)))
        }
        world?.changeSometimes(20)
    }

    var durableThrough: SequenceNumber? { nil }

    func flush() throws(TargetError) -> SequenceNumber {
        try begin()
        flushAppended()
        whenFlushed?()
        whenFlushed = nil
        world?.changeSometimes(20)
        return checkpoint
    }

    private func flushAppended() {
        if !appended.isEmpty { past.append((checkpoint, content, snapshots)) }
        for (record, stamp) in appended {
            Self.apply(record, stamp, to: &content)
            checkpoint = record.sequence
            if record.kind == .snapshot {
                world?.trace("took a cut at \(record.sequence.rawValue)")
            }
            if record.kind == .snapshot { noteSnapshot(at: record.sequence) }
        }
        appended = []
    }

    private func noteSnapshot(at sequence: SequenceNumber) {
        if let name = world?.snapshots.first(where: { $0.sequence == sequence })?.name {
            snapshots[name] = content
        }
    }

    private static func apply(
        _ record: StreamRecord, _ stamp: UInt64, to content: inout PoolContent
    ) {
        guard record.kind == .data || record.kind == .zero else { return }
        for block in record.range.start..<record.range.end {
            content[DriverWorld.index(record.image)][Int(block)] = stamp
        }
    }

    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        whenStaging?()
        whenStaging = nil
        try begin()
        flushAppended()
        if staging?.id != id {
            staging = (id, content, content, .zero)
            stagedPlaces = []
        }
        staging?.highest = .zero
        isStaging = true
        world?.changeSometimes(30)
    }

    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try begin()
        guard var open = staging, isStaging else { throw TargetError(.io, "there is no staging") }
        batch.forEach { record, payload in
            let stamp = payload.isEmpty ? 0 : payload.load(as: UInt64.self)
            if !takesNewerForClean || !isPassedOver(record) {
                Self.apply(record, stamp, to: &open.content)
            }
            open.highest = max(open.highest, record.sequence)
            stagedBlocks += Int(record.range.count)
        }
        staging = open
        world?.changeSometimes(20)
    }

    /// Read from a snapshot, in place of something that may be newer.
    private func isPassedOver(_ record: StreamRecord) -> Bool {
        guard record.kind == .data || record.kind == .zero else { return false }
        let places = (record.range.start..<record.range.end).map {
            [DriverWorld.index(record.image), Int($0)]
        }
        let isOfCut = world?.snapshots.contains { $0.sequence == record.sequence } ?? false
        if isOfCut, places.contains(where: stagedPlaces.contains) { return true }
        stagedPlaces.formUnion(places)
        return false
    }

    func syncStaging() throws(TargetError) {
        try begin()
        if let content = staging?.content { staging!.synced = content }
        world?.changeSometimes(20)
    }

    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try begin()
        guard let done = staging, done.id == id, isStaging else {
            throw TargetError(.io, "there is no such staging")
        }
        if done.highest > sequence {
            violation = Violation(
                "it was given \(done.highest.rawValue) and is committed at \(sequence.rawValue)")
        }
        past.append((checkpoint, content, snapshots))
        content = done.content
        checkpoint = sequence
        incarnation = world?.hello.incarnationID
        staging = nil
        isStaging = false
        if let snapshot { snapshots[snapshot.name] = content }
        world?.trace("committed at \(sequence.rawValue) \(snapshot?.name ?? "")")
    }

    func blockHashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64] {
        try begin()
        defer {
            whenHashed?()
            whenHashed = nil
        }
        return content[DriverWorld.index(image)].hashes(range)
    }

    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] { content.written }
    // A session never asks for these.
    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) { throw TargetError(.io, "stamps are no blocks") }
    func shape() throws(TargetError) -> PoolShape { throw TargetError(.io, "stamps are no blocks") }
    func disconnect() { isStaging = false }
}
