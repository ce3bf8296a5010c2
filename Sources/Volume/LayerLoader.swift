// From the catalog's rows and the layers' files to images: what runs at open, also after a crash.
//
// A torn tail of an unsealed map is cut (LayerMapFile M4), and an event tells; files without a row are
// removed by `removeStrayFiles`; what else a crash leaves, Volume+Recovery.swift mends first. Where
// files are missing or do not verify, the images that need them are set aside, with an event; the
// others are served.

import BlockCore
import Pool
import SystemIO

enum LayerLoader {
    /// The pool's sequence goes on from the highest that the catalog or a head's commit tells.
    static func highestSequence(_ store: PoolStore) throws(VolumeError) -> SequenceNumber {
        let (rows, told) = try Volume.catalog(store) { tx in
            (try tx.layers(), try tx.highestSequence())
        }
        var highest = told
        for row in rows where !row.isSealed {
            let path = store.mapPath(image: row.imageID, layer: row.id)
            guard (try? store.disk.status(path)) ?? nil != nil else { continue }
            do throws(LayerError) {
                let map = try LayerMapFile.open(
                    disk: store.disk, path: path, layer: row.id, isSealed: false, readOnly: true
                ) { _ in }
                highest = max(highest, map.lastCommit?.sequence ?? .zero)
            } catch {
                // Its image is going to be set aside; what verifies of the map still counts.
                let bytes = (try? store.disk.readAll(path)) ?? []
                let commits = MapSalvage(bytes, layer: row.id).commits
                highest = max(highest, commits.map(\.commit.sequence).max() ?? .zero)
            }
        }
        return highest
    }
}

extension Volume {
    func loadAll() throws(VolumeError) {
        var rows: [LayerID: LayerRecord] = [:]
        for row in try read({ try $0.layers() }) { rows[row.id] = row }
        for merge in try read({ try $0.merges() }) {
            mergingLayers.formUnion([merge.layerID, merge.intoLayerID])
        }
        try matchSizesOfDrains(rows)
        try recover(&rows)
        if store.wasUnclean { try cutTornTailsOfMerges(rows) }
        for row in try read({ try $0.images() }) where !row.isDeleted {
            guard let headID = row.headLayerID else { continue }
            do throws(VolumeError) { try load(row, headID: headID, rows: rows) } catch {
                try goOn(after: error)
                try setAside(row.id, head: rows[headID], error)
            }
        }
        if store.wasUnclean { try collectGarbage() }
    }

    private func setAside(
        _ id: ImageID, head: LayerRecord?, _ error: VolumeError
    ) throws(VolumeError) {
        var sizeBytes: UInt64 = 0
        if let head {
            let path = store.mapPath(image: head.imageID, layer: head.id)
            let bytes = (try? disk.readAll(path)) ?? []
            let data =
                (try? disk.status(store.dataPath(image: head.imageID, layer: head.id))) ?? nil
            sizeBytes =
                MapSalvage(bytes, layer: head.id).commits.last?.commit.imageSizeBytes
                ?? (head.parentID == nil ? data?.sizeBytes : nil) ?? 0
        }
        var error = error
        let mayBeSound = error.isOfTheDisk
        (error.kind, error.image) = (.damaged, id)
        put(DamagedImage(id: id, error: error, sizeBytes: sizeBytes, mayBeSound: mayBeSound))
        log.error("\(error): the image is set aside, the others are served")
        let event = EventRecord(
            atNs: disk.now(), kind: "damaged", subject: "image \(id.rawValue)",
            message: error.message)
        try commit { try $0.addEvent(event) }
    }

    // MARK: Images

    private func load(
        _ row: ImageRecord, headID: LayerID, rows: [LayerID: LayerRecord]
    ) throws(VolumeError) {
        let (chain, head, slot) = try buildChain(to: headID, rows: rows)
        let sizeBytes = try imageSize(head)
        let (activity, wasDamaged) = try VolumeError.system(row.id) { () throws(SystemError) in
            try ActivityLog.open(
                disk: disk, path: store.activityPath(image: row.id), imageSizeBytes: sizeBytes)
        }
        if wasDamaged { note("image \(row.id.rawValue): its activity log was made anew") }
        // A head without data was not written since its cut: its file's time is the cut's.
        let status = try? head.data.status()
        let modifiedNs =
            head.map != nil && status?.allocatedBytes == 0 ? 0 : status?.modifyNs ?? 0
        let image = makeImage(
            row.id, activity: activity, chain: chain, head: head, slot: slot,
            below: rows[headID]?.parentID, sizeBytes: sizeBytes, modifiedNs: modifiedNs)
        if store.wasUnclean { try image.clearPastEnd() }
        put(image)
    }

    func makeImage(
        _ id: ImageID, activity: ActivityLog, chain: LayerChain, head: Layer, slot: LayerSlot,
        below: LayerID?, sizeBytes: UInt64, modifiedNs: Int64
    ) -> Image {
        Image(
            id: id, core: core, activity: activity, chain: chain, head: head, headSlot: slot,
            layerBelowHead: below, sizeBytes: sizeBytes, modifiedNs: modifiedNs
        ) { [weak self] in self?.background.wake(settling: id) }
    }

    private func imageSize(_ head: Layer) throws(VolumeError) -> UInt64 {
        if let last = head.map?.lastCommit { return last.imageSizeBytes }
        return try VolumeError.system(head.imageID) { () throws(SystemError) in
            try head.data.status().sizeBytes
        }
    }

    /// Opens the layers from the root to `top` and flattens their maps into one index.
    func buildChain(
        to top: LayerID, rows: [LayerID: LayerRecord]
    ) throws(VolumeError) -> (LayerChain, Layer, LayerSlot) {
        var path: [LayerRecord] = []
        var next: LayerID? = top
        while let id = next {
            if let error = brokenLayer(id) { throw error }
            guard let row = rows[id], path.count < LayerSlot.limit else {
                throw VolumeError(
                    .damaged, "layer \(id.rawValue) is missing from the catalog: run `doppel check`"
                )
            }
            path.append(row)
            next = row.parentID
        }
        let chain = LayerChain(epochs: core.epochs)
        var last: (Layer, LayerSlot)?
        for row in path.reversed() {
            let layer = try open(row, indexing: chain)
            last = (layer, chain.slot(of: layer)!)
        }
        return (chain, last!.0, last!.1)
    }

    /// Opens a layer (or takes the open one) and enters its blocks into the chain's index.
    private func open(_ row: LayerRecord, indexing chain: LayerChain) throws(VolumeError) -> Layer {
        let path = store.mapPath(image: row.imageID, layer: row.id)
        let hasMap = try VolumeError.system(row.imageID) { () throws(SystemError) in
            try disk.status(path) != nil
        }
        guard hasMap || row.parentID == nil else {
            throw VolumeError(
                .damaged, image: row.imageID,
                "\(path) is missing: without it nobody knows what layer \(row.id.rawValue) holds")
        }
        // The first slot is the base without a map: what no map names is found there.
        if hasMap, chain.isEmpty { _ = try chain.add(Layer.nothing(image: row.imageID)) }
        if let known = layer(row.id) {
            let slot = try chain.add(known)
            if hasMap { _ = try replay(row, path: path, slot: slot, chain: chain, readOnly: true) }
            return known
        }
        let data = try openData(of: row)
        // The slot is known before the layer is: the next one of the chain.
        let layer: Layer
        let slot = chain.nextSlotForLoading
        let map =
            hasMap
            ? try replay(
                row, path: path, slot: slot, chain: chain,
                readOnly: false, data: data) : nil
        if let torn = map?.tornTailBytes, torn > 0 {
            note("layer \(row.id.rawValue): cut \(torn) bytes of an unfinished commit off its map")
        }
        let sums = row.isSealed ? try openSums(of: row) : nil
        layer = Layer(
            id: row.id, imageID: row.imageID, data: data, map: map, isSealed: row.isSealed,
            sums: sums)
        _ = try chain.add(layer)
        put(layer)
        return layer
    }

    private func openSums(of row: LayerRecord) throws(VolumeError) -> SumsFile? {
        let path = store.sumsPath(image: row.imageID, layer: row.id)
        do throws(LayerError) {
            return try SumsFile.open(disk: disk, path: path, layer: row.id)
        } catch {
            // Without its checksums the layer is not covered, which status shows; with a torn file
            // every read of it would fail.
            store.quarantine(path, reason: error.description)
            note("layer \(row.id.rawValue): \(error.description)")
            return nil
        }
    }

    /// Enters a map's blocks into the index. Of a map with blocks that a merge moved away only the
    /// last word on each block counts: those are looked for below.
    private func replay(
        _ row: LayerRecord, path: String, slot: LayerSlot, chain: LayerChain, readOnly: Bool,
        data: DiskFile? = nil
    ) throws(VolumeError) -> LayerMapFile {
        var extents: [MapExtent] = []
        let map = try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
            let isMerging = mergingLayers.contains(row.id)
            let map = try LayerMapFile.open(
                disk: disk, path: path, layer: row.id, isSealed: row.isSealed && !isMerging,
                isSettled: data != nil && !store.wasUnclean, readOnly: readOnly
            ) { extents.append($0) }
            if extents.contains(where: { $0.state == .absent }) {
                let contents = LayerContents(extents)
                for range in contents.data.ranges { chain.index.set(range, to: slot) }
                for range in contents.zero.ranges { chain.index.set(range, to: .zero) }
            } else {
                for extent in extents {
                    chain.index.set(extent.range, to: extent.state == .zero ? .zero : slot)
                }
            }
            return map
        }
        if let data { try requireWhole(data, of: row, extents) }
        return map
    }

    /// A data file never shrinks below a block that a durable map names; past its end there would be
    /// zeros.
    private func requireWhole(
        _ data: DiskFile, of row: LayerRecord, _ extents: [MapExtent]
    ) throws(VolumeError) {
        func end(_ extents: [MapExtent]) -> UInt64 {
            extents.reduce(0) { $1.state == .data ? max($0, $1.range.end) : $0 }
        }
        let length = try VolumeError.system(row.imageID) { () throws(SystemError) in
            try data.status().sizeBytes
        }
        guard end(extents) > Geometry.blockCount(sizeBytes: length) else { return }
        // Later extents may have taken back what earlier ones said.
        guard let last = LayerContents(extents).data.ranges.last,
            last.end > Geometry.blockCount(sizeBytes: length)
        else { return }
        throw VolumeError(
            .damaged, image: row.imageID,
            "\(data.path) is damaged: it ends at \(length), and block \(last.end - 1) of it is gone. "
                + "Run `doppel check` on the pool.")
    }

    func openData(of row: LayerRecord) throws(VolumeError) -> DiskFile {
        try VolumeError.system(row.imageID) { () throws(SystemError) in
            try disk.open(
                store.dataPath(image: row.imageID, layer: row.id),
                .readWrite)
        }
    }

    /// A sealed layer that perhaps no open image has in its chain: a snapshot's of an image that was
    /// deleted or restored. The caller holds the structure lock.
    /// - Returns: nil for one that does not open; status and check tell of it.
    func openedLayer(
        _ row: LayerRecord, rows: [LayerRecord]
    ) throws(VolumeError) -> Layer? {
        if let open = layer(row.id) { return open }
        if brokenLayer(row.id) != nil { return nil }
        let byID = Dictionary(uniqueKeysWithValues: rows.map { ($0.id, $0) })
        do throws(VolumeError) { return try buildChain(to: row.id, rows: byID).1 } catch {
            guard error.isOfOneImage else { throw error }
            put(broken: row.id, error)
            log.error("layer \(row.id.rawValue) does not open: \(error)")
            return nil
        }
    }

    func removeFiles(of row: LayerRecord) {
        for path in [
            store.dataPath(image: row.imageID, layer: row.id),
            store.mapPath(image: row.imageID, layer: row.id),
            store.sumsPath(image: row.imageID, layer: row.id),
        ] { try? disk.removeFile(path) }
    }
}
