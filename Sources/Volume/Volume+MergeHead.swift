// Merging a live head with the sealed layer below it, while it is read and written.
//
// Up: L's blocks that the head U does not have enter U, as a guest's write of them would.
//
//   read      L's blocks, held against their checksums; L never changes    (no lock)
//   enter     under their stripes, those still found in L: data written,   crash: U's map does not name
//             noted, indexed; a write that came first has won              them, L has them
//   flush     the image's: data, then map                                  crash: as above, or in both
//   grace, punch, finish                                                   as for sealed layers
//
// Down: L becomes the head again, and U, on top of it, drains into it (Image's V5). L is nobody
// else's, so that a write goes straight to it; a block that U has moves down first where it is not
// written whole. U never grows again.
//
//   unseal    L's checksums removed, durably; L's row unsealed             crash: L is sealed at open
//   switch    pointers alone, under the cut lock                           (memory only)
//   enter     U's blocks in L, under their stripes: data written,          crash: U hides them still
//             noted in L, noted absent in U, indexed
//   flush     L's data and map, and only then U's map                      crash: L's are shown when
//             (for every flush of the image meanwhile)                     U's map is durable
//   grace, punch U                                                         as for sealed layers
//   finish    the catalog names L the head; U's row and files go           crash: either side
//   switch    the index need not be followed for a plain file any more     (memory only)
//
// The size of the image, while U drains: the newer of the two maps' last commits; a plain file has
// the size of the image at every moment. A snapshot seals L and U: they go on as sealed layers, downward.

import BlockCore
import Pool
import SystemIO

extension Volume {
    // MARK: Up

    func pullUp(
        _ merge: Merge, _ image: Image, lower: Layer, upper: Layer
    ) throws(VolumeError) {
        try image.flush()
        let batch = try firstBatch(of: try remaining(merge, lower: lower, upper: upper))
        if batch.isEmpty { return try finishUp(merge, lower: lower) }
        try enter(batch, from: lower, in: image)
        core.epochs.synchronize()
        punch(batch, in: lower)
    }

    /// Blocks that are still found in `source` enter the image's head, durably.
    private func enter(
        _ batch: [MapExtent], from source: Layer, in image: Image
    ) throws(VolumeError) {
        guard let slot = image.chain.slot(of: source) else {
            throw VolumeError(
                .damaged, image: image.id, "layer \(source.id.rawValue) is not in its chain")
        }
        for extent in batch {
            if extent.state == .zero {
                try image.enterZeros(extent.range)
            } else {
                try VolumeError.wrapping(image.id) { () throws(LayerError) in
                    try withBlocks(of: source, in: extent.range) {
                        (part, bytes, _) throws(LayerError) in
                        do throws(SystemError) {
                            try image.enter(part, bytes, from: slot)
                        } catch { throw .system(error) }
                    }
                }
            }
        }
        try image.flush()
        image.keepModified()
    }

    // MARK: Down

    func drain(
        _ merge: Merge, _ image: Image, lower: Layer, upper: Layer
    ) throws(VolumeError) {
        if image.draining == nil { return try beginDraining(merge, image, lower: lower) }
        try image.flush()
        let batch = try firstBatch(of: try remaining(merge, lower: lower, upper: upper))
        if batch.isEmpty { return try finishDraining(merge, image, lower: lower, upper: upper) }
        try enter(batch, from: upper, in: image)
        core.epochs.synchronize()
        punch(batch, in: upper)
    }

    private func beginDraining(
        _ merge: Merge, _ image: Image, lower: Layer
    ) throws(VolumeError) {
        try image.flush()
        lower.setSums(nil)
        try VolumeError.system(image.id) { () throws(SystemError) in
            let path = store.sumsPath(image: lower.imageID, layer: lower.id)
            guard try disk.status(path) != nil else { return }
            try disk.removeFile(path)
            try disk.syncDirectory(store.imageDirectory(lower.imageID))
        }
        var row = merge.lower
        row.isSealed = false
        let unsealed = row
        try commit { try $0.updateLayer(unsealed) }
        // A flush under way would commit what U loses from here on before what L got (V5).
        try image.flush { () throws(VolumeError) in
            try image.beginDraining(into: lower, below: merge.lower.parentID)
        }
    }

    private func finishDraining(
        _ merge: Merge, _ image: Image, lower: Layer, upper: Layer
    ) throws(VolumeError) {
        try commit { tx in
            try tx.replaceReferences(to: merge.upper.id, with: merge.lower.id)
            try tx.deleteMerges(naming: merge.upper.id)
            try tx.deleteLayer(merge.upper.id)
        }
        core.cut.withWrite { image.endDraining() }
        discard(merge.upper, upper)
        image.keepModified()
    }

    // MARK: Plain again

    /// A base with a map becomes a plain file: what the map does not call data becomes a hole, the
    /// file gets the image's size, and then the map goes. Nobody writes any more.
    ///
    ///   punch, truncate, sync     crash: what the map names is as it was
    ///   the map removed, synced   crash: with the map or without, the content is the same
    ///
    /// Where it fails, on a store without holes for one, the map stays and nothing is worse.
    func makePlain(_ image: Image) {
        let head = image.head
        guard head.map != nil, image.layerBelowHead == nil, image.draining == nil else { return }
        do throws(VolumeError) { try removeMap(of: head, in: image) } catch {
            log.warning("image \(image.id.rawValue) stays one layer with a map: \(error.message)")
        }
    }

    private func removeMap(of head: Layer, in image: Image) throws(VolumeError) {
        try VolumeError.wrapping(image.id) { () throws(LayerError) in
            let path = store.mapPath(image: head.imageID, layer: head.id)
            let named = try LayerContents.read(disk: disk, path: path, layer: head.id)
            var rest = try LayerContents.ofRoot(head.data).data
            rest.subtract(named.data)
            do throws(SystemError) {
                for range in rest.ranges {
                    try head.data.punchHole(at: range.startByte, length: range.lengthBytes)
                }
                try head.data.truncate(to: image.sizeBytes)
                image.keepModified()
                do throws(SystemError) { try head.data.sync() } catch {
                    // What it was to keep may be gone, and no later sync would say so.
                    image.latch(VolumeError(error, image: image.id))
                    throw error
                }
                try disk.removeFile(path)
                try disk.syncDirectory(store.imageDirectory(head.imageID))
            } catch { throw .system(error) }
        }
    }
}

extension Image {
    /// Blocks of another layer of the chain enter the head, but for those that are not found in
    /// that layer any more: a write came first.
    func enter(
        _ range: BlockRange, _ bytes: UnsafeRawBufferPointer, from slot: LayerSlot
    ) throws(SystemError) {
        core.cut.lockRead()
        stripes.lock(range)
        defer {
            stripes.unlock(range)
            core.cut.unlock()
        }
        var block = range.start
        while block < range.end {
            let (found, count) = chain.index.run(at: block, limit: range.end - block)
            if found == slot {
                let run = BlockRange(start: block, count: count)
                let from = Int(run.startByte - range.startByte)
                try writeBlocks(
                    UnsafeRawBufferPointer(
                        rebasing: bytes[from..<from + Int(run.lengthBytes)]),
                    at: run.startByte, imageEnd: sizeBytes)
                try noteInHead(run)
            }
            block += count
        }
    }

    /// Zeros that another layer says become the head's, but for blocks that were written since.
    func enterZeros(_ range: BlockRange) throws(VolumeError) {
        var block = range.start
        while block < range.end {
            let part = BlockRange(start: block, count: min(range.end - block, 1 << 18))
            core.cut.lockRead()
            stripes.lock(part)
            defer {
                stripes.unlock(part)
                core.cut.unlock()
            }
            var next = part.start
            while next < part.end {
                let (found, count) = chain.index.run(at: next, limit: part.end - next)
                if found == .zero {
                    let run = BlockRange(start: next, count: count)
                    do throws(SystemError) { try zeroLocked(run) } catch {
                        throw VolumeError(error, image: id)
                    }
                }
                next += count
            }
            block = part.end
        }
    }

    /// The layer below becomes the head, for good. A plain file gets the image's size.
    func beginDraining(into lower: Layer, below: LayerID?) throws(VolumeError) {
        guard let slot = chain.slot(of: lower) else {
            throw VolumeError(
                .damaged, image: id, "layer \(lower.id.rawValue) is not in its chain")
        }
        core.cut.lockWrite()
        defer { core.cut.unlock() }
        if lower.map == nil {
            try VolumeError.system(id) { () throws(SystemError) in
                try lower.data.truncate(to: sizeBytes)
            }
        }
        drain(into: lower, slot: slot, below: below)
    }

    /// The head's file time stays that of the last write: a merge is none.
    func keepModified() {
        let ns = modifiedNs
        if ns > 0 { try? head.data.setTimes(accessNs: ns, modifyNs: ns) }
    }
}
