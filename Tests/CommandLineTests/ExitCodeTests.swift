import Foundation
import TestSupport
import Testing

/// 0 ok, 1 failed, 2 usage, 3 in use, 4 degraded, 5 damaged: by the real program.
@Suite struct ExitCodeTests {
    @Test func zeroWhenAllWentWell() throws {
        try Sandbox.withPool("a.img") { box in
            for words in [["list", box.pool], ["status", box.pool], ["check", box.pool]] {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(outcome.code == 0, "\(words): \(outcome)")
                #expect(outcome.errors.isEmpty, "\(outcome)")
            }
        }
    }

    /// The message names what it is about, and what can be done.
    @Test func oneWhenItFailed() throws {
        try Sandbox.withPool("a.img") { box in
            let missing = try box.run("delete", box.pool, "none.img")
            #expect(missing.code == 1)
            #expect(missing.errors.contains("none.img"), "\(missing)")
            let snapshot = try box.run("restore", box.pool, "a.img", "--snapshot", "none")
            #expect(snapshot.code == 1)
            #expect(snapshot.errors.contains("none"), "\(snapshot)")
            #expect(missing.output.isEmpty && snapshot.output.isEmpty)
        }
    }

    @Test func twoWhenTheCommandLineIsWrong() throws {
        try Sandbox.withPool("a.img") { box in
            for words in [
                ["bogus"], ["create", box.pool], ["create", box.pool, "b", "--size", "big"],
                ["export", box.pool, "a.img", "-", "--jobs", "0"], ["import", box.pool, "-"],
                ["restore", box.pool, "a.img"],
            ] {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(outcome.code == 2, "\(words): \(outcome)")
                #expect(!outcome.errors.isEmpty && outcome.output.isEmpty, "\(outcome)")
            }
        }
    }

    @Test(.enabled(if: hasFuse)) func threeWhenItIsInUse() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            let pid = try box.daemon()
            for words in [["check", box.pool, "--repair"], ["eject", box.pool]] {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(outcome.code == 3, "\(words): \(outcome)")
                #expect(outcome.errors.contains("\(pid)"), "\(outcome)")
            }
            try box.holdingOpen(box.mountPoint + "/a.img") {
                let refused = try box.run("resize", box.pool, "a.img", "1M", "--shrink")
                #expect(refused.code == 3, "\(refused)")
                #expect(refused.errors.contains("\(getpid())"), "\(refused)")
            }
        }
    }

    /// Nothing is lost, and something is not as it should be.
    @Test func fourWhenThePoolIsDegraded() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: 1 << 20)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            try box.ok("snapshot", "create", box.pool, "one")
            try box.ok("scrub", box.pool)
            let found = try box.shell("find '\(box.pool)/images' -name '*.sums' -size +1k").output
            let sums = try #require(found.split(separator: "\n").first.map(String.init))
            try box.write("nonsense", to: sums, at: 17)
            let check = try box.run("check", box.pool)
            #expect(check.code == 4, "\(check)")
            #expect(check.output.contains("DEGRADED"), "\(check)")
            let repaired = try box.run("check", box.pool, "--repair")
            #expect(repaired.output.contains("REPAIRED"), "\(repaired)")
            try box.ok("scrub", box.pool)
            #expect(try box.run("check", box.pool).code == 0)
        }
    }

    /// A sync that failed: the image says so until the pool was opened anew.
    @Test(.enabled(if: hasFuse), arguments: [true, false])
    func fourWhileAnImageIsLatched(wasWritten: Bool) throws {
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in
                try box.ok("init", box.pool)
                try box.ok("create", box.pool, "a.img", "--size", "1M")
                try box.mount()
                // The first write to a region syncs the activity log, the next ones the data alone.
                if wasWritten { try box.write("first", to: box.mountPoint + "/a.img") }
                try lossy.tell("sync-fails 1000")
                #expect(throws: Unexpected.self) {
                    try box.write("lost?", to: box.mountPoint + "/a.img")
                }
                try lossy.tell("sync-fails 0")
                let status = try box.run("status", box.pool)
                #expect(status.code == 4, "\(status)")
                #expect(status.output.contains("degraded"), "\(status)")
                // What the second write met first: the catalog's sync, which is the whole pool's.
                #expect(status.output.contains("PROBLEM"), "\(status)")
                #expect(wasWritten || status.output.contains("a.img"), "\(status)")
                #expect(try box.run("status", box.pool, "--json").code == 4)
            }
        }
    }

    @Test func fiveWhenSomethingIsDamaged() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: 1 << 20)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            try box.ok("snapshot", "create", box.pool, "one")
            try box.ok("scrub", box.pool)
            let found = try box.shell("find '\(box.pool)/images' -name '*.data' -size +100k").output
            let data = try #require(found.split(separator: "\n").first.map(String.init))
            try box.write("damage", to: data, at: 500_000)
            for words in [
                ["check", box.pool], ["scrub", box.pool],
                ["export", box.pool, "a.img@one", box.folder + "/out"],
            ] {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(outcome.code == 5, "\(words): \(outcome)")
                #expect((outcome.output + outcome.errors).contains("image"), "\(outcome)")
            }
        }
    }
}
