// Merging a layer that no snapshot needs any more with the only layer on top of it.
//
// The lower layer L is sealed, no snapshot shows it, and U is its one child. Blocks move in the
// cheaper direction, a batch at a time, until one of the two is empty and goes:
//   down   U's blocks to L, which U hides anyway; L then stands where U stood
//   up     L's blocks that U does not hide to U; U then stands on L's parent
// The direction is chosen once and is in the catalog before the first change.
//
// The steps of a batch, and what a crash between them leaves: Volume+MergeSealed.swift for two sealed
// layers, Volume+MergeHead.swift for a live head and the layer below it.
//
// A base without a map says absent by a hole; U, when it has taken the last of such a base, becomes a
// base with a map, and is made a plain file again when the pool is closed (`makePlain`).

import BlockCore
import Pool
import SystemIO

/// Two layers that can be one.
struct Merge {
    var lower: LayerRecord
    var upper: LayerRecord
    /// The image whose live head `upper` is (or drains); nil for sealed layers.
    var image: Image?
    /// nil as long as nothing was changed.
    var direction: MergeRecord.Direction?

    func names(_ layers: Set<LayerID>) -> Bool {
        layers.contains(lower.id) || layers.contains(upper.id)
    }
}

extension Volume {
    /// Pairs that can be merged, those that were begun first.
    func mergeCandidates(_ rows: [LayerRecord]) throws(VolumeError) -> [Merge] {
        let (kept, images, records) = try read {
            (try $0.layersReferencedBySnapshots(), try $0.images(), try $0.merges())
        }
        let heads = Set(images.filter { !$0.isDeleted }.compactMap(\.headLayerID))
        let children = Dictionary(grouping: rows.filter { $0.parentID != nil }) { $0.parentID! }
        let live = allImages
        let pairs = rows.compactMap { lower -> Merge? in
            guard !kept.contains(lower.id), !heads.contains(lower.id),
                let only = children[lower.id], only.count == 1
            else { return nil }
            let upper = only[0]
            let direction = records.first {
                ($0.layerID, $0.intoLayerID) == (upper.id, lower.id) && $0.direction == .down
                    || ($0.layerID, $0.intoLayerID) == (lower.id, upper.id) && $0.direction == .up
            }?.direction
            let image = live.first { $0.topLayer.id == upper.id }
            // A layer that drains has made the lower one a head again.
            guard lower.isSealed || image?.lowerHead == lower.id || direction == .down else {
                return nil
            }
            if heads.contains(upper.id) {
                // What is latched takes no more changes.
                guard let image, image.latchedFailure == nil else { return nil }
                return Merge(lower: lower, upper: upper, image: image, direction: direction)
            }
            guard upper.isSealed, lower.isSealed else { return nil }
            return Merge(lower: lower, upper: upper, image: nil, direction: direction)
        }
        return pairs.filter { $0.direction != nil } + pairs.filter { $0.direction == nil }
    }

    /// How many layers wait to be merged away; for status.
    package func pendingMerges() throws(VolumeError) -> Int {
        try mergeCandidates(try read { try $0.layers() }).count
    }

    /// Moves one batch of one merge, or begins or finishes one.
    /// - Returns: false when nothing can be done now.
    package func mergeStep() throws(VolumeError) -> Bool {
        try structure.withLock { () throws(VolumeError) in
            guard try orWait({ () throws(VolumeError) in try settleOverdue() }) else {
                return false
            }
            let rows = try read { try $0.layers() }
            for merge in try mergeCandidates(rows) where !merge.names(stoppedLayers) {
                do throws(VolumeError) {
                    // Half of the reserve: writers may take what it is lent, again and again, and what a
                    // deletion needs has to be there still.
                    guard
                        try withRoom(
                            lending: .half, { () throws(VolumeError) in try advance(merge, rows) })
                    else { continue }
                    isMergeWaiting = false
                    return true
                } catch {
                    // The disk is full: the merge waits for space, and its writers are left alone.
                    guard error.kind == .noSpace else {
                        stop(merge, error)
                        continue
                    }
                    waitForRoom(error)
                    return false
                }
            }
            isMergeWaiting = false
            return false
        }
    }

    /// - Returns: false on a full disk.
    private func orWait(_ body: () throws(VolumeError) -> Void) throws(VolumeError) -> Bool {
        do throws(VolumeError) { try body() } catch {
            guard error.kind == .noSpace else { throw error }
            waitForRoom(error)
            return false
        }
        return true
    }

    /// - Returns: false for layers that do not open, and while somebody has the lower one open as it
    ///   is.
    private func advance(_ merge: Merge, _ rows: [LayerRecord]) throws(VolumeError) -> Bool {
        guard let lower = try openedLayer(merge.lower, rows: rows),
            let upper = try openedLayer(merge.upper, rows: rows)
        else { return false }
        if merge.direction == nil, isPinned(lower, below: upper) {
            background.retryLater()
            return false
        }
        let merge = try begin(merge, lower, upper)
        switch (merge.direction!, merge.image) {
        case (.up, let image?): try pullUp(merge, image, lower: lower, upper: upper)
        case (.down, let image?): try drain(merge, image, lower: lower, upper: upper)
        case (_, nil): try move(merge, lower: lower, upper: upper)
        }
        return true
    }

    private func waitForRoom(_ error: VolumeError) {
        background.retryLater()
        if isMergeWaiting { return }
        isMergeWaiting = true
        tell("merge-waits", subject: store.path, error.message)
    }

    /// Until the next open. What does not have its checksum stays where it is, and reads of it fail.
    private func stop(_ merge: Merge, _ error: VolumeError) {
        stoppedLayers.insert(merge.lower.id)
        stoppedLayers.insert(merge.upper.id)
        let isDamage = error.kind == .checksum || error.kind == .damaged
        tell(
            isDamage ? "damaged" : "merge-stopped",
            subject: "image \(merge.lower.imageID.rawValue)",
            "layers of a deleted snapshot were not merged, nothing is lost: \(error.message); "
                + (isDamage ? "run `doppel scrub`" : "tried again when the pool is next opened"))
    }

    func tell(_ kind: String, subject: String, _ message: String) {
        log.warning("\(kind), \(subject): \(message)")
        _ = try? commit { tx in
            try tx.addEvent(
                EventRecord(atNs: disk.now(), kind: kind, subject: subject, message: message))
        }
    }

    // MARK: Beginning

    /// From here on a torn tail of the two maps is no damage, and the direction stands.
    func begin(_ merge: Merge, _ lower: Layer, _ upper: Layer) throws(VolumeError) -> Merge {
        mergingLayers.formUnion([merge.upper.id, merge.lower.id])
        // What it was to cover changes; it is looked at anew after the merge.
        if coverage?.layer === lower || coverage?.layer === upper { coverage = nil }
        if merge.direction != nil { return merge }
        if let image = merge.image {
            // The upper map's commit is the newest there is; whoever merges relies on its size.
            image.noteMerge()
            image.noteSize()
            try image.flush()
        }
        let above = try contents(of: merge.upper, layer: upper)
        let below = try contents(of: merge.lower, layer: lower)
        let isUp = below.visibleData(below: above).count < above.data.count
        let record = MergeRecord(
            layerID: isUp ? merge.lower.id : merge.upper.id,
            intoLayerID: isUp ? merge.upper.id : merge.lower.id, direction: isUp ? .up : .down)
        try commit { try $0.setMerge(record) }
        var begun = merge
        begun.direction = record.direction
        return begun
    }

    // MARK: Batches

    /// What is left to move in the merge's direction, as far as it is durable.
    func remaining(_ merge: Merge, lower: Layer, upper: Layer) throws(VolumeError) -> LayerContents
    {
        let above = try contents(of: merge.upper, layer: upper)
        if merge.direction == .down { return above }
        var below = try contents(of: merge.lower, layer: lower)
        below.data = below.visibleData(below: above)
        below.zero.subtract(above.data)
        below.zero.subtract(above.zero)
        // Below a base there is nothing that a zero would have to hide.
        if merge.lower.parentID == nil { below.zero = BlockSet() }
        return below
    }

    /// - Throws: `.noSpace` when the disk is too full to hold a batch twice.
    func firstBatch(of contents: LayerContents) throws(VolumeError) -> [MapExtent] {
        var batch: [MapExtent] = []
        var left = options.mergeBatchBlocks
        if !contents.data.isEmpty { left = min(left, try affordableBlocks()) }
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

    /// Writers go first: a batch takes at most a quarter of what is left.
    private func affordableBlocks() throws(VolumeError) -> UInt64 {
        let available = try VolumeError.system { () throws(SystemError) in
            try disk.fileSystemStatus(store.path).availableBytes
        }
        let blocks = (available / 4) >> Geometry.blockShift
        guard blocks >= 16 else {
            throw VolumeError(
                .noSpace,
                "the disk of \(store.path) is full: layers of deleted snapshots are merged when "
                    + "there is space again")
        }
        return blocks
    }

    /// Hands out the blocks of a range, verified, in pieces of 256 KiB, with their checksums.
    func withBlocks(
        of layer: Layer, in range: BlockRange,
        _ body: (BlockRange, UnsafeRawBufferPointer, UnsafeBufferPointer<UInt64>)
            throws(LayerError) -> Void
    ) throws(LayerError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 64 * 4096, alignment: 4096)
        let hashes = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: 64)
        defer {
            buffer.deallocate()
            hashes.deallocate()
        }
        hashes.initialize(repeating: 0)
        var block = range.start
        while block < range.end {
            let part = BlockRange(start: block, count: min(range.end - block, 64))
            let bytes = UnsafeMutableRawBufferPointer(
                rebasing: buffer[0..<Int(part.lengthBytes)])
            let sums = UnsafeMutableBufferPointer(rebasing: hashes[0..<Int(part.count)])
            try layer.readBlocks(part, into: bytes, hashes: sums)
            try body(part, UnsafeRawBufferPointer(bytes), UnsafeBufferPointer(sums))
            block = part.end
        }
    }

    /// A failure costs only space, until the layer goes.
    func punch(_ batch: [MapExtent], in layer: Layer) {
        for extent in batch where extent.state == .data {
            try? layer.data.punchHole(at: extent.range.startByte, length: extent.range.lengthBytes)
        }
    }

    // MARK: Finishing

    /// Nothing of the lower layer is left to show: the upper one stands on its parent.
    func finishUp(_ merge: Merge, lower: Layer) throws(VolumeError) {
        var row = merge.upper
        row.parentID = merge.lower.parentID
        let merged = row
        try commit { tx in
            try tx.updateLayer(merged)
            try tx.deleteMerges(naming: merge.lower.id)
            try tx.deleteLayer(merge.lower.id)
        }
        for image in allImages { image.layerMerged(merge.lower.id, into: merge.lower.parentID) }
        discard(merge.lower, lower)
    }

    /// A layer whose row is gone: nobody finds a block in it any more.
    func discard(_ row: LayerRecord, _ layer: Layer) {
        for chain in allImages.map(\.chain) + allViews.map(\.chain) {
            // What is found in the first slot is what nobody has: zeros, from now on.
            guard let slot = chain.slot(of: layer), slot == .root else { continue }
            chain.replace(slot, with: Layer.nothing(image: row.imageID))
        }
        core.epochs.synchronize()
        for chain in allImages.map(\.chain) + allViews.map(\.chain) {
            if let slot = chain.slot(of: layer) { chain.drop(slot) }
        }
        forget(layer: row.id)
        removeFiles(of: row)
    }
}

extension Volume {
    /// Merges all that can be merged, so that an image without snapshots is one layer, which
    /// closing makes a plain file. For a pool that nobody has mounted.
    /// - Throws: when one is left that could be merged and was not: a full disk, damage.
    package func flattenHeads() throws(VolumeError) {
        try flushAll()
        try structure.withLock { () throws(VolumeError) in try settleOverdue() }
        while try mergeStep() {}
        if let left = try mergeCandidates(try read { try $0.layers() }).first {
            throw VolumeError(
                isMergeWaiting ? .noSpace : .io, image: left.upper.imageID,
                isMergeWaiting
                    ? "the disk is too full to merge what deleted snapshots left: make room first"
                    : "what deleted snapshots left could not be merged: "
                        + "see the events of `doppel status`, and run `doppel check`")
        }
    }
}
