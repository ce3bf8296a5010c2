import BlockCore
import Pool
import SystemIO
import TestSupport
import Volume

extension CheckedPool {
    func anyImage() throws -> ImageID {
        let ids = images.keys.sorted()
        if ids.isEmpty { throw Violation("no image is left") }
        return ids[random.below(ids.count)]
    }

    /// One random operation on both the volume and the model.
    func step() throws {
        switch random.below(100) {
        case 0..<42: try write()
        case 42..<47: try trim()
        case 47..<50: try zero()
        case 50..<54: try resize()
        case 54..<64: try flush(try anyImage())
        case 64..<68: try compareLive(try anyImage())
        case 68..<75: if snapshots.count < options.snapshotLimit { try snapshot() }
        case 75..<80: try deleteSnapshot()
        case 80..<83: try restore()
        case 83..<85: try clone()
        case 85..<86: images.count < 4 ? try createImage() : try deleteImage(try anyImage())
        case 86..<91: try mergeOnce()
        case 91..<93: try coverOnce()
        case 93..<94: try rewriteOnce()
        case 94..<97: try settle(try anyImage(), all: random.chance(50))
        default: try compareSnapshots()
        }
    }

    // MARK: When the disk is full

    /// Runs a change of one image; where the disk may be full, a failure may have done part of it.
    private func change(
        _ id: ImageID, _ model: (inout SectorModel) -> Void, _ run: (Image) throws -> Void
    ) throws {
        let mayFail = options.expectsNoSpace || options.expectsFailedSyncs
        let before = mayFail ? images[id]!.content : []
        model(&images[id]!)
        do { try run(try volume.image(id)) } catch let error as VolumeError {
            guard isTolerated(error) else { throw error }
            trace("failed: \(error)")
            try images[id]!.failed(before: before, found: try read(id), "image \(id.rawValue)")
        }
    }

    private func isTolerated(_ error: VolumeError) -> Bool {
        if disk.isPoweredOff { return false }
        switch error.kind {
        case .noSpace: return options.expectsNoSpace
        case .io, .latched: return options.expectsFailedSyncs
        default: return false
        }
    }

    /// Runs a change of images, layers or snapshots; one that meets a full disk changes nothing
    /// that can be seen.
    /// - Returns: whether it was done.
    @discardableResult
    private func restructure(_ what: UnderWay, _ run: () throws -> Void) throws -> Bool {
        underWay = what
        do { try interleaving(with: what, run) } catch let error as VolumeError {
            trace("failed: \(error)")
            guard isTolerated(error), error.kind == .noSpace else { throw error }
            try findOutWhatHappened()
            try compareAll()
            underWay = .nothing
            return false
        }
        underWay = .nothing
        return true
    }

    // MARK: Between the steps

    /// Runs `body`, with writes and flushes of images while it waits for its syncs.
    private func interleaving(with what: UnderWay, _ body: () throws -> Void) throws {
        guard !options.expectsNoSpace, !options.expectsFailedSyncs, random.chance(interleaves)
        else {
            return try body()
        }
        var isInside = false
        var failure: (any Error)?
        disk.whileSyncing { [unowned self] path in
            guard !isInside, failure == nil, random.chance(50) else { return }
            isInside = true
            defer { isInside = false }
            do { try changeOrFlush(besides: what, syncing: path) } catch { failure = error }
        }
        defer { disk.whileSyncing(nil) }
        try body()
        if let failure { throw failure }
    }

    private func changeOrFlush(besides what: UnderWay, syncing path: String) throws {
        var ids = Set(images.keys)
        switch what {
        case .deleteImage(let id), .restore(let id, _, _): ids.remove(id)
        default: break
        }
        // One thread cannot wait for the sync that it is in.
        ids = ids.filter { !path.hasPrefix(store.imageDirectory($0) + "/") }
        guard let id = ids.sorted().randomElement(using: &random) else { return }
        switch random.below(10) {
        case 0..<4: try flush(id)
        case 4: try trim(id, anyRange())
        case 5: try resize(id, to: options.originBytes + random.below(options.maxBytes))
        default: try write(to: id)
        }
    }

    // MARK: Content

    func write() throws { try write(to: try anyImage()) }
    private func write(to id: ImageID) throws {
        let length =
            random.chance(15) ? 1 + random.below(options.maxBytes / 4) : 1 + random.below(12_000)
        // Half of all writes go to a quarter of the image, so that they meet each other.
        let limit = random.chance(50) ? options.maxBytes / 4 : options.maxBytes
        var offset = options.originBytes + random.below(max(limit - length, 1))
        if random.chance(30) { offset &= ~4095 }
        try write(id, at: offset, length: length)
    }

    func write(_ id: ImageID, at offset: Int, length: Int) throws {
        trace(
            "write \(id.rawValue) \(offset)+\(length) blocks \(offset / 4096)...\((offset + length - 1) / 4096)"
        )
        let bytes = random.bytes(length)
        try change(id, { $0.write(bytes, at: offset) }) { image in
            try bytes.withUnsafeBytes { try image.write($0, at: UInt64(offset)) }
        }
    }

    private func anyRange() -> Range<Int> {
        var offset = options.originBytes + random.below(options.maxBytes)
        if random.chance(40) { offset &= ~4095 }
        var length = 1 + random.below(random.chance(20) ? options.maxBytes : 40_000)
        if random.chance(40) { length = (length + 4095) & ~4095 }
        return offset..<offset + length
    }

    func trim() throws { try trim(try anyImage(), anyRange()) }
    func trim(_ id: ImageID, _ range: Range<Int>) throws {
        trace("trim \(id.rawValue) \(range)")
        try change(id, { $0.zero(range) }) {
            try $0.trim(at: UInt64(range.lowerBound), length: UInt64(range.count))
        }
    }

    private func zero() throws {
        let (id, range) = (try anyImage(), anyRange())
        trace("zero \(id.rawValue) \(range)")
        try change(id, { $0.zero(range) }) {
            try $0.zero(at: UInt64(range.lowerBound), length: UInt64(range.count), keepSize: true)
        }
    }

    private func resize() throws {
        try resize(try anyImage(), to: options.originBytes + random.below(options.maxBytes))
    }
    func resize(_ id: ImageID, to size: Int) throws {
        trace("resize \(id.rawValue) \(size)")
        try change(id, { $0.resize(to: size) }) { try $0.resize(to: UInt64(size)) }
    }

    func flush(_ id: ImageID) throws {
        trace("flush \(id.rawValue)")
        do throws(VolumeError) { try volume.image(id).flush() } catch {
            guard isTolerated(error) else { throw error }
            suspects.insert(id)
            return
        }
        if suspects.contains(id) {
            throw Violation("image \(id.rawValue): a flush succeeded after one that failed")
        }
        images[id]!.flushed()
    }

    // MARK: Images, snapshots, layers

    func createImage() throws {
        trace("create image")
        try restructure(.newImage) {
            let id = try volume.createImage().id
            images[id] = SectorModel()
        }
    }

    func deleteImage(_ id: ImageID) throws {
        trace("delete \(id.rawValue)")
        try restructure(.deleteImage(id)) {
            try volume.deleteImage(id)
            images[id] = nil
        }
    }

    private func nodes(_ ids: [ImageID]) -> [NodeRecord] {
        ids.sorted().map { id in
            NodeRecord(
                id: NodeID(rawValue: UInt64(id.rawValue) + 1), parentID: .root,
                name: Array("\(id.rawValue)".utf8), kind: .file, mode: 0o644, uid: 0, gid: 0,
                accessNs: 0, modifyNs: 0, changeNs: 0, imageID: id)
        }
    }

    func snapshot() throws {
        let name = newName()
        let all = nodes(Array(images.keys))
        trace("snapshot \(name)")
        defer { for id in images.keys { images[id]!.cutFailed() } }
        try restructure(.nothing) {
            var taken: [ImageID: [UInt8]] = [:]
            _ = try volume.createSnapshot(name: name) {
                taken = images.mapValues(\.content)
                for id in images.keys { images[id]!.cut() }
                return { all }
            }
            snapshots[name] = taken
            // The cut made durable what it sealed; an unchanged head had nothing to be made durable.
            for id in images.keys { images[id]!.cutIsComplete() }
        }
    }

    func deleteSnapshot() throws {
        let names = snapshots.keys.sorted()
        if !names.isEmpty { try deleteSnapshot(names[random.below(names.count)]) }
    }
    func deleteSnapshot(_ name: String) throws {
        trace("delete snapshot \(name)")
        try restructure(.deleteSnapshot(name)) {
            try volume.deleteSnapshot(name: name)
            snapshots[name] = nil
        }
    }

    private func source(
        _ name: String, _ id: ImageID
    ) throws -> (node: SnapshotNode, content: [UInt8]) {
        guard let node = try nodes(inSnapshot: name)[id] else {
            throw Violation("snapshot \(name) lost image \(id.rawValue)")
        }
        return (node, snapshots[name]![id]!)
    }

    private func anySource() -> (name: String, id: ImageID)? {
        let names = snapshots.keys.sorted()
        guard !names.isEmpty else { return nil }
        let name = names[random.below(names.count)]
        let ids = snapshots[name]!.keys.sorted()
        return (name, ids[random.below(ids.count)])
    }

    private func restore() throws {
        guard snapshots.count < options.snapshotLimit, let from = anySource(),
            images[from.id] != nil
        else { return }
        try restore(from.id, from: from.name)
    }
    func restore(_ id: ImageID, from name: String) throws {
        let (node, content) = try source(name, id)
        let keepAs = newName()
        trace("restore \(id.rawValue) from \(name), keep as \(keepAs)")
        try restructure(.restore(id, keepAs: keepAs, content: content)) {
            try volume.restore(
                image: id, to: node.layerID!, sizeBytes: node.sizeBytes, keepAs: keepAs,
                nodes: nodes([id]))
            snapshots[keepAs] = [id: images[id]!.content]
            images[id]!.replace(with: content)
        }
    }

    private func clone() throws {
        guard images.count < 4, let from = anySource() else { return }
        try clone(from.id, from: from.name)
    }
    func clone(_ id: ImageID, from name: String) throws {
        trace("clone \(id.rawValue) from \(name)")
        let (node, content) = try source(name, id)
        try restructure(.newImage) {
            let image = try volume.clone(layer: node.layerID!, sizeBytes: node.sizeBytes)
            images[image.id] = SectorModel(content: content)
        }
    }

    func mergeOnce() throws {
        trace("merge")
        try restructure(.nothing) { _ = try volume.mergeStep() }
    }
    func mergeAll() throws {
        var isLeft = true
        while isLeft {
            let isDone = try restructure(.nothing) { isLeft = try volume.mergeStep() }
            if !isDone { return }
        }
    }
    func rewriteOnce() throws {
        trace("rewrite a map")
        try restructure(.nothing) { _ = try volume.rewriteNextMap() }
    }
    func coverOnce() throws {
        trace("cover")
        try restructure(.nothing) { _ = try volume.coverNextLayer() }
    }

    func settle(_ id: ImageID, all: Bool) throws {
        trace("settle \(id.rawValue) all: \(all)")
        let image = try volume.image(id)
        images[id]!.settling()
        try volume.settle(image, all: all)
        if let active = try activeRegions(id) { images[id]!.settle(activeRegions: active) }
    }
}
