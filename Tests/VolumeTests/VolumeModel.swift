// A volume on a simulated disk beside arrays of bytes that say what it has to hold, before and
// after a crash.

import BlockCore
import GRDB
import SystemIO
import TestSupport
import Volume

@testable import Pool

/// What the volume did and the model says it must not.
struct Violation: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// What one image may hold: its content, and per sector what it held since its last flush.
struct SectorModel {
    static let sectorBytes = 512
    private(set) var content: [UInt8]
    private var older: [Int: [ArraySlice<UInt8>]] = [:]
    private var sizes: ClosedRange<Int>
    /// What the activity log's clear regions may be compared with (G3): any of these contents.
    var settled: [[UInt8]]

    init(content: [UInt8] = []) {
        self.content = content
        sizes = content.count...content.count
        settled = [content]
    }

    private func sector(_ number: Int, of bytes: [UInt8]) -> ArraySlice<UInt8> {
        let start = min(number * Self.sectorBytes, bytes.count)
        let end = min(start + Self.sectorBytes, bytes.count)
        if end - start == Self.sectorBytes { return bytes[start..<end] }
        return bytes[start..<end] + [UInt8](repeating: 0, count: Self.sectorBytes - (end - start))
    }

    private mutating func changing(_ range: Range<Int>, _ body: (inout [UInt8]) -> Void) {
        let sectors =
            range.lowerBound / Self.sectorBytes..<(range.upperBound + Self.sectorBytes - 1)
            / Self.sectorBytes
        for each in sectors where older[each] == nil { older[each] = [sector(each, of: content)] }
        body(&content)
        for each in sectors { older[each]!.append(sector(each, of: content)) }
        sizes = min(sizes.lowerBound, content.count)...max(sizes.upperBound, content.count)
    }

    mutating func write(_ bytes: [UInt8], at offset: Int) {
        let end = offset + bytes.count
        changing(min(offset, content.count)..<max(end, content.count)) { content in
            if content.count < end {
                content += [UInt8](repeating: 0, count: end - content.count)
            }
            content.replaceSubrange(offset..<end, with: bytes)
        }
    }

    mutating func zero(_ range: Range<Int>) {
        let range = min(range.lowerBound, content.count)..<min(range.upperBound, content.count)
        if range.isEmpty { return }
        changing(range) { content in
            content.replaceSubrange(range, with: repeatElement(0, count: range.count))
        }
    }

    mutating func resize(to size: Int) {
        let old = content.count
        changing(min(size, old)..<max(size, old)) { content in
            if size < old {
                content.removeSubrange(size...)
            } else {
                content += [UInt8](repeating: 0, count: size - old)
            }
        }
    }

    /// All of the content is durable.
    mutating func flushed() {
        older = [:]
        sizes = content.count...content.count
    }

    mutating func replace(with bytes: [UInt8]) {
        content = bytes
        flushed()
    }

    /// G1: each sector is as it was at the last flush or as it was made since.
    func check(recovered: [UInt8], _ what: String) throws {
        guard sizes.contains(recovered.count) else {
            throw Violation("\(what): size \(recovered.count) is not in \(sizes)")
        }
        if recovered == content { return }
        for number in 0..<(recovered.count + Self.sectorBytes - 1) / Self.sectorBytes {
            let start = number * Self.sectorBytes
            let found = recovered[start..<min(start + Self.sectorBytes, recovered.count)]
            let allowed = older[number] ?? [sector(number, of: content)]
            guard allowed.contains(where: { $0.prefix(found.count).elementsEqual(found) }) else {
                throw Violation(
                    "\(what): sector \(number) (block \(number / 8)) is none of the "
                        + "\(allowed.count) contents it had since the last flush")
            }
        }
    }

    /// G3: what differs from the last settled content is in an active region.
    func check(activeRegions: Set<Int>, _ what: String) throws {
        let bytes = Int(Geometry.regionSizeBytes)
        let longest = max(content.count, settled.map(\.count).max() ?? 0)
        for region in 0..<(longest + bytes - 1) / bytes where !activeRegions.contains(region) {
            let found = Self.region(region, of: content)
            guard settled.contains(where: { Self.region(region, of: $0) == found }) else {
                throw Violation("\(what): region \(region) changed and is not in the activity log")
            }
        }
    }

    /// Takes what is settled from now on: the content, where the log is clear.
    mutating func settle(activeRegions: Set<Int>) {
        let bytes = Int(Geometry.regionSizeBytes)
        var next: [UInt8] = []
        let longest = max(content.count, settled[0].count)
        for region in 0..<(longest + bytes - 1) / bytes {
            let source = activeRegions.contains(region) ? settled[0] : content
            let part = Self.region(region, of: source)
            if part.isEmpty { continue }
            next += [UInt8](repeating: 0, count: max(region * bytes - next.count, 0)) + part
        }
        settled = [next]
    }

    private static func region(_ number: Int, of bytes: [UInt8]) -> ArraySlice<UInt8> {
        let size = Int(Geometry.regionSizeBytes)
        return bytes[min(number * size, bytes.count)..<min((number + 1) * size, bytes.count)]
    }
}

/// A volume, its model, and the random operations on both.
final class CheckedPool {
    struct Options {
        var misbehaviour = SimulatedDisk.Misbehaviour()
        var imageCount = 2
        var maxBytes = 2 << 20
        var snapshotLimit = 5
    }

    /// What a crash may have left done or undone.
    private enum UnderWay {
        case nothing
        case image(ImageID?)
        case deleteImage(ImageID)
        case deleteSnapshot(String)
        case restore(ImageID, keepAs: String, content: [UInt8])
    }

    let options: Options
    var random: SeededRandom
    private(set) var disk: SimulatedDisk
    private let catalog: Catalog
    private(set) var store: PoolStore
    private(set) var volume: Volume
    private(set) var images: [ImageID: SectorModel] = [:]
    private(set) var snapshots: [String: [ImageID: [UInt8]]] = [:]
    private var nextName = 0
    private var underWay = UnderWay.nothing

    init(seed: UInt64, options: Options = Options()) throws {
        self.options = options
        random = SeededRandom(seed: seed)
        disk = SimulatedDisk(misbehaviour: options.misbehaviour)
        catalog = try Catalog.inMemory(identity: PoolIdentity(id: "test", createdNs: 0))
        for path in ["/pool", "/pool/images", "/pool/quarantine"] {
            try disk.createDirectory(path, mode: 0o700)
            try disk.syncDirectory(parentPath(path))
        }
        try catalog.write { tx in
            try PoolStore.initializeRows(
                tx,
                root: NodeRecord(
                    id: .root, parentID: nil, name: [], kind: .directory, mode: 0o755, uid: 0,
                    gid: 0, accessNs: 0, modifyNs: 0, changeNs: 0))
        }
        (store, volume) = try Self.open(disk, catalog)
        for _ in 0..<options.imageCount { try createImage() }
    }

    private static func open(_ disk: SimulatedDisk, _ catalog: Catalog) throws -> (
        PoolStore, Volume
    ) {
        let store = try PoolStore(
            disk: disk, path: "/pool", catalog: catalog, lock: nil, owner: .current())
        store.removeStrayFiles()
        return (store, try Volume(store: store, options: VolumeOptions(runsInBackground: false)))
    }

    private func anyImage() throws -> ImageID {
        let ids = images.keys.sorted()
        if ids.isEmpty { throw Violation("no image is left") }
        return ids[random.below(ids.count)]
    }

    // MARK: Operations

    func step() throws {
        switch random.below(100) {
        case 0..<42: try write()
        case 42..<47: try trim()
        case 47..<50: try zero()
        case 50..<54: try resize()
        case 54..<64: try flush(try anyImage())
        case 64..<68: try compareLive(try anyImage())
        case 68..<75: try snapshot()
        case 75..<80: try deleteSnapshot()
        case 80..<83: try restore()
        case 83..<85: try clone()
        case 85..<86: images.count < 4 ? try createImage() : try deleteImage()
        case 86..<91: _ = try volume.mergeStep()
        case 91..<94: _ = try volume.coverNextLayer()
        case 94..<97: try settle()
        default: try compareSnapshots()
        }
    }

    private func write() throws {
        let id = try anyImage()
        let length =
            random.chance(15) ? 1 + random.below(300_000) : 1 + random.below(12_000)
        // Half of all writes go to a quarter of the image, so that they meet each other.
        let limit = random.chance(50) ? options.maxBytes / 4 : options.maxBytes
        var offset = random.below(limit - length)
        if random.chance(30) { offset &= ~4095 }
        let bytes = random.bytes(length)
        images[id]!.write(bytes, at: offset)
        try bytes.withUnsafeBytes { try volume.image(id).write($0, at: UInt64(offset)) }
    }

    private func anyRange() -> Range<Int> {
        var offset = random.below(options.maxBytes)
        if random.chance(40) { offset &= ~4095 }
        var length = 1 + random.below(random.chance(20) ? options.maxBytes : 40_000)
        if random.chance(40) { length = (length + 4095) & ~4095 }
        return offset..<offset + length
    }

    private func trim() throws {
        let (id, range) = (try anyImage(), anyRange())
        images[id]!.zero(range)
        try volume.image(id).trim(at: UInt64(range.lowerBound), length: UInt64(range.count))
    }

    private func zero() throws {
        let (id, range) = (try anyImage(), anyRange())
        images[id]!.zero(range)
        try volume.image(id).zero(
            at: UInt64(range.lowerBound), length: UInt64(range.count), keepSize: true)
    }

    private func resize() throws {
        let (id, size) = (try anyImage(), random.below(options.maxBytes))
        images[id]!.resize(to: size)
        try volume.image(id).resize(to: UInt64(size))
    }

    func flush(_ id: ImageID) throws {
        try volume.image(id).flush()
        images[id]!.flushed()
    }

    func createImage() throws {
        underWay = .image(nil)
        let id = try volume.createImage().id
        images[id] = SectorModel()
        underWay = .nothing
    }

    private func deleteImage() throws {
        let id = try anyImage()
        underWay = .deleteImage(id)
        try volume.deleteImage(id)
        images[id] = nil
        underWay = .nothing
    }

    private func nodes(_ ids: [ImageID]) -> [NodeRecord] {
        ids.sorted().map { id in
            NodeRecord(
                id: NodeID(rawValue: UInt64(id.rawValue) + 1), parentID: .root,
                name: Array("\(id.rawValue)".utf8), kind: .file, mode: 0o644, uid: 0, gid: 0,
                accessNs: 0, modifyNs: 0, changeNs: 0, imageID: id)
        }
    }

    private func newName() -> String {
        nextName += 1
        return "s\(nextName)"
    }

    func snapshot() throws {
        guard snapshots.count < options.snapshotLimit else { return }
        let name = newName()
        let all = nodes(Array(images.keys))
        _ = try volume.createSnapshot(name: name) { { all } }
        snapshots[name] = images.mapValues(\.content)
        // The cut made durable what it sealed; an unchanged head had nothing to be made durable.
        for id in images.keys { images[id]!.flushed() }
    }

    private func deleteSnapshot() throws {
        let names = snapshots.keys.sorted()
        guard !names.isEmpty else { return }
        let name = names[random.below(names.count)]
        underWay = .deleteSnapshot(name)
        try volume.deleteSnapshot(name: name)
        snapshots[name] = nil
        underWay = .nothing
    }

    private func nodes(inSnapshot name: String) throws -> [ImageID: SnapshotNode] {
        let record = try volume.snapshot(named: name)
        let nodes = try store.catalog.read { try $0.snapshotNodes(record.id) }
        return Dictionary(uniqueKeysWithValues: nodes.map { ($0.node.imageID!, $0) })
    }

    private func anySource() throws -> (id: ImageID, node: SnapshotNode, content: [UInt8])? {
        let names = snapshots.keys.sorted()
        guard !names.isEmpty else { return nil }
        let name = names[random.below(names.count)]
        let ids = snapshots[name]!.keys.sorted()
        let id = ids[random.below(ids.count)]
        guard let node = try nodes(inSnapshot: name)[id] else {
            throw Violation("snapshot \(name) lost image \(id.rawValue)")
        }
        return (id, node, snapshots[name]![id]!)
    }

    private func restore() throws {
        guard snapshots.count < options.snapshotLimit, let source = try anySource(),
            images[source.id] != nil
        else { return }
        let keepAs = newName()
        underWay = .restore(source.id, keepAs: keepAs, content: source.content)
        try volume.restore(
            image: source.id, to: source.node.layerID!, sizeBytes: source.node.sizeBytes,
            keepAs: keepAs, nodes: nodes([source.id]))
        underWay = .nothing
        snapshots[keepAs] = [source.id: images[source.id]!.content]
        images[source.id]!.replace(with: source.content)
    }

    private func clone() throws {
        guard images.count < 4, let source = try anySource() else { return }
        underWay = .image(nil)
        let image = try volume.clone(
            layer: source.node.layerID!, sizeBytes: source.node.sizeBytes)
        images[image.id] = SectorModel(content: source.content)
        underWay = .nothing
    }

    private func activeRegions(_ id: ImageID) throws -> Set<Int>? {
        let path = store.activityPath(image: id)
        guard try disk.status(path) != nil else { return nil }
        return ActivityLog.parse(try disk.readAll(path)).map(Set.init)
    }

    private func settle() throws {
        let id = try anyImage()
        try settle(id, all: random.chance(50))
    }

    private func settle(_ id: ImageID, all: Bool) throws {
        let image = try volume.image(id)
        images[id]!.settled.append(images[id]!.content)
        try volume.settle(image, all: all)
        if let active = try activeRegions(id) { images[id]!.settle(activeRegions: active) }
    }

    /// A clean end and a new open; what the disk forgets meanwhile must not matter.
    func reopenCleanly() throws {
        for id in images.keys { images[id]!.settled.append(images[id]!.content) }
        try volume.close()
        let last = volume.sequence
        try catalog.write { tx in
            var state = try tx.poolState()
            state.cleanlyClosed = true
            state.lastSequence = last
            try tx.setPoolState(state)
        }
        for id in images.keys {
            images[id]!.flushed()
            let active = try activeRegions(id)
            guard active == [] else { throw Violation("a clean end left active regions") }
            images[id]!.settle(activeRegions: [])
        }
        disk = disk.crash(&random)
        (store, volume) = try Self.open(disk, catalog)
        if store.wasUnclean { throw Violation("a clean end was taken for an unclean one") }
        try compareAll()
    }

    // MARK: Crashes

    /// From the n-th sync on nothing reaches the disk, nor the catalog.
    func powerOff(atSync count: Int) {
        disk.powerOff(atSync: count) { [catalog] in Self.freeze(catalog) }
    }

    private static let tables = ["layers", "images", "snapshots", "merges", "settings", "events"]

    private static func freeze(_ catalog: Catalog) {
        try? catalog.write { tx in
            for table in tables {
                for verb in ["INSERT", "UPDATE", "DELETE"] {
                    try tx.db.execute(
                        sql: "CREATE TEMP TRIGGER off_\(table)_\(verb) BEFORE \(verb) ON \(table) "
                            + "BEGIN SELECT RAISE(ABORT, 'the power is off'); END")
                }
            }
        }
    }

    private static func thaw(_ catalog: Catalog) throws {
        try catalog.write { tx in
            for table in tables {
                for verb in ["INSERT", "UPDATE", "DELETE"] {
                    try tx.db.execute(sql: "DROP TRIGGER IF EXISTS off_\(table)_\(verb)")
                }
            }
        }
    }

    /// Runs operations until the power goes, then checks what the next open finds.
    func runToCrash(atSync count: Int, stepLimit: Int = 400) throws {
        powerOff(atSync: count)
        do {
            for _ in 0..<stepLimit { try step() }
            disk.cancelPowerOff()
        } catch {
            guard disk.isPoweredOff else { throw error }
        }
        try recover()
    }

    /// The next open, which may itself be cut short, and what it has to find.
    func recover() throws {
        while true {
            disk = disk.crash(&random)
            try Self.thaw(catalog)
            if random.chance(30) { powerOff(atSync: 1 + random.below(4)) }
            do {
                (store, volume) = try Self.open(disk, catalog)
                disk.cancelPowerOff()
                if !disk.isPoweredOff { break }
            } catch {
                guard disk.isPoweredOff else {
                    throw Violation("the pool does not open after a crash: \(error)")
                }
            }
        }
        if !store.wasUnclean { throw Violation("an unclean end was taken for a clean one") }
        try settleUnderWay()
        try checkImages()
        try compareSnapshots()
        underWay = .nothing
        for id in images.keys.sorted() { try writeOnce(id) }
    }

    /// Finds out whether what was under way happened.
    private func settleUnderWay() throws {
        let names = Set(try volume.snapshots().map(\.name))
        let known = Set(volume.imageIDs)
        switch underWay {
        case .nothing: break
        case .image:
            for id in known where images[id] == nil { try volume.deleteImage(id) }
        case .deleteImage(let id): if !known.contains(id) { images[id] = nil }
        case .deleteSnapshot(let name): if !names.contains(name) { snapshots[name] = nil }
        case .restore(let id, let keepAs, let content):
            let found = try read(id)
            if let kept = try names.contains(keepAs) ? readSnapshot(keepAs)[id] : nil {
                // G5: what was replaced is kept, as far as it was durable.
                try images[id]!.check(recovered: kept, "image \(id.rawValue) kept by a restore")
                snapshots[keepAs] = [id: kept]
            }
            if found == content, names.contains(keepAs) {
                images[id]!.replace(with: content)
            }
        }
        let expected = Set(snapshots.keys)
        guard names == expected else {
            throw Violation("snapshots \(names.sorted()) instead of \(expected.sorted())")
        }
        let now = Set(volume.imageIDs)
        guard now == Set(images.keys) else {
            throw Violation("images \(now.map(\.rawValue)) instead of \(images.keys)")
        }
    }

    private func checkImages() throws {
        for id in images.keys.sorted() {
            let what = "image \(id.rawValue)"
            let found = try read(id)
            try images[id]!.check(recovered: found, what)
            images[id]!.replace(with: found)
            if let active = try activeRegions(id) {
                try images[id]!.check(activeRegions: active, what)
                images[id]!.settle(activeRegions: active)
            }
        }
    }

    private func writeOnce(_ id: ImageID) throws {
        let bytes = random.bytes(1 + random.below(5000))
        let offset = random.below(options.maxBytes - bytes.count)
        images[id]!.write(bytes, at: offset)
        try bytes.withUnsafeBytes { try volume.image(id).write($0, at: UInt64(offset)) }
        try flush(id)
        try compareLive(id)
    }

    // MARK: Comparing

    func read(_ id: ImageID) throws -> [UInt8] {
        let image = try volume.image(id)
        var bytes = [UInt8](repeating: 0xee, count: Int(image.sizeBytes) + 100)
        let got = try bytes.withUnsafeMutableBytes { try image.read(into: $0, at: 0) }
        guard got == Int(image.sizeBytes) else {
            throw Violation("image \(id.rawValue): read \(got) of \(image.sizeBytes) bytes")
        }
        bytes.removeLast(100)
        return bytes
    }

    private func readSnapshot(_ name: String) throws -> [ImageID: [UInt8]] {
        try nodes(inSnapshot: name).mapValues { node in
            guard let layer = node.layerID else { throw Violation("\(name) has no layer") }
            let view = try volume.openView(layer, sizeBytes: node.sizeBytes)
            var bytes = [UInt8](repeating: 0xee, count: Int(node.sizeBytes))
            let got = try bytes.withUnsafeMutableBytes { try view.read(into: $0, at: 0) }
            guard got == bytes.count else { throw Violation("\(name): short read") }
            return bytes
        }
    }

    func compareLive(_ id: ImageID) throws {
        try requireEqual(try read(id), images[id]!.content, "image \(id.rawValue)")
    }

    func compareSnapshots() throws {
        for name in snapshots.keys.sorted() {
            let found = try readSnapshot(name)
            for (id, expected) in snapshots[name]! {
                let what = "image \(id.rawValue) in snapshot \(name)"
                guard let bytes = found[id] else { throw Violation("\(what) is not there") }
                try requireEqual(bytes, expected, what)
            }
        }
    }

    func compareAll() throws {
        for id in images.keys.sorted() { try compareLive(id) }
        try compareSnapshots()
    }

    private func requireEqual(_ found: [UInt8], _ expected: [UInt8], _ what: String) throws {
        if found == expected { return }
        guard found.count == expected.count else {
            throw Violation("\(what): \(found.count) bytes instead of \(expected.count)")
        }
        let at = (0..<found.count).first { found[$0] != expected[$0] }!
        throw Violation("\(what) differs at byte \(at) (block \(at / 4096))")
    }
}
