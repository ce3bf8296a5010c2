import BlockCore
import SystemIO
import Testing

@testable import VirtualFS

@Suite struct SnapshotFolderTests {
    @Test func theWholeTreeAsItWasAtTheCut() throws {
        try TestPool.with { pool in
            try pool.mkdir("db", mode: 0o750)
            let inode = try pool.create("db/data", [1, 2, 3])
            try pool.link("link", "db/data")
            try pool.fs.setExtendedAttribute(
                inode, "user.x", [9], mustCreate: false, mustReplace: false)
            try pool.set("db/data") {
                $0.uid = 107
                $0.modifyNs = 1_000_000_000
            }
            _ = try pool.fs.createSnapshot(name: "monday")

            let file = try pool.open("db/data")
            try file.put([7, 7, 7, 7], at: 0)
            file.close()
            try pool.rename("db", "moved")
            try pool.unlink("link")
            try pool.create("new")

            for isReopened in [false, true] {
                if isReopened { try pool.reopen() }
                let base = ".snapshots/monday"
                #expect(try pool.names(".snapshots") == ["monday"])
                #expect(try pool.names(base) == ["db", "link"])
                #expect(try pool.contents(base + "/db/data") == [1, 2, 3])
                let old = try pool.attributes(base + "/db/data")
                #expect(old.uid == 107 && old.modifyNs == 1_000_000_000 && old.isImmutable)
                #expect(old.mode == 0o444 && old.sizeBytes == 3)
                #expect(try pool.attributes(base + "/db").mode == 0o550)
                #expect(try pool.attributes(base).linkCount == 3)
                #expect(
                    try pool.fs.readSymlink(pool.inode(base + "/link"))
                        == Array("db/data".utf8))
                #expect(try pool.fs.extendedAttribute(old.inode, "user.x") == [9])
                #expect(old.inode != inode)
                #expect(try pool.inode(base + "/db/data") == old.inode)
                #expect(try pool.contents("moved/data") == [7, 7, 7, 7])
                #expect(
                    try pool.fs.parentInode(of: old.inode) == pool.inode(base + "/db"))
                #expect(
                    try pool.fs.parentInode(of: pool.inode(base)) == pool.inode(".snapshots"))
            }
        }
    }

    /// Ids of names jump with each promotion: after very many, no name of a snapshot is taken for another one's.
    @Test func namesWithLargeIDsAreTheirOwn() throws {
        try TestPool.with { pool in
            var files: [String: [UInt8]] = [:]
            for round in 0..<4 {
                for _ in 0..<round * 32 {
                    try pool.store.catalog.write { try $0.jumpIDs() }
                }
                try pool.reopen()
                let name = "of-\(round)"
                let file = try pool.open(name)
                files[name] = [UInt8](repeating: UInt8(round + 1), count: 4)
                try file.put(files[name]!, at: 0)
                file.close()
                _ = try pool.fs.createSnapshot(name: "s\(round)")
            }
            #expect(try pool.inode("of-3") > 1 << 38)
            var inodes: Set<UInt64> = []
            for isReopened in [false, true] {
                if isReopened { try pool.reopen() }
                for round in 0..<4 {
                    let base = ".snapshots/s\(round)"
                    inodes.insert(try pool.inode(base))
                    for each in 0...round {
                        let path = base + "/of-\(each)"
                        #expect(try pool.contents(path) == files["of-\(each)"]!, "\(path)")
                        inodes.insert(try pool.inode(path))
                    }
                }
                #expect(inodes.count == 4 + 10, "the same at each mount")
            }
        }
    }

    /// Times of writes are lazy in the catalog, not in a snapshot.
    @Test func theTimeOfTheLastWriteBeforeTheCut() throws {
        try TestPool.with { pool in
            let file = try pool.open("a")
            defer { file.close() }
            try pool.set("a") { $0.modifyNs = 5 }
            try file.put([1], at: 0)
            let shown = try pool.attributes("a").modifyNs
            _ = try pool.fs.createSnapshot(name: "s")
            Pause.microseconds(2000)
            try file.put([2], at: 0)
            #expect(try pool.attributes(".snapshots/s/a").modifyNs == shown)
            #expect(try pool.attributes("a").modifyNs > shown)
        }
    }

    @Test func everythingBelowIsReadOnly() throws {
        try TestPool.with { pool in
            try pool.mkdir("d")
            try pool.create("a", [1])
            try pool.create("live")
            _ = try pool.fs.createSnapshot(name: "s")
            let base = ".snapshots/s"
            let inode = try pool.inode(base + "/a")
            let changes: [() throws -> Void] = [
                { try pool.create(base + "/x") }, { try pool.mkdir(base + "/x") },
                { try pool.unlink(base + "/a") }, { try pool.rmdir(base + "/d") },
                { try pool.rename(base + "/a", base + "/b") },
                { try pool.rename(base + "/a", "stolen") },
                { try pool.rename("live", base + "/live") },
                { try pool.set(base + "/a") { $0.mode = 0o777 } },
                { try pool.set(base + "/a") { $0.sizeBytes = 0 } },
                { _ = try pool.fs.open(inode, access: .readWrite) },
                { try pool.mkdir(".snapshots/x") }, { try pool.rmdir(base) },
                { try pool.create(".doppel/x") }, { try pool.unlink(".doppel/status.json") },
                {
                    try pool.fs.setExtendedAttribute(
                        inode, "user.x", [1], mustCreate: false, mustReplace: false)
                },
                { try pool.fs.removeExtendedAttribute(inode, "user.x") },
            ]
            for (index, change) in changes.enumerated() {
                #expect(code(change) == .readOnly, "change \(index)")
            }
            #expect(code { _ = try pool.inode(".snapshots/none") } == .notFound)
            #expect(code { _ = try pool.inode(base + "/none") } == .notFound)
            #expect(code { _ = try pool.inode(".doppel/none") } == .notFound)
        }
    }

    @Test func dotFoldersAreListedOnlyWhenAsked() throws {
        try TestPool.with { pool in
            try pool.create("a")
            #expect(try pool.names() == ["a"])
            #expect(try pool.attributes(".snapshots").kind == .directory)
            #expect(try pool.names(".doppel") == ["status.json"])
            var options = TestPool.patient
            options.isSnapdirVisible = true
            try pool.reopen(options)
            #expect(try pool.names() == [".doppel", ".snapshots", "a"])
        }
    }

    @Test func theStatusIsMadeAnewAtEachOpen() throws {
        final class Counter: @unchecked Sendable {  // under `lock`
            let lock = Lock()
            var value = 0
        }
        let counter = Counter()
        var options = TestPool.patient
        options.status = {
            Array("{\"n\":\(counter.lock.withLock { counter.value })}\n".utf8)
        }
        try TestPool.with(options) { pool in
            #expect(try pool.contents(".doppel/status.json") == Array("{\"n\":0}\n".utf8))
            counter.lock.withLock { counter.value = 41 }
            #expect(try pool.contents(".doppel/status.json") == Array("{\"n\":41}\n".utf8))
            let inode = try pool.inode(".doppel/status.json")
            #expect(code { _ = try pool.fs.open(inode, access: .write) } == .readOnly)
            let file = try pool.fs.open(inode, access: .read)
            #expect(try file.get(3, at: 2) == Array("n\":".utf8))
            #expect(try file.get(3, at: 100) == [])
            file.close()
        }
    }

    @Test func anOpenFileKeepsItsSnapshot() throws {
        try TestPool.with { pool in
            try pool.create("a", [1])
            _ = try pool.fs.createSnapshot(name: "s")
            let inode = try pool.inode(".snapshots/s/a")
            let file = try pool.fs.open(inode, access: .read)
            #expect(code { try pool.fs.deleteSnapshot("s") } == .busy)
            #expect(try file.get(1, at: 0) == [1])
            file.close()
            try pool.fs.deleteSnapshot("s")
            #expect(code { _ = try pool.fs.open(inode, access: .read) } == .stale)
            #expect(code { _ = try pool.inode(".snapshots/s") } == .notFound)
            #expect(code { try pool.fs.deleteSnapshot("s") } == .notFound)
            #expect(try pool.contents("a") == [1])
        }
    }

    @Test func whatIsOpenWithoutANameIsInNoSnapshot() throws {
        try TestPool.with { pool in
            let file = try pool.open("gone")
            try file.put([1], at: 0)
            try pool.unlink("gone")
            _ = try pool.fs.createSnapshot(name: "s")
            #expect(try pool.names(".snapshots/s") == [])
            try file.put([2], at: 0)
            #expect(try file.get(1, at: 0) == [2])
            file.close()
            #expect(pool.volume.imageIDs.isEmpty)
        }
    }

    /// A merge gives a snapshot's content to another layer; the snapshot is the same.
    @Test func mergesBelowChangeNothing() throws {
        try TestPool.with { pool in
            let block = 4096
            let file = try pool.open("a")
            defer { file.close() }
            for index in 0..<4 {
                try file.put([UInt8](repeating: UInt8(index + 1), count: block), at: 0)
                try file.put([UInt8(index + 1)], at: UInt64((index + 1) * block))
                _ = try pool.fs.createSnapshot(name: "s\(index)")
            }
            let expected = try pool.contents(".snapshots/s3/a")
            #expect(expected.count == 4 * block + 1 && expected[0] == 4 && expected[block] == 1)
            let allocated = try pool.attributes(".snapshots/s3/a").allocatedBytes
            #expect(allocated > 0)
            for name in ["s2", "s1", "s0"] {
                try pool.fs.deleteSnapshot(name)
                while try pool.volume.mergeStep() {}
                #expect(try pool.contents(".snapshots/s3/a") == expected, "without \(name)")
                #expect(try pool.attributes(".snapshots/s3/a").allocatedBytes > 0)
            }
            try pool.fs.clone(path: "a", snapshot: "s3", to: "b")
            #expect(try pool.contents("b") == expected)
            try file.put([9], at: 0)
            #expect(
                try pool.fs.diff("s3", nil).map { "\($0.change) \($0.path)" }
                    == ["changed a", "added b"])
            _ = try pool.fs.restore(path: "a", snapshot: "s3", force: true)
            #expect(try pool.contents("a") == expected)
        }
    }
}
