// Space back at once when a snapshot goes: blocks that nobody can see any more.
//
// The lower layer L is sealed, shown by no snapshot, and its one child U is a live head. Where U
// has a block, L's is hidden from everybody.
//
//   flush     U's map is durable                       crash: nothing was punched
//   sums      L's are removed, durably                 crash: L is not covered, which status shows
//   absent    L's map (a root has none) forgets them   crash: L has data that its map does not name
//   grace     readers from before U had them have left
//   punch                                              crash: a hole more or less, nobody reads it

import BlockCore
import Pool
import SystemIO

extension Volume {
    /// Pairs whose upper layer is a live image's head.
    func headPairs(_ rows: [LayerRecord]) throws(VolumeError) -> [(pair: MergePair, image: Image)] {
        let (kept, images) = try read { (try $0.layersReferencedBySnapshots(), try $0.images()) }
        let heads = Set(images.filter { !$0.isDeleted }.compactMap(\.headLayerID))
        let children = Dictionary(grouping: rows.filter { $0.parentID != nil }) { $0.parentID! }
        return rows.compactMap { lower in
            guard lower.isSealed, !kept.contains(lower.id), !heads.contains(lower.id),
                let only = children[lower.id], only.count == 1, heads.contains(only[0].id),
                let image = allImages.first(where: { $0.head.id == only[0].id })
            else { return nil }
            return (MergePair(lower: lower, upper: only[0]), image)
        }
    }

    /// Frees what heads hide. The caller holds the structure lock.
    func freeHiddenBlocks() throws(VolumeError) {
        for (pair, image) in try headPairs(try read { try $0.layers() }) {
            guard let lower = layer(pair.lower.id) else { continue }
            try image.flush()
            let above = try contents(of: pair.upper, layer: image.head)
            let below = try contents(of: pair.lower, layer: lower)
            var visible = below.data
            visible.subtract(above.data)
            visible.subtract(above.zero)
            var hidden = below.data
            hidden.subtract(visible)
            guard !hidden.isEmpty else { continue }
            try beginMerge(pair, lower, image.head)
            if lower.map != nil { try forget(hidden, in: lower, sizeBytes: pair.lower.sizeBytes) }
            core.epochs.synchronize()
            for range in hidden.ranges {
                try? lower.data.punchHole(at: range.startByte, length: range.lengthBytes)
            }
        }
    }

    private func forget(
        _ blocks: BlockSet, in layer: Layer, sizeBytes: UInt64
    ) throws(VolumeError) {
        let sequence = core.sequence
        try VolumeError.wrapping(layer.imageID) { () throws(LayerError) in
            do throws(SystemError) {
                for range in blocks.ranges { try layer.note(range, .absent) }
            } catch { throw .system(error) }
            _ = try layer.commit(imageSizeBytes: sizeBytes, sequence: sequence, seal: true)
        }
    }
}
