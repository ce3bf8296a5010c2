// The size of an image whose power went while a layer U drained into its head L (Volume+MergeHead.swift).
//
// Each flush commits the image's size with L, and only then with U, which is the head at the next open;
// U's commits have the lower place in the sequence. What may be found, and what is done:
//   L a plain file longer than U's size     grown, not committed: cut off
//   L a plain file that is shorter          shrunk, not committed: the rest reads as zeros
//   L's commit is the newer one             U takes the size; what it has past it is cleared like what
//                                           any unsealed layer has there (Volume+Recovery.swift)
// Every step leaves what the next open finds in the same way, until U's map has the size.
//
// Layers that are sealed, and merge, have maps that are appended to all the same, and maybe nobody looks at them before
// the pool is closed: they belong to an image that is in snapshots alone. What is torn of them is cut at once, for a
// clean end says of every map that its end is whole.

import BlockCore
import Pool
import SystemIO

extension Volume {
    func matchSizesOfDrains(_ rows: [LayerID: LayerRecord]) throws(VolumeError) {
        for merge in try read({ try $0.merges() }) where merge.direction == .down {
            guard let upper = rows[merge.layerID], let lower = rows[merge.intoLayerID],
                !upper.isSealed, !lower.isSealed
            else { continue }
            drainTargets.insert(lower.id)
            do throws(LayerError) { try matchSize(of: upper, drainingInto: lower) } catch {
                let error = VolumeError(error, image: upper.imageID)
                // One that does not open belongs to an image that is going to be set aside.
                try goOn(after: error)
            }
        }
    }

    /// After ``recover(_:)``: what was not sealed is opened by who has it, or was sealed.
    func cutTornTailsOfMerges(_ rows: [LayerID: LayerRecord]) throws(VolumeError) {
        for merge in try read({ try $0.merges() }) {
            for row in [merge.layerID, merge.intoLayerID].compactMap({ rows[$0] })
            where row.isSealed {
                do throws(LayerError) { try cutTornTail(of: row) } catch {
                    let error = VolumeError(error, image: row.imageID)
                    // Whoever needs it hears of it then; nobody may before the pool is closed.
                    try goOn(after: error)
                }
            }
        }
    }

    /// Recovery goes on with the other images.
    /// - Throws: what is not of one image alone.
    func goOn(after error: VolumeError) throws(VolumeError) {
        guard error.isOfOneImage else { throw error }
        if store.wasUnclean, error.isOfTheDisk { store.noteUnrecovered() }
    }

    private func cutTornTail(of row: LayerRecord) throws(LayerError) {
        let path = store.mapPath(image: row.imageID, layer: row.id)
        do throws(SystemError) {
            if try disk.status(path) == nil { return }
        } catch { throw .system(error) }
        let map = try LayerMapFile.open(disk: disk, path: path, layer: row.id, isSealed: false) {
            _ in
        }
        map.file.close()
        guard map.tornTailBytes > 0 else { return }
        note(
            "layer \(row.id.rawValue): cut \(map.tornTailBytes) bytes of an unfinished commit off its map"
        )
    }

    private func matchSize(
        of upper: LayerRecord, drainingInto lower: LayerRecord
    ) throws(LayerError) {
        let path = store.mapPath(image: upper.imageID, layer: upper.id)
        let map = try LayerMapFile.open(
            disk: disk, path: path, layer: upper.id, isSealed: false
        ) { _ in }
        defer { map.file.close() }
        guard let last = map.lastCommit else { return }
        guard let below = try lastCommit(of: lower) else {
            return try cutOff(lower, at: last.imageSizeBytes)
        }
        guard below.sequence > last.sequence, below.imageSizeBytes != last.imageSizeBytes else {
            return
        }
        try map.append(
            [], imageSizeBytes: below.imageSizeBytes, sequence: below.sequence, isSealed: false)
        do throws(SystemError) { try map.file.syncData() } catch { throw .system(error) }
    }

    /// nil for a plain file.
    private func lastCommit(of row: LayerRecord) throws(LayerError) -> MapCommit? {
        let path = store.mapPath(image: row.imageID, layer: row.id)
        do throws(SystemError) {
            if try disk.status(path) == nil { return nil }
        } catch { throw .system(error) }
        let map = try LayerMapFile.open(
            disk: disk, path: path, layer: row.id, isSealed: false, readOnly: true
        ) { _ in }
        defer { map.file.close() }
        return map.lastCommit
    }

    private func cutOff(_ plain: LayerRecord, at sizeBytes: UInt64) throws(LayerError) {
        do throws(SystemError) {
            let data = try disk.open(
                store.dataPath(image: plain.imageID, layer: plain.id), .readWrite)
            defer { data.close() }
            guard try data.status().sizeBytes > sizeBytes else { return }
            try data.truncate(to: sizeBytes)
            try data.sync()
        } catch { throw .system(error) }
    }
}
