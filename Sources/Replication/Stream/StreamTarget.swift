import BlockCore
import SystemIO

/// Blocks that a place in the stream stands for.
struct Barrier: Sendable {
    var blocks: [ImageID: BlockSet]
    var hasNameChanges: Bool
}

/// Where one target stands in the write stream; all of it is under the stream's lock.
final class StreamTarget {
    private(set) var isStreaming = false
    /// The ring is held from here on while it streams.
    private(set) var cursor: UInt64 = 0
    /// What it said it holds durably.
    private(set) var durable: SequenceNumber
    /// Records before were given to the consumer.
    private(set) var taken: UInt64 = 0
    private(set) var takenSequence = SequenceNumber.zero
    /// Ends of the batches between the cursor and `taken`: where the cursor may go.
    private var batchEnds: [(sequence: SequenceNumber, place: UInt64)] = []
    /// A copy under way reads the ring from here on.
    var pinned = UInt64.max
    /// What it lacks, besides what the ring holds for it.
    var legs: DirtyLegs
    /// By the sequence of their records; those that were not passed.
    var barriers: [UInt64: Barrier] = [:]
    var holdsWriters = false
    private(set) var hasOverflowed = false
    var isInterrupted = false
    /// Its consumer waits for the ready prefix to reach this place.
    var wakeAt = UInt64.max
    private var bytes: UnsafeMutableRawBufferPointer?

    init(legs: DirtyLegs, durable: SequenceNumber) {
        self.legs = legs
        self.durable = durable
    }

    var cursorIfStreaming: UInt64 { isStreaming ? cursor : .max }

    func begin(at place: UInt64, after sequence: SequenceNumber) {
        isStreaming = true
        hasOverflowed = false
        cursor = place
        taken = place
        takenSequence = sequence
        batchEnds = []
        barriers = [:]
    }

    func stop(hasOverflowed: Bool) {
        isStreaming = false
        self.hasOverflowed = hasOverflowed
        batchEnds = []
        barriers = [:]
    }

    func take(upTo sequence: SequenceNumber, end: UInt64) {
        taken = end
        takenSequence = sequence
        batchEnds.append((sequence, end))
    }

    /// The cursor goes to the last batch that ends at or before the sequence.
    func acknowledge(_ sequence: SequenceNumber) {
        durable = max(durable, sequence)
        if isStreaming { release(upTo: sequence) }
    }

    func end(ofBatchesUpTo sequence: SequenceNumber) -> UInt64 {
        batchEnds.last { $0.sequence <= sequence }?.place ?? cursor
    }

    func release(upTo sequence: SequenceNumber) {
        let count = batchEnds.prefix { $0.sequence <= sequence }.count
        if count > 0 { cursor = batchEnds[count - 1].place }
        batchEnds.removeFirst(count)
    }

    func buffer(_ count: Int) -> UnsafeMutableRawBufferPointer {
        if let bytes, bytes.count >= count { return bytes }
        freeBuffer()
        let new = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 4096)
        bytes = new
        return new
    }

    private func freeBuffer() {
        bytes?.deallocate()
        bytes = nil
    }
    deinit { freeBuffer() }
}
