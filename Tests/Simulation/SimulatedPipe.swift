// A connection on which more is given while something is on its way, as to a machine far away: what was given
// arrives bit by bit, in order, when the driver of it listens. With the connection some of what is on its way goes.

import BlockCore
import Replication
import SystemIO
import TestSupport

final class SimulatedPipe: PipelinedTarget, @unchecked Sendable {  // one thread
    private enum Call {
        case records([[UInt8]], first: SequenceNumber, last: SequenceNumber)
        case flush(SequenceNumber)
    }

    private static let mostCalls = 12
    private unowned let world: SimulatedWorld
    private let link: SimulatedLink
    private var calls: [Call] = []
    private var failure: TargetError?
    private var given = SequenceNumber.zero
    private var said = TargetProgress(written: .zero, durable: .zero, hasRoom: true)
    private var hear: (@Sendable (TargetProgress?) -> Void)?

    init(_ world: SimulatedWorld, _ link: SimulatedLink) {
        self.world = world
        self.link = link
    }

    // MARK: Under way

    func give(_ batch: RecordBatch) throws(TargetError) {
        try requireSound()
        calls.append(
            .records(
                batch.pieces.map { Array($0) }, first: batch.firstSequence,
                last: batch.lastSequence))
        given = batch.lastSequence
        world.count("pipe.given")
        if calls.count > 1 { world.count("pipe.givenBesideOthers") }
    }

    func askFlush() throws(TargetError) {
        try requireSound()
        calls.append(.flush(given))
    }

    var roomBytes: Int { hasRoom ? 1 << 20 : 0 }
    private var hasRoom: Bool { calls.count < Self.mostCalls }

    var progress: TargetProgress {
        if failure == nil { arrive(world.random.below(min(calls.count, 3) + 1)) }
        said.hasRoom = hasRoom
        return said
    }
    var knownFailure: TargetError? { failure }
    func onNews(_ hear: @escaping @Sendable (TargetProgress?) -> Void) { self.hear = hear }

    private func arrive(_ count: Int) {
        guard count > 0 else { return }
        for _ in 0..<count where failure == nil && !calls.isEmpty {
            do throws(TargetError) { try perform(calls.removeFirst()) } catch {
                failure = error
                calls = []
            }
        }
        hear?(failure == nil ? said : nil)
    }

    private func perform(_ call: Call) throws(TargetError) {
        switch call {
        case .records(let pieces, let first, let last):
            let buffer = RecordPieces(pieces)
            try link.append(
                RecordBatch(pieces: buffer.raw, firstSequence: first, lastSequence: last))
            said.written = last
        case .flush(let wanted):
            let through = try link.flush()
            said.durable = max(said.durable, through)
            guard through >= wanted else {
                throw TargetError(.io, "it lacks some of what it took")
            }
        }
    }

    private func requireSound() throws(TargetError) { if let failure { throw failure } }

    /// What is asked for in between comes after what was given before it.
    private func inOrder() throws(TargetError) {
        arrive(calls.count)
        try requireSound()
    }

    // MARK: The rest

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        (calls, failure) = ([], nil)
        let report = try link.connect(hello)
        given = report.checkpoint
        said = TargetProgress(written: given, durable: given, hasRoom: true)
        return report
    }

    func append(_ batch: RecordBatch) throws(TargetError) {
        try inOrder()
        try link.append(batch)
    }
    var durableThrough: SequenceNumber? { said.durable }
    func flush() throws(TargetError) -> SequenceNumber {
        try inOrder()
        return try link.flush()
    }
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try inOrder()
        try link.beginStaging(id: id, shape: shape)
    }
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try link.stage(batch, number: number)
    }
    func syncStaging() throws(TargetError) { try link.syncStaging() }
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try link.commitStaging(id: id, at: sequence, snapshot: snapshot)
    }
    func blockHashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64] {
        try inOrder()
        return try link.blockHashes(of: image, in: range)
    }
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try inOrder()
        return try link.allocatedBlocks()
    }
    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        try inOrder()
        try link.read(range, of: image, into: buffer)
    }
    func shape() throws(TargetError) -> PoolShape {
        try inOrder()
        return try link.shape()
    }

    func disconnect() {
        if failure == nil { arrive(world.random.below(calls.count + 1)) }
        calls = []
        link.disconnect()
    }
}

/// Memory of its own for a batch that is given later.
private final class RecordPieces {
    let raw: [UnsafeRawBufferPointer]

    init(_ pieces: [[UInt8]]) {
        raw = pieces.map { bytes in
            let memory = UnsafeMutableRawBufferPointer.allocate(
                byteCount: bytes.count, alignment: 8)
            memory.copyBytes(from: bytes)
            return UnsafeRawBufferPointer(memory)
        }
    }
    deinit { for piece in raw { piece.deallocate() } }
}
