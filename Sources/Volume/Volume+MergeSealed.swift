// Merging two sealed layers.
//
// A batch, from S to D:
//
//   copy      S's blocks to D, each held against its      crash: D's are not shown: U hides them (down),
//             checksum, which goes with it                or D's map does not name them (up)
//   D durable data and checksums synced, then D's map     crash: both have the same content
//   mark      down: S's map says absent, durably; up, D   crash: as above
//             hides S's blocks
//   index     readers find the blocks in D                (memory only)
//   grace     every older reader has left
//   punch     S's data is freed                           crash: a hole more or less, nobody reads it
//   finish    the catalog gives D the place and the       crash: either side of one transaction; files
//             children; S's files go                      without rows are swept at open

import BlockCore
import Pool
import SystemIO

extension Volume {
    func move(_ merge: Merge, lower: Layer, upper: Layer) throws(VolumeError) {
        let isUp = merge.direction == .up
        let (source, target) = isUp ? (lower, upper) : (upper, lower)
        let moving = try remaining(merge, lower: lower, upper: upper)
        let batch = try firstBatch(of: moving)
        if batch.isEmpty {
            return isUp
                ? try finishUp(merge, lower: lower) : try finishDown(merge, upper: upper)
        }
        try prepareSums(from: source, to: target)
        for extent in batch { try copy(extent, from: source, to: target) }
        let sequence = core.sequence
        try VolumeError.wrapping(merge.upper.imageID) { () throws(LayerError) in
            try target.coveringSums?.sync()
            _ = try target.commit(
                imageSizeBytes: max(
                    target.map?.lastCommit?.imageSizeBytes ?? 0, merge.upper.sizeBytes),
                sequence: sequence, seal: true)
        }
        if !isUp { try mark(batch, absentIn: source) }
        reindex(batch.map(\.range), from: source, to: target)
        core.epochs.synchronize()
        punch(batch, in: source)
    }

    /// The checksums of moved blocks have a place to go to, and what is not covered is shown so.
    private func prepareSums(from source: Layer, to target: Layer) throws(VolumeError) {
        try VolumeError.wrapping(target.imageID) { () throws(LayerError) in
            if source.coveringSums != nil, target.coveringSums == nil {
                target.setSums(
                    try SumsFile.create(
                        disk: disk, path: store.sumsPath(image: target.imageID, layer: target.id),
                        layer: target.id))
            }
            if source.coveringSums?.isComplete != true {
                try target.coveringSums?.setComplete(false)
            }
        }
    }

    private func copy(
        _ extent: MapExtent, from source: Layer, to target: Layer
    ) throws(VolumeError) {
        let range = extent.range
        try VolumeError.wrapping(target.imageID) { () throws(LayerError) in
            if extent.state == .zero {
                // A base without a map says zero by a hole, which is read there.
                try target.coveringSums?.clear(range)
            } else {
                try withBlocks(of: source, in: range) { (part, bytes, hashes) throws(LayerError) in
                    do throws(SystemError) {
                        try target.data.write(bytes, at: part.startByte)
                    } catch { throw .system(error) }
                    try target.coveringSums?.set(hashes, startingAt: part.start)
                }
            }
            do throws(SystemError) {
                if extent.state == .zero {
                    try target.data.punchHole(at: range.startByte, length: range.lengthBytes)
                }
                try target.note(range, extent.state)
            } catch { throw .system(error) }
        }
    }

    /// A sealed layer's map forgets blocks that are elsewhere.
    private func mark(_ batch: [MapExtent], absentIn layer: Layer) throws(VolumeError) {
        guard let size = layer.map?.lastCommit?.imageSizeBytes else { return }
        let sequence = core.sequence
        try VolumeError.wrapping(layer.imageID) { () throws(LayerError) in
            do throws(SystemError) {
                for extent in batch { try layer.note(extent.range, .absent) }
            } catch { throw .system(error) }
            _ = try layer.commit(imageSizeBytes: size, sequence: sequence, seal: true)
        }
    }

    /// Every chain that finds these blocks in `source` finds them in `target` from now on.
    private func reindex(_ ranges: [BlockRange], from source: Layer, to target: Layer) {
        for image in allImages {
            let chain = image.chain
            guard let old = chain.slot(of: source), let new = chain.slot(of: target) else {
                continue
            }
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
            guard let old = view.chain.slot(of: source), let new = view.chain.slot(of: target)
            else { continue }
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
    private func finishDown(_ merge: Merge, upper: Layer) throws(VolumeError) {
        var row = merge.lower
        row.sizeBytes = merge.upper.sizeBytes
        row.sealedSequence = merge.upper.sealedSequence
        let merged = row
        try commit { tx in
            try tx.updateLayer(merged)
            try tx.replaceReferences(to: merge.upper.id, with: merge.lower.id)
            try tx.deleteMerges(naming: merge.upper.id)
            try tx.deleteLayer(merge.upper.id)
        }
        for image in allImages { image.layerMerged(merge.upper.id, into: merge.lower.id) }
        moveViews(of: merge.upper.id, to: merge.lower.id)
        discard(merge.upper, upper)
    }
}
