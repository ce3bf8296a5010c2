import BlockCore
import Pool
import SystemIO

extension Volume {
    /// A new empty image. No name refers to it yet: one that never gets a name is deleted at the
    /// next open. It gets its head when that is durable: a head without its file would be damage.
    package func createImage() throws(VolumeError) -> Image {
        try createImage { try $0.insertImage() }
    }

    /// - Parameter insert: puts the image's row into the catalog.
    func createImage(
        _ insert: (CatalogTransaction) throws -> ImageID
    ) throws(VolumeError) -> Image {
        try structure.withLock { () throws(VolumeError) in
            try requireUnfenced()
            var made = Prepared()
            do throws(VolumeError) {
                let image = try makeEmptyImage(insert, &made)
                announce(image)
                return image
            } catch {
                takeBack(made)
                throw error
            }
        }
    }

    private func makeEmptyImage(
        _ insert: (CatalogTransaction) throws -> ImageID, _ made: inout Prepared
    ) throws(VolumeError) -> Image {
        let row = try commit { tx in
            var row = LayerRecord(imageID: try insert(tx), parentID: nil)
            row.id = try tx.insertLayer(row)
            return row
        }
        let imageID = row.imageID
        made.rows = [row]
        made.image = imageID
        let (data, activity) = try VolumeError.system(imageID) { () throws(SystemError) in
            let directory = store.imageDirectory(imageID)
            if try disk.status(directory) == nil {
                try disk.createDirectory(directory, mode: 0o700)
            }
            let data = try disk.open(
                store.dataPath(image: imageID, layer: row.id), [.readWrite, .create])
            try data.sync()
            let activity = try ActivityLog.create(
                disk: disk, path: store.activityPath(image: imageID))
            try disk.syncDirectory(parentPath(directory))
            return (data, activity)
        }
        let layer = Layer(
            id: row.id, imageID: imageID, data: data, map: nil, isSealed: false, sums: nil)
        let chain = LayerChain(epochs: core.epochs)
        let slot = try chain.add(layer)
        try commit { try $0.setHead(imageID, row.id) }
        put(layer)
        return makeImage(
            imageID, activity: activity, chain: chain, head: layer, slot: slot, below: nil,
            sizeBytes: 0, modifiedNs: disk.now())
    }

    /// Deletes an image that no name refers to, durably, and that nobody has open. Layers that
    /// snapshots or clones need stay.
    package func deleteImage(_ id: ImageID) throws(VolumeError) {
        try structure.withLock { () throws(VolumeError) in
            try commit { try $0.markImageDeleted(id) }
            withdraw(id)
            try collectGarbage()
        }
    }

    /// Removes layers that no live image, no snapshot and no other layer needs. Rows go first: a
    /// file without a row is garbage, a row without its file would be damage.
    func collectGarbage() throws(VolumeError) {
        let (rows, images, kept) = try read { tx in
            (try tx.layers(), try tx.images(), try tx.layersReferencedBySnapshots())
        }
        let byID = Dictionary(uniqueKeysWithValues: rows.map { ($0.id, $0) })
        var needed: Set<LayerID> = []
        let tops = images.filter { !$0.isDeleted }.compactMap(\.headLayerID) + Array(kept)
        for top in tops {
            var next: LayerID? = top
            while let id = next, needed.insert(id).inserted { next = byID[id]?.parentID }
        }
        // Children before parents, as the catalog's foreign keys want it.
        let doomed = rows.filter { !needed.contains($0.id) }.sorted { $0.id > $1.id }
        let directories = Set(rows.filter { needed.contains($0.id) }.map(\.imageID))
        let emptied = images.filter { $0.isDeleted && !directories.contains($0.id) }
        guard !doomed.isEmpty || !emptied.isEmpty else { return }
        try commit { tx in
            for row in doomed where images.contains(where: { $0.headLayerID == row.id }) {
                try tx.clearHead(ofImagesWith: row.id)
            }
            for row in doomed {
                try tx.deleteMerges(naming: row.id)
                try tx.deleteLayer(row.id)
            }
            for image in emptied { try tx.deleteImage(image.id) }
        }
        core.epochs.synchronize()
        for row in doomed {
            moveViews(of: row.id, to: nil)
            forget(layer: row.id)
            removeFiles(of: row)
        }
        for image in emptied { removeDirectory(of: image.id) }
    }

    private func removeDirectory(of image: ImageID) {
        let directory = store.imageDirectory(image)
        for entry in (try? disk.list(directory)) ?? [] {
            try? disk.removeFile(directory + "/" + entry.name)
        }
        try? disk.removeDirectory(directory)
    }

    /// Creates the files of a new, empty layer on top of `parent`, durably.
    func createLayerFiles(
        _ row: LayerRecord, imageSizeBytes: UInt64, sequence: SequenceNumber
    ) throws(VolumeError) -> Layer {
        try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
            do throws(SystemError) {
                let directory = store.imageDirectory(row.imageID)
                if try disk.status(directory) == nil {
                    try disk.createDirectory(directory, mode: 0o700)
                    try disk.syncDirectory(parentPath(directory))
                }
                let data = try disk.open(
                    store.dataPath(image: row.imageID, layer: row.id),
                    [.readWrite, .create, .truncate])
                let map: LayerMapFile
                do throws(LayerError) {
                    map = try LayerMapFile.create(
                        disk: disk, path: store.mapPath(image: row.imageID, layer: row.id),
                        layer: row.id, image: row.imageID, imageSizeBytes: imageSizeBytes,
                        sequence: sequence)
                } catch {
                    if case .system(let system) = error { throw system }
                    throw SystemError(operation: "create map of", path: directory, errno: 5)
                }
                try map.file.sync()
                try disk.syncDirectory(directory)
                return Layer(
                    id: row.id, imageID: row.imageID, data: data, map: map, isSealed: false,
                    sums: nil)
            } catch { throw .system(error) }
        }
    }
}

extension Volume {
    package var imageIDs: [ImageID] { allImages.map(\.id) }
}
