import BlockCore
import Pool
import Replication
import Volume

enum BlockHashes {
    private static let pieceBlocks: UInt64 = 256
    private static let zeroHash = [UInt8](repeating: 0, count: Int(Geometry.blockSizeBytes))
        .withUnsafeBytes { blockHash($0) }

    /// - Parameters:
    ///   - toleratesRot: a block that fails its checksum is unlike any other, instead of an error.
    ///   - read: reads at an offset; what it leaves out (past the end, or an image that is not
    ///     there) is zeros.
    static func of(
        _ range: BlockRange, toleratesRot: Bool = false,
        read: (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int
    ) throws(TargetError) -> [UInt64] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(pieceBlocks * Geometry.blockSizeBytes), alignment: 4096)
        defer { buffer.deallocate() }
        var hashes: [UInt64] = []
        hashes.reserveCapacity(Int(range.count))
        var block = range.start
        while block < range.end {
            let piece = BlockRange(start: block, count: min(pieceBlocks, range.end - block))
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(piece.lengthBytes)])
            do throws(VolumeError) {
                try append(part, at: piece.startByte, to: &hashes, read)
            } catch {
                guard toleratesRot, error.kind == .checksum else { throw TargetError(error) }
                try appendSound(part, at: piece.startByte, to: &hashes, read)
            }
            block = piece.end
        }
        return hashes
    }

    private static func append(
        _ part: UnsafeMutableRawBufferPointer, at offset: UInt64, to hashes: inout [UInt64],
        _ read: (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int
    ) throws(VolumeError) {
        let got = try read(part, offset)
        let blockBytes = Int(Geometry.blockSizeBytes)
        let whole = (got + blockBytes - 1) / blockBytes * blockBytes
        UnsafeMutableRawBufferPointer(rebasing: part[got..<whole])
            .initializeMemory(as: UInt8.self, repeating: 0)
        for start in stride(from: 0, to: whole, by: blockBytes) {
            hashes.append(
                blockHash(UnsafeRawBufferPointer(rebasing: part[start..<start + blockBytes])))
        }
        hashes += repeatElement(zeroHash, count: (part.count - whole) / blockBytes)
    }

    /// Block by block, so that only those that do not verify are left out.
    private static func appendSound(
        _ part: UnsafeMutableRawBufferPointer, at offset: UInt64, to hashes: inout [UInt64],
        _ read: (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int
    ) throws(TargetError) {
        let blockBytes = Int(Geometry.blockSizeBytes)
        for start in stride(from: 0, to: part.count, by: blockBytes) {
            let block = UnsafeMutableRawBufferPointer(rebasing: part[start..<start + blockBytes])
            do throws(VolumeError) {
                try append(block, at: offset + UInt64(start), to: &hashes, read)
            } catch {
                guard error.kind == .checksum else { throw TargetError(error) }
                hashes.append(unreadableBlockHash)
            }
        }
    }
}
