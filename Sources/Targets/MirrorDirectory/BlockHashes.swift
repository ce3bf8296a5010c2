import BlockCore
import Pool
import Replication
import Volume

enum BlockHashes {
    private static let pieceBlocks: UInt64 = 256

    /// - Parameter read: reads at an offset; what it leaves out (past the end, or an image that is not
    ///   there) is zeros.
    static func of(
        _ range: BlockRange,
        read: (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int
    ) throws(TargetError) -> [UInt64] {
        let blockBytes = Int(Geometry.blockSizeBytes)
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(pieceBlocks) * blockBytes, alignment: 4096)
        defer { buffer.deallocate() }
        var hashes: [UInt64] = []
        hashes.reserveCapacity(Int(range.count))
        var block = range.start
        while block < range.end {
            let piece = BlockRange(start: block, count: min(pieceBlocks, range.end - block))
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(piece.lengthBytes)])
            let got = try TargetError.volume { () throws(VolumeError) in
                try read(part, piece.startByte)
            }
            UnsafeMutableRawBufferPointer(rebasing: part[got...])
                .initializeMemory(as: UInt8.self, repeating: 0)
            for start in stride(from: 0, to: part.count, by: blockBytes) {
                hashes.append(
                    blockHash(UnsafeRawBufferPointer(rebasing: part[start..<start + blockBytes])))
            }
            block = piece.end
        }
        return hashes
    }
}
