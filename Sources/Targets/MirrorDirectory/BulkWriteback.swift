// What a resync writes goes to the disk as it comes. Gathered in memory, it would be written by the
// kernel all at once, and whoever writes to that disk then, a guest above all, is made to wait for it.

import BlockCore
import Volume

/// How much bulk work does in one system call: on kernels that do not preempt it, this is how long it
/// keeps a processor from a thread that a guest waits for.
enum BulkPiece {
    static let bytes = 128 << 10
}

struct BulkWriteback {
    /// Long enough that the disk writes in sequence, short enough for one system call (``BulkPiece``).
    private static let runBytes: UInt64 = 256 << 10
    private var image: ImageID?
    private var start: UInt64 = 0
    private var end: UInt64 = 0

    /// Runs that are short, here and there, are left to the next sync.
    mutating func note(_ image: Image, at offset: UInt64, length: UInt64) {
        if self.image != image.id || offset != end { (self.image, start) = (image.id, offset) }
        end = offset + length
        guard end - start >= Self.runBytes else { return }
        image.startWriteback(at: start, length: end - start)
        start = end
    }
}
