// Snapshots: a cut over all images at one sequence number.
//
//   prepare   new heads: rows, files, synced                    crash: rows without children, removed
//   pending   heads switched and the snapshot pending, in one   crash: the new heads are kept, the old
//             catalog transaction                               ones sealed, the snapshot dropped
//   cut       pointers switched in memory under the cut lock;
//             names, sizes and the sequence taken
//   settle    the old heads are committed and sealed            crash: as pending
//   complete  sealed rows, the snapshot's names, in one         crash: it is there
//             catalog transaction; only now success is returned

import BlockCore
import Pool
import SystemIO

/// Names as they are at the cut: taken under the cut lock (so it must be quick), unfolded after.
package typealias NameCapture = () -> @Sendable () -> [NodeRecord]

extension Volume {
    package func snapshots() throws(VolumeError) -> [SnapshotRecord] {
        try read { try $0.snapshots().filter { $0.state == .complete && !$0.isInternal } }
    }

    package func snapshot(named name: String) throws(VolumeError) -> SnapshotRecord {
        guard let found = try snapshots().first(where: { $0.name == name }) else {
            throw VolumeError(
                .notFound, "there is no snapshot '\(name)'; `doppel snapshot list` shows what is")
        }
        return found
    }

    package func createSnapshot(
        name: String, origin: String = "user", names: NameCapture
    ) throws(VolumeError) -> SnapshotRecord {
        let record = try structure.withLock { () throws(VolumeError) in
            try createSnapshotLocked(name: name, origin: origin, names: names)
        }
        background.wake()
        return record
    }

    private struct Cut {
        var image: Image
        /// The new head; nil where the image did not change since its last cut.
        var newHead: Layer?
        var slot: LayerSlot
        var sealedID: LayerID
        /// The head that a merge had made of a lower layer; it is sealed again, below `sealedID`.
        var lowerID: LayerID?
        var sizeBytes: UInt64 = 0

        /// The layers that this cut seals.
        var sealed: [LayerID] { newHead == nil ? [] : [sealedID] + (lowerID.map { [$0] } ?? []) }
    }

    /// - Parameter place: where a replica's primary made the cut; nil for here and now.
    func createSnapshotLocked(
        name: String, origin: String, at place: SnapshotPlace? = nil, names: NameCapture
    ) throws(VolumeError) -> SnapshotRecord {
        if origin != SnapshotRecord.internalOrigin { try refuseTaken(name) }
        var cuts: [ImageID: Cut] = [:]
        try prepareHeads(of: allImages.filter { !$0.isUnchangedSinceCut }, into: &cuts)
        var record = try commit { tx in
            try tx.insertSnapshot(
                SnapshotRecord(
                    name: name, createdNs: place?.createdNs ?? disk.now(),
                    sequence: core.sequence, state: .pending, origin: origin))
        }
        core.cut.lockWrite()
        while true {
            // An image that was idle a moment ago may have been written since: it needs a head too.
            let late = allImages.filter { !$0.isUnchangedSinceCut && cuts[$0.id] == nil }
            if late.isEmpty { break }
            core.cut.unlock()
            try prepareHeads(of: late, into: &cuts)
            core.cut.lockWrite()
        }
        let sequence = cutPlace(record)
        for image in allImages {
            if var cut = cuts[image.id] {
                cut.sizeBytes = image.sizeBytes
                image.switchHead(to: cut.newHead!, slot: cut.slot, sequence: sequence)
                cuts[image.id] = cut
            } else {
                cuts[image.id] = Cut(
                    image: image, newHead: nil, slot: .zero, sealedID: image.layerBelowHead!,
                    sizeBytes: image.sizeBytes)
            }
        }
        let unfold = names()
        core.cut.unlock()

        let all = cuts.values.sorted { $0.image.id < $1.image.id }
        // Also images that did not change, as long as an earlier cut of theirs is not durable.
        for cut in all where cut.newHead != nil || cut.image.hasUnsettledLayers {
            try cut.image.flush()
        }
        try secure(upTo: sequence)
        record.sequence = place?.sequence ?? sequence
        record.state = .complete
        try complete(record, cuts: all, nodes: unfold())
        return record
    }

    func refuseTaken(_ name: String) throws(VolumeError) {
        guard !name.isEmpty, name.utf8.count <= 255, !name.contains("/"), name != ".", name != ".."
        else {
            throw VolumeError(.invalid, "'\(name)' cannot be a snapshot's name: it names a folder")
        }
        if try read({ try $0.snapshot(named: name) }) != nil {
            throw VolumeError(.exists, "there is a snapshot '\(name)' already")
        }
    }

    /// Makes new heads, gives them their slots (under the cut lock there are only pointers to
    /// switch) and names them the images' heads in the catalog: a crash from here on finds them
    /// empty on top of the old ones.
    private func prepareHeads(of images: [Image], into cuts: inout [ImageID: Cut])
        throws(VolumeError)
    {
        guard !images.isEmpty else { return }
        let rows = try commit { tx in
            try images.map { image in
                var row = LayerRecord(imageID: image.id, parentID: image.topLayer.id)
                row.id = try tx.insertLayer(row)
                return row
            }
        }
        do throws(VolumeError) {
            let made = try Parallel.map(
                Array(zip(images, rows)), threads: options.runsInBackground ? 8 : 1
            ) {
                (pair) throws(VolumeError) in
                try self.createLayerFiles(
                    pair.1, imageSizeBytes: pair.0.sizeBytes, sequence: self.core.sequence)
            }
            var prepared: [Cut] = []
            for (image, layer) in zip(images, made) {
                prepared.append(
                    Cut(
                        image: image, newHead: layer, slot: try image.chain.add(layer),
                        sealedID: image.topLayer.id, lowerID: image.lowerHead))
            }
            let heads = prepared.map { ($0.image.id, $0.newHead!.id) }
            try commit { tx in for (image, head) in heads { try tx.setHead(image, head) } }
            for cut in prepared {
                put(cut.newHead!)
                cuts[cut.image.id] = cut
            }
        } catch {
            // Nothing refers to the new layers yet: they are the rows without children that the
            // next open would remove.
            _ = try? commit { tx in for row in rows { try tx.deleteLayer(row.id) } }
            for row in rows { removeFiles(of: row) }
            throw error
        }
    }

    private func complete(
        _ record: SnapshotRecord, cuts: [Cut], nodes: [NodeRecord]
    ) throws(VolumeError) {
        let byImage = Dictionary(uniqueKeysWithValues: cuts.map { ($0.image.id, $0) })
        let snapshotNodes = nodes.map { node in
            let cut = node.imageID.flatMap { byImage[$0] }
            return SnapshotNode(node: node, layerID: cut?.sealedID, sizeBytes: cut?.sizeBytes ?? 0)
        }
        try commit { tx in
            for cut in cuts {
                for id in cut.sealed {
                    guard var row = try tx.layer(id), !row.isSealed else { continue }
                    row.isSealed = true
                    row.sizeBytes = cut.sizeBytes
                    row.sealedSequence = record.sequence
                    try tx.updateLayer(row)
                }
            }
            try tx.replaceSnapshotNodes(record.id, snapshotNodes)
            try tx.setSnapshotComplete(record.id, sequence: record.sequence)
        }
    }

    /// Deletes a snapshot; its layers are removed or merged behind.
    package func deleteSnapshot(name: String) throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            let record = try snapshot(named: name)
            letGo(of: record)
            try commit { tx in
                try tx.deleteSnapshot(record.id)
                try tx.addEvent(
                    EventRecord(
                        atNs: disk.now(), kind: "snapshot-deleted", subject: name, message: ""))
            }
            forgetCut(of: record)
            try collectGarbage()
            try freeHiddenBlocks()
        }
        background.wake()
    }

    // MARK: Restore and clone

    /// Gives the image the content of a sealed layer at once. What it had stays as a snapshot of
    /// this one image, named `keepAs`.
    ///
    /// From the catalog's one transaction on, the restore goes forward only: writes to the new head
    /// may be flushed before it is complete. That transaction therefore holds all that the next open
    /// needs to complete it.
    package func restore(
        image id: ImageID, to layer: LayerID, sizeBytes: UInt64, keepAs: String,
        nodes: [NodeRecord]
    ) throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            let image = try image(id)
            try refuseTaken(keepAs)
            try requireShown(layer)
            let row = try insertLayer(
                LayerRecord(imageID: id, parentID: layer), imageSizeBytes: sizeBytes)
            let rows = Dictionary(
                uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
            let (chain, head, slot) = try buildChain(to: row.id, rows: rows)
            noteWrites()
            defer { endNotes() }
            let differing = try markChanged(image, to: layer, rows: rows, sizeBytes: sizeBytes)
            let replaced = nodes.map { node in
                SnapshotNode(node: node, layerID: image.topLayer.id, sizeBytes: image.sizeBytes)
            }
            let record = try commit { tx in
                try tx.setHead(id, row.id)
                let pending = try tx.insertSnapshot(
                    SnapshotRecord(
                        name: keepAs, createdNs: disk.now(), sequence: core.sequence,
                        state: .pending, origin: SnapshotRecord.restoreOrigin))
                try tx.insertSnapshotNodes(pending.id, replaced)
                return pending
            }
            core.cut.lockWrite()
            let sequence = cutPlace(record)
            let cut = Cut(
                image: image, newHead: head, slot: slot, sealedID: image.topLayer.id,
                lowerID: image.lowerHead, sizeBytes: image.sizeBytes)
            image.replaceChain(
                chain, head: head, slot: slot, below: layer, sizeBytes: sizeBytes,
                sequence: sequence)
            announceRestored(image, differing)
            core.cut.unlock()
            try image.flush()
            try secure(upTo: core.sequence)
            var completed = record
            completed.sequence = sequence
            try complete(completed, cuts: [cut], nodes: nodes)
        }
        background.wake()
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

    /// A new image whose content is a sealed layer's; nothing is copied.
    package func clone(layer: LayerID, sizeBytes: UInt64) throws(VolumeError) -> Image {
        try structure.withLock { () throws(VolumeError) in
            try requireShown(layer)
            let id = try commit { try $0.insertImage() }
            let row = try insertLayer(
                LayerRecord(imageID: id, parentID: layer), imageSizeBytes: sizeBytes)
            let rows = Dictionary(
                uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
            let (chain, head, slot) = try buildChain(to: row.id, rows: rows)
            let activity = try VolumeError.system(id) { () throws(SystemError) in
                try ActivityLog.create(disk: disk, path: store.activityPath(image: id))
            }
            try commit { try $0.setHead(id, row.id) }
            let image = makeImage(
                id, activity: activity, chain: chain, head: head, slot: slot, below: layer,
                sizeBytes: sizeBytes, modifiedNs: disk.now())
            // Whoever attaches a target meanwhile asks for all there is after this.
            let content =
                core.stream == nil ? BlockSet() : try blocksDiffering(from: nil, to: layer)
            announce(image, blocks: content)
            // No region is marked for it: what targets lack of it has to be durable another way.
            try secure(upTo: core.sequence)
            return image
        }
    }

    private func insertLayer(
        _ record: LayerRecord, imageSizeBytes: UInt64
    ) throws(VolumeError) -> LayerRecord {
        var row = record
        row.id = try commit { try $0.insertLayer(record) }
        put(try createLayerFiles(row, imageSizeBytes: imageSizeBytes, sequence: core.sequence))
        return row
    }
}
