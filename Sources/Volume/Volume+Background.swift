// What runs behind: settling activity logs, merges, maps that grew too long, checksums of sealed
// layers.

import BlockCore
import Pool
import SystemIO

extension Volume {
    /// One bounded piece of work.
    /// - Returns: false when nothing is left to do.
    func runBackgroundStep() -> Bool {
        if let id = background.takeSettling() {
            if let image = try? image(id) {
                do throws(VolumeError) { try settle(image, all: false) } catch {
                    log.error("settling image \(id.rawValue): \(error)")
                }
            }
            return true
        }
        do throws(VolumeError) {
            if try mergeStep() { return true }
            if try rewriteNextMap() { return true }
            return try coverBeside()
        } catch {
            // What could not be done is tried again when something wakes the thread: a deletion,
            // a snapshot, the next open.
            log.error("background work stopped: \(error)")
            return false
        }
    }

    /// Covers a piece; where others write to the pool, also a resync, it takes a fifth of the time: it
    /// reads all there is, and nobody waits for it.
    private func coverBeside() throws(VolumeError) -> Bool {
        guard background.waitOutRest(disk.monotonic) else { return true }
        let startNs = disk.monotonic()
        guard try coverNextLayer() else { return false }
        background.rest(
            after: disk.monotonic(), workedNs: disk.monotonic() - startNs, at: core.sequence)
        return true
    }

    /// What a layer itself holds: from its map, or for a base without one from the file's own data.
    func contents(of row: LayerRecord, layer: Layer) throws(VolumeError) -> LayerContents {
        try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
            if layer.map == nil { return try LayerContents.ofRoot(layer.data) }
            return try LayerContents.read(
                disk: disk, path: store.mapPath(image: row.imageID, layer: row.id), layer: row.id)
        }
    }
}

extension Volume {
    /// How many blocks may differ between two sealed layers.
    package func changedBlocks(from a: LayerID, to b: LayerID) throws(VolumeError) -> UInt64 {
        try structure.withLock { () throws(VolumeError) in
            let rows = Dictionary(
                uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
            return try differingBlocks(a, b, rows: rows).count
        }
    }

    /// Blocks that may differ between what two layers show: those that either side holds above the
    /// nearest layer they share. The caller holds the structure lock: a merge moves blocks.
    func differingBlocks(
        _ a: LayerID, _ b: LayerID, rows: [LayerID: LayerRecord]
    ) throws(VolumeError) -> BlockSet {
        func path(_ top: LayerID) -> [LayerRecord] {
            var result: [LayerRecord] = []
            var next: LayerID? = top
            while let id = next, let row = rows[id] {
                result.append(row)
                next = row.parentID
            }
            return result
        }
        let (left, right) = (path(a), path(b))
        let shared = Set(left.map(\.id)).intersection(right.map(\.id))
        var changed = BlockSet()
        for row in left + right where !shared.contains(row.id) {
            guard let layer = try openedLayer(row, rows: Array(rows.values)) else { continue }
            let contents = try contents(of: row, layer: layer)
            changed.formUnion(contents.data)
            changed.formUnion(contents.zero)
        }
        return changed
    }
}
