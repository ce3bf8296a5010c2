import BlockCore
import SystemIO
import Testing

@testable import Pool

@Suite struct CatalogTests {
    private static let identity = PoolIdentity(id: "an id", createdNs: 7)

    private func node(_ id: UInt64, _ name: [UInt8]) -> NodeRecord {
        NodeRecord(
            id: NodeID(rawValue: id), parentID: .root, name: name, kind: .file, mode: 0o640,
            uid: 1, gid: 2, accessNs: 3, modifyNs: 4, changeNs: 5, symlinkTarget: [0xff, 0x41],
            imageID: nil, xattrs: ["user.a": [0, 1], "user.b": []])
    }

    @Test func namesComeBackAsTheBytesTheyWere() throws {
        let catalog = try Catalog.inMemory(identity: Self.identity)
        let odd = node(2, [0xff, 0xfe, 0x20])
        try catalog.write { try $0.upsertNode(odd) }
        #expect(try catalog.read { try $0.nodes() } == [odd])
        #expect(try catalog.read { try $0.identity() } == Self.identity)
    }

    @Test func idsAreNeverUsedTwice() throws {
        let catalog = try Catalog.inMemory(identity: Self.identity)
        let (image, layer) = try catalog.write { (tx) throws in
            let image = try tx.insertImage()
            return (image, try tx.insertLayer(LayerRecord(imageID: image, parentID: nil)))
        }
        try catalog.write { (tx) throws in
            try tx.upsertNode(node(9, [1]))
            try tx.deleteNode(NodeID(rawValue: 9))
            try tx.deleteLayer(layer)
            try tx.deleteImage(image)
        }
        try catalog.write { (tx) throws in
            #expect(try tx.nextNodeID() == NodeID(rawValue: 10))
            let next = try tx.insertImage()
            #expect(next > image)
            #expect(try tx.insertLayer(LayerRecord(imageID: next, parentID: nil)) > layer)
        }
    }

    @Test func aTransactionThatThrowsLeavesNothing() throws {
        let catalog = try Catalog.inMemory(identity: Self.identity)
        #expect(throws: Stopped.self) {
            try catalog.write { (tx) throws in
                try tx.setSetting("a", "b")
                throw Stopped()
            }
        }
        #expect(try catalog.read { try $0.setting("a") } == nil)
        #expect(!catalog.isFailed)
    }

    @Test func aConstraintIsAnErrorButDoesNotLatch() throws {
        let catalog = try Catalog.inMemory(identity: Self.identity)
        #expect(throws: CatalogError.self) {
            try catalog.write {
                _ = try $0.insertLayer(
                    LayerRecord(
                        imageID: ImageID(rawValue: 1), parentID: LayerID(rawValue: 99)))
            }
        }
        #expect(!catalog.isFailed)
        try catalog.write { try $0.setSetting("a", "b") }
    }

    @Test func aFailedCommitLatchesAndAFullOneDoesNot() throws {
        let full = try Catalog.inMemory(identity: Self.identity)
        try full.write { try $0.db.execute(sql: "PRAGMA max_page_count = 1") }
        let large = String(repeating: "x", count: 1 << 20)
        #expect(throws: CatalogError.self) { try full.write { try $0.setSetting("a", large) } }
        #expect(!full.isFailed)
        try full.write { try $0.setSetting("pool.id", "y") }

        let broken = try Catalog.inMemory(identity: Self.identity)
        #expect(throws: CatalogError.self) {
            try broken.write { try $0.db.execute(sql: "SELECT * FROM nowhere") }
        }
        #expect(broken.isFailed)
        #expect(throws: CatalogError.self) { try broken.write { try $0.setSetting("a", "b") } }
    }

    @Test func stateWithoutAParentForgetsTheOldOne() throws {
        let catalog = try Catalog.inMemory(identity: Self.identity)
        var state = PoolState(
            cleanlyClosed: false,
            generation: Generation(
                number: 2, id: "b", parentID: "a", startSequence: SequenceNumber(rawValue: 5)),
            incarnation: 3, incarnationID: "i", lastSequence: SequenceNumber(rawValue: 8))
        try catalog.write { try $0.setPoolState(state) }
        #expect(try catalog.read { try $0.poolState() } == state)
        state.generation.parentID = nil
        try catalog.write { try $0.setPoolState(state) }
        #expect(try catalog.read { try $0.poolState() } == state)
    }

    @Test func aSnapshotKeepsItsNamesUntilItIsDeleted() throws {
        let catalog = try Catalog.inMemory(identity: Self.identity)
        let snapshot = try catalog.write { (tx) throws in
            let image = try tx.insertImage()
            let layer = try tx.insertLayer(LayerRecord(imageID: image, parentID: nil))
            let made = try tx.insertSnapshot(
                SnapshotRecord(
                    name: "s", createdNs: 1, sequence: .zero, state: .pending, origin: "user"))
            try tx.insertSnapshotNodes(
                made.id, [SnapshotNode(node: node(2, [0x61]), layerID: layer, sizeBytes: 12)])
            try tx.setSnapshotComplete(made.id, sequence: SequenceNumber(rawValue: 4))
            return made
        }
        try catalog.read { (tx) throws in
            let found = try #require(try tx.snapshot(named: "s"))
            #expect(found.state == .complete && found.sequence.rawValue == 4)
            #expect(try tx.snapshotNodes(snapshot.id).map(\.sizeBytes) == [12])
            #expect(try tx.layersReferencedBySnapshots().count == 1)
        }
        try catalog.write { try $0.deleteSnapshot(snapshot.id) }
        try catalog.read { (tx) throws in
            #expect(try tx.layersReferencedBySnapshots().isEmpty)
            #expect(try tx.snapshotNodes(snapshot.id).isEmpty)
        }
    }

    @Test func theNewestEventsAreKept() throws {
        let catalog = try Catalog.inMemory(identity: Self.identity)
        let limit = Int(CatalogTransaction.eventLimit)
        try catalog.write { (tx) throws in
            for number in 1...limit + 5 {
                try tx.addEvent(
                    EventRecord(
                        atNs: Int64(number), kind: "test", subject: "\(number)", message: ""))
            }
        }
        let all = try catalog.read { try $0.events(limit: .max) }
        #expect(all.count == limit)
        #expect(all.first?.subject == "\(limit + 5)" && all.last?.subject == "6")
    }

    @Test func onDiskItIsExclusiveAndKeepsWhatWasCommitted() throws {
        try Folder.with { (folder) throws in
            let path = folder.path + "/catalog.sqlite"
            let catalog = try Catalog.create(at: path, identity: Self.identity)
            try catalog.write { try $0.setSetting("a", "b") }
            let disk = LinuxDisk()
            #expect(try disk.status(path + "-shm") == nil)
            catalog.close()
            #expect(try disk.status(path + "-wal") == nil)
            let again = try Catalog.open(at: path)
            #expect(try again.read { try $0.setting("a") } == "b")
            try again.write { try $0.db.execute(sql: "PRAGMA user_version = 999") }
            again.close()
            #expect(throws: CatalogError.self) { try Catalog.open(at: path) }
        }
    }
}
