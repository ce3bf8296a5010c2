// Snapshots: a cut over all images at one sequence number.
//
//              what is done                           it fails         the power goes
//   prepare    new heads: rows, files, synced         taken back       rows without children, removed
//   heads      the catalog names them the heads,      taken back       the new heads are kept, empty, the
//              in one transaction                                      old ones sealed below them
//   pending    the snapshot, in one transaction       taken back       as heads; the snapshot is dropped
//   late       prepare and heads once more, for an    taken back       as pending
//              image that was written meanwhile
//   cut        pointers switched in memory under the  cannot fail      as pending
//              cut lock; names, sizes and the
//              sequence taken, the targets told
//   settle     the old heads committed and sealed     image latched,   as pending
//              in their maps; targets secured         given up
//   complete   sealed rows, the snapshot's names, in  given up         it is there
//              one transaction; only now success is
//              returned
//
// Taken back (Volume+TakingBack.swift): the catalog names the old heads again, and all that was made goes,
// in one transaction. It must: while catalog and memory differ in what they call the head nothing
// merges, and on a full disk deleting snapshots would free nothing (G9).
//
// Given up: after the cut the new heads take writes, and there is no way back. The old ones, durable and
// sealed in their maps, are sealed in the catalog, and the pending snapshot goes, in one transaction: what
// the next open would do. A layer that could not be made durable belongs to a latched image and is left to
// the next open.
//
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

    struct Cut {
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
        // It may have waited until the pool was handed over.
        try requireUnfenced()
        try settleOverdue()
        if origin != SnapshotRecord.internalOrigin { try refuseTaken(name) }
        try refuseLatched()
        var cuts: [ImageID: Cut] = [:]
        var record = try prepareAndLock(
            SnapshotRecord(
                name: name, createdNs: place?.createdNs ?? disk.now(), sequence: core.sequence,
                state: .pending, origin: origin),
            into: &cuts)
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
        record.sequence = place?.sequence ?? sequence
        record.state = .complete
        do throws(VolumeError) {
            // Also images that did not change, as long as an earlier cut of theirs is not durable.
            for cut in all where cut.newHead != nil || cut.image.hasUnsettledLayers {
                try cut.image.flush()
            }
            try secure(upTo: sequence)
            try complete(record, cuts: all, nodes: unfold())
        } catch {
            giveUp(record, cuts: all)
            throw error
        }
        return record
    }

    /// Everything up to the cut, whose lock is held exclusively on return. What fails is taken back.
    /// - Parameter draft: asked for when the first heads are made.
    private func prepareAndLock(
        _ draft: @autoclosure () -> SnapshotRecord, into cuts: inout [ImageID: Cut]
    ) throws(VolumeError) -> SnapshotRecord {
        var made = Prepared()
        do throws(VolumeError) {
            try prepareHeads(
                of: allImages.filter { !$0.isUnchangedSinceCut }, into: &cuts, &made)
            let record = try commit { try $0.insertSnapshot(draft()) }
            made.snapshot = record.id
            while true {
                core.cut.lockWrite()
                // An image that was idle a moment ago may have been written since: it needs a head too.
                let late = allImages.filter { !$0.isUnchangedSinceCut && cuts[$0.id] == nil }
                if late.isEmpty { return record }
                core.cut.unlock()
                try prepareHeads(of: late, into: &cuts, &made)
            }
        } catch {
            takeBack(made)
            throw error
        }
    }

    /// What an image cannot make durable no cut can complete; better told before there is one.
    private func refuseLatched() throws(VolumeError) {
        for image in allImages where !image.isUnchangedSinceCut || image.hasUnsettledLayers {
            if let failure = image.latchedFailure { throw VolumeError.latched(image.id, failure) }
        }
    }

    private func giveUp(_ record: SnapshotRecord, cuts: [Cut]) {
        // One that fails is latched by it.
        for cut in cuts where cut.image.hasUnsettledLayers { try? cut.image.flush() }
        bringToEnd("giving up snapshot '\(record.name)'") { [unowned self] () throws(VolumeError) in
            let durable = cuts.filter { !$0.image.hasUnsettledLayers }
            try commit { tx in
                try seal(durable, record.sequence, tx)
                try tx.deleteSnapshot(record.id)
            }
            forgetCut(of: record)
        }
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
    private func prepareHeads(
        of images: [Image], into cuts: inout [ImageID: Cut], _ made: inout Prepared
    ) throws(VolumeError) {
        guard !images.isEmpty else { return }
        let rows = try commit { tx in
            try images.map { image in
                var row = LayerRecord(imageID: image.id, parentID: image.topLayer.id)
                row.id = try tx.insertLayer(row)
                return row
            }
        }
        made.rows += rows
        let layers = try Parallel.map(
            Array(zip(images, rows)), threads: options.runsInBackground ? 8 : 1
        ) {
            (pair) throws(VolumeError) in
            try self.createLayerFiles(
                pair.1, imageSizeBytes: pair.0.sizeBytes, sequence: self.core.sequence)
        }
        var prepared: [Cut] = []
        for (image, layer) in zip(images, layers) {
            let slot = try image.chain.add(layer)
            made.slots.append((image.chain, slot))
            prepared.append(
                Cut(
                    image: image, newHead: layer, slot: slot, sealedID: image.topLayer.id,
                    lowerID: image.lowerHead))
        }
        let heads = prepared.map {
            Prepared.Head(image: $0.image.id, new: $0.newHead!.id, old: $0.sealedID)
        }
        made.heads += heads
        try commit { tx in for head in heads { try tx.setHead(head.image, head.new) } }
        for cut in prepared {
            put(cut.newHead!)
            cuts[cut.image.id] = cut
        }
    }

    func complete(
        _ record: SnapshotRecord, cuts: [Cut], nodes: [NodeRecord]
    ) throws(VolumeError) {
        let byImage = Dictionary(uniqueKeysWithValues: cuts.map { ($0.image.id, $0) })
        let snapshotNodes = nodes.map { node in
            let cut = node.imageID.flatMap { byImage[$0] }
            return SnapshotNode(node: node, layerID: cut?.sealedID, sizeBytes: cut?.sizeBytes ?? 0)
        }
        try commit { tx in
            try seal(cuts, record.sequence, tx)
            try tx.replaceSnapshotNodes(record.id, snapshotNodes)
            try tx.setSnapshotComplete(record.id, sequence: record.sequence)
        }
    }

    private func seal(
        _ cuts: [Cut], _ sequence: SequenceNumber, _ tx: CatalogTransaction
    ) throws {
        for cut in cuts {
            for id in cut.sealed {
                guard var row = try tx.layer(id), !row.isSealed else { continue }
                row.isSealed = true
                row.sizeBytes = cut.sizeBytes
                row.sealedSequence = sequence
                try tx.updateLayer(row)
            }
        }
    }

    /// Deletes a snapshot; its layers are removed or merged behind.
    package func deleteSnapshot(name: String) throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            try requireUnfenced()
            // What it frees may be what something overdue waits for.
            try? settleOverdue()
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
            try? settleOverdue()
            try freeHiddenBlocks()
        }
        background.wake()
    }
}
