// What a raw mirror has, for who compares it, pulls from it or copies it.

import BlockCore
import Pool
import Replication
import SystemIO

extension RawMirror {
    /// Of the files as they are now: what is staged is in them.
    package func blockHashes(
        of image: ImageID, in range: BlockRange
    ) throws(TargetError) -> [UInt64] {
        try guarded { (_) throws(TargetError) in try files.hashes(of: image, in: range) }
    }

    package func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try guarded { (_) throws(TargetError) in try files.allocatedBlocks() }
    }

    package func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        try guarded { (_) throws(TargetError) in
            try files.read(
                image,
                into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(range.lengthBytes)]),
                at: range.startByte)
        }
    }

    /// - Throws: `.damaged` where the files are of no one moment of the pool.
    package func shape() throws(TargetError) -> PoolShape {
        try guarded { (tree) throws(TargetError) in
            guard let position, !isPartial else {
                throw TargetError(.damaged, "\(path) is torn: it shows no moment of the pool")
            }
            let entry = try tree.entry()
            return PoolShape(
                sequence: position,
                images: entry.images.sorted { $0.key < $1.key }.map {
                    .init(id: $0, sizeBytes: $1.sizeBytes, modifiedNs: $1.modifyNs)
                }, names: NamesCodec.encode(entry.names))
        }
    }
}
