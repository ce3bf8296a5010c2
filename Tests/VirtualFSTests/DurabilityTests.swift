import BlockCore
import Foundation
import Glibc
import Pool
import SystemIO
import Testing

@testable import VirtualFS

/// What a kill leaves: the names in the catalog are a prefix of what was done, and hold everything
/// that was synced.
@Suite struct DurabilityTests {
    @Test func fsyncOfAFileKeepsItsName() throws {
        try TestPool.with { pool in
            try pool.mkdir("d")
            let file = try pool.open("d/a")
            try file.put([1, 2], at: 0)
            try file.flush()
            try pool.create("d/later")
            let killed = try pool.afterKill()
            defer { killed.remove() }
            // What was not synced may be there or not; what was is, and no image lacks a name.
            let left = try killed.everything()
            #expect(left["d"] == "folder" && left["d/a"] == "[1, 2]")
            #expect(killed.volume.imageIDs.count == left.count - 1)
            file.close()
        }
    }

    @Test func fsyncOfAFileKeepsItsRenameAndAttributes() throws {
        try TestPool.with { pool in
            let file = try pool.open("a")
            try file.flush()
            try pool.rename("a", "b")
            try pool.set("b") { $0.mode = 0o600 }
            let before = try pool.afterKill()
            #expect(try before.names() == ["a"], "not yet")
            before.remove()
            try file.flush()
            let after = try pool.afterKill()
            #expect(try after.names() == ["b"] && after.attributes("b").mode == 0o600)
            after.remove()
            file.close()
        }
    }

    @Test func fsyncOfAFolderKeepsEveryChange() throws {
        try TestPool.with { pool in
            try pool.mkdir("d")
            try pool.create("d/a", [1])
            try pool.fs.syncDirectory(try pool.inode("d"))
            try pool.unlink("d/a")
            let killed = try pool.afterKill()
            defer { killed.remove() }
            #expect(try killed.names("d") == [], "an unlink is durable when its data goes")
        }
    }

    @Test func namesCommitByThemselves() throws {
        var options = TestPool.patient
        options.commitDelayMs = 20
        try TestPool.with(options) { pool in
            try pool.mkdir("d")
            let deadline = Date(timeIntervalSinceNow: 10)
            var count = 0
            while count < 2, Date() < deadline {
                Pause.microseconds(5000)
                count = try pool.store.catalog.read { try $0.nodes() }.count
            }
            #expect(count == 2)
        }
    }

    @Test func anOrphanIsCollectedAtTheNextOpen() throws {
        try TestPool.with { pool in
            let file = try pool.open("a")
            try file.put([1], at: 0)
            try pool.unlink("a")
            try pool.fs.flushNames()
            let killed = try pool.afterKill()
            defer { killed.remove() }
            #expect(try killed.names() == [] && killed.volume.imageIDs.isEmpty)
            #expect(try killed.store.catalog.read { try $0.nodes() }.count == 1, "the root")
            file.close()
        }
    }

    @Test func aReadOnlyOpenCollectsNothing() throws {
        try TestPool.with { pool in
            let file = try pool.open("a")
            try pool.unlink("a")
            try pool.fs.flushNames()
            var options = TestPool.patient
            options.isReadOnly = true
            let killed = try pool.afterKill(options)
            defer { killed.remove() }
            #expect(try killed.names() == [])
            #expect(try killed.store.catalog.read { try $0.nodes() }.count == 2)
            file.close()
        }
    }

    /// A pool never knows less than its snapshots do.
    @Test func namesAreDurableBeforeTheSnapshotIs() throws {
        try TestPool.with { pool in
            try pool.create("a", [1])
            try pool.rename("a", "b")
            _ = try pool.fs.createSnapshot(name: "s")
            try pool.rename("b", "c")
            let killed = try pool.afterKill()
            defer { killed.remove() }
            #expect(try killed.names() == ["b"])
            #expect(try killed.contents(".snapshots/s/b") == [1])
        }
    }

    @Test func aFailedCatalogLatchesTheNames() throws {
        let pool = try TestPool()
        defer { try? FileManager.default.removeItem(atPath: pool.path) }
        let file = try pool.open("a")
        try file.put([1], at: 0)
        try file.flush()
        pool.store.catalog.close()
        try pool.mkdir("d")
        #expect(code { try pool.fs.syncDirectory(TestPool.root) } == .io)
        #expect(code { try pool.mkdir("e") } == .io)
        #expect(code { try pool.unlink("a") } == .io)
        #expect(code { try file.flush() } == .io, "a failed catalog latches the pool")
        #expect(try file.get(1, at: 0) == [1], "what is there can still be read")
    }

    /// A store of its own, small enough to fill; needs root.
    @Test(.enabled(if: geteuid() == 0), .timeLimit(.minutes(1)))
    func aFullStoreRefusesNewNamesAndLetsOldOnesGo() throws {
        let mountPoint = NSTemporaryDirectory() + "doppel-full-\(UUID().uuidString)"
        #expect(Glibc.mkdir(mountPoint, 0o700) == 0)
        guard mount("tmpfs", mountPoint, "tmpfs", 0, "size=6m") == 0 else {
            rmdir(mountPoint)
            return  // a container without the right to mount
        }
        defer {
            umount2(mountPoint, Int32(MNT_DETACH))
            rmdir(mountPoint)
        }
        let path = mountPoint + "/pool"
        try PoolStore.initialize(path: path, disk: LinuxDisk())
        let pool = try TestPool(existing: path)
        pool.store.makeReserve(lengthBytes: 1 << 20)
        try fill("a", of: pool)
        // The catalog's log is full too as soon as it has to grow.
        var made = 0
        var refused: FSErrorCode?
        while refused == nil, made < 200 {
            refused = code {
                try pool.mkdir("d\(made)")
                try pool.fs.syncDirectory(TestPool.root)
            }
            made += 1
        }
        #expect(refused == .noSpace)
        #expect(code { try pool.mkdir("more") } == .noSpace)
        let before = try pool.names()
        try pool.unlink("a")
        #expect(pool.store.reserveBytes == 1 << 20, "the reserve is back")
        try pool.fs.syncDirectory(TestPool.root)
        try pool.mkdir("after")
        try pool.fs.syncDirectory(TestPool.root)
        try pool.reopen()
        #expect(try pool.names() == (before.filter { $0 != "a" } + ["after"]).sorted())
        try pool.close()
    }

    private func fill(_ path: String, of pool: TestPool) throws {
        let file = try pool.open(path)
        defer { file.close() }
        try file.flush()
        var offset: UInt64 = 0
        let chunk = [UInt8](repeating: 1, count: 4096)
        while code({ try file.put(chunk, at: offset) }) == nil { offset += 4096 }
        #expect(code { try file.put(chunk, at: offset) } == .noSpace, "from the write")
    }
}
