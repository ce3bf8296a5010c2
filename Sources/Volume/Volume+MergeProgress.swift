import BlockCore
import Pool
import SystemIO

extension Volume {
    /// What merges have still to move, at most: the smaller side of each pair of layers. For progress.
    package func pendingMergeBytes() throws(VolumeError) -> UInt64 {
        let candidates = try mergeCandidates(try read { try $0.layers() })
        return candidates.reduce(0) { total, pair in
            total + min(allocatedBytes(of: pair.lower), allocatedBytes(of: pair.upper))
        }
    }

    private func allocatedBytes(of row: LayerRecord) -> UInt64 {
        let path = store.dataPath(image: row.imageID, layer: row.id)
        return ((try? disk.status(path)) ?? nil)?.allocatedBytes ?? 0
    }
}
