// What waits to be sent on one connection, in order, in pieces that one write takes. What is put in is copied, once:
// encryption makes the bytes of the line anyway, and records lie in a ring that goes on.

import NIOCore
import Replication

struct OutgoingBytes {
    /// Many small messages are one write; a long one lets others of the same thread have their turn.
    private static let chunkBytes = 256 << 10
    private static let leastBytes = 512
    private var chunks: [ByteBuffer] = []
    private var next = 0

    var isEmpty: Bool { next == chunks.count }

    mutating func put(_ pieces: [WirePiece]) {
        var leftBytes = pieces.reduce(0) { $0 + $1.count }
        for piece in pieces {
            piece.withBytes { put($0, leftBytes: leftBytes) }
            leftBytes -= piece.count
        }
    }

    private mutating func put(_ bytes: UnsafeRawBufferPointer, leftBytes: Int) {
        var (rest, leftBytes) = (bytes, leftBytes)
        while !rest.isEmpty {
            if isEmpty || chunks[chunks.count - 1].readableBytes >= Self.chunkBytes {
                let capacity = min(max(leftBytes, Self.leastBytes), Self.chunkBytes)
                chunks.append(ByteBufferAllocator().buffer(capacity: capacity))
            }
            let last = chunks.count - 1
            let count = min(rest.count, Self.chunkBytes - chunks[last].readableBytes)
            chunks[last].writeBytes(UnsafeRawBufferPointer(rebasing: rest[..<count]))
            rest = UnsafeRawBufferPointer(rebasing: rest[count...])
            leftBytes -= count
        }
    }

    mutating func put(all other: inout OutgoingBytes) {
        if isEmpty {
            swap(&self, &other)
            other.drop()
            return
        }
        chunks += other.chunks[other.next...]
        other.drop()
    }

    mutating func take() -> ByteBuffer? {
        guard !isEmpty else { return nil }
        var chunk = ByteBuffer()
        swap(&chunk, &chunks[next])
        next += 1
        if isEmpty { drop() }
        return chunk
    }

    mutating func drop() {
        chunks.removeAll(keepingCapacity: true)
        next = 0
    }
}
