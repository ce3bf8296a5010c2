import Pool

package struct Attributes: Sendable, Hashable {
    package typealias Kind = NodeRecord.Kind
    package var inode: UInt64
    package var kind: Kind
    package var mode: UInt32
    package var uid: UInt32
    package var gid: UInt32
    package var sizeBytes: UInt64
    package var allocatedBytes: UInt64
    package var accessNs: Int64
    package var modifyNs: Int64
    package var changeNs: Int64
    package var linkCount: UInt32
    /// Content and attributes never change: a snapshot's.
    package var isImmutable = false

    init(_ node: NodeRecord, inode: UInt64, linkCount: UInt32 = 1) {
        self.inode = inode
        kind = node.kind
        mode = node.mode
        uid = node.uid
        gid = node.gid
        sizeBytes = UInt64(node.symlinkTarget?.count ?? 0)
        allocatedBytes = 0
        accessNs = node.accessNs
        modifyNs = node.modifyNs
        changeNs = node.changeNs
        self.linkCount = linkCount
    }
}

package struct AttributeChanges: Sendable {
    package var mode: UInt32?
    package var uid: UInt32?
    package var gid: UInt32?
    package var sizeBytes: UInt64?
    package var accessNs: Int64?
    package var modifyNs: Int64?
    package init() {}
}

/// Inode numbers: a node's id for the live tree; for the read-only ones bit 62, the snapshot and the node's
/// number in it (``SnapshotTree/number(of:)``); a few fixed ones for the dot folders.
enum InodeNumber {
    static let snapshotsFolder: UInt64 = 1 << 61
    static let controlFolder: UInt64 = 1 << 61 | 1
    static let statusFile: UInt64 = 1 << 61 | 2
    private static let snapshotBit: UInt64 = 1 << 62
    private static let nodeBits: UInt64 = 38
    /// Of a snapshot's root, in the snapshot.
    static let rootNumber: UInt64 = 1

    static func inSnapshot(_ snapshot: Int64, _ number: UInt64) -> UInt64 {
        precondition(number < 1 << nodeBits, "a snapshot has more names than memory holds")
        return snapshotBit | UInt64(snapshot) << nodeBits | number
    }
    static func snapshotParts(_ inode: UInt64) -> (snapshot: Int64, number: UInt64)? {
        guard inode & snapshotBit != 0 else { return nil }
        return (
            Int64((inode & ~snapshotBit) >> nodeBits), inode & ((1 << nodeBits) - 1)
        )
    }
    static func isFixed(_ inode: UInt64) -> Bool {
        inode & (1 << 61) != 0 && inode & snapshotBit == 0
    }
    /// Not of the live tree.
    static func isReadOnly(_ inode: UInt64) -> Bool { inode & (snapshotBit | 1 << 61) != 0 }
}
