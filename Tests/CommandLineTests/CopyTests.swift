import Foundation
import TestSupport
import Testing

@Suite struct CopyTests {
    @Test(arguments: [0, 1, 4095, 4096, 4097, 5_000_001])
    func everySizeSurvivesImportAndExport(count: Int) throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("in.raw", count: count)
            try box.ok("import", box.pool, raw)
            try box.ok("export", box.pool, "in.raw", box.folder + "/out.raw")
            #expect(try box.bytes(box.folder + "/out.raw") == box.bytes(raw))
        }
    }

    @Test func holesStayHoles() throws {
        try Sandbox.withPool { box in
            let raw = box.folder + "/in.raw"
            #expect(try box.shell("truncate -s 1G '\(raw)'").code == 0)
            try box.write("head", to: raw)
            try box.write("tail", to: raw, at: (1 << 30) - 4)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            let images = try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self)
            #expect(images.first?.sizeBytes == 1 << 30)
            #expect((images.first?.allocatedBytes ?? .max) < 1 << 20)
            let out = box.folder + "/out.raw"
            try box.ok("export", box.pool, "a.img", out)
            #expect(try box.shell("cmp '\(raw)' '\(out)'").code == 0)
            var status = stat()
            #expect(stat(out, &status) == 0)
            #expect(status.st_blocks * 512 < 1 << 20)
        }
    }

    @Test func standardInputAndOutput() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("in.raw", count: 3_333_333)
            let copied = try box.shell(
                "cat '\(raw)' | \"$DOPPEL\" import '\(box.pool)' - --as a.img && "
                    + "\"$DOPPEL\" export '\(box.pool)' a.img - | cmp - '\(raw)'")
            #expect(copied.code == 0, "\(copied)")
            #expect(try box.run("import", box.pool, "-").code == 2)
        }
    }

    @Test func zerosFromAStreamTakeNoSpace() throws {
        try Sandbox.withPool { box in
            let copied = try box.shell(
                "(head -c 50000000 /dev/zero; echo end) | "
                    + "\"$DOPPEL\" import '\(box.pool)' - --as a.img")
            #expect(copied.code == 0, "\(copied)")
            let images = try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self)
            #expect(images.first?.sizeBytes == 50_000_004)
            #expect((images.first?.allocatedBytes ?? .max) < 4 << 20)
        }
    }

    @Test func nothingIsOverwritten() throws {
        try Sandbox.withPool("a.img") { box in
            let raw = try box.makeFile("in.raw", count: 100)
            #expect(try box.run("import", box.pool, raw, "--as", "a.img").code == 1)
            #expect(try box.run("export", box.pool, "a.img", raw).code == 1)
            #expect(try box.bytes(raw).count == 100)
        }
    }

    @Test func whatIsNotThereIsSaid() throws {
        try Sandbox.withPool("a.img") { box in
            for words in [
                ["import", box.pool, box.folder + "/none"], ["import", box.pool, "/"],
                ["import", box.pool, ""], ["export", box.pool, "none", box.folder + "/out"],
                ["export", box.pool, "a.img@none", box.folder + "/out"],
            ] {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(outcome.code == 1, "\(words) \(outcome)")
                #expect(!outcome.errors.isEmpty)
            }
            #expect(access(box.folder + "/out", F_OK) != 0)
        }
    }

    @Test(.enabled(if: hasFuse)) func onAMountedPool() throws {
        try Sandbox.withPool { box in
            try box.mount()
            let raw = try box.makeFile("in.raw", count: 2_000_001)
            try box.ok("import", box.mountPoint, raw, "--as", "a.img")
            #expect(try box.bytes(box.mountPoint + "/a.img") == box.bytes(raw))
            try box.ok("snapshot", "create", box.pool, "one")
            try box.write("changed", to: box.mountPoint + "/a.img")
            try box.ok("export", box.pool, "a.img@one", box.folder + "/out.raw")
            #expect(try box.bytes(box.folder + "/out.raw") == box.bytes(raw))
            #expect(try box.run("import", box.pool, raw, "--as", "a.img").code == 1)
        }
    }

    @Test(.enabled(if: hasFuse)) func anImportThatFailsLeavesNoImage() throws {
        try Sandbox.withPool { box in
            try box.mount()
            // A folder opens for reading and cannot be read.
            #expect(try box.run("import", box.pool, box.folder, "--as", "a.img").code == 1)
            #expect(access(box.mountPoint + "/a.img", F_OK) != 0)
        }
    }

    @Test(arguments: [1, 3, 64]) func everyNumberOfJobsCopiesTheSame(jobs: Int) throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("in.raw", count: 40_000_001)
            try box.ok("import", box.pool, raw, "--as", "a.img", "--jobs", "\(jobs)")
            try box.ok("snapshot", "create", box.pool, "one")
            for (source, name) in [("a.img", "live"), ("a.img@one", "old")] {
                let out = box.folder + "/" + name
                try box.ok("export", box.pool, source, out, "--jobs", "\(jobs)")
                #expect(try box.shell("cmp '\(raw)' '\(out)'").code == 0)
            }
        }
    }

    /// Half an image never has the name of a whole one.
    @Test(.enabled(if: hasFuse), arguments: [false, true])
    func aKilledImportLeavesNoImageAndIsBegunAnew(isMounted: Bool) throws {
        try Sandbox.withPool { box in
            if isMounted { try box.mount() }
            let raw = try box.makeFile("in.raw", count: 3 << 20)
            let importing = try BackgroundShell(
                "(cat '\(raw)'; exec sleep 60) | '\(Sandbox.binary)' import '\(box.pool)' - --as a.img"
            )
            let partial =
                isMounted
                ? "stat -c %s '\(box.mountPoint)/a.img.doppel-partial'"
                : "find '\(box.pool)/images' -name '*.data' -size +2000k"
            try box.until("the copy is under way") { try !box.shell(partial).output.isEmpty }
            importing.kill()
            try box.until("the pool is free") { try box.run("list", box.pool).code == 0 }
            let images = try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self)
            #expect(images.map(\.path) == ["a.img.doppel-partial"])
            try box.ok("import", box.pool, raw, "--as", "a.img")
            let after = try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self)
            #expect(after.map(\.path) == ["a.img"])
            try box.ok("export", box.pool, "a.img", box.folder + "/out")
            #expect(try box.bytes(box.folder + "/out") == box.bytes(raw))
        }
    }

    @Test func aKilledExportLeavesNoFileAndIsBegunAnew() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("in.raw", count: 3 << 20)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            // What a killed export left is longer than what belongs there.
            let out = box.folder + "/out"
            try box.makeFile("out.doppel-partial", count: 5 << 20, seed: 9)
            try box.ok("export", box.pool, "a.img", out)
            #expect(try box.bytes(out) == box.bytes(raw))
            #expect(access(out + ".doppel-partial", F_OK) != 0)
        }
    }

    /// The daemon was killed and nobody has mounted the pool again: who names the mount point means the
    /// pool behind it.
    @Test(.enabled(if: hasFuse)) func aDeadMountPointIsNoObstacle() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            try box.write("flushed", to: box.mountPoint + "/a.img")
            try box.killDaemon()
            let copy = box.folder + "/copy.raw"
            try box.ok("export", box.mountPoint, "a.img", copy)
            #expect(try box.text(copy, count: 7) == "flushed")
            try box.ok("import", box.mountPoint, copy, "--as", "b.img")
            try box.mount()
            #expect(try box.bytes(box.mountPoint + "/b.img") == box.bytes(copy))
        }
    }
}
