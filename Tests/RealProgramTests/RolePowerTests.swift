import Foundation
import TestSupport
import Testing

/// The power goes, for both pools at once, at one of the syncs of a change of roles, and takes all that was not
/// synced or some of it: one primary is left, or two that say so; nothing that was flushed is lost.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RolePowerTests {
    private static let rounds = getenv("DOPPEL_SOAK") == nil ? 2 : 30

    private func with(
        _ seed: UInt64, _ body: (LossyMount, Sandbox, inout SeededRandom) throws -> Void
    ) throws {
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool"), mirror: lossy.file("mirror")) { box in
                try body(lossy, box, &random)
            }
        }
    }

    private func names(_ path: String, _ box: Sandbox) throws -> [String] {
        try box.json(box.ok("list", path, "--json"), [ImageLine].self).map(\.path).sorted()
    }

    private func off(_ lossy: LossyMount, _ random: inout SeededRandom, limit: Int) throws {
        try lossy.tell("off \(random.below(limit))")
    }
    private func drop(_ lossy: LossyMount, _ random: inout SeededRandom) throws {
        try lossy.tell(random.chance(50) ? "drop" : "drop \(random.next())")
    }

    @Test(arguments: Seeds.run(1)) func aHandoverLeavesOnePrimary(seed: UInt64) throws {
        try with(seed) { lossy, box, random in
            try box.ok("init", box.pool)
            var expected: [String: Data] = [:]
            var (one, other) = (box.pool, box.mirror)
            try box.ok("target", "add", one, other)
            try box.ok("wait", one, "--timeout", "50s")
            try lossy.syncFolder()
            for round in 0..<Self.rounds {
                let source = try box.makeFile("source", count: 200_000 + round, seed: UInt64(round))
                try box.ok("import", one, source, "--as", "\(round).img")
                expected["\(round).img"] = try box.bytes(source)
                try off(lossy, &random, limit: 90)
                let outcome = try box.run(
                    "failover", one, "--to", other, "--planned", "--timeout", "3s")
                try drop(lossy, &random)
                // Each is asked for a change; one takes it.
                let takers = try [one, other].filter {
                    try box.run("create", $0, "probe-\(round)", "--size", "4096").code == 0
                }
                try #require(
                    takers.count == 1, "seed \(seed), round \(round): \(takers), \(outcome)")
                expected["probe-\(round)"] = Data(count: 4096)
                #expect(outcome.code != 0 || takers == [other], "seed \(seed): it was done")
                if takers == [other] { swap(&one, &other) }
                try box.ok("wait", one, "--timeout", "50s")
                #expect(
                    try box.content(of: one, at: box.look) == expected,
                    "seed \(seed), round \(round)")
                #expect(
                    try box.content(of: other, at: box.look) == expected,
                    "seed \(seed), round \(round)")
            }
        }
    }

    @Test(arguments: Seeds.run(1)) func aSplitBrainIsResolvedAllTheSame(seed: UInt64) throws {
        try with(seed) { lossy, box, random in
            let (one, two) = (box.mirror, lossy.file("other"))
            try box.ok("init", box.pool)
            try box.ok("create", box.pool, "both", "--size", "1M")
            for mirror in [one, two] { try box.ok("target", "add", box.pool, mirror) }
            try box.ok("wait", box.pool, "--timeout", "50s")
            try #require(rename(box.pool, lossy.file("lost")) == 0)
            for (path, name) in [(one, "of-one"), (two, "of-two")] {
                try box.ok("promote", path, "--force")
                let source = try box.makeFile(name, count: 90_000, seed: name == "of-one" ? 1 : 2)
                try box.ok("import", path, source, "--as", name)
            }
            try lossy.syncFolder()
            var isDone = false
            for _ in 0..<Self.rounds + 2 where !isDone {
                try off(lossy, &random, limit: 60)
                _ = try box.run("target", "resolve", one, two, "--keep", "here")
                try drop(lossy, &random)
                // Whatever it was cut off at: this one goes on, and nobody was given its place.
                #expect(try names(one, box) == ["both", "of-one"], "seed \(seed)")
                isDone = try box.status(of: two).replica?.role == "replica"
            }
            if !isDone { try box.ok("target", "resolve", one, two, "--keep", "here") }
            // One that was demoted and is no target yet.
            _ = try box.run("target", "add", one, two)
            try box.ok("wait", one, "--target", two, "--timeout", "50s")
            let kept = try box.content(of: one, at: box.look)
            #expect(try kept["of-one"] == box.bytes(box.folder + "/of-one"))
            #expect(try box.content(of: two, at: box.look) == kept)
            try box.ok("mount", two, box.look, "--read-only")
            defer { _ = try? box.run("unmount", box.look) }
            let old = try TestSupport.names(in: box.look + "/.snapshots").filter {
                $0.hasPrefix("diverged-")
            }
            #expect(
                try old.contains {
                    try box.bytes(box.look + "/.snapshots/\($0)/of-two")
                        == box.bytes(box.folder + "/of-two")
                }, "seed \(seed): \(old)")
        }
    }
}
