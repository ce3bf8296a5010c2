// What a crash left of cuts, restores and new layers, mended before anything is served.
//
// What may be found, and what is done:
//   image without a head                     its making was cut off: deleted
//   unsealed layer that nothing needs        made for a cut that never was: removed
//   pending snapshot of a restore            completed: the image has its new head already, and
//                                            what it had before must be kept (G5)
//   other pending snapshot                   dropped, never shown; the heads stay. Targets may have its
//                                            cut: they hear that it is none
//   unsealed layer below others, or kept     a cut that was not settled: it is synced and sealed at
//                                            what is durable of it, after the empty heads on top took
//                                            its size durably: theirs was written before the cut
//   unsealed layer below one that was        sealed in the same way, after the two have agreed on the
//   draining into it                         size (Volume+MergeRecovery.swift); the merge goes on
//   data past the end of an unsealed layer   from a write whose size was lost: cleared (Image's V4)
//   layers of a deletion that was cut off    removed
//
// Every step leaves what the next open mends in the same way: recovery may be cut off itself.

import BlockCore
import Pool
import SystemIO

extension Volume {
    func recover(_ rows: inout [LayerID: LayerRecord]) throws(VolumeError) {
        let (images, pending) = try read { tx in
            (try tx.images(), try tx.snapshots().filter { $0.state == .pending })
        }
        let headless = images.filter { $0.headLayerID == nil && !$0.isDeleted }
        if !headless.isEmpty {
            try commit { tx in for image in headless { try tx.markImageDeleted(image.id) } }
        }
        let kept = try read { try $0.layersReferencedBySnapshots() }
        try removeUnneeded(&rows, heads: Set(images.compactMap(\.headLayerID)), kept: kept)
        let unsealed = rows.values.filter { row in
            !row.isSealed
                && (kept.contains(row.id) || rows.values.contains { $0.parentID == row.id })
        }
        // The oldest first: a size is handed up from one to the next.
        for row in unsealed.sorted(by: { $0.id < $1.id }) {
            do throws(VolumeError) { rows[row.id] = try sealAfterCrash(row, rows: rows) } catch {
                try goOn(after: error)
                put(broken: row.id, error)
            }
        }
        for snapshot in pending {
            if snapshot.origin == SnapshotRecord.restoreOrigin {
                try completeRestore(snapshot, rows: rows)
            } else {
                try drop(snapshot)
            }
        }
    }

    private func removeUnneeded(
        _ rows: inout [LayerID: LayerRecord], heads: Set<LayerID>, kept: Set<LayerID>
    ) throws(VolumeError) {
        // Children first: a layer that only they needed goes, too.
        for row in rows.values.sorted(by: { $0.id > $1.id }) where !row.isSealed {
            let isNeeded =
                heads.contains(row.id) || kept.contains(row.id)
                || rows.values.contains { $0.parentID == row.id }
            if isNeeded { continue }
            try commit { try $0.deleteLayer(row.id) }
            removeFiles(of: row)
            rows[row.id] = nil
        }
    }

    private func sealAfterCrash(
        _ row: LayerRecord, rows: [LayerID: LayerRecord]
    ) throws(VolumeError) -> LayerRecord {
        var row = row
        let data = try openData(of: row)
        defer { data.close() }
        let (map, contents) = try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
            try self.mapAfterCrash(of: row)
        }
        defer { map?.file.close() }
        let last = map?.lastCommit
        try VolumeError.system(row.imageID) { () throws(SystemError) in
            row.sizeBytes = if let last { last.imageSizeBytes } else { try data.status().sizeBytes }
            try clearTail(of: data, row.sizeBytes, contents)
            try data.syncData()
        }
        let children = rows.values.filter { $0.parentID == row.id && !$0.isSealed }
        for child in children.sorted(by: { $0.id < $1.id }) { try handSize(of: row, to: child) }
        if let map, let last {
            row.sealedSequence = last.sequence
            if !last.isSealed { try seal(map, row, contents) }
        }
        row.isSealed = true
        let sealed = row
        try commit { try $0.updateLayer(sealed) }
        if !drainTargets.contains(row.id) {
            note("layer \(row.id.rawValue) was sealed: the last cut was not complete")
        }
        return row
    }

    private func mapAfterCrash(
        of row: LayerRecord
    ) throws(LayerError) -> (LayerMapFile?, LayerContents) {
        let path = store.mapPath(image: row.imageID, layer: row.id)
        var contents = LayerContents()
        do throws(SystemError) {
            if try disk.status(path) == nil { return (nil, contents) }
        } catch { throw .system(error) }
        let map = try LayerMapFile.open(disk: disk, path: path, layer: row.id, isSealed: false) {
            contents.apply($0)
        }
        return (map, contents)
    }

    private func clearTail(
        of data: DiskFile, _ sizeBytes: UInt64, _ contents: LayerContents
    ) throws(SystemError) {
        let inBlock = sizeBytes & 4095
        guard inBlock != 0, contents.data.contains(sizeBytes >> Geometry.blockShift) else { return }
        try data.punchHole(at: sizeBytes, length: 4096 - inBlock)
    }

    private func seal(
        _ map: LayerMapFile, _ row: LayerRecord, _ contents: LayerContents
    ) throws(VolumeError) {
        let end = Geometry.blockCount(sizeBytes: row.sizeBytes)
        let pastEnd = contents.data.ranges.filter { $0.end > end }.map { range in
            let start = max(range.start, end)
            return MapExtent(
                range: BlockRange(start: start, count: range.end - start), state: .zero)
        }
        try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
            try map.append(
                pastEnd, imageSizeBytes: row.sizeBytes, sequence: row.sealedSequence,
                isSealed: true)
            do throws(SystemError) { try map.file.syncData() } catch { throw .system(error) }
        }
    }

    /// A head with only its first commit knows the size from before the cut. One that does not open
    /// belongs to an image that is going to be set aside.
    private func handSize(of below: LayerRecord, to head: LayerRecord) throws(VolumeError) {
        let path = store.mapPath(image: head.imageID, layer: head.id)
        do throws(LayerError) {
            let map = try LayerMapFile.open(
                disk: disk, path: path, layer: head.id, isSealed: false
            ) { _ in }
            defer { map.file.close() }
            guard let last = map.lastCommit, last.epoch == 1,
                last.imageSizeBytes != below.sizeBytes
            else { return }
            try map.append(
                [], imageSizeBytes: below.sizeBytes, sequence: last.sequence, isSealed: false)
            do throws(SystemError) { try map.file.syncData() } catch { throw .system(error) }
        } catch {
            try goOn(after: VolumeError(error, image: head.imageID))
        }
    }

    // MARK: Snapshots

    private func completeRestore(
        _ snapshot: SnapshotRecord, rows: [LayerID: LayerRecord]
    ) throws(VolumeError) {
        try commit { tx in
            let nodes = try tx.snapshotNodes(snapshot.id).map { node in
                var node = node
                if let id = node.layerID, let row = rows[id] { node.sizeBytes = row.sizeBytes }
                return node
            }
            try tx.replaceSnapshotNodes(snapshot.id, nodes)
            try tx.setSnapshotComplete(snapshot.id, sequence: snapshot.sequence)
            try tx.addEvent(
                EventRecord(
                    atNs: disk.now(), kind: "recovery", subject: snapshot.name,
                    message: "a restore was cut off and is complete now; what the image had "
                        + "before is kept in this snapshot"))
        }
        note("the restore that keeps snapshot '\(snapshot.name)' was completed")
    }

    private func drop(_ snapshot: SnapshotRecord) throws(VolumeError) {
        // From before it was pending none was complete until now.
        let cut = DroppedCut(after: snapshot.sequence, through: core.sequence)
        try commit { tx in
            try tx.deleteSnapshot(snapshot.id)
            if !options.isReplica, snapshot.isOfWholePool {
                try tx.setDroppedCuts(try tx.droppedCuts() + [cut])
            }
            try tx.addEvent(
                EventRecord(
                    atNs: disk.now(), kind: "recovery", subject: snapshot.name,
                    message: "the snapshot was not complete when the pool was last in use; "
                        + "it is dropped, nothing of the images is lost"))
        }
    }
}
