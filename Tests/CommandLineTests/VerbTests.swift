import Foundation
import TestSupport
import Testing

/// The verbs on a pool that is not mounted.
@Suite struct VerbTests {
    @Test func initMakesAnEmptyPoolOnce() throws {
        try Sandbox.with { box in
            try box.ok("init", box.pool)
            #expect(try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self).isEmpty)
            #expect(try box.run("init", box.pool).code == 1)
            var status = stat()
            #expect(stat(box.pool, &status) == 0)
            #expect(status.st_mode & 0o777 == 0o700)
        }
    }

    @Test func createResizeRenameDelete() throws {
        try Sandbox.withPool("a.img") { box in
            #expect(try box.run("create", box.pool, "a.img", "--size", "1M").code == 1)
            try box.ok("resize", box.pool, "a.img", "20M")
            try box.ok("rename", box.pool, "a.img", "b.img")
            let images = try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self)
            #expect(images.map(\.path) == ["b.img"])
            #expect(images.first?.sizeBytes == 20 << 20)
            #expect(try box.ok("delete", box.pool, "b.img", "--dry-run").contains("b.img"))
            #expect(try box.ok("list", box.pool).contains("b.img"))
            try box.ok("delete", box.pool, "b.img")
            #expect(try box.run("delete", box.pool, "b.img").code == 1)
        }
    }

    @Test func aSmallerSizeNeedsToBeSaid() throws {
        try Sandbox.withPool("a.img") { box in
            let refused = try box.run("resize", box.pool, "a.img", "1M")
            #expect(refused.code == 2)
            #expect(refused.errors.contains("--shrink"))
            try box.ok("resize", box.pool, "a.img", "1M", "--shrink")
        }
    }

    @Test(arguments: ["20G", "20GiB", "20 GiB"])
    func sizesInEveryWritingAreEqual(size: String) throws {
        try Sandbox.withPool { box in
            try box.ok("create", box.pool, "a.img", "--size", size)
            let images = try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self)
            #expect(images.first?.sizeBytes == 20 << 30)
            #expect(images.first?.allocatedBytes == 0)
        }
    }

    @Test func aSnapshotKeepsWhatAnImageHad() throws {
        try Sandbox.withPool { box in
            let old = try box.makeFile("old.raw", count: 3_000_001)
            try box.ok("import", box.pool, old, "--as", "a.img")
            try box.ok("snapshot", "create", box.pool, "one")
            try box.ok("resize", box.pool, "a.img", "1M", "--shrink")
            let diff = try box.json(
                box.ok("snapshot", "diff", box.pool, "one", "--json"), [DiffLine].self)
            #expect(diff.map(\.path) == ["a.img"])
            #expect(diff.first?.change == "resized")

            try box.ok("snapshot", "create", box.pool, "two")
            try box.ok("create", box.pool, "later.img", "--size", "1M")
            let between = try box.json(
                box.ok("snapshot", "diff", box.pool, "one", "two", "--json"), [DiffLine].self)
            #expect(between.map(\.path) == ["a.img"])
            try box.ok("snapshot", "delete", box.pool, "two")

            try box.ok("restore", box.pool, "a.img", "--snapshot", "one", "--as", "new.img")
            try box.ok("clone", box.pool, "a.img@one", "clone.img")
            try box.ok("restore", box.pool, "a.img", "--snapshot", "one")
            for image in ["a.img", "new.img", "clone.img", "a.img@one"] {
                try box.ok("export", box.pool, image, box.folder + "/out.raw")
                #expect(try box.bytes(box.folder + "/out.raw") == box.bytes(old), "\(image)")
                unlink(box.folder + "/out.raw")
            }
            // What the image had before it was restored is a snapshot, too.
            let snapshots = try box.json(
                box.ok("snapshot", "list", box.pool, "--json"), [SnapshotLine].self)
            #expect(snapshots.map(\.origin).sorted() == ["restore", "user"])
        }
    }

    @Test func restoreAsDryRunChangesNothing() throws {
        try Sandbox.withPool("a.img") { box in
            try box.ok("snapshot", "create", box.pool, "one")
            let before = try box.ok("snapshot", "list", box.pool, "--json")
            let said = try box.ok(
                "restore", box.pool, "a.img", "--snapshot", "one", "--dry-run")
            #expect(said.contains("would"))
            #expect(try box.ok("snapshot", "list", box.pool, "--json") == before)
        }
    }

    @Test func snapshotsAreDeletedByName() throws {
        try Sandbox.withPool("a.img") { box in
            for name in ["one", "two", "three"] {
                #expect(try box.ok("snapshot", "create", box.pool, name) == name + "\n")
            }
            // One name that is wrong: none is deleted.
            #expect(try box.run("snapshot", "delete", box.pool, "one", "none").code == 1)
            try box.ok("snapshot", "delete", box.pool, "one", "three")
            let left = try box.json(
                box.ok("snapshot", "list", box.pool, "--json"), [SnapshotLine].self)
            #expect(left.map(\.name) == ["two"])
        }
    }

    @Test func commandsRunAroundASnapshot() throws {
        try Sandbox.withPool("a.img") { box in
            let log = box.folder + "/log"
            try box.ok(
                "snapshot", "create", box.pool, "one", "--before", "echo before >> \(log)",
                "--after", "echo after >> \(log)")
            #expect(box.read(log) == "before\nafter\n")
        }
    }

    @Test func theAfterCommandRunsAlsoWhenNoSnapshotWasTaken() throws {
        try Sandbox.withPool("a.img") { box in
            let log = box.folder + "/log"
            let failed = try box.run(
                "snapshot", "create", box.pool, "one", "--before", "exit 7",
                "--after", "echo thawed >> \(log)")
            #expect(failed.code == 1)
            #expect(failed.errors.contains("7"))
            #expect(box.read(log) == "thawed\n")
            let snapshots = try box.ok("snapshot", "list", box.pool)
            #expect(!snapshots.contains("one"))
        }
    }

    @Test func scrubAndCheckOfASoundPool() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: 1 << 20)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            try box.ok("snapshot", "create", box.pool, "one")
            #expect(try box.ok("scrub", box.pool).contains("256"))
            #expect(try box.run("check", box.pool).code == 0)
        }
    }

    @Test func aDamagedBlockIsFoundAndGivesFive() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: 1 << 20)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            try box.ok("snapshot", "create", box.pool, "one")
            try box.ok("scrub", box.pool)
            let layers = try box.shell("find '\(box.pool)/images' -name '*.data' -size +100k")
                .output
            let layer = try #require(layers.split(separator: "\n").first.map(String.init))
            try box.write("damage", to: layer, at: 500_000)
            #expect(try box.run("scrub", box.pool).code == 5)
            let check = try box.run("check", box.pool)
            #expect(check.code == 5)
            #expect(check.output.contains("DAMAGED"))
            // Never wrong data: an error.
            let export = try box.run("export", box.pool, "a.img@one", box.folder + "/out")
            #expect(export.code != 0)
            #expect(access(box.folder + "/out", F_OK) != 0)
        }
    }

    @Test func adoptAndEjectAreEachOthersReverse() throws {
        try Sandbox.with { box in
            let folder = box.folder + "/vms"
            mkdir(folder, 0o755)
            mkdir(folder + "/db", 0o750)
            try box.makeFile(folder + "/a.img", count: 1_000_003)
            try box.makeFile(folder + "/db/b.raw", count: 12_345, seed: 2)
            chmod(folder + "/a.img", 0o640)
            let listing =
                "cd '\(folder)' && find . -printf '%P %s %m %U %G %T@\\n' | grep -v '^ '"
                + " | sort && find . -type f -exec sha256sum {} + | sort"
            let before = try box.shell(listing).output

            #expect(try box.ok("adopt", folder, "--dry-run").contains("a.img"))
            #expect(try box.shell(listing).output == before)
            try box.ok("adopt", folder)
            let images = try box.json(box.ok("list", folder, "--json"), [ImageLine].self)
            #expect(
                images.filter { $0.kind == "file" }.map(\.path).sorted() == ["a.img", "db/b.raw"])

            try box.ok("snapshot", "create", folder, "one")
            let refused = try box.run("eject", folder)
            #expect(refused.code == 1)
            #expect(refused.errors.contains("doppel snapshot delete"))
            try box.ok("snapshot", "delete", folder, "one")
            try box.ok("eject", folder)
            #expect(try box.shell(listing).output == before)
        }
    }
}
