import BlockCore
import Replication
import Volume

extension RecordBuffer {
    /// Appends blocks of an image as records: data where there is any, zero where there is none, and
    /// nothing of what is behind the image's end.
    /// - Parameter read: bytes at an offset; fewer only at the image's end.
    func append(
        _ range: BlockRange, of image: ImageID, sizeBytes: UInt64, at sequence: SequenceNumber,
        read: (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int
    ) throws(TargetError) {
        let endBlock = Geometry.blockCount(sizeBytes: sizeBytes)
        guard range.start < endBlock else { return }
        let inside = BlockRange(start: range.start, count: min(range.count, endBlock - range.start))
        try TargetError.volume { () throws(VolumeError) in
            try append(blocks: inside, of: image, sizeBytes: sizeBytes, at: sequence) {
                (buffer) throws(VolumeError) in try read(buffer, inside.startByte)
            }
        }
    }
}
