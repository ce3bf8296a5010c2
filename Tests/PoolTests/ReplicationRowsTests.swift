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
        replica.primaryAddress = "/primary"
        replica.heardNs = 5
        replica.contentGenerationID = "c"
        replica.divergence = .unknown
        try catalog.write { try $0.setReplica(replica) }
        #expect(try catalog.read { try $0.replica() } == replica)
        replica.divergence = .tracked(TargetID(rawValue: 4))
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
        target.onTimeout = .block
        target.intervalMs = 30_000
        target.latencyBudgetUs = 5000
        target.rateBytesPerSecond = 20 << 20
        target.rpoMs = 10_000
        target.rpoBytes = 64 << 20
        target.onRPO = .throttle
        target.isWhole = true
        target.keepsDiverged = true
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

    @Test func generationsPeersAndImagesOfTargetsComeBack() throws {
        let catalog = try catalog()
        let history = GenerationHistory([
            .init(
                generation: Generation(
                    number: 1, id: "a", parentID: nil, startSequence: .zero), poolID: "p",
                begunNs: 1, cause: .initial),
            .init(
                generation: Generation(
                    number: 2, id: "b", parentID: "a", startSequence: SequenceNumber(rawValue: .max)
                ), poolID: "q", begunNs: 2, cause: .planned),
        ])
        try catalog.write { try $0.setHistory(history) }
        #expect(try catalog.read { try $0.history() } == history)
        var peer = PeerRecord(poolID: "q", address: "/q", seenNs: 3)
        try catalog.write { try $0.setPeer(peer) }
        peer.stale = TargetRecord.Stale(
            sinceNs: 7, sequence: SequenceNumber(rawValue: 8), reason: "silent")
        try catalog.write { try $0.setPeer(peer) }
        #expect(try catalog.read { try $0.peers() } == [peer])
        try catalog.write { try $0.deletePeer("q") }
        #expect(try catalog.read { try $0.peers() } == [])

        let target = try catalog.write {
            try $0.insertTarget(
                TargetRecord(address: "/mirror", mode: .flush, timeoutMs: 5000, addedNs: 3))
        }
        var image = TargetImageRecord(
            targetID: target, imageID: ImageID(rawValue: 9), mode: "sync", onTimeout: nil)
        try catalog.write { try $0.setTargetImage(image) }
        #expect(try catalog.read { try $0.targetImages() } == [image])
        image.mode = nil
        try catalog.write { try $0.setTargetImage(image) }
        #expect(try catalog.read { try $0.targetImages() } == [])
        image.onTimeout = "fail"
        try catalog.write { tx in
            try tx.setTargetImage(image)
            try tx.deleteTarget(target)
        }
        #expect(try catalog.read { try $0.targetImages() } == [], "they go with their target")
    }

    @Test func idsThatFollowAJumpAreAboveAllThatAPoolGaveBefore() throws {
        let catalog = try catalog()
        let first = try catalog.write { try $0.insertImage() }
        try catalog.write { try $0.jumpIDs() }
        let image = try catalog.write { try $0.insertImage() }
        #expect(image == ImageID(rawValue: 1 << 32 + 1))
        #expect(image > first)
        try catalog.write { try $0.jumpIDs() }
        #expect(try catalog.write { try $0.insertImage() } == ImageID(rawValue: 2 << 32 + 1))
        #expect(try catalog.read { try $0.nextNodeID() } == NodeID(rawValue: 2 << 32 + 1))
    }

    /// A catalog of an older format gets the new tables and keeps its rows.
    @Test(arguments: [1, 2, 3, 4]) func anOlderCatalogIsBroughtUpToDate(version: Int) throws {
        let path = NSTemporaryDirectory() + "doppel-catalog-\(UUID().uuidString)"
        defer {
            for suffix in ["", "-wal"] {
                try? FileManager.default.removeItem(atPath: path + suffix)
            }
        }
        let old = try Catalog.create(at: path, identity: PoolIdentity(id: "p", createdNs: 5))
        let generation = Generation(
            number: 4, id: "g", parentID: "f", startSequence: SequenceNumber(rawValue: 77))
        let target = TargetRecord(address: "/mirror", mode: .async, timeoutMs: 1, addedNs: 2)
        try old.write { tx in
            try tx.setSetting("pool.complete", "1")
            try tx.setPoolState(
                PoolState(
                    cleanlyClosed: true, generation: generation, incarnation: 1, incarnationID: "i",
                    lastSequence: .zero))
            _ = try tx.insertTarget(target)
            try tx.db.execute(sql: "DROP INDEX nodes_by_image")
            guard version < 4 else {
                try tx.db.execute(sql: "PRAGMA user_version = \(version)")
                return
            }
            try tx.db.execute(sql: "ALTER TABLE targets DROP COLUMN compress")
            guard version < 3 else {
                try tx.db.execute(sql: "PRAGMA user_version = \(version)")
                return
            }
            try tx.db.execute(
                sql: "DROP TABLE generations; DROP TABLE peers; DROP TABLE target_images")
            for (table, columns) in [
                (
                    "targets",
                    [
                        "on_timeout", "armed", "interval_ms", "latency_budget_us", "rate", "rpo_ms",
                        "rpo_bytes", "on_rpo", "whole", "keep_diverged",
                    ]
                ),
                (
                    "replica",
                    [
                        "primary_address", "heard_ns", "content_generation", "divergence",
                        "divergence_target",
                    ]
                ),
            ] {
                for column in columns {
                    try tx.db.execute(sql: "ALTER TABLE \(table) DROP COLUMN \(column)")
                }
            }
            if version == 1 {
                try tx.db.execute(sql: "DROP TABLE replica; DROP TABLE targets")
            }
            try tx.db.execute(sql: "PRAGMA user_version = \(version)")
        }
        old.close()
        let new = try Catalog.open(at: path)
        #expect(try new.read { try $0.replica() } == nil)
        #expect(try new.read { try $0.identity().id } == "p")
        #expect(try new.read { try Int.fetchOne($0.db, sql: "PRAGMA user_version") } == 5)
        let index = try new.read {
            try String.fetchAll($0.db, sql: "SELECT name FROM sqlite_master WHERE type = 'index'")
        }
        #expect(index.contains("nodes_by_image"))
        if version < 3 {
            #expect(try new.read { try $0.history() }.entries.map(\.generation.id) == ["f", "g"])
            #expect(try new.read { try $0.history() }.current == generation)
        }
        #expect(try new.read { try $0.targets() }.allSatisfy { $0.compress == .auto })
        new.close()
        let again = try Catalog.open(at: path)
        #expect(
            try again.read { try $0.targets() }.map(\.address) == (version == 1 ? [] : ["/mirror"]))
        again.close()
    }
}
