import BlockCore
import Foundation
import SystemIO
import Testing

@testable import VirtualFS

@Suite struct ManagementTests {
    @Test func createListRenameResizeRemove() throws {
        try TestPool.with { pool in
            let fs = pool.fs
            try pool.mkdir("db", gid: 42)
            let file = try fs.create(path: "db/a.img", sizeBytes: 10_000)
            try file.put([1], at: 0)
            #expect(fs.openWriters(of: file.inode).map(\.pid) == [ProcessControl.processID])
            file.close()
            #expect(try pool.attributes("db/a.img").gid == 42)
            #expect(code { _ = try fs.create(path: "db/a.img", sizeBytes: 0) } == .exists)
            #expect(code { _ = try fs.create(path: "none/a.img", sizeBytes: 0) } == .notFound)
            #expect(code { _ = try fs.create(path: "/", sizeBytes: 0) } == .invalid)
            #expect(
                code { _ = try fs.create(path: "huge", sizeBytes: 65 << 40) } == .tooLarge)
            #expect(try pool.names() == ["db"], "what failed left nothing")
            try fs.rename(path: "db/a.img", to: "b.img")
            #expect(code { try fs.rename(path: "none", to: "c") } == .notFound)
            _ = try fs.create(path: "c.img", sizeBytes: 0).close()
            #expect(code { try fs.rename(path: "b.img", to: "c.img") } == .exists)
            try fs.resize(path: "b.img", sizeBytes: 20_001)
            #expect(code { try fs.resize(path: "db", sizeBytes: 1) } == .isDirectory)
            #expect(
                fs.listAll().map { "\($0.path) \($0.sizeBytes)" }
                    == ["b.img 20001", "c.img 0", "db 0"])
            // Management waits: a kill loses nothing of it.
            let killed = try pool.afterKill()
            defer { killed.remove() }
            #expect(try killed.names() == ["b.img", "c.img", "db"])
            #expect(try killed.attributes("b.img").sizeBytes == 20_001)
            try fs.remove(path: "db", force: false)
            try fs.remove(path: "b.img", force: false)
            #expect(code { try fs.remove(path: "b.img", force: false) } == .notFound)
            #expect(try pool.names() == ["c.img"])
        }
    }

    @Test func whoWritesIsNamedAndStaysUnharmed() throws {
        try TestPool.with { pool in
            let fs = pool.fs
            try pool.create("a", [1, 1])
            _ = try fs.createSnapshot(name: "s")
            let own = ProcessControl.processID
            let writer = try pool.open("a", pid: own)
            try writer.put([2], at: 0)
            let refused: [() throws -> Void] = [
                { try fs.remove(path: "a", force: false) },
                { _ = try fs.restore(path: "a", snapshot: "s", force: false) },
                { try fs.resize(path: "a", sizeBytes: 1) },
            ]
            for refuse in refused {
                do {
                    try refuse()
                    Issue.record("an image in use was changed")
                } catch let error as FSError {
                    #expect(error.code == .busy)
                    #expect(error.message.contains("process \(own)"), "\(error.message)")
                }
            }
            try fs.resize(path: "a", sizeBytes: 3)
            #expect(try pool.contents("a") == [2, 1, 0], "to grow is no harm")
            // --as, and a clone, always work.
            try fs.clone(path: "a", snapshot: "s", to: "old")
            try fs.clone(path: "a", snapshot: nil, to: "now")
            #expect(try pool.contents("old") == [1, 1])
            #expect(try pool.contents("now") == [2, 1, 0])
            writer.close()
            _ = try fs.restore(path: "a", snapshot: "s", force: false)
            #expect(try pool.contents("a") == [1, 1])
        }
    }

    @Test func forceKeepsWhatItTakes() throws {
        try TestPool.with { pool in
            let fs = pool.fs
            try pool.mkdir("db")
            try pool.create("db/a", [1])
            _ = try fs.createSnapshot(name: "s")
            let writer = try pool.open("db/a")
            try writer.put([2], at: 0)
            let kept = try #require(try fs.restore(path: "db/a", snapshot: "s", force: true))
            #expect(try pool.contents("db/a") == [1])
            #expect(try pool.contents(".snapshots/\(kept)/db/a") == [2])
            // What was kept is a snapshot like any other, by the same path.
            _ = try fs.restore(path: "db/a", snapshot: kept, force: true)
            #expect(try pool.contents("db/a") == [2])
            try fs.remove(path: "db/a", force: true)
            let last = try #require(try pool.names(".snapshots").first { $0.hasPrefix("before-d") })
            #expect(try pool.contents(".snapshots/\(last)/db/a") == [2])
            #expect(try writer.get(1, at: 0) == [2], "the writer still has its file")
            writer.close()
        }
    }

    @Test func whatWasDeletedComesBack() throws {
        try TestPool.with { pool in
            try pool.create("a", [1, 2])
            _ = try pool.fs.createSnapshot(name: "s")
            try pool.unlink("a")
            #expect(try pool.fs.restore(path: "a", snapshot: "s", force: false) == nil)
            #expect(try pool.contents("a") == [1, 2])
            #expect(
                code { _ = try pool.fs.restore(path: "b", snapshot: "s", force: false) }
                    == .notFound)
            #expect(
                code { _ = try pool.fs.restore(path: "a", snapshot: "t", force: false) }
                    == .notFound)
        }
    }

    @Test func clonesGoTheirOwnWay() throws {
        try TestPool.with { pool in
            try pool.create("a", [1, 2, 3])
            try pool.fs.clone(path: "a", snapshot: nil, to: "b")
            #expect(try pool.names(".snapshots") == [], "what it needed is gone again")
            let b = try pool.open("b")
            try b.put([9], at: 1)
            b.close()
            try pool.reopen()
            #expect(try pool.contents("a") == [1, 2, 3] && pool.contents("b") == [1, 9, 3])
            let images = pool.volume.imageIDs.count
            #expect(code { try pool.fs.clone(path: "a", snapshot: nil, to: "b") } == .exists)
            #expect(
                code { try pool.fs.clone(path: "a", snapshot: nil, to: ".doppel") } == .exists)
            #expect(code { try pool.fs.clone(path: "x", snapshot: nil, to: "c") } == .notFound)
            #expect(pool.volume.imageIDs.count == images, "a failure leaves no image behind")
            #expect(try pool.names(".snapshots") == [])
        }
    }

    /// A clone or a diff whose process was killed: what it took for itself goes at the next open, and
    /// nothing else does.
    @Test(arguments: ["clone", "diff"])
    func whatAKilledCommandTookForItselfIsRemoved(origin: String) throws {
        try TestPool.with { pool in
            try pool.create("a", [1, 2, 3])
            _ = try pool.fs.createSnapshot(name: "mine")
            _ = try pool.fs.createSnapshot(name: pool.fs.automaticName(origin), origin: origin)
            #expect(try pool.names(".snapshots").count == 2)
            let next = try pool.afterKill()
            defer { next.remove() }
            #expect(try next.names(".snapshots") == ["mine"])
            #expect(try next.contents("a") == [1, 2, 3])
        }
    }

    @Test func snapshotNames() throws {
        try TestPool.with { pool in
            let fs = pool.fs
            let names = try (0..<3).map { _ in try fs.createSnapshot(name: nil).name }
            #expect(Set(names).count == 3, "three in one second")
            let pattern = /\d{4}-\d\d-\d\dT\d{6}Z(-\d+)?/
            #expect(names.allSatisfy { $0.wholeMatch(of: pattern) != nil }, "\(names)")
            #expect(
                VirtualFS.defaultSnapshotName(1_795_231_700_000_000_000) == "2026-11-21T032820Z")
            for bad in ["", ".", "..", "a/b", "a\0b", String(repeating: "x", count: 256)] {
                #expect(code { _ = try fs.createSnapshot(name: bad) } == .invalid, "\(bad)")
            }
            #expect(code { _ = try fs.createSnapshot(name: names[0]) } == .exists)
        }
    }

    @Test func aLongNameStillGetsItsSnapshots() throws {
        try TestPool.with { pool in
            let name = String(repeating: "ä", count: 127)
            try pool.create(name, [1])
            _ = try pool.fs.createSnapshot(name: "s")
            let kept = try pool.fs.restore(path: name, snapshot: "s", force: false)
            #expect(try #require(kept).utf8.count <= 255)
            try pool.fs.clone(path: name, snapshot: nil, to: "c")
            #expect(try pool.contents("c") == [1])
        }
    }

    @Test func diffTellsWhatChanged() throws {
        try TestPool.with { pool in
            try pool.create("same", [UInt8](repeating: 1, count: 8192))
            try pool.create("changed", [UInt8](repeating: 1, count: 8192))
            try pool.create("gone", [1])
            try pool.create("old")
            _ = try pool.fs.createSnapshot(name: "a")
            let file = try pool.open("changed")
            try file.put([2], at: 5000)
            file.close()
            try pool.unlink("gone")
            try pool.rename("old", "new")
            try pool.create("added", [1])
            let changes = try pool.fs.diff("a", nil)
            #expect(
                changes.map { "\($0.change) \($0.path)" } == [
                    "added added", "changed changed", "removed gone", "renamed old -> new",
                ])
            #expect(changes[1].changedBytes == 4096)
            #expect(try pool.names(".snapshots") == ["a"])
            #expect(code { _ = try pool.fs.diff("none", nil) } == .notFound)
        }
    }
}
