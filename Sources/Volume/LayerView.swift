import BlockCore
import Pool
import SystemIO

/// A sealed layer as a whole image: what a snapshot's file shows. It never changes.
package class LayerView: @unchecked Sendable {  // constants; OverlayView says when it changes
    private let length: UInt64
    package var sizeBytes: UInt64 { length }
    let chain: LayerChain

    init(sizeBytes: UInt64, chain: LayerChain) {
        length = sizeBytes
        self.chain = chain
    }

    /// - Returns: bytes read; short only at the end.
    package func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(VolumeError) -> Int {
        guard offset < sizeBytes, buffer.count > 0 else { return 0 }
        let count = Int(min(UInt64(buffer.count), sizeBytes - offset))
        let ticket = chain.epochs.enter()
        defer { chain.epochs.leave(ticket) }
        do throws(LayerError) {
            try chain.read(
                into: UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count]), at: offset)
        } catch { throw VolumeError(error) }
        return count
    }

    package func seekData(from offset: UInt64) throws(VolumeError) -> UInt64? {
        try seek(data: true, from: offset)
    }

    /// The end of the file counts as a hole; nil past it.
    package func seekHole(from offset: UInt64) throws(VolumeError) -> UInt64? {
        guard offset < sizeBytes else { return nil }
        return try seek(data: false, from: offset) ?? sizeBytes
    }

    private func seek(data: Bool, from offset: UInt64) throws(VolumeError) -> UInt64? {
        let ticket = chain.epochs.enter()
        defer { chain.epochs.leave(ticket) }
        return try VolumeError.wrapping { () throws(LayerError) in
            try chain.seek(data: data, from: offset, sizeBytes: sizeBytes)
        }
    }

    package func allocatedBytes() -> UInt64 {
        min(allocated(chain.layers), (sizeBytes + 4095) & ~4095)
    }
}

func allocated(_ layers: [Layer]) -> UInt64 {
    layers.reduce(0) { $0 + ((try? $1.data.status().allocatedBytes) ?? 0) }
}
