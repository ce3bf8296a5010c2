// Rewriting maps that have grown far beyond what they say; the steps are in
// LayerMapFile+Rewriting.swift.

import BlockCore
import Pool
import SystemIO

extension Volume {
    /// Rewrites one map that has become too long.
    package func rewriteNextMap() throws(VolumeError) -> Bool {
        try structure.withLock { () throws(VolumeError) in
            for row in try read({ try $0.layers() }) {
                guard let layer = layer(row.id), let map = layer.map else { continue }
                let bytes = layer.mapRecordBytes
                guard bytes > options.mapRewriteBytes,
                    bytes >= 2 * (mapBytesSeen[row.id] ?? 0), layer.latchedFailure == nil
                else { continue }
                let image = allImages.first { $0.head === layer }
                // A layer that drains, or that a failed cut left, is about to go or to be sealed.
                guard image != nil || row.isSealed, image?.latchedFailure == nil else { continue }
                mapBytesSeen[row.id] = bytes
                if try rewriteMap(of: row, layer, map, image) {
                    mapBytesSeen[row.id] = layer.mapRecordBytes
                    return true
                }
            }
            return false
        }
    }

    private func rewriteMap(
        of row: LayerRecord, _ layer: Layer, _ map: LayerMapFile, _ image: Image?
    ) throws(VolumeError) -> Bool {
        let path = store.mapPath(image: row.imageID, layer: row.id)
        let rewritten = try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
            try LayerMapFile.rewrite(
                disk: disk, path: path, layer: row.id, image: row.imageID,
                unlessAbove: layer.mapRecordBytes / 4)
        }
        guard let rewritten else { return false }
        // The structure lock keeps commits of a sealed layer away, the flush gate those of a head.
        if let image {
            try image.flush { () throws(VolumeError) in
                try put(rewritten, of: layer, map, in: image)
            }
        } else {
            try put(rewritten, of: layer, map, in: nil)
        }
        return true
    }

    private func put(
        _ rewritten: RewrittenMap, of layer: Layer, _ map: LayerMapFile, in image: Image?
    ) throws(VolumeError) {
        var isInDoubt = false
        do throws(LayerError) {
            try map.put(
                rewritten, disk: disk, noted: layer.notedExtents, isInDoubt: &isInDoubt
            ) { layer.adoptMap($0) }
        } catch {
            // Nobody knows which of the two files has the name: nothing may be committed to either.
            if isInDoubt {
                layer.fail(error)
                image?.latch(VolumeError(error, image: image?.id))
            }
            throw VolumeError(error, image: layer.imageID)
        }
    }
}
