import Foundation
import TestSupport
import Testing

/// The primary's machine goes down: its disk forgets what was not synced, and a mirror has it. After the next
/// mount it is there again.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RecoveryTests {
    /// A pool on the lossy disk with its mirror beside it.
    private func withPool(
        mode: String, _ body: (Sandbox, LossyMount) throws -> Void
    ) throws {
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in
                try box.ok("init", box.pool)
                for image in ["a.img", "b.img"] {
                    try box.ok("create", box.pool, image, "--size", "1M")
                }
                try box.mount("--mirror", "\(box.mirror),mode=\(mode),timeout=60s")
                try box.until("it counts", seconds: 30) { try box.target().modeInForce == mode }
                try body(box, lossy)
            }
        }
    }

    private static let isLong = getenv("DOPPEL_SOAK") != nil

    @Test(arguments: isLong ? ["sync", "semi-sync"] : ["semi-sync"])
    func whatTheDiskLostComesBack(mode: String) throws {
        try withPool(mode: mode) { box, lossy in
            let a = box.mountPoint + "/a.img"
            try box.write("flushed", to: a)
            let file = try TestFile(a, O_RDWR)
            // Acknowledged, and never flushed.
            try file.write(pattern(40_000, seed: 3), at: 100_000)
            try file.write(pattern(70_000, seed: 4), at: 2_000_000)
            try #require(rename(box.mountPoint + "/b.img", box.mountPoint + "/c.img") == 0)
            let new = try TestFile(box.mountPoint + "/new.img", O_RDWR | O_CREAT)
            try new.write(pattern(9000, seed: 5), at: 0)
            try box.goDown(lossy)
            try box.mount()
            #expect(try box.text(a, count: 7) == "flushed")
            let bytes = [UInt8](try box.bytes(a))
            #expect(bytes.count == 2_070_000)
            #expect(
                difference(bytes[100_000..<140_000], from: pattern(40_000, seed: 3)[...]) == nil)
            #expect(difference(bytes[2_000_000...], from: pattern(70_000, seed: 4)[...]) == nil)
            #expect(access(box.mountPoint + "/b.img", F_OK) != 0)
            #expect(access(box.mountPoint + "/c.img", F_OK) == 0)
            #expect([UInt8](try box.bytes(box.mountPoint + "/new.img")) == pattern(9000, seed: 5))
            #expect(try box.events().contains { $0.kind == "recovery-pull" })
            // What the disk had is kept, and nothing has to be shipped.
            #expect(try Sandbox.diverged(box.mountPoint).count == 1)
            try box.settle()
            try box.lookIntoMirror()
            #expect(try box.target().resyncedBytes < 1 << 20)
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    /// All that was written is on this disk when only the process was killed.
    @Test func aProcessThatIsKilledTakesNothingWithIt() throws {
        try withPool(mode: "flush") { box, _ in
            let a = box.mountPoint + "/a.img"
            try TestFile(a, O_RDWR).write(pattern(40_000, seed: 3), at: 100_000)
            try box.killDaemon()
            try box.mount()
            let bytes = [UInt8](try box.bytes(a))
            #expect(
                difference(bytes[100_000..<140_000], from: pattern(40_000, seed: 3)[...]) == nil)
            #expect(try !box.events().contains { $0.kind.hasPrefix("recovery") })
        }
    }

    /// Until the mirror can be asked nobody is told that all is there.
    @Test func aMountWaitsForTheMirrorThatHasMore() throws {
        try withPool(mode: "sync") { box, lossy in
            let a = box.mountPoint + "/a.img"
            try TestFile(a, O_RDWR).write(pattern(40_000, seed: 3), at: 0)
            try box.goDown(lossy)
            try #require(rename(box.mirror, box.folder + "/away") == 0)
            // A verb does not wait, and changes nothing.
            let refused = try box.run("create", box.pool, "c.img", "--size", "1M")
            #expect(refused.code == 4, "\(refused)")
            #expect(refused.errors.contains("--on-recovery start"), "\(refused)")
            let status = try box.run("status", box.pool)
            #expect(status.code == 4)
            #expect(status.output.contains("\(box.mirror) is asked"), "\(status)")

            let (pool, mountPoint, log) = (box.pool, box.mountPoint, box.folder + "/said")
            let mount = try BackgroundShell(
                "exec '\(Sandbox.binary)' mount '\(pool)' '\(mountPoint)' 2>'\(log)'")
            defer { mount.kill() }
            try box.until("it says what it waits for", seconds: 30) {
                box.read(log).contains("waits for \(box.mirror)")
            }
            let inUse = try box.run("list", box.pool)
            #expect(inUse.code == 3, "\(inUse)")
            #expect(inUse.errors.contains("waits for \(box.mirror)"), "\(inUse)")
            #expect(!box.isMounted)
            try #require(rename(box.folder + "/away", box.mirror) == 0)
            try box.until("it is mounted", seconds: 30) { !mount.isRunning }
            _ = try box.daemon()
            #expect(
                [UInt8](try box.bytes(a)).prefix(40_000).elementsEqual(pattern(40_000, seed: 3)))
        }
    }

    /// Who cannot wait goes on, and what the mirror has stays there.
    @Test func whoStartsAtOnceKeepsWhatTheMirrorHas() throws {
        try withPool(mode: "sync") { box, lossy in
            let a = box.mountPoint + "/a.img"
            try box.write("flushed", to: a)
            try TestFile(a, O_RDWR).write(pattern(40_000, seed: 3), at: 8192)
            try box.goDown(lossy)
            try box.mount("--on-recovery", "start")
            #expect(try box.text(a, count: 7) == "flushed")
            #expect([UInt8](try box.bytes(a))[8192..<48_192].allSatisfy { $0 == 0 })
            try box.write("goes on", to: a, at: 4096)
            try box.settle()
            try box.untilInStep()
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
            let kept = try Sandbox.diverged(box.look)
            try #require(kept.count == 1, "\(kept)")
            let old = [UInt8](try box.bytes(box.look + "/.snapshots/\(kept[0])/a.img"))
            #expect(difference(old[8192..<48_192], from: pattern(40_000, seed: 3)[...]) == nil)
            #expect(try box.events().contains { $0.kind == "recovery-skipped" })
            // Once is enough.
            try box.lookAway()
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            try box.settle()
            try box.lookIntoMirror()
            #expect(try Sandbox.diverged(box.look) == kept)
        }
    }

    /// From a mirror that something was answered without nothing is taken.
    @Test func aMirrorThatWasLeftBehindIsNotAsked() throws {
        try withPool(mode: "sync") { box, lossy in
            let a = box.mountPoint + "/a.img"
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.write("flushed", to: a)
            try box.goDown(lossy)
            try box.mount()
            #expect(try box.text(a, count: 7) == "flushed")
            #expect(try !box.events().contains { $0.kind == "recovery-pull" })
        }
    }

    /// The writes of several programs, and the power goes in the middle of them: what a mount shows then is
    /// a prefix of what was done, with everything that returned.
    @Test(arguments: isLong ? ["sync", "semi-sync", "flush"] : ["sync"])
    func whatIsThereIsAPrefix(mode: String) throws {
        let seed = Seeds.run(1)[0]
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in
                let images = (0..<Stamps.imageCount).map { "disk\($0).img" }
                try box.ok("init", box.pool)
                for image in images { try box.ok("create", box.pool, image, "--size", "1M") }
                let stamps = Stamps()
                for round in 1...(Self.isLong ? 40 : 1) {
                    try box.mount("--mirror", "\(box.mirror),mode=\(mode),timeout=60s")
                    try box.until("it counts", seconds: 40) {
                        try box.target().modeInForce == mode
                    }
                    try stamps.write(
                        images.map { "\(box.mountPoint)/\($0)" }, seed: random.next(),
                        promise: mode == "flush" ? .flushes : .writes
                    ) {
                        usleep(useconds_t(20_000 + random.below(300_000)))
                        try box.killDaemon()
                    }
                    try lossy.tell(random.chance(50) ? "drop" : "drop \(random.next())")
                    try box.pretendRestart()
                    try box.mount("--on-recovery", "wait")
                    let found = try images.map { try contents(box.mountPoint + "/" + $0) }
                    if let violation = stamps.violation(of: found) {
                        throw Failure("seed \(seed), \(mode), round \(round): \(violation)")
                    }
                    try box.ok("unmount", box.mountPoint)
                }
                #expect(stamps.writeCount > 20, "hardly anything was written")
            }
        }
    }
}
