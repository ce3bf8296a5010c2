import Foundation
import TestSupport
import Testing

/// The power goes at one of the syncs at which plain files become something else: a raw mirror a pool, copies of
/// images a mirror. What is found then is what was before, or what was to be, or says which command goes on; and
/// nothing of it is lost.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct SeedingPowerTests {
    private static let isLong = getenv("DOPPEL_SOAK") != nil

    /// Counts of syncs after which the power goes: each in a long run, a few otherwise.
    private static func cuts(of all: Int, seed: UInt64) -> [Int] {
        var random = SeededRandom(seed: seed)
        return isLong ? Array(0..<all) : (0..<4).map { _ in random.below(all) }
    }

    private func with(_ body: (LossyMount, Sandbox) throws -> Void) throws {
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in try body(lossy, box) }
        }
    }

    private func sh(_ script: String, _ arguments: String...) throws {
        let outcome = try run(["sh", "-ec", script, "sh"] + arguments)
        guard outcome.code == 0 else { throw Failure("\(outcome)") }
    }

    /// Puts a copy, durable, where the power is about to go.
    private func put(_ saved: String, at place: String) throws {
        try sh(
            "rm -rf \"$2\"; cp -a --sparse=always \"$1\" \"$2\"; find \"$2\" -exec sync {} +; sync \"${2%/*}\"",
            saved, place)
    }

    private func contents(_ path: String, _ box: Sandbox) throws -> [String: Data] {
        mkdir(box.look, 0o755)
        try box.ok("mount", path, box.look, "--read-only")
        defer { _ = try? box.run("unmount", box.look) }
        var result: [String: Data] = [:]
        for name in ["a.img", "sub/b.img"] { result[name] = try box.bytes(box.look + "/" + name) }
        return result
    }

    /// A pool with two images, closed, and what is in them.
    private func fill(_ box: Sandbox) throws -> [String: Data] {
        try box.ok("init", box.pool)
        try box.mount()
        mkdir(box.mountPoint + "/sub", 0o755)
        try box.makeFile(box.mountPoint + "/a.img", count: 300_001, seed: 1)
        try box.makeFile(box.mountPoint + "/sub/b.img", count: 90_000, seed: 2)
        return [
            "a.img": try box.bytes(box.mountPoint + "/a.img"),
            "sub/b.img": try box.bytes(box.mountPoint + "/sub/b.img"),
        ]
    }

    private func off(
        _ count: Int, _ seed: UInt64, _ lossy: LossyMount, _ body: () throws -> Outcome
    ) throws -> Outcome {
        try lossy.tell("off \(count)")
        let outcome = try body()
        try lossy.tell(count % 2 == 0 ? "drop" : "drop \(seed &* 1000 &+ UInt64(count))")
        return outcome
    }

    @Test(arguments: Seeds.run(1)) func aRawMirrorThatIsPromoted(seed: UInt64) throws {
        try with { lossy, box in
            let plain = lossy.file("plain")
            let expected = try fill(box)
            try box.ok("unmount", box.mountPoint)
            for count in Self.cuts(of: 70, seed: seed) {
                try box.ok("target", "add", box.pool, "raw:" + plain)
                try box.settle()
                try lossy.syncFolder()
                let outcome = try off(count, seed, lossy) {
                    try box.run("promote", "raw:" + plain)
                }
                let what = Comment(rawValue: "seed \(seed), after \(count) syncs: \(outcome)")
                let isPool = try box.run("list", plain).code == 0
                #expect(isPool || outcome.code != 0, what)
                if !isPool {
                    try expectNobodyElseTakesIt(plain, box, what)
                    let again = try box.run("promote", "raw:" + plain)
                    #expect(again.code == 0, "\(what): \(again)")
                }
                try box.ok("check", plain)
                #expect(try contents(plain, box) == expected, what)
                let status = try box.status(of: plain)
                #expect(status.generation == 2 && status.replica?.role == "primary", what)
                #expect(status.targets?.map(\.address) == [box.pool], what)
                try sh("rm -rf \"$1\"", plain)
                try box.ok("target", "remove", box.pool, "raw:" + plain)
            }
        }
    }

    /// A raw mirror still, or on its way to a pool.
    private func expectNobodyElseTakesIt(
        _ plain: String, _ box: Sandbox, _ what: Comment
    ) throws {
        #expect(try box.run("mount", plain, box.look).code != 0, what)
        guard access(plain + "/.doppel-adopt/plan.json", F_OK) == 0 else { return }
        // Its primary least of all.
        try box.ok("create", box.pool, "probe.img", "--size", "4096")
        let late = try box.run("wait", box.pool, "--timeout", "300ms")
        #expect(late.code == 4 && late.errors.contains("half way to a pool"), "\(what): \(late)")
        try box.ok("delete", box.pool, "probe.img")
    }

    @Test(arguments: Seeds.run(1)) func copiesThatAreAttached(seed: UInt64) throws {
        try with { lossy, box in
            let (seeded, savedPool) = (lossy.file("seeded"), box.folder + "/saved-pool")
            let saved = box.folder + "/saved"
            var expected = try fill(box)
            try sh("cp -a \"$1\" \"$2\"", box.mountPoint, saved)
            let carried = expected
            try box.write("newer", to: box.mountPoint + "/a.img", at: 8192)
            expected["a.img"] = try box.bytes(box.mountPoint + "/a.img")
            try box.ok("unmount", box.mountPoint)
            try sh("cp -a --sparse=always \"$1\" \"$2\"", box.pool, savedPool)
            for count in Self.cuts(of: 90, seed: seed) {
                try put(savedPool, at: box.pool)
                try put(saved, at: seeded)
                let outcome = try off(count, seed, lossy) {
                    try box.run("target", "add", box.pool, seeded, "--seed")
                }
                let what = Comment(rawValue: "seed \(seed), after \(count) syncs: \(outcome)")
                var isTarget = try box.status().targets?.isEmpty == false
                #expect(isTarget || outcome.code != 0, what)
                #expect(try contents(box.pool, box) == expected, what)
                if !isTarget {
                    var again = try box.run("target", "add", box.pool, seeded, "--seed")
                    // It is a mirror of this pool by now, and is taken as one.
                    if again.code != 0, again.errors.contains("is a mirror") {
                        again = try box.run("target", "add", box.pool, seeded)
                    }
                    isTarget = again.code == 0
                    #expect(isTarget, "\(what): \(again)")
                }
                guard isTarget else { continue }
                try box.ok("wait", box.pool, "--timeout", "50s")
                #expect(try contents(seeded, box) == expected, what)
                // What was carried over is kept.
                try box.ok("mount", seeded, box.look, "--read-only")
                defer { _ = try? box.run("unmount", box.look) }
                let kept = try names(in: box.look + "/.snapshots").filter {
                    $0.hasPrefix("diverged-")
                }
                #expect(
                    try kept.contains { name in
                        try carried.allSatisfy { path, bytes in
                            try box.bytes("\(box.look)/.snapshots/\(name)/\(path)") == bytes
                        }
                    }, "\(what): \(kept)")
            }
        }
    }
}
