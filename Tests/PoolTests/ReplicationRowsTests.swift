import BlockCore
import Foundation
import GRDB
import Testing

@testable import Pool

@Suite struct ReplicationRowsTests {
    private func catalog() throws -> Catalog {
        try Catalog.inMemory(identity: PoolIdentity(id: "p", createdNs: 0))
    }

    @Test func theReplicasRowComesBack() throws {
        let catalog = try catalog()
        #expect(try catalog.read { try $0.replica() } == nil)
        var replica = ReplicaRecord(primaryPoolID: "primary")
        try catalog.write { try $0.setReplica(replica) }
        #expect(try catalog.read { try $0.replica() } == replica)
        replica.role = .primary
        replica.generation = Generation(
            number: .max, id: "g", parentID: "f", startSequence: SequenceNumber(rawValue: .max))
        replica.incarnationID = "i"
        replica.appliedSequence = SequenceNumber(rawValue: .max)
        replica.structureSequence = SequenceNumber(rawValue: 7)
        replica.journalSegment = 12
        replica.staging = .init(id: .max, durableBatch: 3)
        try catalog.write { try $0.setReplica(replica) }
        #expect(try catalog.read { try $0.replica() } == replica)
        replica.staging!.shapeSequence = SequenceNumber(rawValue: 9)
        replica.generation!.parentID = nil
        try catalog.write { try $0.setReplica(replica) }
        #expect(try catalog.read { try $0.replica() } == replica)
    }

    @Test func targetsComeBackAndTheirIdsAreNotReused() throws {
        let catalog = try catalog()
        var target = TargetRecord(address: "/mirror", mode: .flush, timeoutMs: 5000, addedNs: 3)
        target.id = try catalog.write { try $0.insertTarget(target) }
        #expect(try catalog.read { try $0.targets() } == [target])
        #expect(throws: CatalogError.self, "an address is there once") {
            try catalog.write { _ = try $0.insertTarget(target) }
        }
        target.poolID = "m"
        target.mode = .async
        target.isPaused = true
        target.historyMs = 3_600_000
        target.stale = TargetRecord.Stale(
            sinceNs: 7, sequence: SequenceNumber(rawValue: .max), reason: "it was silent")
        try catalog.write { try $0.updateTarget(target) }
        #expect(try catalog.read { try $0.targets() } == [target])
        try catalog.write { try $0.deleteTarget(target.id) }
        let next = try catalog.write { try $0.insertTarget(target) }
        #expect(next > target.id)
    }

    @Test func anImageWithAGivenIdRaisesThoseThatFollow() throws {
        let catalog = try catalog()
        try catalog.write { try $0.insertImage(ImageID(rawValue: 41)) }
        #expect(throws: CatalogError.self) {
            try catalog.write { try $0.insertImage(ImageID(rawValue: 41)) }
        }
        try catalog.write { try $0.deleteImage(ImageID(rawValue: 41)) }
        #expect(try catalog.read { try $0.lastImageID() } == ImageID(rawValue: 41))
        #expect(try catalog.write { try $0.insertImage() } == ImageID(rawValue: 42))
    }

    /// A catalog of the first format gets the new tables and keeps its rows.
    @Test func anOlderCatalogIsBroughtUpToDate() throws {
        let path = NSTemporaryDirectory() + "doppel-catalog-\(UUID().uuidString)"
        defer {
            for suffix in ["", "-wal"] {
                try? FileManager.default.removeItem(atPath: path + suffix)
            }
        }
        let old = try Catalog.create(at: path, identity: PoolIdentity(id: "p", createdNs: 5))
        try old.write { tx in
            try tx.db.execute(
                sql: "DROP TABLE replica; DROP TABLE targets; PRAGMA user_version = 1")
        }
        old.close()
        let new = try Catalog.open(at: path)
        #expect(try new.read { try $0.replica() } == nil)
        #expect(try new.read { try $0.identity().id } == "p")
        #expect(try new.read { try Int.fetchOne($0.db, sql: "PRAGMA user_version") } == 2)
        new.close()
        let again = try Catalog.open(at: path)
        #expect(try again.read { try $0.targets() } == [])
        again.close()
    }
}
