// Bodies of frames, compressed: their length, then one frame of Zstandard (docs/wire-protocol.md). Memory and context
// are there once, and used for each.

import BlockCore
import Synchronization

/// Whether what goes to one place is compressed, and what that comes to; over all its sessions.
package final class LineCompression: Sendable {
    private let chosen: Atomic<UInt8>
    private let raw = Atomic<UInt64>(0)
    private let sent = Atomic<UInt64>(0)
    private let compresses = Atomic<Bool>(false)

    package init(_ choice: CompressionChoice = .auto) { chosen = Atomic(Self.number(choice)) }

    /// Holds from the next frame on.
    package var choice: CompressionChoice {
        get { CompressionChoice.allCases[Int(chosen.load(ordering: .relaxed))] }
        set { chosen.store(Self.number(newValue), ordering: .relaxed) }
    }

    private static func number(_ choice: CompressionChoice) -> UInt8 {
        UInt8(CompressionChoice.allCases.firstIndex(of: choice)!)
    }

    package struct Figures: Sendable, Hashable {
        /// Of frames that could have been compressed, and what went over the line for them.
        package var rawBytes: UInt64
        package var sentBytes: UInt64
        /// The last one was that is worth while.
        package var isCompressing: Bool
    }
    package var figures: Figures {
        Figures(
            rawBytes: raw.load(ordering: .relaxed), sentBytes: sent.load(ordering: .relaxed),
            isCompressing: compresses.load(ordering: .relaxed))
    }

    fileprivate func note(raw bytes: Int, sent sentBytes: Int) {
        raw.add(UInt64(bytes), ordering: .relaxed)
        sent.add(UInt64(sentBytes), ordering: .relaxed)
        guard bytes >= CompressionPolicy.leastBytes else { return }
        compresses.store(sentBytes < bytes, ordering: .relaxed)
    }
}

/// Used by one caller at a time.
final class FramePacker {
    let compression: LineCompression
    private var policy = CompressionPolicy()
    private var zstd: ZstdCompressor?
    private var memory = UnsafeMutableRawBufferPointer(start: nil, count: 0)

    init(_ compression: LineCompression) { self.compression = compression }
    deinit { memory.deallocate() }

    private static var empty: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: nil, count: 0)
    }

    /// - Parameters:
    ///   - fields: what stands before the records in the body.
    ///   - line: see ``LineRate/current(nowNs:)``.
    /// - Returns: the compressed body, valid until the next call; nil where it goes as it is.
    func pack(
        _ fields: UnsafeRawBufferPointer, _ records: RecordBatch, line: UInt64?,
        clock: () -> Int64
    ) -> UnsafeRawBufferPointer? {
        guard records.pieces.count <= 2 else { return nil }
        let second = records.pieces.count > 1 ? records.pieces[1] : Self.empty
        let rawBytes = fields.count + records.lengthBytes
        let startNs = clock()
        guard
            policy.wants(
                compression.choice, frameBytes: rawBytes, line: line, nowNs: startNs)
        else {
            compression.note(raw: rawBytes, sent: rawBytes)
            return nil
        }
        let packed = pack(fields, records.pieces.first ?? Self.empty, second, rawBytes)
        let endNs = clock()
        policy.note(
            rawBytes: rawBytes, saved: packed.map { rawBytes - $0.count } ?? 0,
            tookNs: endNs - startNs, line: line, nowNs: endNs)
        compression.note(raw: rawBytes, sent: packed?.count ?? rawBytes)
        return packed
    }

    private func pack(
        _ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer,
        _ third: UnsafeRawBufferPointer, _ rawBytes: Int
    ) -> UnsafeRawBufferPointer? {
        if zstd == nil { zstd = ZstdCompressor() }
        // A little more than it may become: one that does not fit in shorter goes as it is.
        if memory.count < rawBytes {
            memory.deallocate()
            memory = .allocate(byteCount: max(rawBytes, 64 << 10), alignment: 16)
        }
        let place = UnsafeMutableRawBufferPointer(
            rebasing: memory[PackedBody.headBytes..<rawBytes])
        guard let count = zstd?.compress(first, second, third, into: place) else { return nil }
        memory.storeBytes(of: UInt32(rawBytes).littleEndian, toByteOffset: 0, as: UInt32.self)
        memory.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
        return UnsafeRawBufferPointer(rebasing: memory[..<(PackedBody.headBytes + count)])
    }
}
