// An image without layers is one plain file. What is copied in or out of it whole can share blocks with
// the other file, or stay in the kernel, where the file systems can do that.

import BlockCore
import Pool
import SystemIO

extension Image {
    /// One file, no map, nothing beneath: what the file holds at an offset is what the image holds.
    private var isPlainFile: Bool {
        head.map == nil && layerBelowHead == nil && chain.layers.count == 1
    }

    /// Copies a range of a file to the same place of the image. What targets follow has to pass through
    /// memory anyway: it is written like anything else.
    /// - Returns: bytes copied, 0 where the source ends; nil where the image has to be written.
    package func copyIn(
        from source: DiskFile, at offset: UInt64, length: UInt64
    ) throws(VolumeError) -> UInt64? {
        guard length <= Geometry.maxImageSizeBytes, offset <= Geometry.maxImageSizeBytes - length
        else { throw VolumeError(.tooLarge, image: id, "an image ends at 64 TiB") }
        guard length > 0 else { return 0 }
        let blocks = BlockRange(coveringBytesAt: offset, lengthBytes: length)
        try lockForChange(of: blocks)
        defer { unlock(blocks) }
        guard isPlainFile, core.stream == nil else { return nil }
        let done = try VolumeError.system(id) { () throws(SystemError) in
            try head.data.copyRange(from: source, at: offset, to: offset, length: length)
        }
        if done > 0 { grow(to: offset + done) }
        noteChange()
        _ = core.nextSequence()
        return done
    }

    /// The plain file, after all of it was made durable; nil where the image is none. For a pool that
    /// nobody writes to meanwhile: what is read from it passes no lock of ours.
    package func plainFile() throws(VolumeError) -> DiskFile? {
        guard isPlainFile else { return nil }
        try flush()
        return head.data
    }
}
