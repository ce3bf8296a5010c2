// The catalog's rows as plain values.

import BlockCore

package struct PoolIdentity: Sendable, Hashable, Codable {
    package static let currentFormatVersion = 1
    /// A random UUID; targets are bound to it.
    package var id: String
    package var formatVersion: Int
    package var createdNs: Int64

    package init(id: String, formatVersion: Int = currentFormatVersion, createdNs: Int64) {
        self.id = id
        self.formatVersion = formatVersion
        self.createdNs = createdNs
    }
}

package struct PoolState: Sendable, Hashable, Codable {
    package var cleanlyClosed: Bool
    package var generation: Generation
    /// New at each unclean open; order is (generation, incarnation, sequence).
    package var incarnation: UInt64
    package var incarnationID: String
    package var lastSequence: SequenceNumber

    package init(
        cleanlyClosed: Bool, generation: Generation, incarnation: UInt64, incarnationID: String,
        lastSequence: SequenceNumber
    ) {
        self.cleanlyClosed = cleanlyClosed
        self.generation = generation
        self.incarnation = incarnation
        self.incarnationID = incarnationID
        self.lastSequence = lastSequence
    }
}

package struct ImageRecord: Sendable, Hashable {
    package var id: ImageID
    package var headLayerID: LayerID?
    /// No name is left, but snapshots or clones need its layers.
    package var isDeleted: Bool
}

package struct LayerRecord: Sendable, Hashable {
    /// 0 before it was inserted.
    package var id: LayerID
    /// The image in whose directory the files lie.
    package var imageID: ImageID
    package var parentID: LayerID?
    package var isSealed: Bool
    /// The image's size when the layer was sealed.
    package var sizeBytes: UInt64
    package var sealedSequence: SequenceNumber

    package init(
        id: LayerID = LayerID(rawValue: 0), imageID: ImageID, parentID: LayerID?,
        isSealed: Bool = false, sizeBytes: UInt64 = 0, sealedSequence: SequenceNumber = .zero
    ) {
        self.id = id
        self.imageID = imageID
        self.parentID = parentID
        self.isSealed = isSealed
        self.sizeBytes = sizeBytes
        self.sealedSequence = sealedSequence
    }
}

package struct SnapshotRecord: Sendable, Hashable {
    package enum State: Int, Sendable, Codable { case pending = 0, complete = 1 }
    /// Keeps what a restore replaced. A pending one has its names and layers already: a restore that
    /// was cut off is completed at the next open.
    package static let restoreOrigin = "restore"

    package var id: SnapshotID
    package var name: String
    package var createdNs: Int64
    package var sequence: SequenceNumber
    package var state: State
    /// "user", or what made it: "restore", "force".
    package var origin: String

    package init(
        id: SnapshotID = SnapshotID(rawValue: 0), name: String, createdNs: Int64,
        sequence: SequenceNumber, state: State, origin: String
    ) {
        self.id = id
        self.name = name
        self.createdNs = createdNs
        self.sequence = sequence
        self.state = state
        self.origin = origin
    }
}

/// One name in the pool's tree.
package struct NodeRecord: Sendable, Hashable {
    package enum Kind: Int, Sendable, Codable { case file = 0, directory = 1, symlink = 2 }

    package var id: NodeID
    /// nil for the root, and for a file that lost its name while it was open.
    package var parentID: NodeID?
    package var name: [UInt8]
    package var kind: Kind
    /// Permission bits.
    package var mode: UInt32
    package var uid: UInt32
    package var gid: UInt32
    package var accessNs: Int64
    package var modifyNs: Int64
    package var changeNs: Int64
    package var symlinkTarget: [UInt8]?
    package var imageID: ImageID?
    package var xattrs: [String: [UInt8]]

    package init(
        id: NodeID, parentID: NodeID?, name: [UInt8], kind: Kind, mode: UInt32, uid: UInt32,
        gid: UInt32, accessNs: Int64, modifyNs: Int64, changeNs: Int64,
        symlinkTarget: [UInt8]? = nil, imageID: ImageID? = nil, xattrs: [String: [UInt8]] = [:]
    ) {
        self.id = id
        self.parentID = parentID
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.accessNs = accessNs
        self.modifyNs = modifyNs
        self.changeNs = changeNs
        self.symlinkTarget = symlinkTarget
        self.imageID = imageID
        self.xattrs = xattrs
    }
}

/// A name as it was at a snapshot's cut, with the content it had.
package struct SnapshotNode: Sendable, Hashable {
    package var node: NodeRecord
    package var layerID: LayerID?
    package var sizeBytes: UInt64

    package init(node: NodeRecord, layerID: LayerID?, sizeBytes: UInt64) {
        self.node = node
        self.layerID = layerID
        self.sizeBytes = sizeBytes
    }
}

package struct EventRecord: Sendable, Hashable, Codable {
    /// 0 before it was added; they grow.
    package var id: Int64 = 0
    package var atNs: Int64
    package var kind: String
    package var subject: String
    package var message: String

    package init(atNs: Int64, kind: String, subject: String, message: String) {
        self.atNs = atNs
        self.kind = kind
        self.subject = subject
        self.message = message
    }
}

/// A merge under way: `layerID`'s blocks move into `intoLayerID`, and it goes when it has none left.
package struct MergeRecord: Sendable, Hashable {
    package enum Direction: Int, Sendable, CaseIterable { case up = 0, down = 1 }

    package var layerID: LayerID
    package var intoLayerID: LayerID
    package var direction: Direction

    package init(layerID: LayerID, intoLayerID: LayerID, direction: Direction) {
        self.layerID = layerID
        self.intoLayerID = intoLayerID
        self.direction = direction
    }
}
