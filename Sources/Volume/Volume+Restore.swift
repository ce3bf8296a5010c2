// Restore and clone: a new head whose parent is any sealed layer. Nothing is copied.
//
//              what is done                           it fails         the power goes
//   prepare    the new head: row, files, synced; the  taken back       row without children, removed
//              regions that differ marked (G3)
//   commit     the new head, the pending snapshot     taken back       the new head is kept; the snapshot
//              that keeps the old one, its nodes: in                   of the old one is completed
//              one transaction
//   switch     pointers in memory under the cut lock, cannot fail      as commit
//              the targets told
//   settle     the old head committed and sealed      image latched    as commit
//   complete   targets secured; the snapshot, in one  overdue: done    as commit
//              transaction                            when it can be
//
// A clone has no switch: its one commit makes it an image. Taken back, overdue: Volume+TakingBack.swift.

import BlockCore
import Pool
import SystemIO

extension Volume {
    /// Gives the image the content of a sealed layer at once. What it had stays as a snapshot of
    /// this one image, named `keepAs`.
    ///
    /// What fails before the catalog's one transaction is taken back. From it on, the restore goes forward
    /// only: writes to the new head may be flushed before it is complete. That transaction therefore
    /// holds all that the next open needs to complete it.
    package func restore(
        image id: ImageID, to layer: LayerID, sizeBytes: UInt64, keepAs: String,
        nodes: [NodeRecord]
    ) throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            try requireUnfenced()
            try settleOverdue()
            let image = try image(id)
            try refuseTaken(keepAs)
            try requireShown(layer)
            noteWrites()
            defer { endNotes() }
            let new = try prepareRestore(image, to: layer, sizeBytes, keepAs: keepAs, nodes: nodes)
            var record = new.record
            core.cut.lockWrite()
            record.sequence = cutPlace(record)
            let cut = Cut(
                image: image, newHead: new.head, slot: new.slot, sealedID: image.topLayer.id,
                lowerID: image.lowerHead, sizeBytes: image.sizeBytes)
            image.replaceChain(
                new.chain, head: new.head, slot: new.slot, below: layer, sizeBytes: sizeBytes,
                sequence: record.sequence)
            announceRestored(image, new.differing)
            core.cut.unlock()
            try image.flush()
            try completeRestore(record, cut, nodes)
        }
        background.wake()
    }

    private struct PreparedRestore {
        var chain: LayerChain
        var head: Layer
        var slot: LayerSlot
        var differing: BlockSet
        var record: SnapshotRecord
    }

    private func prepareRestore(
        _ image: Image, to layer: LayerID, _ sizeBytes: UInt64, keepAs: String, nodes: [NodeRecord]
    ) throws(VolumeError) -> PreparedRestore {
        var made = Prepared()
        do throws(VolumeError) {
            let row = try insertLayer(
                LayerRecord(imageID: image.id, parentID: layer), imageSizeBytes: sizeBytes, &made)
            let rows = Dictionary(
                uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
            let (chain, head, slot) = try buildChain(to: row.id, rows: rows)
            let differing = try markChanged(image, to: layer, rows: rows, sizeBytes: sizeBytes)
            let replaced = nodes.map { node in
                SnapshotNode(node: node, layerID: image.topLayer.id, sizeBytes: image.sizeBytes)
            }
            let draft = SnapshotRecord(
                name: keepAs, createdNs: disk.now(), sequence: core.sequence, state: .pending,
                origin: SnapshotRecord.restoreOrigin)
            let record = try commit { tx in
                try tx.setHead(image.id, row.id)
                let pending = try tx.insertSnapshot(draft)
                try tx.insertSnapshotNodes(pending.id, replaced)
                return pending
            }
            return PreparedRestore(
                chain: chain, head: head, slot: slot, differing: differing, record: record)
        } catch {
            takeBack(made)
            throw error
        }
    }

    private func completeRestore(
        _ record: SnapshotRecord, _ cut: Cut, _ nodes: [NodeRecord]
    ) throws(VolumeError) {
        var failure: VolumeError?
        bringToEnd("completing the restore that keeps '\(record.name)'") {
            [unowned self] () throws(VolumeError) in
            do throws(VolumeError) {
                try secure(upTo: core.sequence)
                try complete(record, cuts: [cut], nodes: nodes)
                failure = nil
            } catch {
                failure = error
                throw error
            }
        }
        guard let failure else { return }
        throw VolumeError(
            failure.kind, image: cut.image.id, errno: failure.errno,
            "the image is restored, and what it had is kept; snapshot '\(record.name)', which has it, "
                + "is shown when this is mended or the pool is opened again: \(failure.message)")
    }

    /// Marks the regions that a restore changes, durably, before it does (G3). What is written to the
    /// old head from here on marks itself, and nothing is settled under the structure lock.
    private func markChanged(
        _ image: Image, to layer: LayerID, rows: [LayerID: LayerRecord], sizeBytes: UInt64
    ) throws(VolumeError) -> BlockSet {
        try image.flush()
        let changed = try differingBlocks(image.topLayer.id, layer, rows: rows)
        var regions = Set(
            changed.ranges.flatMap { range in
                Int(
                    range.start / Geometry.blocksPerRegion)...Int(
                        (range.end - 1) / Geometry.blocksPerRegion)
            })
        let (low, high) = (min(image.sizeBytes, sizeBytes), max(image.sizeBytes, sizeBytes))
        if low < high {
            let (first, last) = (low >> Geometry.regionShift, (high - 1) >> Geometry.regionShift)
            regions.formUnion(Int(first)...Int(last))
        }
        try VolumeError.system(image.id) { () throws(SystemError) in
            try image.activity.activate(regions.sorted())
        }
        return changed
    }

    /// A new image whose content is a sealed layer's; nothing is copied. What fails is taken back.
    package func clone(layer: LayerID, sizeBytes: UInt64) throws(VolumeError) -> Image {
        try structure.withLock { () throws(VolumeError) in
            try requireUnfenced()
            try requireShown(layer)
            var made = Prepared()
            let image: Image
            let content: BlockSet
            do throws(VolumeError) {
                (image, content) = try makeClone(of: layer, sizeBytes, &made)
            } catch {
                takeBack(made)
                throw error
            }
            announce(image, blocks: content)
            // No region is marked for it: what targets lack of it has to be durable another way.
            do throws(VolumeError) { try secure(upTo: core.sequence) } catch {
                removeClone(image.id)
                throw error
            }
            return image
        }
    }

    /// One that everybody knows of already.
    private func removeClone(_ id: ImageID) {
        bringToEnd("removing a clone") { [unowned self] () throws(VolumeError) in
            try commit { try $0.markImageDeleted(id) }
            withdraw(id)
            try? collectGarbage()
        }
    }

    private func makeClone(
        of layer: LayerID, _ sizeBytes: UInt64, _ made: inout Prepared
    ) throws(VolumeError) -> (Image, BlockSet) {
        let id = try commit { try $0.insertImage() }
        made.image = id
        let row = try insertLayer(
            LayerRecord(imageID: id, parentID: layer), imageSizeBytes: sizeBytes, &made)
        let rows = Dictionary(
            uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
        let (chain, head, slot) = try buildChain(to: row.id, rows: rows)
        let activity = try VolumeError.system(id) { () throws(SystemError) in
            try ActivityLog.create(disk: disk, path: store.activityPath(image: id))
        }
        // Whoever attaches a target meanwhile asks for all there is after this.
        let content = core.stream == nil ? BlockSet() : try blocksDiffering(from: nil, to: layer)
        try commit { try $0.setHead(id, row.id) }
        let image = makeImage(
            id, activity: activity, chain: chain, head: head, slot: slot, below: layer,
            sizeBytes: sizeBytes, modifiedNs: disk.now())
        return (image, content)
    }

    private func insertLayer(
        _ record: LayerRecord, imageSizeBytes: UInt64, _ made: inout Prepared
    ) throws(VolumeError) -> LayerRecord {
        var row = record
        row.id = try commit { try $0.insertLayer(record) }
        made.rows.append(row)
        put(try createLayerFiles(row, imageSizeBytes: imageSizeBytes, sequence: core.sequence))
        return row
    }
}
