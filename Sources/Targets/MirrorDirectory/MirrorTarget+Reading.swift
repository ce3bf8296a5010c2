// What a primary reads of its mirror: hashes to compare by, and, after a crash, blocks, sizes and names.

import BlockCore
import Pool
import Replication
import Volume

extension MirrorTarget {
    private typealias Reader =
        (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int

    /// The checkpoint under a staging that was not begun on this connection.
    private func checkpointView(_ pool: MirrorPool) throws(TargetError) -> MirrorView? {
        guard staging == nil, pool.state.staging != nil else { return nil }
        if comparing == nil { comparing = try pool.newestView() }
        return comparing
    }

    /// What is in the journal alone is written when it is applied.
    private func applyJournal(_ pool: MirrorPool) throws(TargetError) {
        if staging == nil, try pool.flush() != pool.state.appliedSequence { try pool.applyAll() }
    }

    /// - Returns: reads the image; 0 bytes of one that is not there.
    private func reader(of id: ImageID, _ pool: MirrorPool) throws(TargetError) -> Reader {
        if let view = try checkpointView(pool) {
            let node = view.nodes.first { $0.node.imageID == id }
            let content = try node.flatMap { (node) throws(TargetError) in try view.open(node) }
            return { (buffer, offset) throws(VolumeError) in
                try content?.read(into: buffer, at: offset) ?? 0
            }
        }
        try applyJournal(pool)
        let image = pool.volume.hasImage(id) ? try? pool.volume.image(id) : nil
        return { (buffer, offset) throws(VolumeError) in
            try image?.read(into: buffer, at: offset) ?? 0
        }
    }

    package func blockHashes(
        of id: ImageID, in range: BlockRange
    ) throws(TargetError) -> [UInt64] {
        try guarded { (pool) throws(TargetError) in
            let read = try reader(of: id, pool)
            return try BlockHashes.of(range, toleratesRot: true) {
                (buffer, offset) throws(VolumeError) in try read(buffer, offset)
            }
        }
    }

    package func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try guarded { (pool) throws(TargetError) in
            if pool.state.staging == nil {
                _ = try pool.flush()
                try pool.applyAll()
            }
            return try pool.allocatedBlocks()
        }
    }

    package func read(
        _ range: BlockRange, of id: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        try guarded { (pool) throws(TargetError) in
            let read = try reader(of: id, pool)
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(range.lengthBytes)])
            let got = try TargetError.volume { () throws(VolumeError) in
                try read(part, range.startByte)
            }
            UnsafeMutableRawBufferPointer(rebasing: part[got...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    package func shape() throws(TargetError) -> PoolShape {
        try guarded { (pool) throws(TargetError) in
            if let view = try checkpointView(pool) {
                return PoolShape(
                    sequence: view.sequence,
                    images: view.nodes.compactMap { node in
                        node.node.imageID.map {
                            .init(
                                id: $0, sizeBytes: node.sizeBytes, modifiedNs: node.node.modifyNs)
                        }
                    }, names: NamesCodec.encode(view.nodes.map { .put($0.node) }))
            }
            try applyJournal(pool)
            return try TargetError.volume { () throws(VolumeError) in
                let volume = pool.volume
                var images: [PoolShape.Image] = []
                for id in volume.imageIDs {
                    let image = try volume.image(id)
                    images.append(
                        .init(id: id, sizeBytes: image.sizeBytes, modifiedNs: image.modifiedNs))
                }
                return PoolShape(
                    sequence: pool.checkpoint, images: images,
                    names: NamesCodec.encode(try volume.catalogNodes().map { .put($0) }))
            }
        }
    }
}
