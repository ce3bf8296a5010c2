import BlockCore
import Replication
import SystemIO

/// A target that keeps the sequence numbers it took, and whose answers are known by their place.
final class NotedTarget: ReplicaTarget, @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private let changed = Condition()
    private var written: UInt64 = 0
    private var staged: [UInt64] = []
    private var stagedBytes = 0
    private var connects = 0
    private var hangs = false
    private var connected = false

    var stagedNumbers: [UInt64] { lock.withLock { staged } }
    var stagedByteCount: Int { lock.withLock { stagedBytes } }
    var last: UInt64 { lock.withLock { written } }
    var isConnected: Bool { lock.withLock { connected } }
    var connectCount: Int { lock.withLock { connects } }
    func hang(_ isSo: Bool) {
        lock.withLock {
            hangs = isSo
            changed.broadcast()
        }
    }

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        lock.withLock {
            connects += 1
            connected = true
            return ReplicaReport(
                incarnationID: hello.incarnationID, generation: hello.generation,
                checkpoint: SequenceNumber(rawValue: written), snapshots: [], staging: nil)
        }
    }
    func append(_ batch: RecordBatch) throws(TargetError) {
        try lock.withLock { () throws(TargetError) in
            while hangs { changed.wait(lock) }
            guard batch.firstSequence.rawValue == written + 1 else {
                throw TargetError(.io, "\(batch.firstSequence.rawValue) after \(written)")
            }
            written = batch.lastSequence.rawValue
        }
    }
    func flush() throws(TargetError) -> SequenceNumber { SequenceNumber(rawValue: last) }
    var durableThrough: SequenceNumber? { nil }
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {}
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        lock.withLock {
            staged.append(number)
            stagedBytes += batch.lengthBytes
        }
    }
    func syncStaging() throws(TargetError) {}
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) { lock.withLock { written = sequence.rawValue } }
    func blockHashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64] {
        (range.start..<range.end).map { $0 &* 31 }
    }
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] { [:] }
    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        for index in buffer.indices {
            buffer[index] = UInt8(truncatingIfNeeded: Int(range.start) + index / 4096 + 1)
        }
    }
    func shape() throws(TargetError) -> PoolShape {
        PoolShape(sequence: SequenceNumber(rawValue: last), images: [], names: [])
    }
    func disconnect() { lock.withLock { connected = false } }
}

/// Records of one block each, with sequence numbers that follow one another; of a staging, all with the first.
func withBlocks<T>(
    _ first: UInt64, count: Int = 1, block: UInt64 = 0, isStaged: Bool = false,
    _ body: (RecordBatch) throws -> T
) rethrows -> T {
    let buffer = RecordBuffer(capacityBytes: 4096)
    for index in 0..<UInt64(count) {
        buffer.append(
            blocks: BlockRange(start: block + index, count: 1), of: ImageID(rawValue: 1),
            sizeBytes: 1 << 40, at: SequenceNumber(rawValue: isStaged ? first : first + index)
        ) { place in
            for at in place.indices {
                place[at] = UInt8(truncatingIfNeeded: at &* 7 &+ Int(index) &+ 1)
            }
            return place.count
        }
    }
    return try body(buffer.batch)
}
