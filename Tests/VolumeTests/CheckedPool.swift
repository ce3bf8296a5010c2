// A volume on a simulated disk beside arrays of bytes that say what it has to hold, before and
// after a crash.

import BlockCore
import Foundation
import SystemIO
import TestSupport
import Volume

@testable import Pool

/// What the volume did and the model says it must not.
struct Violation: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// A volume, its model, and the operations on both.
final class CheckedPool {
    struct Options {
        var misbehaviour = SimulatedDisk.Misbehaviour()
        var catalogForgets = CatalogPower.Forgets.nothing
        var imageCount = 2
        /// Everything happens from here on, in `maxBytes`: with it, a border of regions is met without
        /// large images.
        var originBytes = 0
        var maxBytes = 2 << 20
        var snapshotLimit = 5
        /// Merges stop half-way, and maps are soon too long.
        var volume = VolumeOptions(runsInBackground: false)
        /// Operations may fail for want of space; then nothing may have changed.
        var expectsNoSpace = false
        /// Called after each open, before anything is changed.
        var opened: (PoolStore, Volume) throws -> Void = { _, _ in }
        /// Syncs may fail.
        var expectsFailedSyncs = false

        init(
            imageCount: Int = 2, maxBytes: Int = 2 << 20, expectsNoSpace: Bool = false
        ) {
            self.imageCount = imageCount
            self.maxBytes = maxBytes
            self.expectsNoSpace = expectsNoSpace
            volume.mergeBatchBlocks = 11
            volume.mapRewriteBytes = 2048
        }
    }

    /// What a crash may have left done or undone.
    enum UnderWay {
        case nothing
        case newImage
        case deleteImage(ImageID)
        case deleteSnapshot(String)
        case restore(ImageID, keepAs: String, content: [UInt8])
    }

    let options: Options
    var random: SeededRandom
    /// Decides what a loss of power takes.
    var forgetting: SeededRandom
    var disk: SimulatedDisk
    let catalog: Catalog
    let power: CatalogPower
    private(set) var store: PoolStore
    private(set) var volume: Volume
    var images: [ImageID: SectorModel] = [:]
    var snapshots: [String: [ImageID: [UInt8]]] = [:]
    var underWay = UnderWay.nothing
    /// How often, in percent, images are written while another operation waits for its syncs.
    var interleaves = 0
    /// Images with a flush that failed since the pool was opened.
    var suspects: Set<ImageID> = []
    /// Where the sequence was at the last clean end.
    var lastCleanSequence = SequenceNumber.zero
    private let isTracing = ProcessInfo.processInfo.environment["DOPPEL_TRACE"] != nil
    private var nextName = 0

    init(seed: UInt64, options: Options = Options()) throws {
        self.options = options
        random = SeededRandom(seed: seed)
        forgetting = SeededRandom(seed: ~seed)
        disk = SimulatedDisk(misbehaviour: options.misbehaviour)
        catalog = try Catalog.inMemory(identity: PoolIdentity(id: "test", createdNs: 0))
        let power = CatalogPower(disk: disk, forgets: options.catalogForgets)
        self.power = power
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
            tx.db.add(transactionObserver: power, extent: .databaseLifetime)
        }
        (store, volume) = try Self.open(disk, catalog, options.volume)
        try options.opened(store, volume)
        for _ in 0..<options.imageCount { try createImage() }
    }

    static func open(
        _ disk: SimulatedDisk, _ catalog: Catalog, _ options: VolumeOptions
    ) throws -> (PoolStore, Volume) {
        let store = try PoolStore(
            disk: disk, path: "/pool", catalog: catalog, lock: nil, owner: .current())
        store.removeStrayFiles()
        return (store, try Volume(store: store, options: options))
    }

    /// Tells what is about to happen, with DOPPEL_TRACE set: for the replay of one seed.
    func trace(_ text: @autoclosure () -> String) {
        if isTracing { print("[\(disk.syncCount)] \(text())") }
    }

    func newName() -> String {
        nextName += 1
        return "s\(nextName)"
    }

    /// Ends this disk as a loss of power does; the pool is not open afterwards.
    func losePower() throws {
        disk = disk.crash(&forgetting)
        power.disk = disk
        try power.crash(catalog)
    }

    func openAgain() throws {
        (store, volume) = try Self.open(disk, catalog, options.volume)
        try options.opened(store, volume)
        suspects = []
    }

    /// A clean end and a new open; what the disk forgets meanwhile must not matter.
    func reopenCleanly() throws {
        trace("close and open")
        for id in images.keys { images[id]!.settling() }
        try volume.close()
        let last = volume.sequence
        try catalog.write { tx in
            var state = try tx.poolState()
            state.cleanlyClosed = true
            state.lastSequence = last
            try tx.setPoolState(state)
        }
        lastCleanSequence = last
        for id in images.keys {
            images[id]!.flushed()
            guard try activeRegions(id) == [] else {
                throw Violation("a clean end left active regions")
            }
            images[id]!.settle(activeRegions: [])
        }
        try losePower()
        try openAgain()
        if store.wasUnclean { throw Violation("a clean end was taken for an unclean one") }
        try compareAll()
    }

    func activeRegions(_ id: ImageID) throws -> Set<Int>? {
        let path = store.activityPath(image: id)
        guard try disk.status(path) != nil else { return nil }
        return ActivityLog.parse(try disk.readAll(path)).map(Set.init)
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

    func nodes(inSnapshot name: String) throws -> [ImageID: SnapshotNode] {
        let record = try volume.snapshot(named: name)
        let nodes = try store.catalog.read { try $0.snapshotNodes(record.id) }
        return Dictionary(uniqueKeysWithValues: nodes.map { ($0.node.imageID!, $0) })
    }

    func readSnapshot(_ name: String) throws -> [ImageID: [UInt8]] {
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
        guard found.count == expected.count else {
            throw Violation("\(what): \(found.count) bytes instead of \(expected.count)")
        }
        if let at = firstDifference(found, expected) {
            throw Violation("\(what) differs at byte \(at) (block \(at / 4096))")
        }
    }

    /// Nothing lies about that nobody knows, and what is sealed has the checksums it was given.
    func checkHouse() throws {
        let strays = try disk.list("/pool/quarantine").map(\.name)
        if !strays.isEmpty { throw Violation("a loss of power sent \(strays) to quarantine") }
        let rows = try catalog.read { try $0.layers() }
        let known = Set(rows.map { "\($0.imageID.rawValue)/\($0.id.rawValue)" })
        for directory in try disk.list("/pool/images") {
            for file in try disk.list("/pool/images/" + directory.name) {
                let stem = file.name.split(separator: ".").first.map(String.init) ?? ""
                if ["activity", "image.txt"].contains(file.name) { continue }
                if known.contains("\(directory.name)/\(stem)"), !file.name.hasSuffix(".new") {
                    continue
                }
                throw Violation("\(directory.name)/\(file.name) belongs to nothing")
            }
        }
        let damaged = try volume.scrub().damaged
        if !damaged.isEmpty { throw Violation("scrub: \(damaged)") }
    }
}
