// A pool on a simulated disk: its catalog in memory, whose commits are atomic, durable, and places where
// the power may go.

import BlockCore
import GRDB
import SystemIO
import TestSupport

@testable import Pool

final class SimulatedPool: @unchecked Sendable {  // one thread
    let path: String
    let id: String
    let catalog: Catalog
    private(set) var disk: SimulatedDisk
    private let power: CommitPower

    init(
        path: String, id: String, disk: SimulatedDisk,
        fill: (CatalogTransaction) throws -> Void = { _ in }
    ) throws {
        self.path = path
        self.id = id
        self.disk = disk
        for folder in [path, path + "/images", path + "/quarantine"] {
            try disk.createDirectory(folder, mode: 0o700)
            try disk.syncDirectory(parentPath(folder))
        }
        catalog = try Catalog.inMemory(identity: PoolIdentity(id: id, createdNs: 0))
        let power = CommitPower(disk)
        self.power = power
        try catalog.write { tx in
            try PoolStore.initializeRows(tx, root: Self.root)
            try fill(tx)
            tx.db.add(transactionObserver: power, extent: .databaseLifetime)
        }
    }

    static let root = NodeRecord(
        id: .root, parentID: nil, name: [], kind: .directory, mode: 0o755, uid: 0, gid: 0,
        accessNs: 0, modifyNs: 0, changeNs: 0)

    func openStore() throws(PoolError) -> PoolStore {
        let store = try PoolStore(
            disk: disk, path: path, catalog: catalog, lock: nil, owner: .current())
        store.removeStrayFiles()
        return store
    }

    func losePower(_ random: inout SeededRandom) {
        disk = disk.crash(&random)
        power.disk = disk
    }
}

private final class CommitPower: TransactionObserver {
    var disk: SimulatedDisk
    init(_ disk: SimulatedDisk) { self.disk = disk }
    func observes(eventsOfKind eventKind: DatabaseEventKind) -> Bool { false }
    func databaseDidChange(with event: DatabaseEvent) {}
    func databaseWillCommit() throws { try disk.commit("catalog") }
    func databaseDidCommit(_ db: Database) {}
    func databaseDidRollback(_ db: Database) {}
}
