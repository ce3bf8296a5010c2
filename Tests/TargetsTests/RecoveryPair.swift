import BlockCore
import Replication
import SystemIO
import TestSupport
import Testing

@testable import Pool
@testable import Targets
@testable import Volume

/// A primary with two named images of 2048 blocks, and its mirror, or two; everything in this thread.
final class RecoveryPair {
    static let first = TargetID(rawValue: 1)
    static let second = TargetID(rawValue: 2)

    let mirror: MirrorFixture
    private let shared: Shared
    let catalog: Catalog
    var disk = SimulatedDisk()
    private let power: CommitPower
    private(set) var volume: Volume!
    private(set) var hub: TargetHub!
    private(set) var store: PoolStore!
    private(set) var images: [Image] = []
    let mode: TargetRecord.Mode

    /// - Parameters:
    ///   - other: of a second mirror, where there is to be one.
    ///   - reached: how the first one is reached.
    init(
        mode: TargetRecord.Mode, beside other: TargetRecord.Mode? = nil,
        reached: (MirrorFixture) -> any TargetFixture = { $0 }
    ) throws {
        self.mode = mode
        mirror = try MirrorFixture()
        shared = Shared(["/mirror": reached(mirror)])
        if other != nil { shared.fixtures["/mirror2"] = try MirrorFixture() }
        power = CommitPower(disk: disk)
        for path in ["/pool", "/pool/images", "/pool/quarantine"] {
            try disk.createDirectory(path, mode: 0o700)
            try disk.syncDirectory(parentPath(path))
        }
        catalog = try Catalog.inMemory(identity: PoolIdentity(id: "primary", createdNs: 0))
        try catalog.write { tx in
            try PoolStore.initializeRows(tx, root: Self.node(.root, nil, "", .directory, nil))
            tx.db.add(transactionObserver: power, extent: .databaseLifetime)
        }
        try open()
        images = [try volume.createImage(), try volume.createImage()]
        for (number, image) in images.enumerated() {
            try image.resize(to: 2048 * 4096)
            let node = Self.node(
                NodeID(rawValue: UInt64(number + 2)), .root, "\(number).img", .file, image.id)
            try catalog.write { try $0.upsertNode(node) }
        }
        _ = try hub.add(
            TargetRecord(
                address: "/mirror", poolID: "mirror", mode: mode, timeoutMs: 5000, addedNs: 0))
        if let other {
            _ = try hub.add(
                TargetRecord(
                    address: "/mirror2", poolID: "mirror", mode: other, timeoutMs: 5000, addedNs: 0)
            )
        }
        try goOn { try $0.catalog.read { try $0.targets() }.allSatisfy(\.isWhole) }
    }

    private static func node(
        _ id: NodeID, _ parent: NodeID?, _ name: String, _ kind: NodeRecord.Kind,
        _ image: ImageID?
    ) -> NodeRecord {
        NodeRecord(
            id: id, parentID: parent, name: Array(name.utf8), kind: kind, mode: 0o755, uid: 0,
            gid: 0, accessNs: 0, modifyNs: 0, changeNs: 0, imageID: image)
    }

    func openStore() throws -> PoolStore {
        power.disk = disk
        return try PoolStore(
            disk: disk, path: "/pool", catalog: catalog, lock: nil, owner: .current())
    }

    func open() throws {
        store = try openStore()
        volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        var options = HubOptions()
        options.runsInBackground = false
        hub = try TargetHub(
            volume: volume, stream: volume.attachStream(), suspects: volume.suspects(),
            options: options
        ) { [shared] (record) throws(TargetError) in shared.fixtures[record.address]!.open() }
        volume.attach(hub)
        let catalog = catalog
        hub.start(names: { { (try? catalog.read { try $0.nodes() }) ?? [] } })
        images = try volume.imageIDs.map { try volume.image($0) }
    }

    /// Until what is asked for holds.
    func goOn(with targets: [AttachedTarget]? = nil, _ isThere: (RecoveryPair) throws -> Bool)
        throws
    {
        for _ in 0..<2000 {
            if try isThere(self) { return }
            hub.keepHouse()
            for target in targets ?? hub.all { while target.driver?.step() ?? false {} }
        }
        throw Violation("it never came")
    }

    /// The other target is left alone, where there is one.
    func untilLevel(_ id: TargetID = first) throws {
        let last = hub.stream.lastSequence
        let target = try #require(hub.target(id))
        target.driver?.wantFlush(last)
        try goOn(with: [target]) { ($0.hub.stream.standing(id)?.durable ?? .zero) >= last }
    }

    func losePower(_ random: inout SeededRandom) { disk = disk.crash(&random) }

    func source(_ address: String = "/mirror") -> PatientTarget {
        PatientTarget(
            shared.fixtures[address]!.open(), limitMs: 60_000, disk: LinuxDisk(),
            isCancelled: { false })
    }

    /// - Returns: nil where there is nothing to be done.
    func recover() throws -> RecoveryPull.Summary? {
        let store = try openStore()
        guard let pull = try RecoveryPull(store) else { return nil }
        var ahead: [RecoveryPull.Asked] = []
        defer { for each in ahead { each.target.disconnect() } }
        for record in pull.sources {
            guard case .ahead(let target, let report) = pull.ask(record, source(record.address))
            else {
                throw Violation("\(record.address) has nothing")
            }
            ahead.append((record, target, report))
        }
        let best = try #require(pull.best(of: ahead.map { ($0.record, $0.report) }, silent: []))
        return try pull.pull(from: ahead, best: best) { _, _ in }
    }

    func contents() throws -> [ImageID: [UInt8]] {
        var result: [ImageID: [UInt8]] = [:]
        for image in images {
            result[image.id] = try MirrorFixture.bytes(image.sizeBytes) {
                try image.read(into: $0, at: 0)
            }
        }
        return result
    }
}

private final class Shared: @unchecked Sendable {  // used by one thread
    var fixtures: [String: any TargetFixture]
    init(_ fixtures: [String: any TargetFixture]) { self.fixtures = fixtures }
}
