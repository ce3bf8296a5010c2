import BlockCore
import Testing

@testable import VirtualFS

@Suite struct RenameTests {
    @Test func replacesAtOnceAndKeepsTheInode() throws {
        try TestPool.with { pool in
            let a = try pool.create("a", [1])
            try pool.create("b", [2])
            try pool.rename("a", "b")
            #expect(try pool.names() == ["b"])
            #expect(try pool.inode("b") == a && pool.contents("b") == [1])
            try pool.rename("b", "b")
            #expect(try pool.contents("b") == [1], "onto itself: nothing happens")
        }
    }

    @Test func noReplace() throws {
        try TestPool.with { pool in
            try pool.create("a", [1])
            try pool.create("b", [2])
            #expect(code { try pool.rename("a", "b", .noReplace) } == .exists)
            try pool.rename("a", "c", .noReplace)
            #expect(try pool.names() == ["b", "c"])
        }
    }

    @Test func exchange() throws {
        try TestPool.with { pool in
            try pool.mkdir("d")
            try pool.mkdir("d/inner")
            try pool.create("d/x", [1])
            try pool.create("f", [2])
            #expect(code { try pool.rename("f", "none", .exchange) } == .notFound)
            try pool.rename("f", "d/inner", .exchange)
            #expect(try pool.names("d") == ["inner", "x"])
            #expect(try pool.contents("d/inner") == [2])
            #expect(try pool.attributes("f").kind == .directory)
            #expect(try pool.attributes("").linkCount == 4)
            #expect(try pool.attributes("d").linkCount == 2)
            #expect(try pool.fs.parentInode(of: pool.inode("f")) == TestPool.root)
            #expect(code { try pool.rename("d/x", "d", .exchange) } == .invalid, "into itself")
            #expect(code { try pool.rename("d", "d/x", .exchange) } == .invalid)
            try pool.reopen()
            #expect(try pool.contents("d/inner") == [2])
        }
    }

    @Test func kindsMustAgree() throws {
        try TestPool.with { pool in
            try pool.create("f")
            try pool.mkdir("empty")
            try pool.mkdir("full")
            try pool.create("full/x")
            #expect(code { try pool.rename("f", "empty") } == .isDirectory)
            #expect(code { try pool.rename("empty", "f") } == .notDirectory)
            #expect(code { try pool.rename("empty", "full") } == .notEmpty)
            #expect(code { try pool.rename("missing", "g") } == .notFound)
            #expect(code { try pool.rename("f", "f/x") } == .notDirectory)
            try pool.rename("full", "empty")
            #expect(try pool.names("empty") == ["x"])
            #expect(try pool.attributes("").linkCount == 3)
        }
    }

    @Test func aFolderDoesNotMoveIntoItself() throws {
        try TestPool.with { pool in
            try pool.mkdir("a")
            try pool.mkdir("a/b")
            try pool.mkdir("a/b/c")
            #expect(code { try pool.rename("a", "a/b/c/a") } == .invalid)
            #expect(code { try pool.rename("a", "a/b") } == .invalid)
            #expect(code { try pool.rename("a/b/c", "a") } == .notEmpty)
            try pool.rename("a/b/c", "c")
            #expect(try pool.names() == ["a", "c"])
        }
    }

    @Test func theDotFoldersStayWhereTheyAre() throws {
        try TestPool.with { pool in
            try pool.create("a")
            try pool.mkdir("d")
            for name in [".snapshots", ".doppel"] {
                #expect(code { try pool.rename(name, "x") } == .notPermitted)
                #expect(code { try pool.rename("a", name) } == .exists)
                #expect(code { try pool.rmdir(name) } == .notPermitted)
                #expect(code { try pool.unlink(name) } == .notPermitted)
                #expect(code { try pool.mkdir(name) } == .exists)
                #expect(code { try pool.create(name, exclusive: false) } == .exists)
                // Elsewhere they are names like any other.
                try pool.mkdir("d/" + name)
            }
            #expect(try pool.names() == ["a", "d"])
        }
    }

    @Test func whatIsReplacedWhileOpenLivesOn() throws {
        try TestPool.with { pool in
            try pool.create("a", [1])
            let old = try pool.open("b")
            try old.put([2, 2], at: 0)
            try pool.rename("a", "b")
            #expect(try old.get(10, at: 0) == [2, 2])
            #expect(try pool.fs.attributes(of: old.inode).linkCount == 0)
            let images = pool.volume.imageIDs.count
            old.close()
            #expect(pool.volume.imageIDs.count == images - 1)
            #expect(try pool.contents("b") == [1])
        }
    }
}
