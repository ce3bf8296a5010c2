import BlockCore
import Replication
import TestSupport

/// A target that notes what it is asked, and has content that is known by its place.
final class LogTarget: ReplicaTarget, @unchecked Sendable {  // one thread
    private(set) var log: [String] = []
    private(set) var isConnected = false
    private(set) var hello: PrimaryHello?
    var checkpoint = sequence(40)
    private var written = sequence(40)
    /// Calls with this in their name fail so.
    var failing: (call: String, error: TargetError)?
    /// The fields of one record after the other, as they came.
    private(set) var taken: [UInt64] = []
    var shapeNames: [UInt8] = [1, 2, 3]

    private func note(_ text: String) throws(TargetError) {
        log.append(text)
        if let failing, text.hasPrefix(failing.call) { throw failing.error }
    }

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        isConnected = true
        self.hello = hello
        try note("connect \(hello.incarnationID)")
        checkpoint = max(checkpoint, written)
        var report = ReplicaReport(
            incarnationID: "i7", generation: hello.generation, checkpoint: checkpoint,
            snapshots: [], staging: nil)
        report.keptAllReceived = true
        return report
    }

    func append(_ batch: RecordBatch) throws(TargetError) {
        try note("append \(batch.firstSequence.rawValue)")
        written = batch.lastSequence
        batch.forEach { record, _ in taken.append(record.sequence.rawValue) }
    }
    var durableThrough: SequenceNumber? { nil }
    func flush() throws(TargetError) -> SequenceNumber {
        try note("flush")
        checkpoint = written
        return checkpoint
    }
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try note("begin \(id), \(shape.names.count) of names")
    }
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try note("stage \(number)")
        batch.forEach { record, _ in taken.append(record.range.start) }
    }
    func syncStaging() throws(TargetError) { try note("sync") }
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try note("commit \(id) at \(sequence.rawValue) as \(snapshot?.name ?? "head")")
        written = sequence
        checkpoint = sequence
    }

    static func hash(_ image: ImageID, _ block: UInt64) -> UInt64 {
        UInt64(bitPattern: image.rawValue) << 40 | block
    }
    /// Every third block is zeros.
    static func byte(_ image: ImageID, _ block: UInt64) -> UInt8 {
        block % 3 == 0 ? 0 : UInt8(truncatingIfNeeded: block &* 7 | 1)
    }

    func blockHashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64] {
        try note("hashes \(range.start)+\(range.count)")
        return (range.start..<range.end).map { Self.hash(image, $0) }
    }
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try note("allocated")
        return WireSamples.blocks
    }
    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        try note("read \(range.start)+\(range.count)")
        for block in range.start..<range.end {
            let start = Int((block - range.start) * Geometry.blockSizeBytes)
            UnsafeMutableRawBufferPointer(rebasing: buffer[start..<start + 4096])
                .initializeMemory(as: UInt8.self, repeating: Self.byte(image, block))
        }
    }
    func shape() throws(TargetError) -> PoolShape {
        try note("shape")
        var shape = WireSamples.shape
        shape.names = shapeNames
        return shape
    }
    func disconnect() {
        isConnected = false
        log.append("disconnect")
    }
}
