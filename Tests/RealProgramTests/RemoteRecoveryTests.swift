import Foundation
import TestSupport
import Testing

/// The primary's machine goes down, and what its disk lost a mirror behind a server has: as `RecoveryTests`, over a
/// line that breaks.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RemoteRecoveryTests {
    /// A pool on the lossy disk, and its mirror behind a server.
    private func withPool(
        mode: String, _ body: (Sandbox, LossyMount, MirrorServer, Relay) throws -> Void
    ) throws {
        let relay = try Relay()
        defer { relay.end() }
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in
                let server = try MirrorServer(box, through: relay)
                defer { server.kill() }
                try box.ok("init", box.pool)
                for index in 0..<Stamps.imageCount {
                    try box.ok("create", box.pool, "disk\(index).img", "--size", "1M")
                }
                try box.mount("--mirror", "\(server.address),mode=\(mode),timeout=60s")
                try untilItCounts(box, server, mode)
                try body(box, lossy, server, relay)
            }
        }
    }

    private func untilItCounts(_ box: Sandbox, _ server: MirrorServer, _ mode: String) throws {
        try box.until("it counts", seconds: 40) {
            try box.target(server.address).modeInForce == mode
        }
    }

    /// Is under way when this returns.
    private func mountBehind(_ box: Sandbox, _ log: String) throws -> BackgroundShell {
        try BackgroundShell(
            "DOPPEL_CONFIG=\"$1\" exec \"$2\" mount \"$3\" \"$4\" --on-recovery wait 2>\"$5\"",
            [
                box.variables["DOPPEL_CONFIG"] ?? "", Sandbox.binary, box.pool, box.mountPoint,
                log,
            ])
    }

    private static let isLong = getenv("DOPPEL_SOAK") != nil

    /// The server cannot be reached, and then the line breaks while the pool is brought back: the mount waits, and
    /// shows nothing before all of it is there.
    @Test(arguments: isLong ? ["sync", "semi-sync"] : ["semi-sync"])
    func aMountWaitsForTheServerAndPullsAllOfIt(mode: String) throws {
        try withPool(mode: mode) { box, lossy, server, relay in
            let (a, b) = (box.mountPoint + "/disk0.img", box.mountPoint + "/disk1.img")
            try box.write("flushed", to: a)
            // Acknowledged, and never flushed.
            try #require(rename(b, box.mountPoint + "/new.img") == 0)
            let lost = pattern(6 << 20, seed: 3)
            try TestFile(a, O_RDWR).write(lost, at: 1 << 20)
            relay.cut()
            try box.goDown(lossy)
            // A verb does not wait, and changes nothing.
            let refused = try box.run("create", box.pool, "c.img", "--size", "1M")
            #expect(refused.code == 4, "\(refused)")
            #expect(refused.errors.contains(server.address), "\(refused)")

            let log = box.folder + "/said"
            let mount = try mountBehind(box, log)
            defer { mount.kill() }
            try box.until("it says what it waits for", seconds: 30) {
                box.read(log).contains("waits for \(server.address)")
            }
            relay.mend()
            relay.cut(after: 3 << 20, .toClient)
            try box.until("the line breaks in the middle", seconds: 30) { relay.hasBroken }
            try box.until("it asks again, in vain", seconds: 30) {
                try box.run("list", box.pool).errors.contains("waits for \(server.address)")
            }
            #expect(mount.isRunning && !box.isMounted)
            relay.mend()
            try box.until("it is mounted", seconds: 30) { !mount.isRunning }
            _ = try box.daemon()
            #expect(try box.text(a, count: 7) == "flushed")
            let bytes = [UInt8](try box.bytes(a))
            #expect(bytes.count == 7 << 20)
            #expect(sameBytes(bytes[(1 << 20)...], lost[...]))
            #expect(access(b, F_OK) != 0 && access(box.mountPoint + "/new.img", F_OK) == 0)
            #expect(try box.events().filter { $0.kind == "recovery-pull" }.count == 1)
            #expect(try Sandbox.diverged(box.mountPoint).count == 1)
            // Both have it: nothing has to be shipped.
            try box.untilInStep(server.address)
            try box.settle()
            #expect(try box.target(server.address).resyncedBytes < 1 << 20)
            try server.expectSame()
        }
    }

    /// Who cannot wait goes on, and what the server has stays there.
    @Test func whoStartsAtOnceKeepsWhatTheServerHas() throws {
        try withPool(mode: "sync") { box, lossy, server, relay in
            let a = box.mountPoint + "/disk0.img"
            try box.write("flushed", to: a)
            try TestFile(a, O_RDWR).write(pattern(40_000, seed: 3), at: 8192)
            relay.cut()
            try box.goDown(lossy)
            try box.mount("--on-recovery", "start")
            #expect(try box.text(a, count: 7) == "flushed")
            #expect([UInt8](try box.bytes(a))[8192..<48_192].allSatisfy { $0 == 0 })
            relay.mend()
            try box.write("goes on", to: a, at: 4096)
            try box.untilInStep(server.address)
            try box.settle()
            #expect(try box.events().contains { $0.kind == "recovery-skipped" })
            #expect(try server.terminate() == 0)
            mkdir(box.look, 0o755)
            try box.ok("mount", server.mirror, box.look)
            try box.expectSame(box.mountPoint, box.look)
            let kept = try Sandbox.diverged(box.look)
            try #require(kept.count == 1, "\(kept)")
            let old = [UInt8](try box.bytes(box.look + "/.snapshots/\(kept[0])/disk0.img"))
            #expect(sameBytes(old[8192..<48_192], pattern(40_000, seed: 3)[...]))
        }
    }

    /// Several programs write, the power goes, and the line breaks in the middle of what comes back, or the server is
    /// killed: what a mount shows then is a prefix, with everything that returned.
    @Test(arguments: isLong ? ["sync", "semi-sync", "flush"] : ["sync"])
    func whatIsThereIsAPrefix(mode: String) throws {
        let seed = Seeds.run(1)[0]
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        try withPool(mode: mode) { box, lossy, server, relay in
            let images = (0..<Stamps.imageCount).map { "\(box.mountPoint)/disk\($0).img" }
            let stamps = Stamps()
            for round in 1...(Self.isLong ? 20 : 1) {
                // One that was lost is trusted again after a while.
                if round > 1 { try untilItCounts(box, server, mode) }
                try stamps.write(
                    images, seed: random.next(), promise: mode == "flush" ? .flushes : .writes
                ) {
                    let enough = stamps.writeCount + 30 + random.below(Self.isLong ? 300 : 60)
                    try box.until("enough was written") { stamps.writeCount > enough }
                    try box.killDaemon()
                }
                try lossy.tell(random.chance(50) ? "drop" : "drop \(random.next())")
                try box.pretendRestart()
                relay.cut(after: UInt64(10_000 + random.below(200_000)), .toClient)
                let restarts = random.chance(30)
                if restarts { server.kill() }
                let mount = try mountBehind(box, "/dev/null")
                defer { mount.kill() }
                if restarts { try server.start() }
                try box.until("it is mounted", seconds: 40) {
                    if relay.hasBroken { relay.mend() }
                    return !mount.isRunning
                }
                _ = try box.daemon()
                let found = try images.map { try contents($0) }
                if let violation = stamps.violation(of: found) {
                    throw Failure("seed \(seed), \(mode), round \(round): \(violation)")
                }
                relay.mend()
            }
        }
    }
}
