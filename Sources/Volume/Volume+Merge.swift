// Merging a layer that no snapshot needs any more with the only layer on top of it.
//
// The lower layer L is sealed, no snapshot shows it, and U is its one child. U's blocks hide L's,
// so L's hidden blocks may be overwritten by nobody's notice: U's blocks are moved down into L,
// a batch at a time, and whoever showed U shows L when U is empty.
//
//   copy      U's blocks to L                         crash: U still hides them
//   L durable data synced, then L's map               crash: as above
//   mark      U's map says absent, durably            crash: both have the same content
//   index     readers find them in L                  (memory only)
//   grace     every older reader has left
//   punch     U's data is freed                       crash: a hole more or less, nobody reads it
//   finish    the catalog gives U's name and children crash: either side of one transaction;
//             to L; U's files go                      files without rows are swept at open
//
// U is sealed here. A head is merged only while nobody writes (`flattenHeads`, for ejecting).

import BlockCore
import Pool
import SystemIO

extension Volume {
    struct MergePair {
        var lower: LayerRecord
        var upper: LayerRecord
    }

    /// Blocks moved between two syncs.
    private static var batchBlocks: UInt64 { 16 << 10 }

    func mergeCandidates(_ rows: [LayerRecord]) throws(VolumeError) -> [MergePair] {
        let (kept, images) = try read { (try $0.layersReferencedBySnapshots(), try $0.images()) }
        let heads = Set(images.filter { !$0.isDeleted }.compactMap(\.headLayerID))
        let children = Dictionary(grouping: rows.filter { $0.parentID != nil }) { $0.parentID! }
        return rows.compactMap { lower in
            guard lower.isSealed, !kept.contains(lower.id), !heads.contains(lower.id),
                let only = children[lower.id], only.count == 1, only[0].isSealed,
                !heads.contains(only[0].id)
            else { return nil }
            return MergePair(lower: lower, upper: only[0])
        }
    }

    /// How many layers wait to be merged away; for status.
    package func pendingMerges() throws(VolumeError) -> Int {
        try mergeCandidates(try read { try $0.layers() }).count
    }

    /// Moves one batch of one merge, or finishes one.
    package func mergeStep() throws(VolumeError) -> Bool {
        try structure.withLock { () throws(VolumeError) in
            let rows = try read { try $0.layers() }
            for pair in try mergeCandidates(rows) {
                // What does not open stays as it is, and keeps no other merge waiting.
                guard try openedLayer(pair.lower, rows: rows) != nil,
                    try openedLayer(pair.upper, rows: rows) != nil
                else { continue }
                try move(pair)
                return true
            }
            return false
        }
    }

    private func move(_ pair: MergePair) throws(VolumeError) {
        guard let lower = layer(pair.lower.id), let upper = layer(pair.upper.id),
            let upperMap = upper.map
        else {
            throw VolumeError(.damaged, "layer \(pair.upper.id.rawValue) is not open")
        }
        try beginMerge(pair, lower, upper)
        let contents = try contents(of: pair.upper, layer: upper)
        let batch = Self.firstBatch(of: contents)
        if batch.isEmpty { return try finish(pair, lower: lower, upper: upper) }
        for extent in batch { try copyDown(extent, from: upper, to: lower) }
        let sequence = core.sequence
        try VolumeError.wrapping(pair.upper.imageID) { () throws(LayerError) in
            _ = try lower.commit(
                imageSizeBytes: max(
                    lower.map?.lastCommit?.imageSizeBytes ?? 0, pair.upper.sizeBytes),
                sequence: sequence, seal: true)
            do throws(SystemError) {
                for extent in batch { try upper.note(extent.range, .absent) }
            } catch { throw .system(error) }
            _ = try upper.commit(
                imageSizeBytes: upperMap.lastCommit!.imageSizeBytes, sequence: sequence, seal: true)
        }
        reindex(batch.map(\.range), from: upper, to: lower)
        core.epochs.synchronize()
        for extent in batch where extent.state == .data {
            try? upper.data.punchHole(at: extent.range.startByte, length: extent.range.lengthBytes)
        }
    }

    /// From here on a torn tail of the two maps is no damage, and neither layer has checksums: the
    /// lower one's content changes where it is hidden, the upper one's goes away.
    func beginMerge(
        _ pair: MergePair, _ lower: Layer, _ upper: Layer
    ) throws(VolumeError) {
        mergingLayers.formUnion([pair.upper.id, pair.lower.id])
        // A view from when a snapshot still showed the lower layer: it is about to be something else.
        forget(view: pair.lower.id)
        let known = try read { try $0.merges() }
        let record = MergeRecord(
            layerID: pair.upper.id, intoLayerID: pair.lower.id, direction: .down)
        if !known.contains(record) { try commit { try $0.setMerge(record) } }
        for (row, layer) in [(pair.lower, lower), (pair.upper, upper)]
        where layer.coveringSums != nil {
            layer.setSums(nil)
            try VolumeError.system(row.imageID) { () throws(SystemError) in
                try disk.removeFile(store.sumsPath(image: row.imageID, layer: row.id))
                try disk.syncDirectory(store.imageDirectory(row.imageID))
            }
        }
    }

    private static func firstBatch(of contents: LayerContents) -> [MapExtent] {
        var batch: [MapExtent] = []
        var left = batchBlocks
        for (ranges, state) in [
            (contents.data.ranges, BlockState.data), (contents.zero.ranges, .zero),
        ] {
            for range in ranges where left > 0 {
                // A zero costs no copy: any length of it fits.
                let count = state == .data ? min(range.count, left) : range.count
                batch.append(
                    MapExtent(range: BlockRange(start: range.start, count: count), state: state))
                left -= min(left, state == .data ? count : 1)
            }
        }
        return batch
    }

    private func copyDown(
        _ extent: MapExtent, from upper: Layer, to lower: Layer
    ) throws(VolumeError) {
        try VolumeError.system(lower.imageID) { () throws(SystemError) in
            if extent.state == .zero {
                try lower.data.punchHole(
                    at: extent.range.startByte, length: extent.range.lengthBytes)
            } else {
                let done = try lower.data.copyRange(
                    from: upper.data, at: extent.range.startByte, to: extent.range.startByte,
                    length: extent.range.lengthBytes)
                if done < extent.range.lengthBytes {
                    // The file ends inside its last block: what follows is zero.
                    try lower.data.punchHole(
                        at: extent.range.startByte + done, length: extent.range.lengthBytes - done)
                }
            }
            try lower.note(extent.range, extent.state)
        }
    }

    /// Every chain that finds these blocks in `upper` finds them in `lower` from now on.
    private func reindex(_ ranges: [BlockRange], from upper: Layer, to lower: Layer) {
        for image in allImages {
            let chain = image.chain
            guard let old = chain.slot(of: upper), let new = chain.slot(of: lower) else { continue }
            for range in ranges {
                var block = range.start
                while block < range.end {
                    let part = BlockRange(start: block, count: min(range.end - block, 1 << 18))
                    core.cut.lockRead()
                    image.stripes.lock(part)
                    Self.replace(old, with: new, in: part, of: chain.index)
                    image.stripes.unlock(part)
                    core.cut.unlock()
                    block = part.end
                }
            }
        }
        for view in allViews {
            guard let old = view.chain.slot(of: upper), let new = view.chain.slot(of: lower) else {
                continue
            }
            for range in ranges { Self.replace(old, with: new, in: range, of: view.chain.index) }
        }
    }

    private static func replace(
        _ old: LayerSlot, with new: LayerSlot, in range: BlockRange, of index: BlockIndex
    ) {
        var block = range.start
        while block < range.end {
            let (slot, count) = index.run(at: block, limit: range.end - block)
            if slot == old { index.set(BlockRange(start: block, count: count), to: new) }
            block += count
        }
    }

    /// The upper layer is empty: the lower one takes its place in the catalog.
    private func finish(_ pair: MergePair, lower: Layer, upper: Layer) throws(VolumeError) {
        var row = pair.lower
        row.sizeBytes = pair.upper.sizeBytes
        row.sealedSequence = pair.upper.sealedSequence
        if !pair.upper.isSealed {
            // It becomes the image's one plain file: its size is the image's, exactly.
            try VolumeError.system(row.imageID) { () throws(SystemError) in
                try lower.data.truncate(to: row.sizeBytes)
                try lower.data.sync()
            }
            row.isSealed = false
        }
        let merged = row
        try commit { tx in
            try tx.updateLayer(merged)
            try tx.replaceReferences(to: pair.upper.id, with: pair.lower.id)
            try tx.deleteMerge(pair.upper.id)
            try tx.deleteLayer(pair.upper.id)
        }
        for image in allImages { image.layerMerged(pair.upper.id, into: pair.lower.id) }
        core.epochs.synchronize()
        retire(view: pair.upper.id)
        for chain in allImages.map(\.chain) + allViews.map(\.chain) {
            if let slot = chain.slot(of: upper) { chain.drop(slot) }
        }
        forget(layer: pair.upper.id)
        removeFiles(of: pair.upper)
    }
}

extension Volume {
    /// Merges every head down into the layer below it where that is the image's own and no snapshot
    /// or clone needs it, so that an image without snapshots is one plain file again. For a pool
    /// that nobody has mounted: afterwards the volume must be closed and opened anew.
    package func flattenHeads() throws(VolumeError) {
        try flushAll()
        while try mergeStep() {}
        while let pair = try headPair() { try move(pair) }
    }

    private func headPair() throws(VolumeError) -> MergePair? {
        let (rows, kept, images) = try read {
            (try $0.layers(), try $0.layersReferencedBySnapshots(), try $0.images())
        }
        let heads = Set(images.filter { !$0.isDeleted }.compactMap(\.headLayerID))
        let children = Dictionary(grouping: rows.filter { $0.parentID != nil }) { $0.parentID! }
        for upper in rows where heads.contains(upper.id) {
            guard let lower = rows.first(where: { $0.id == upper.parentID }), lower.isSealed,
                lower.parentID == nil, !kept.contains(lower.id), !heads.contains(lower.id),
                children[lower.id]?.count == 1, lower.imageID == upper.imageID
            else { continue }
            var upper = upper
            upper.sizeBytes = try image(ofHead: upper.id).sizeBytes
            return MergePair(lower: lower, upper: upper)
        }
        return nil
    }

    private func image(ofHead id: LayerID) throws(VolumeError) -> Image {
        guard let image = allImages.first(where: { $0.head.id == id }) else {
            throw VolumeError(.damaged, "layer \(id.rawValue) is a head of no open image")
        }
        return image
    }
}
