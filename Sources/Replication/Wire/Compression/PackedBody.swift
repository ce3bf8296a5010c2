// A compressed body, as it arrives.
//
//   offset  bytes
//        0      4  length of what it holds
//        4      4  zero
//        8         one frame of Zstandard, that states the same length
//
// What it says is believed within what its kind may be long, and the sender's credit; only then is memory taken.

import BlockCore

final class PackedBody {
    static let headBytes = 8
    /// A frame of Zstandard with anything in it is longer.
    static let leastBytes = headBytes + 9
    /// What comes is gathered here, frame after frame: at most a frame's length.
    private var memory = UnsafeMutableRawBufferPointer(start: nil, count: 0)
    private var zstd: ZstdDecompressor?

    init() {}
    deinit { memory.deallocate() }

    /// Room for the next one.
    func place(_ count: Int) -> UnsafeMutableRawBufferPointer {
        if memory.count < count {
            memory.deallocate()
            memory = .allocate(byteCount: count, alignment: 16)
        }
        return UnsafeMutableRawBufferPointer(rebasing: memory[..<count])
    }

    /// How long what it holds is.
    func rawBytes(of head: WireHead) throws(WireError) -> Int {
        let count = Int(UInt32(littleEndian: memory.load(as: UInt32.self)))
        guard head.kind.bodyBytes.contains(count), count > head.bodyBytes else {
            throw WireError(
                .length, "packed.length", at: 0,
                "\(count) bytes in \(head.bodyBytes); a body of '\(head.kind)' has \(head.kind.bodyBytes)"
            )
        }
        guard memory.load(fromByteOffset: 4, as: UInt32.self) == 0 else {
            throw WireError(.malformed, "packed.zero", at: 4, "it is not zero")
        }
        return count
    }

    /// Fills all of `target`.
    func unpack(
        _ head: WireHead, into target: UnsafeMutableRawBufferPointer
    ) throws(WireError) {
        if zstd == nil { zstd = ZstdDecompressor() }
        guard let zstd else {
            throw WireError(.limit, "packed.frame", at: 8, "there is no memory to unpack it")
        }
        let frame = UnsafeRawBufferPointer(rebasing: memory[Self.headBytes..<head.bodyBytes])
        do throws(ZstdDecompressor.Problem) { try zstd.decompress(frame, into: target) } catch {
            switch error {
            case .notOneFrame:
                throw WireError(.malformed, "packed.frame", at: 8, "it is not one frame")
            case .otherLength:
                throw WireError(
                    .length, "packed.frame", at: 8, "it does not state \(target.count) bytes")
            case .damaged:
                throw WireError(.malformed, "packed.frame", at: 8, "its content is damaged")
            }
        }
    }
}
