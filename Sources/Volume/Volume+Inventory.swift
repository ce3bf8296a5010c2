// What a volume has, for who copies it elsewhere: shapes, and which blocks there are.

import BlockCore
import Pool
import SystemIO

extension Volume {
    package struct ImageShape: Sendable, Hashable {
        package var id: ImageID
        package var sizeBytes: UInt64
        package var modifiedNs: Int64
    }

    /// Every live image as it is at one moment, at which nothing is written and no name changes.
    /// - Parameter atCut: called at that moment: short.
    package func shape(_ atCut: () -> Void) -> [ImageShape] {
        core.cut.withWrite {
            atCut()
            return allImages.map {
                ImageShape(id: $0.id, sizeBytes: $0.sizeBytes, modifiedNs: $0.modifiedNs)
            }
        }
    }

    /// A snapshot of the whole pool by its cut, once it is complete; nil when there is none (any more).
    package func completeSnapshot(
        at sequence: SequenceNumber
    ) throws(VolumeError) -> (record: SnapshotRecord, nodes: [SnapshotNode])? {
        try structure.withLock { () throws(VolumeError) in
            try read { tx in
                guard
                    let record = try tx.snapshots().first(where: {
                        $0.sequence == sequence && $0.state == .complete && $0.isOfWholePool
                    })
                else { return nil }
                return (record, try tx.snapshotNodes(record.id))
            }
        }
    }

    // MARK: Blocks

    /// Blocks that may differ between an image's content in one layer and in another: those that
    /// either holds above the nearest layer they share. The caller holds the structure lock, for a
    /// merge moves blocks from one to the other.
    package func blocksDiffering(
        from a: LayerID?, to b: LayerID
    ) throws(VolumeError) -> BlockSet {
        if a == b { return BlockSet() }
        let rows = Dictionary(
            uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
        let (left, right) = (path(to: a, rows), path(to: b, rows))
        let shared = Set(left.map(\.id)).intersection(right.map(\.id))
        var result = BlockSet()
        for row in left + right where !shared.contains(row.id) {
            try addContents(of: row, rows, to: &result)
        }
        return result
    }

    private func path(to top: LayerID?, _ rows: [LayerID: LayerRecord]) -> [LayerRecord] {
        var result: [LayerRecord] = []
        var next = top
        while let id = next, let row = rows[id] {
            result.append(row)
            next = row.parentID
        }
        return result
    }

    /// Of a layer that does not open nobody can say anything.
    private func addContents(
        of row: LayerRecord, _ rows: [LayerID: LayerRecord], to blocks: inout BlockSet
    ) throws(VolumeError) {
        guard let layer = try openedLayer(row, rows: Array(rows.values)) else { return }
        let contents = try contents(of: row, layer: layer)
        blocks.formUnion(contents.data)
        blocks.formUnion(contents.zero)
    }

    /// All blocks of every live image and of those in snapshots, holes and all; an empty set for an empty image.
    package func wholeImages() throws(VolumeError) -> [ImageID: BlockSet] {
        try structure.withLock { () throws(VolumeError) in
            var result: [ImageID: BlockSet] = [:]
            func insert(_ id: ImageID, _ sizeBytes: UInt64) {
                let count = Geometry.blockCount(sizeBytes: sizeBytes)
                result[id, default: BlockSet()].insert(BlockRange(start: 0, count: count))
            }
            for image in allImages { insert(image.id, image.sizeBytes) }
            for (_, nodes) in try snapshotNodes() {
                for node in nodes { if let id = node.node.imageID { insert(id, node.sizeBytes) } }
            }
            return result
        }
    }

    /// Every block that any layer of an image holds, its own and those it was cloned from.
    /// - Parameter internalSnapshot: one that users do not see, and whose images count as well.
    package func allocatedBlocks(
        also internalSnapshot: String? = nil
    ) throws(VolumeError) -> [ImageID: BlockSet] {
        try structure.withLock { () throws(VolumeError) in
            try flushAll()
            let rows = Dictionary(
                uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
            var layers: [ImageID: Set<LayerID>] = [:]
            for image in allImages {
                layers[image.id] = Set(path(to: image.topLayer.id, rows).map(\.id))
            }
            for (_, nodes) in try snapshotNodes(also: internalSnapshot) {
                for node in nodes {
                    guard let image = node.node.imageID, let layer = node.layerID else { continue }
                    layers[image, default: []].formUnion(path(to: layer, rows).map(\.id))
                }
            }
            var result: [ImageID: BlockSet] = [:]
            for (image, ids) in layers {
                for id in ids {
                    guard let row = rows[id] else { continue }
                    try addContents(of: row, rows, to: &result[image, default: BlockSet()])
                }
            }
            return result
        }
    }

    private func snapshotNodes(
        also name: String? = nil
    ) throws(VolumeError) -> [(SnapshotRecord, [SnapshotNode])] {
        try read { tx in
            try tx.snapshots()
                .filter { $0.state == .complete && ($0.isOfWholePool || $0.name == name) }
                .sorted { $0.sequence < $1.sequence }
                .map { ($0, try tx.snapshotNodes($0.id)) }
        }
    }

    /// What one snapshot, or the head, has that the one before has not.
    package struct InventoryLeg: Sendable {
        /// nil for the head.
        package var snapshot: SnapshotRecord?
        package var blocks: [ImageID: BlockSet]
    }

    /// All there is, as steps from nothing to the head.
    /// - Parameter whileStill: called first, when no snapshot is made or deleted; what is written
    ///   after it may be missing in the result.
    package func inventory(
        whileStill: () throws(VolumeError) -> Void
    ) throws(VolumeError) -> [InventoryLeg] {
        try structure.withLock { () throws(VolumeError) in
            try whileStill()
            try flushAll()
            var known: [ImageID: LayerID] = [:]
            var legs: [InventoryLeg] = []
            for (record, nodes) in try snapshotNodes() {
                var tops: [ImageID: LayerID] = [:]
                for node in nodes {
                    if let image = node.node.imageID { tops[image] = node.layerID }
                }
                legs.append(InventoryLeg(snapshot: record, blocks: try steps(known, tops)))
                known.merge(tops) { $1 }
            }
            let heads = Dictionary(uniqueKeysWithValues: allImages.map { ($0.id, $0.topLayer.id) })
            legs.append(InventoryLeg(snapshot: nil, blocks: try steps(known, heads)))
            return legs
        }
    }

    /// As ``inventory(whileStill:)``, for content that somebody keeps from changing.
    /// - Parameter contents: of each step, every image with the layer that it is in.
    /// - Returns: for each, what it may have that the one before has not.
    package func steps(
        through contents: [[ImageID: LayerID]]
    ) throws(VolumeError) -> [[ImageID: BlockSet]] {
        try structure.withLock { () throws(VolumeError) in
            try flushAll()
            var known: [ImageID: LayerID] = [:]
            var result: [[ImageID: BlockSet]] = []
            for tops in contents {
                result.append(try steps(known, tops))
                known.merge(tops) { $1 }
            }
            return result
        }
    }

    private func steps(
        _ from: [ImageID: LayerID], _ to: [ImageID: LayerID]
    ) throws(VolumeError) -> [ImageID: BlockSet] {
        var result: [ImageID: BlockSet] = [:]
        for (image, layer) in to {
            let blocks = try blocksDiffering(from: from[image], to: layer)
            if !blocks.isEmpty { result[image] = blocks }
        }
        return result
    }
}

extension Image {
    /// Returns when everybody who was changing these blocks at the call has taken its place in the
    /// sequence: writers, and who changes heads.
    package func waitForWriters(of ranges: [BlockRange]) {
        for range in ranges {
            stripes.lock(range)
            stripes.unlock(range)
        }
        core.cut.lockRead()
        core.cut.unlock()
    }
}
