// A target with the store under it, for suites that any kind of target has to pass.

import BlockCore
import GRDB
import Replication
import SystemIO
import TestSupport
import Testing
import Volume

@testable import Pool
@testable import Targets

/// What somebody who mounts the target sees.
struct ShownPool {
    var sequence: SequenceNumber
    var names: [NodeID: NodeRecord]
    var images: [ImageID: [UInt8]]
}

protocol TargetFixture: AnyObject {
    /// Of the disk that is written to; a new one after each loss of power.
    var disk: SimulatedDisk { get }
    /// The target on what the disk has: as in a new process.
    func open() -> any ReplicaTarget
    /// Power goes; what was open is gone.
    func losePower(_ random: inout SeededRandom)
    /// What the target does behind, one step of it.
    func stepBehind(_ target: any ReplicaTarget) throws
    /// What a mount beside the connected primary shows.
    func show(_ target: any ReplicaTarget) throws -> ShownPool
    /// What a mount without a primary shows, or whoever reads the files; nobody has the target open.
    /// - Returns: nil where the target says that it is torn.
    func showAlone() throws -> ShownPool?
    /// The snapshots at its checkpoint.
    func snapshots(_ target: any ReplicaTarget) throws -> [SnapshotInfo]
    /// A snapshot, by its cut.
    func showSnapshot(_ target: any ReplicaTarget, _ info: SnapshotInfo) throws -> ShownPool
}

/// What not every kind of target can do.
struct TargetCapabilities: OptionSet, Sendable {
    let rawValue: Int
    /// G2: it is at a checkpoint always, also in a staging and after it lost its power. Others say then
    /// that they are torn, and are whole again when they were brought in step.
    static let keepsCheckpoint = TargetCapabilities(rawValue: 1)
    static let snapshots = TargetCapabilities(rawValue: 2)
}

/// A kind of target, for every suite that each has to pass. A new one is one line in `allCases`.
struct TargetKind: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let can: TargetCapabilities
    /// Behind a server: what is below it is a kind of its own.
    var isRemote = false
    let make: @Sendable () throws -> any TargetFixture

    static let allCases = [
        TargetKind(testDescription: "mirror directory", can: [.keepsCheckpoint, .snapshots]) {
            try MirrorFixture()
        },
        TargetKind(testDescription: "raw mirror", can: []) { try RawFixture() },
        TargetKind(
            testDescription: "remote mirror directory", can: [.keepsCheckpoint, .snapshots],
            isRemote: true
        ) { RemoteFixture(try MirrorFixture(), bulkConnections: 2) },
        TargetKind(testDescription: "remote raw mirror", can: [], isRemote: true) {
            RemoteFixture(try RawFixture(), bulkConnections: 0)
        },
    ]

    /// And over real sockets: for suites in which nothing but what they do themselves happens.
    static let withSockets =
        allCases + [
            TargetKind(
                testDescription: "mirror directory over TLS",
                can: [.keepsCheckpoint, .snapshots], isRemote: true
            ) { SocketFixture(try MirrorFixture()) }
        ]

    /// For suites that walk through every sync of a target's own.
    static let inProcess = allCases.filter { !$0.isRemote }

    static func all(that can: TargetCapabilities) -> [TargetKind] {
        withSockets.filter { $0.can.isSuperset(of: can) }
    }
}

final class MirrorFixture: TargetFixture {
    private(set) var disk: SimulatedDisk
    let catalog: Catalog
    private let power: CommitPower
    var options = MirrorOptions()
    var poolID: String? = "mirror"
    let path = "/mirror"

    init(disk: SimulatedDisk = SimulatedDisk()) throws {
        self.disk = disk
        power = CommitPower(disk: disk)
        options.runsInBackground = false
        options.journal = JournalOptions(segmentBytes: 64 << 10)
        options.settleBytes = 64 << 10
        for path in ["/mirror", "/mirror/images", "/mirror/quarantine"] {
            try disk.createDirectory(path, mode: 0o700)
            try disk.syncDirectory(parentPath(path))
        }
        catalog = try Catalog.inMemory(identity: PoolIdentity(id: "mirror", createdNs: 0))
        try catalog.write { tx in
            try PoolStore.initializeRows(
                tx,
                root: NodeRecord(
                    id: .root, parentID: nil, name: [], kind: .directory, mode: 0o755, uid: 0,
                    gid: 0, accessNs: 0, modifyNs: 0, changeNs: 0))
            try tx.setReplica(ReplicaRecord(primaryPoolID: "primary"))
            tx.db.add(transactionObserver: power, extent: .databaseLifetime)
        }
    }

    func openStore() throws(PoolError) -> PoolStore {
        let store = try PoolStore(
            disk: disk, path: path, catalog: catalog, lock: nil, owner: .current())
        store.removeStrayFiles()
        return store
    }

    func openMirror() -> MirrorTarget {
        let (disk, path, catalog) = (disk, path, catalog)
        return MirrorTarget(
            path: path, primaryPoolID: "primary", poolID: poolID, disk: disk, options: options
        ) { () throws(PoolError) in
            let store = try PoolStore(
                disk: disk, path: path, catalog: catalog, lock: nil, owner: .current())
            store.removeStrayFiles()
            return store
        }
    }

    func open() -> any ReplicaTarget { openMirror() }

    func losePower(_ random: inout SeededRandom) {
        disk = disk.crash(&random)
        power.disk = disk
    }

    func stepBehind(_ target: any ReplicaTarget) throws {
        let target = target as! MirrorTarget
        if try target.applyStep() { return }
        _ = try target.pool?.volume.mergeStep()
    }

    func show(_ target: any ReplicaTarget) throws -> ShownPool {
        let view = try (target as! MirrorTarget).newestView()
        defer { view.release() }
        return try Self.read(view)
    }

    func showAlone() throws -> ShownPool? {
        let mirror = try RecoveredMirror(store: try openStore(), runsInBackground: false)
        defer { mirror.close() }
        let view = try mirror.newestView()
        defer { view.release() }
        return try Self.read(view)
    }

    func snapshots(_ target: any ReplicaTarget) throws -> [SnapshotInfo] {
        let pool = (target as! MirrorTarget).pool!
        try pool.applyAll()
        return try pool.snapshots()
    }

    func showSnapshot(_ target: any ReplicaTarget, _ info: SnapshotInfo) throws -> ShownPool {
        let pool = (target as! MirrorTarget).pool!
        let record = try pool.volume.snapshot(named: info.name)
        let view = try MirrorView(pool: pool, pin: record)
        // To release it would delete the snapshot.
        defer { pool.viewReleased() }
        return try Self.read(view)
    }

    static func read(_ view: MirrorView) throws -> ShownPool {
        var shown = ShownPool(sequence: view.sequence, names: [:], images: [:])
        for node in view.nodes {
            shown.names[node.node.id] = node.node
            guard let image = node.node.imageID else { continue }
            guard let content = try view.open(node), content.sizeBytes == node.sizeBytes else {
                throw Violation("image \(image.rawValue) has no content of its size")
            }
            shown.images[image] = try bytes(node.sizeBytes) { try content.read(into: $0, at: 0) }
        }
        return shown
    }

    static func bytes(
        _ count: UInt64, read: (UnsafeMutableRawBufferPointer) throws -> Int
    ) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: Int(count))
        let got = try bytes.withUnsafeMutableBytes { try read($0) }
        guard got == bytes.count else { throw Violation("read \(got) of \(count) bytes") }
        return bytes
    }
}

/// Makes each commit of a catalog in memory a place where the power may go (`SimulatedDisk` D3).
final class CommitPower: TransactionObserver {
    var disk: SimulatedDisk
    init(disk: SimulatedDisk) { self.disk = disk }
    func observes(eventsOfKind eventKind: DatabaseEventKind) -> Bool { false }
    func databaseDidChange(with event: DatabaseEvent) {}
    func databaseWillCommit() throws { try disk.commit("catalog") }
    func databaseDidCommit(_ db: Database) {}
    func databaseDidRollback(_ db: Database) {}
}

extension ShownPool {
    /// - Parameter exactly: otherwise times of modification may differ, which a view knows better.
    func check(against model: ModelPool, _ what: String) throws {
        func named(_ nodes: [NodeID: NodeRecord]) -> [NodeID: NodeRecord] {
            nodes.mapValues { node in
                var node = node
                if node.imageID != nil { node.modifyNs = 0 }
                return node
            }
        }
        guard named(names) == named(model.names) else {
            throw Violation(
                "\(what): names \(names.values.map(\.name)) instead of "
                    + "\(model.names.values.map(\.name))")
        }
        for (id, bytes) in images {
            guard let expected = model.images[id] else {
                throw Violation("\(what): there is no image \(id.rawValue)")
            }
            guard bytes.count == expected.sizeBytes else {
                throw Violation(
                    "\(what): image \(id.rawValue) has \(bytes.count) bytes instead of "
                        + "\(expected.sizeBytes)")
            }
            if let at = firstDifference(bytes, expected.bytes) {
                throw Violation(
                    "\(what): image \(id.rawValue) differs at \(at) (block \(at / 4096))")
            }
        }
    }
}
