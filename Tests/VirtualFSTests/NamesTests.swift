import BlockCore
import Testing

@testable import VirtualFS

/// What POSIX says about names, error by error.
@Suite struct NamesTests {
    @Test func makingAndListing() throws {
        try TestPool.with { pool in
            try pool.mkdir("db", mode: 0o750)
            try pool.create("db/data.raw", [1, 2, 3])
            try pool.link("link", "db/data.raw")
            #expect(try pool.names() == ["db", "link"])
            #expect(try pool.names("db") == ["data.raw"])
            #expect(try pool.contents("db/data.raw") == [1, 2, 3])
            let link = try pool.attributes("link")
            #expect(link.kind == .symlink && link.sizeBytes == 11)
            #expect(try pool.fs.readSymlink(link.inode) == Array("db/data.raw".utf8))
            #expect(code { _ = try pool.fs.readSymlink(TestPool.root) } == .invalid)
            #expect(try pool.attributes("").linkCount == 3)
            #expect(try pool.attributes("db").linkCount == 2)
            #expect(try pool.attributes("db/data.raw").linkCount == 1)
            #expect(try pool.fs.parentInode(of: pool.inode("db")) == TestPool.root)
        }
    }

    @Test func errorsOfMaking() throws {
        try TestPool.with { pool in
            let file = try pool.create("a")
            try pool.mkdir("d")
            #expect(code { try pool.mkdir("a") } == .exists)
            #expect(code { try pool.mkdir("d") } == .exists)
            #expect(code { try pool.create("a") } == .exists)
            #expect(code { try pool.link("a", "x") } == .exists)
            #expect(code { try pool.create("d", exclusive: false) } == .isDirectory)
            #expect(code { try pool.create("missing/x") } == .notFound)
            let make = { (parent: UInt64, name: [UInt8]) in
                _ = try pool.fs.makeDirectory(
                    parent: parent, name: name, mode: 0, uid: 0, gid: 0)
            }
            #expect(code { try make(file, [0x78]) } == .notDirectory)
            #expect(code { try make(9999, [0x78]) } == .stale)
            #expect(code { try make(1, Array(repeating: 0x78, count: 256)) } == .nameTooLong)
            #expect(code { try make(1, Array(repeating: 0x78, count: 255)) } == nil)
            for name in ["", ".", "..", "a/b", "a\0b"] {
                #expect(code { try make(1, Array(name.utf8)) } == .invalid, "\(name)")
            }
            let long = Array(repeating: UInt8(0x78), count: 256)
            #expect(code { _ = try pool.fs.lookup(parent: 1, name: long) } == .nameTooLong)
            #expect(code { _ = try pool.fs.lookup(parent: file, name: [0x78]) } == .notDirectory)
            #expect(code { _ = try pool.inode("missing") } == .notFound)
            #expect(code { _ = try pool.fs.list(file) } == .notDirectory)
        }
    }

    /// A name is bytes, not text.
    @Test func namesThatAreNoText() throws {
        try TestPool.with { pool in
            let name: [UInt8] = [0xff, 0xfe, 0x20, 0x0a]
            _ = try pool.fs.makeDirectory(parent: 1, name: name, mode: 0o700, uid: 0, gid: 0)
            try pool.reopen()
            #expect(try pool.fs.list(1).entries.map(\.name) == [name])
        }
    }

    @Test func removing() throws {
        try TestPool.with { pool in
            try pool.mkdir("d")
            try pool.create("d/f")
            try pool.link("l", "d")
            #expect(code { try pool.rmdir("d") } == .notEmpty)
            #expect(code { try pool.unlink("d") } == .isDirectory)
            #expect(code { try pool.rmdir("l") } == .notDirectory)
            #expect(code { try pool.rmdir("d/f") } == .notDirectory)
            #expect(code { try pool.unlink("x") } == .notFound)
            #expect(code { try pool.rmdir("x") } == .notFound)
            try pool.unlink("d/f")
            let folder = try pool.inode("d")
            try pool.rmdir("d")
            try pool.unlink("l")
            #expect(try pool.names() == [])
            #expect(try pool.attributes("").linkCount == 2)
            #expect(code { _ = try pool.fs.attributes(of: folder) } == .stale)
            #expect(
                code {
                    _ = try pool.fs.makeDirectory(
                        parent: folder, name: [0x78], mode: 0, uid: 0, gid: 0)
                } == .stale)
        }
    }

    @Test func changesInAFolderMoveItsTimes() throws {
        try TestPool.with { pool in
            try pool.mkdir("d")
            let steps: [() throws -> Void] = [
                { try pool.create("d/a") }, { try pool.link("d/l", "a") },
                { try pool.mkdir("d/s") }, { try pool.rename("d/a", "d/b") },
                { try pool.unlink("d/b") }, { try pool.rmdir("d/s") },
            ]
            for (index, step) in steps.enumerated() {
                try pool.set("d") { $0.modifyNs = 5 }
                try step()
                let after = try pool.attributes("d")
                #expect(after.modifyNs > 5 && after.changeNs > 5, "step \(index)")
            }
        }
    }

    @Test func inodesAreKeptAndNotUsedTwice() throws {
        try TestPool.with { pool in
            let a = try pool.create("a")
            let b = try pool.create("b")
            #expect(a != b)
            try pool.unlink("b")
            try pool.reopen()
            #expect(try pool.inode("a") == a)
            #expect(try pool.create("c") > b)
        }
    }

    @Test func whatASetGroupFolderGetsIsOfItsGroup() throws {
        try TestPool.with { pool in
            try pool.mkdir("shared", mode: 0o2775, gid: 107)
            try pool.create("shared/image")
            try pool.mkdir("shared/inner")
            #expect(try pool.attributes("shared/image").gid == 107)
            #expect(try pool.attributes("shared/image").mode == 0o644)
            let inner = try pool.attributes("shared/inner")
            #expect(inner.gid == 107 && inner.mode == 0o2755)
        }
    }

    @Test func aReadOnlyPoolTakesNoChange() throws {
        try TestPool.with { pool in
            let inode = try pool.create("a", [1])
            _ = try pool.fs.createSnapshot(name: "s")
            var options = TestPool.patient
            options.isReadOnly = true
            try pool.reopen(options)
            #expect(try pool.contents("a") == [1])
            let changes: [() throws -> Void] = [
                { try pool.create("b") }, { try pool.mkdir("d") }, { try pool.unlink("a") },
                { try pool.rename("a", "b") }, { try pool.link("l", "a") },
                { try pool.set("a") { $0.mode = 0 } },
                { _ = try pool.fs.open(inode, access: .write) },
                { _ = try pool.fs.open(inode, access: .read, truncates: true) },
                {
                    try pool.fs.setExtendedAttribute(
                        inode, "user.x", [1], mustCreate: false, mustReplace: false)
                },
                { _ = try pool.fs.createSnapshot(name: "t") },
                { try pool.fs.deleteSnapshot("s") },
                { _ = try pool.fs.restore(path: "a", snapshot: "s", force: true) },
                { try pool.fs.clone(path: "a", snapshot: "s", to: "c") },
                { try pool.fs.resize(path: "a", sizeBytes: 0) },
            ]
            for (index, change) in changes.enumerated() {
                #expect(code(change) == .readOnly, "change \(index)")
            }
            #expect(try pool.names() == ["a"])
        }
    }
}
