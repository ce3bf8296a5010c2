// What a target of replication asks of its volume beyond what a mounted pool does.

import BlockCore
import Pool
import SystemIO

/// A cut that was made elsewhere.
package struct SnapshotPlace: Sendable {
    package var createdNs: Int64
    package var sequence: SequenceNumber

    package init(createdNs: Int64, sequence: SequenceNumber) {
        self.createdNs = createdNs
        self.sequence = sequence
    }
}

extension Volume {
    package func hasImage(_ id: ImageID) -> Bool { (try? image(id)) != nil }

    /// A new empty image with the id that its primary gave it.
    package func createImage(id: ImageID) throws(VolumeError) -> Image {
        try createImage { tx in
            // A row that is left of a deleted image keeps layers for snapshots; they stay.
            if try tx.images().contains(where: { $0.id == id }) {
                try tx.reviveImage(id)
            } else {
                try tx.insertImage(id)
            }
            return id
        }
    }

    /// A cut over what is there now, under the name, time and sequence that it has elsewhere. The
    /// caller lets nobody write or change names meanwhile.
    package func createSnapshot(
        name: String, origin: String, at place: SnapshotPlace, nodes: [NodeRecord]
    ) throws(VolumeError) -> SnapshotRecord {
        let record = try structure.withLock { () throws(VolumeError) in
            try createSnapshotLocked(name: name, origin: origin, at: place) { { nodes } }
        }
        background.wake()
        return record
    }

    /// One catalog transaction that nothing of the volume's own comes between.
    package func changeStructure<T>(
        _ body: (CatalogTransaction) throws -> T
    ) throws(VolumeError) -> T {
        try structure.withLock { () throws(VolumeError) in try commit(body) }
    }

    /// Removes what nothing needs any more after ``changeStructure(_:)`` took snapshots or images
    /// away; the rest of the work is done behind.
    package func tidy() throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            try collectGarbage()
            try freeHiddenBlocks()
        }
        background.wake()
    }

    /// Deletes an image, with further changes in the same catalog transaction.
    package func deleteImage(
        _ id: ImageID, also: (CatalogTransaction) throws -> Void
    ) throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            try commit { tx in
                try tx.markImageDeleted(id)
                try also(tx)
            }
            withdraw(id)
            try collectGarbage()
        }
    }

    /// Gives every image the content it has in a snapshot, in one catalog transaction: images that
    /// are not in it are deleted, those deleted since come back. What the images had is not kept, and
    /// whoever has one open goes on with what is not the volume's any more.
    ///
    ///   prepare   new heads: rows, files, synced      crash: rows without children, removed
    ///   commit    heads, images and `also`, at once   crash: the next open has the snapshot's content
    ///   switch    the volume's table of images
    /// - Parameter also: further changes of the same transaction.
    package func putBack(
        _ nodes: [SnapshotNode], also: (CatalogTransaction) throws -> Void
    ) throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            try settleOverdue()
            var made = Prepared()
            let heads: [ImageID: LayerID]
            do throws(VolumeError) {
                heads = try newHeads(on: nodes, &made)
                try putBack(heads, also: also)
            } catch {
                takeBack(made)
                throw error
            }
            do throws(VolumeError) { try switchTo(heads, nodes) } catch {
                // The catalog has it, and the table of images may lack some: whatever it was, the
                // volume is not to go on, and the next open finds all of them.
                throw VolumeError(
                    .io, image: error.image, errno: error.errno,
                    "it has to be opened anew: \(error.message)")
            }
        }
        background.wake()
    }

    private func switchTo(
        _ heads: [ImageID: LayerID], _ nodes: [SnapshotNode]
    ) throws(VolumeError) {
        for id in imageIDs { forget(image: id) }
        let rows = Dictionary(
            uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
        for node in nodes {
            guard let image = node.node.imageID, let head = heads[image] else { continue }
            try openAgain(image, head: head, node, rows)
        }
        try collectGarbage()
    }

    private func putBack(
        _ heads: [ImageID: LayerID], also: (CatalogTransaction) throws -> Void
    ) throws(VolumeError) {
        try commit { tx in
            for image in try tx.images() where heads[image.id] == nil && !image.isDeleted {
                try tx.markImageDeleted(image.id)
            }
            let known = Set(try tx.images().map(\.id))
            for (image, head) in heads {
                if known.contains(image) {
                    try tx.reviveImage(image)
                } else {
                    try tx.insertImage(image)
                }
                try tx.setHead(image, head)
            }
            try also(tx)
        }
    }

    private func newHeads(
        on nodes: [SnapshotNode], _ made: inout Prepared
    ) throws(VolumeError) -> [ImageID: LayerID] {
        let new = try commit { tx in
            try nodes.compactMap { node -> (row: LayerRecord, sizeBytes: UInt64)? in
                guard let image = node.node.imageID, let layer = node.layerID else { return nil }
                var row = LayerRecord(imageID: image, parentID: layer)
                row.id = try tx.insertLayer(row)
                return (row, node.sizeBytes)
            }
        }
        made.rows = new.map(\.row)
        for (row, sizeBytes) in new {
            put(
                try createLayerFiles(row, imageSizeBytes: sizeBytes, sequence: core.sequence))
        }
        return Dictionary(uniqueKeysWithValues: new.map { ($0.row.imageID, $0.row.id) })
    }

    private func openAgain(
        _ id: ImageID, head headID: LayerID, _ node: SnapshotNode, _ rows: [LayerID: LayerRecord]
    ) throws(VolumeError) {
        let (chain, head, slot) = try buildChain(to: headID, rows: rows)
        let (activity, _) = try VolumeError.system(id) { () throws(SystemError) in
            try ActivityLog.open(
                disk: disk, path: store.activityPath(image: id), imageSizeBytes: node.sizeBytes)
        }
        put(
            makeImage(
                id, activity: activity, chain: chain, head: head, slot: slot, below: node.layerID,
                sizeBytes: node.sizeBytes, modifiedNs: node.node.modifyNs))
    }

    /// What a file of a snapshot shows. Which layer that is a merge may change: it is looked up, and
    /// opened, when none is going on.
    /// - Returns: nil for what has no content.
    package func openView(
        of node: NodeID, in snapshot: SnapshotID
    ) throws(VolumeError) -> LayerView? {
        try structure.withLock { () throws(VolumeError) in
            let found = try read { tx in
                try tx.snapshotNodes(snapshot).first { $0.node.id == node }
            }
            guard let found, let layer = found.layerID else { return nil }
            return try openViewLocked(layer, sizeBytes: found.sizeBytes)
        }
    }

    /// Ends the work behind and nothing else: what is not durable is left to the next open.
    package func abandon() { background.stop() }

    /// The images of a mirror are its last checkpoint only after its journal was applied, and writing
    /// to them would make it differ from its primary without anybody knowing.
    static func refuseMirror(_ store: PoolStore, _ options: VolumeOptions) throws(VolumeError) {
        guard !options.isReplica, let replica = try catalog(store, { try $0.replica() }),
            replica.role == .replica
        else { return }
        throw VolumeError(
            .readOnly,
            "\(store.path) is a mirror of pool \(replica.primaryPoolID) and can be mounted read-only; "
                + "`doppel promote \(store.path)` makes it a pool of its own, which can be written")
    }
}
