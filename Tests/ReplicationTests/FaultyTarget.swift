// A target that fails as it is told to; for tests alone.

import BlockCore
import Replication
import TestSupport
import Testing

/// What goes wrong, once, at the n-th operation of a kind.
struct TargetFault: Sendable, Hashable, CustomTestStringConvertible {
    enum Operation: String, CaseIterable, Sendable {
        case connect, append, flush, beginStaging, stage, syncStaging, commitStaging, blockHashes
        case allocatedBlocks, disconnect
    }
    enum Kind: String, CaseIterable, Sendable {
        /// It is done, and takes long: less than the timeout, or more.
        case delay
        /// It never arrives.
        case drop
        /// It is done, and the answer never arrives.
        case dropAnswer
        /// It arrives and is refused: a full disk.
        case error
        /// Nothing happens for longer than anybody waits, and then it fails.
        case stall
        /// A batch arrives in part.
        case tear
        /// What comes back is not what was asked for.
        case corrupt
    }
    var kind: Kind
    var operation: Operation
    var number: Int

    var testDescription: String { "\(kind) at \(operation) \(number)" }

    /// Only what can be.
    var isPossible: Bool {
        switch kind {
        case .tear: operation == .append || operation == .stage
        case .corrupt: operation == .blockHashes || operation == .allocatedBlocks
        // Letting go fails in no way that anybody hears of.
        case .drop, .dropAnswer, .error: operation != .disconnect
        case .delay, .stall: true
        }
    }
}

final class FaultyTarget: ReplicaTarget, @unchecked Sendable {  // one thread
    private let target: any ReplicaTarget
    private let fault: TargetFault
    /// Time goes by.
    private let wait: (_ ms: Int64) -> Void
    private let timeoutMs: Int64
    private var counts: [TargetFault.Operation: Int] = [:]
    private(set) var hasStruck = false

    init(
        _ target: any ReplicaTarget, _ fault: TargetFault, timeoutMs: Int64,
        wait: @escaping (_ ms: Int64) -> Void
    ) {
        self.target = target
        self.fault = fault
        self.timeoutMs = timeoutMs
        self.wait = wait
    }

    /// - Returns: whether it goes wrong now.
    private func strikes(_ operation: TargetFault.Operation) -> Bool {
        counts[operation, default: 0] += 1
        guard !hasStruck, operation == fault.operation, counts[operation] == fault.number else {
            return false
        }
        hasStruck = true
        return true
    }

    private func perform<T>(
        _ operation: TargetFault.Operation, _ body: () throws(TargetError) -> T,
        torn: () throws(TargetError) -> Void = {}, corrupt: (T) -> T = { $0 }
    ) throws(TargetError) -> T {
        guard strikes(operation) else { return try body() }
        switch fault.kind {
        case .delay:
            wait(timeoutMs / 2 + timeoutMs * Int64(fault.number % 2))
            return try body()
        case .drop: throw TargetError(.absent, "it does not answer")
        case .dropAnswer:
            _ = try body()
            throw TargetError(.absent, "its answer is lost")
        case .error: throw TargetError(.noSpace, "it is full")
        case .stall:
            wait(timeoutMs * 3)
            throw TargetError(.io, "it hung")
        case .tear:
            try torn()
            throw TargetError(.io, "the connection broke")
        case .corrupt: return corrupt(try body())
        }
    }

    /// The first half of a batch, record by record.
    private func half(_ batch: RecordBatch, _ body: (RecordBatch) throws(TargetError) -> Void)
        throws(TargetError)
    {
        let piece = batch.pieces[0]
        var ends: [(end: Int, sequence: SequenceNumber)] = []
        var position = 0
        while position < piece.count,
            let record = StreamRecord(
                decoding: UnsafeRawBufferPointer(rebasing: piece[position...]))
        {
            position += record.totalBytes
            ends.append((position, record.sequence))
        }
        guard ends.count > 1 else { return }
        let last = ends[ends.count / 2 - 1]
        try body(
            RecordBatch(
                pieces: [UnsafeRawBufferPointer(rebasing: piece[..<last.end])],
                firstSequence: batch.firstSequence, lastSequence: last.sequence))
    }

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        try perform(.connect) { () throws(TargetError) in try target.connect(hello) }
    }
    func append(_ batch: RecordBatch) throws(TargetError) {
        try perform(
            .append, { () throws(TargetError) in try target.append(batch) },
            torn: { () throws(TargetError) in
                try half(batch) { (part) throws(TargetError) in try target.append(part) }
            })
    }
    var durableThrough: SequenceNumber? { target.durableThrough }
    func flush() throws(TargetError) -> SequenceNumber {
        try perform(.flush) { () throws(TargetError) in try target.flush() }
    }
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try perform(.beginStaging) { () throws(TargetError) in
            try target.beginStaging(id: id, shape: shape)
        }
    }
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try perform(
            .stage, { () throws(TargetError) in try target.stage(batch, number: number) },
            torn: { () throws(TargetError) in
                try half(batch) { (part) throws(TargetError) in
                    try target.stage(part, number: number)
                }
            })
    }
    func syncStaging() throws(TargetError) {
        try perform(.syncStaging) { () throws(TargetError) in try target.syncStaging() }
    }
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try perform(.commitStaging) { () throws(TargetError) in
            try target.commitStaging(id: id, at: sequence, snapshot: snapshot)
        }
    }
    func blockHashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64] {
        try perform(
            .blockHashes,
            { () throws(TargetError) in try target.blockHashes(of: image, in: range) },
            corrupt: { $0.dropLast($0.count / 2).map { $0 ^ 1 } })
    }
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try perform(
            .allocatedBlocks, { () throws(TargetError) in try target.allocatedBlocks() },
            // More than there is costs time; less would be a lie that nobody can find out.
            corrupt: { $0.mapValues { _ in BlockSet([BlockRange(start: 0, count: 100)]) } })
    }
    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) { try target.read(range, of: image, into: buffer) }
    func shape() throws(TargetError) -> PoolShape { try target.shape() }
    func disconnect() {
        let isStruck = strikes(.disconnect)
        if isStruck { wait(fault.kind == .stall ? timeoutMs * 3 : timeoutMs / 2) }
        target.disconnect()
    }
}
