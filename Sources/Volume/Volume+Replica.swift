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

    /// Gives every image the content it has in a snapshot, in one catalog transaction: images that
    /// are not in it are deleted, those deleted since come back. What the images had is not kept.
    ///
    /// The volume is done for afterwards: the caller abandons it and opens another.
    /// - Parameter also: further changes of the same transaction.
    package func putBack(
        _ nodes: [SnapshotNode], also: (CatalogTransaction) throws -> Void
    ) throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            var heads: [ImageID: LayerID] = [:]
            for node in nodes {
                guard let image = node.node.imageID, let layer = node.layerID else { continue }
                var row = LayerRecord(imageID: image, parentID: layer)
                let new = row
                row.id = try commit { try $0.insertLayer(new) }
                // Without a head, a child or a row of its own it is removed at the next open.
                _ = try createLayerFiles(
                    row, imageSizeBytes: node.sizeBytes, sequence: core.sequence)
                heads[image] = row.id
            }
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
    }

    /// Ends the work behind and nothing else: what is not durable is left to the next open.
    package func abandon() { background.stop() }
}
