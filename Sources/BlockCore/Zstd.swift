// Zstandard, for what travels: whole frames of bytes, each by itself. The one user of the library.

import CZstd

/// Whether what is sent is compressed.
package enum CompressionChoice: String, Sendable, CaseIterable, Codable {
    /// Where it pays.
    case auto
    case on
    case off
}

/// Its memory, about a megabyte, is taken with the first use and used again.
package final class ZstdCompressor {
    /// Of the fast ones: what a line gains by more is lost by the time that it takes.
    private static let level: Int32 = 1
    private let context: UnsafeMutableRawPointer

    /// - Returns: nil where there is no memory.
    package init?() {
        guard let context = doppel_zstd_compressor(Self.level) else { return nil }
        self.context = context
    }
    deinit { doppel_zstd_compressor_free(context) }

    /// Three runs of bytes, as if they were one.
    /// - Returns: how long the result is, in `target`; nil where it does not fit in wholly.
    package func compress(
        _ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer,
        _ third: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
    ) -> Int? {
        let count = doppel_zstd_compress(
            context, target.baseAddress, target.count, first.baseAddress, first.count,
            second.baseAddress, second.count, third.baseAddress, third.count)
        return count == 0 ? nil : count
    }
}

package final class ZstdDecompressor {
    package enum Problem: Int32, Error, Sendable {
        case notOneFrame = 1
        case otherLength = 2
        case damaged = 3
    }
    private let context: UnsafeMutableRawPointer

    /// - Returns: nil where there is no memory.
    package init?() {
        guard let context = doppel_zstd_decompressor() else { return nil }
        self.context = context
    }
    deinit { doppel_zstd_decompressor_free(context) }

    /// Takes no memory, whatever the frame says: all it makes goes into `target`, which it has to fill.
    package func decompress(
        _ frame: UnsafeRawBufferPointer, into target: UnsafeMutableRawBufferPointer
    ) throws(Problem) {
        let result = doppel_zstd_decompress(
            context, target.baseAddress, target.count, frame.baseAddress, frame.count)
        guard result == 0 else { throw Problem(rawValue: result) ?? .damaged }
    }
}
