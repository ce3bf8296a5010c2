import Foundation
import TestSupport
import Testing

/// What a mounted pool does behind, seen from outside; and what is done at once where nobody has it
/// mounted.
@Suite struct BackgroundTests {
    private struct Behind: Decodable {
        var uncoveredLayers: Int
        var pendingMerges: Int
    }

    private func behind(_ box: Sandbox) throws -> Behind {
        let all = try box.json(box.ok("status", box.pool, "--json"), [Behind].self)
        return try #require(all.first)
    }

    private func storeBytes(_ box: Sandbox) throws -> Int {
        let sizes = try box.shell("find '\(box.pool)/images' -name '*.data' -printf '%b\\n'").output
        return sizes.split(separator: "\n").compactMap { Int($0) }.reduce(0, +) * 512
    }

    private func fill(_ box: Sandbox, seed: UInt64, at mebibyte: Int) throws {
        let raw = try box.makeFile("fill.raw", count: 4 << 20, seed: seed)
        let done = try box.shell(
            "dd if='\(raw)' of='\(box.mountPoint)/a.img' bs=1M seek=\(mebibyte) conv=notrunc,fsync")
        #expect(done.code == 0, "\(done)")
    }

    @Test(.enabled(if: hasFuse)) func sealedLayersGetTheirChecksumsBehind() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            try fill(box, seed: 1, at: 0)
            try box.ok("snapshot", "create", box.pool, "one")
            try box.until("every sealed layer is covered") {
                try behind(box).uncoveredLayers == 0
            }
            try box.ok("unmount", box.mountPoint)
            // Nothing is hashed again: what is there verifies.
            let sums = try box.shell("find '\(box.pool)/images' -name '*.sums' | wc -l").output
            #expect(sums != "0\n")
            #expect(try box.ok("scrub", box.pool).hasPrefix("1024 blocks read, 1024 verified"))
        }
    }

    @Test(.enabled(if: hasFuse)) func aDeletedSnapshotGivesItsSpaceBackBehind() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            for (number, name) in ["one", "two", "three"].enumerated() {
                try fill(box, seed: UInt64(number), at: 0)
                try box.ok("snapshot", "create", box.pool, name)
            }
            let before = try storeBytes(box)
            #expect(before >= 12 << 20)
            try box.ok("snapshot", "delete", box.pool, "two", "--wait")
            #expect(try behind(box).pendingMerges == 0)
            #expect(try storeBytes(box) < before - (3 << 20))
            // The others have what they had.
            for (seed, name) in [(0, "one"), (2, "three")] {
                let raw = try box.makeFile("was.raw", count: 4 << 20, seed: UInt64(seed))
                let same = "cmp -n 4194304 '\(raw)' '\(box.mountPoint)/.snapshots/\(name)/a.img'"
                #expect(try box.shell(same).code == 0, "\(name)")
            }
        }
    }

    @Test func unmountedTheSpaceIsBackWhenTheCommandReturns() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: 4 << 20)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            for name in ["one", "two", "three"] {
                try box.ok("snapshot", "create", box.pool, name)
                try box.ok("resize", box.pool, "a.img", name == "two" ? "4M" : "1M", "--shrink")
            }
            try box.ok("snapshot", "delete", box.pool, "two", "--no-wait")
            let left = try behind(box).pendingMerges
            try box.ok("snapshot", "delete", box.pool, "one")
            #expect(try behind(box).pendingMerges == 0)
            #expect(left > 0)
            #expect(try box.run("check", box.pool).code == 0)
        }
    }

    /// Guests that were frozen are thawed, whatever stops the command.
    @Test(arguments: [SIGTERM, SIGINT, SIGHUP])
    func beingStoppedThawsAndTakesNoSnapshot(signal: Int32) throws {
        try Sandbox.withPool("a.img") { box in
            let (frozen, thawed) = (box.folder + "/frozen", box.folder + "/thawed")
            let command = try BackgroundShell(
                "exec '\(Sandbox.binary)' snapshot create '\(box.pool)' one "
                    + "--before 'echo > \(frozen); exec sleep 60' --after 'echo > \(thawed)' 2>/dev/null"
            )
            try box.until("the freeze") { access(frozen, F_OK) == 0 }
            kill(command.pid, signal)
            #expect(try command.wait() == 1)
            #expect(access(thawed, F_OK) == 0)
            let snapshots = try box.ok("snapshot", "list", box.pool, "--json")
            #expect(try box.json(snapshots, [SnapshotLine].self).isEmpty)
        }
    }

    private struct MountLine: Decodable {
        var mountPoint: String?
        var state: String
        var problems: [String]?
    }

    private func listedState(_ box: Sandbox) throws -> String? {
        let list = try box.run("list", "--json").output
        return try box.json(list, [MountLine].self).first { $0.mountPoint == box.mountPoint }?.state
    }

    /// The pool is whole, and whoever uses the mount gets errors: both are said.
    @Test(.enabled(if: hasFuse)) func aDeadMountIsShownAsSuch() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            #expect(try listedState(box) == "served")
            try box.killDaemon()
            #expect(try listedState(box) == "dead")
            let dead = try box.run("status", box.pool, "--json")
            #expect(dead.code == 4, "\(dead)")
            let line = try #require(try box.json(dead.output, [MountLine].self).first)
            #expect(line.state == "degraded")
            #expect(line.problems?.first?.contains("doppel mount \(box.pool)") == true, "\(dead)")
            try box.mount()
            #expect(try listedState(box) == "served")
            #expect(try box.run("status", box.pool).code == 0)
        }
    }

    @Test(.enabled(if: hasFuse)) func withoutArgumentEveryMountedPoolIsShown() throws {
        try Sandbox.withPool("a.img") { one in
            try Sandbox.withPool("b.img", "c.img") { two in
                try one.mount()
                try two.mount()
                struct Line: Decodable {
                    var pool: String
                    var mountPoint: String?
                    var images: Int?
                }
                for verb in ["list", "status"] {
                    // Pools of others on this machine are shown too, and may be in any state.
                    let shown = try one.run(verb, "--json")
                    let lines = try one.json(shown.output, [Line].self)
                    for box in [one, two] {
                        let line = lines.first { $0.mountPoint == box.mountPoint }
                        #expect(line?.pool == box.pool, "\(verb): \(shown)")
                    }
                    let text = try one.run(verb).output
                    #expect(text.contains(one.mountPoint) && text.contains(two.mountPoint))
                }
                let status = try one.json(try one.run("status", "--json").output, [Line].self)
                #expect(status.first { $0.pool == two.pool }?.images == 2)
            }
        }
    }
}
