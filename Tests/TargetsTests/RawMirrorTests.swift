import BlockCore
import Foundation
import Replication
import SystemIO
import TestSupport
import Testing

@testable import Pool
@testable import Targets

/// What a raw mirror does with a folder that others can reach, too; on a real file system.
@Suite struct RawMirrorTests {
    private final class Scene {
        let folder = "/tmp/doppel-raw-\(getpid())-\(UInt32.random(in: 0...(.max)))"
        var path: String { folder + "/raw" }
        let disk = LinuxDisk()
        var primary: PrimaryModel
        private(set) var target: RawMirror
        var batch: UInt64 = 0

        init() throws {
            try disk.createDirectory(folder, mode: 0o700)
            let disk = disk
            primary = PrimaryModel(seed: 5) { disk.now() }
            _ = try RawMirror.create(
                path: folder + "/raw", primaryPoolID: "primary", disk: disk)
            target = RawMirror(
                path: folder + "/raw", primaryPoolID: "primary", id: nil, disk: disk)
        }
        deinit {
            target.disconnect()
            try? FileManager.default.removeItem(atPath: folder)
        }

        var state: RawFolderState { get throws { try RawFolderState.read(of: path, disk: disk)! } }

        /// Brings it to what the primary shows now.
        @discardableResult
        func resync() throws -> ReplicaReport {
            let report = try target.connect(primary.hello)
            batch += 1
            try target.beginStaging(id: batch, shape: primary.shape)
            for (id, image) in primary.pool.images {
                for block in 0..<UInt64((image.sizeBytes + 4095) / 4096) {
                    let record = primary.blockRecord(id, block)
                    try withBatch([record], first: primary.last, last: primary.last, split: nil) {
                        try target.stage($0, number: block + 1)
                    }
                }
            }
            try target.commitStaging(id: batch, at: primary.last, snapshot: nil)
            return report
        }

        /// Sends what the primary did since.
        func send(_ change: (inout PrimaryModel) -> Void) throws {
            let before = primary.last
            change(&primary)
            let rest = primary.records.filter { $0.sequence > before }
            try withBatch(
                rest.map(\.bytes), first: rest.first!.sequence, last: rest.last!.sequence,
                split: nil
            ) { try target.append($0) }
        }

        /// As in a new process, after the one before was killed or ended.
        func reopen(orderly: Bool) {
            if orderly { target.disconnect() }
            let dying = target
            target = RawMirror(path: path, primaryPoolID: "primary", id: nil, disk: disk)
            if !orderly { Self.kill(dying) }
        }

        /// What a process that dies leaves: its locks are gone, and it says nothing more.
        private static func kill(_ target: RawMirror) { target.abandon() }

        func files() throws -> [String: Data] {
            var result: [String: Data] = [:]
            for name in try FileManager.default.subpathsOfDirectory(atPath: path)
            where !name.hasPrefix(RawFolderState.folderName) {
                let kind = try disk.status(path + "/" + name)?.kind
                if kind == .file {
                    result[name] = try Data(contentsOf: URL(filePath: path + "/" + name))
                }
            }
            return result
        }

        func expectSame(_ what: String) throws {
            var expected: [String: Data] = [:]
            for node in primary.pool.names.values {
                guard let image = node.imageID else { continue }
                var (name, next) = (String(decoding: node.name, as: UTF8.self), node.parentID)
                while let id = next, id != .root {
                    let folder = primary.pool.names[id]!
                    name = String(decoding: folder.name, as: UTF8.self) + "/" + name
                    next = folder.parentID
                }
                expected[name] = Data(primary.pool.images[image]!.bytes)
            }
            #expect(try files() == expected, "\(what)")
        }
    }

    private func error(_ body: () throws -> Void) -> TargetError? {
        do { try body() } catch { return error as? TargetError }
        return nil
    }

    // MARK: The state

    @Test func itIsTornWhileItIsWrittenAndCleanWhenItWasLetGoOf() throws {
        let scene = try Scene()
        scene.primary.create()
        try scene.resync()
        #expect(try scene.state.content == .clean)
        try scene.send { for _ in 0..<40 { $0.step() } }
        #expect(try scene.state.content == .torn)
        #expect(try scene.state.sinceNs != nil)
        scene.reopen(orderly: true)
        #expect(try scene.state.isWhole && scene.state.checkpoint == scene.primary.last)
        try scene.expectSame("closed")
        let report = try scene.target.connect(scene.primary.hello)
        #expect(report.checkpoint == scene.primary.last)
        // And the stream goes on from there.
        try scene.send { for _ in 0..<10 { $0.step() } }
        scene.reopen(orderly: true)
        try scene.expectSame("went on")
    }

    @Test func aProcessThatDiesLeavesItTornAndItIsComparedAsAWhole() throws {
        let scene = try Scene()
        scene.primary.create()
        try scene.resync()
        try scene.send { for _ in 0..<20 { $0.step() } }
        scene.reopen(orderly: false)
        #expect(try !scene.state.isWhole)
        let report = try scene.target.connect(scene.primary.hello)
        #expect(report.checkpoint == .zero && report.incarnationID != nil)
        #expect(error { try scene.send { $0.step() } }?.kind == .io, "nothing is streamed to it")
        try scene.resync()
        try scene.expectSame("whole again")
        #expect(try scene.state.content == .clean)
    }

    /// What somebody else wrote is noticed when it is opened, and put right.
    @Test func aFileThatSomebodyWroteToIsNotTrusted() throws {
        let scene = try Scene()
        scene.primary.create()
        scene.primary.write(scene.primary.pool.images.keys.min()!)
        try scene.resync()
        scene.reopen(orderly: true)
        let name = try #require(try scene.files().keys.first)
        let file = try scene.disk.open(scene.path + "/" + name, .readWrite, mode: 0)
        try [UInt8](repeating: 7, count: 10).withUnsafeBytes { try file.write($0, at: 0) }
        file.close()
        #expect(try scene.target.connect(scene.primary.hello).checkpoint == .zero)
        #expect(try !scene.state.isWhole)
        try scene.resync()
        try scene.expectSame("put right")
    }

    @Test func aCopyIsFoundByItsNamesAndCompared() throws {
        let scene = try Scene()
        for _ in 0..<3 { scene.primary.create() }
        for _ in 0..<20 { scene.primary.step() }
        try scene.resync()
        scene.reopen(orderly: true)
        let moved = scene.folder + "/original"
        try FileManager.default.moveItem(atPath: scene.path, toPath: moved)
        try FileManager.default.copyItem(atPath: moved, toPath: scene.path)
        #expect(try scene.target.connect(scene.primary.hello).checkpoint == .zero)
        // It is the very content, so a comparison finds it alike.
        for (id, image) in scene.primary.pool.images where image.sizeBytes > 0 {
            let count = UInt64((image.sizeBytes + 4095) / 4096)
            #expect(
                try scene.target.blockHashes(of: id, in: BlockRange(start: 0, count: count))
                    == (0..<count).map { hashOf(image.bytes(of: $0)) })
        }
        try scene.resync()
        try scene.expectSame("the copy")
    }

    // MARK: What is not Doppel's

    @Test func nothingForeignIsWrittenOver() throws {
        let scene = try Scene()
        scene.primary.create()
        try scene.resync()
        try Data("mine".utf8).write(to: URL(filePath: scene.path + "/image 2"))
        let refused = error { try scene.send { $0.create() } }
        #expect(refused?.message.contains("image 2 is in the way") == true, "\(refused as Any)")
        #expect(try String(contentsOfFile: scene.path + "/image 2", encoding: .utf8) == "mine")
        // Nor by a resync; and when it is gone, all goes on.
        scene.reopen(orderly: true)
        #expect(error { try scene.resync() }?.message.contains("in the way") == true)
        scene.reopen(orderly: true)
        #expect(try String(contentsOfFile: scene.path + "/image 2", encoding: .utf8) == "mine")
        try FileManager.default.removeItem(atPath: scene.path + "/image 2")
        try scene.resync()
        try scene.expectSame("the way is free")
    }

    @Test func aFileThatIsDeletedUnderfootIsNoticedBeforeAnythingIsConfirmed() throws {
        let scene = try Scene()
        scene.primary.create()
        try scene.resync()
        let image = scene.primary.pool.images.keys.min()!
        try scene.send { $0.write(image) }
        let name = try #require(try scene.files().keys.first)
        try FileManager.default.removeItem(atPath: scene.path + "/" + name)
        #expect(error { _ = try scene.target.flush() }?.kind == .absent)
        scene.reopen(orderly: true)
        #expect(try scene.target.connect(scene.primary.hello).checkpoint == .zero)
        try scene.resync()
        try scene.expectSame("made anew")
    }

    @Test func onlyAnEmptyFolderIsTaken() throws {
        let scene = try Scene()
        try scene.disk.createDirectory(scene.folder + "/other", mode: 0o700)
        try Data("mine".utf8).write(to: URL(filePath: scene.folder + "/other/file"))
        let refused = error {
            _ = try RawMirror.create(
                path: scene.folder + "/other", primaryPoolID: "primary", disk: scene.disk)
        }
        #expect(refused?.kind == .absent)
        #expect(refused?.message.contains("file") == true)
        // And what went away is not laid out anew.
        scene.reopen(orderly: true)
        try FileManager.default.removeItem(atPath: scene.path)
        try scene.disk.createDirectory(scene.path, mode: 0o700)
        #expect(error { _ = try scene.target.connect(scene.primary.hello) }?.kind == .absent)
        #expect(try scene.disk.list(scene.path).isEmpty)
    }

    // MARK: Names

    private func folder(_ id: UInt64, _ name: String, in parent: NodeID = .root) -> NodeRecord {
        NodeRecord(
            id: NodeID(rawValue: id), parentID: parent, name: Array(name.utf8), kind: .directory,
            mode: 0o750, uid: getuid(), gid: getgid(), accessNs: 0, modifyNs: 0, changeNs: 0)
    }

    @Test func foldersLinksAndExchangesFollow() throws {
        let scene = try Scene()
        for _ in 0..<2 { scene.primary.create() }
        for image in scene.primary.pool.images.keys { scene.primary.write(image) }
        try scene.resync()
        let files = scene.primary.pool.names.values.filter { $0.imageID != nil }
            .sorted { $0.id < $1.id }
        var (a, b) = (files[0], files[1])
        let (one, two) = (folder(100, "one"), folder(101, "two", in: NodeID(rawValue: 100)))
        try scene.send { $0.rename(one, two) }
        a.parentID = two.id
        try scene.send { $0.rename(a) }
        try scene.expectSame("into a folder")
        // Folders change places, and what is in them goes along; and two files do.
        var (outer, inner) = (one, two)
        outer.parentID = two.id
        inner.parentID = .root
        try scene.send { $0.rename(outer, inner) }
        try scene.expectSame("a folder moves out of another")
        (a.name, b.name, a.parentID, b.parentID) = (b.name, a.name, b.parentID, a.parentID)
        try scene.send { $0.rename(a, b) }
        try scene.expectSame("an exchange")
        var link = folder(102, "link")
        (link.kind, link.symlinkTarget) = (.symlink, Array("one".utf8))
        try scene.send { $0.rename(link) }
        #expect(try scene.disk.readSymlink(scene.path + "/link") == "one")
        // One over another: what it replaces is gone.
        b.name = a.name
        b.parentID = a.parentID
        let gone = a.imageID!
        try scene.send { $0.replace(a, with: b, deleting: gone) }
        try scene.expectSame("replaced")
        scene.reopen(orderly: true)
        #expect(try scene.state.isWhole)
        #expect(try scene.target.connect(scene.primary.hello).checkpoint == scene.primary.last)
        let mode = try scene.disk.status(scene.path + "/two")?.mode
        #expect(mode == 0o750)
    }

    @Test func aNameThatCannotBeHadIsSaidAndTheFileIsKept() throws {
        let scene = try Scene()
        scene.primary.create()
        try scene.resync()
        var node = scene.primary.pool.names.values.first { $0.imageID != nil }!
        let name = String(decoding: node.name, as: UTF8.self)
        for (bytes, says) in [
            ([0xff, 0xfe], "not UTF-8"), (Array(RawFolderState.folderName.utf8), "uses itself"),
            ([UInt8](repeating: 65, count: 300), "cannot be had"),
        ] {
            node.name = bytes
            let refused = error { try scene.send { [node] in $0.rename(node) } }
            #expect(refused?.message.contains(says) == true, "\(refused as Any)")
            #expect(try scene.files().keys.contains(name))
            scene.reopen(orderly: true)
            node.name = Array(name.utf8)
            scene.primary.rename(node)
            try scene.resync()
        }
        try scene.expectSame("renamed back")
    }

    // MARK: A full disk

    /// - Parameter hasRoomAgain: before it is let go of: it can say then what it has.
    @Test(arguments: [true, false]) func aFullDiskIsSaidAndHeals(hasRoomAgain: Bool) throws {
        let disk = SimulatedDisk()
        let fixture = try RawFixture(disk: disk)
        let world = TargetWorld(seed: 9, fixture: fixture, can: [])
        for _ in 0..<30 { world.primary.step() }
        try world.connect()
        while world.acknowledged < world.primary.last { try world.goOn() }
        disk.limitSpace(toBytes: 8192)
        var failure: TargetError?
        do {
            for _ in 0..<200 {
                world.primary.step()
                try world.goOn()
            }
        } catch { failure = error as? TargetError }
        #expect(failure?.kind == .noSpace)
        if hasRoomAgain { disk.limitSpace(toBytes: 64 << 20) }
        let sent = (world.target as? RawMirror)?.position
        try world.goAway(cleanly: false)
        disk.limitSpace(toBytes: 64 << 20)
        let state = try #require(try RawFolderState.read(of: fixture.path, disk: disk))
        #expect(state.content == (hasRoomAgain ? .based : .torn))
        if hasRoomAgain { #expect(state.checkpoint == sent) }
        world.mayBeTorn = true
        try world.converge()
    }
}
