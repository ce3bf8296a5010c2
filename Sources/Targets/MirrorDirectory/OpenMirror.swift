// A mirror that is open, for its primary writes to it just now, as somebody sees it who only looks. Valid during the call that it is
// given to (`ServedMirror.look`).

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

package struct OpenMirror {
    private let pool: MirrorPool
    /// Otherwise somebody makes a copy of it.
    package let hasPrimary: Bool

    init(_ pool: MirrorPool, hasPrimary: Bool) {
        self.pool = pool
        self.hasPrimary = hasPrimary
    }

    package var store: PoolStore { pool.store }
    package var volume: Volume { pool.volume }
    package var record: ReplicaRecord { pool.state }
    /// Everything up to here would be shown by a mount.
    package var checkpoint: SequenceNumber { pool.checkpoint }
    /// In its journal, and not yet in its images: what ``names()`` says lacks that.
    package var unappliedBytes: UInt64 { pool.unappliedBytes }

    package func rows<T>(_ body: (CatalogTransaction) throws -> T) throws(TargetError) -> T {
        try pool.rows(body)
    }

    /// All that it shows, for somebody who makes a copy of it; may be kept longer than the call.
    package func copy() throws(TargetError) -> MirrorCopy { try MirrorCopy(pool) }

    /// How far back every moment can be had; nil where none can.
    package func reachNs() throws(TargetError) -> Int64? { try pool.reachNs() }

    /// The files and folders that are shown; under a resync those of the checkpoint before it.
    package func names() throws(TargetError) -> [SnapshotNode] {
        let staging = record.staging.map { MirrorPool.stagingName($0.id) }
        let (kept, live) = try pool.rows { tx in
            let snapshot = try staging.flatMap { try tx.snapshot(named: $0) }
            return (
                try snapshot.map { try tx.snapshotNodes($0.id) },
                snapshot == nil ? try tx.nodes() : []
            )
        }
        if let kept { return kept.filter { !StagingNodes.isUnnamed($0.node) } }
        return live.map { node in
            let image = node.imageID.flatMap { try? volume.image($0) }
            var node = node
            node.modifyNs = max(node.modifyNs, image?.modifiedNs ?? 0)
            return SnapshotNode(node: node, layerID: nil, sizeBytes: image?.sizeBytes ?? 0)
        }
    }

    /// Of a file that is shown.
    package func allocatedBytes(of node: SnapshotNode) -> UInt64 {
        guard let image = node.node.imageID else { return 0 }
        guard let layer = node.layerID else {
            return (try? volume.image(image))?.allocatedBytes ?? 0
        }
        return (try? volume.openView(layer, sizeBytes: node.sizeBytes))?.allocatedBytes() ?? 0
    }
}
