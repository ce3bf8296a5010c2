import Glibc
import TestSupport
import Testing

/// How much of a pool a mirror is given, and what is told of it meanwhile.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct MirrorCopyTests {
    private static let regionBytes = 4 << 20

    /// A terabyte that holds two megabytes travels as these, and takes no more in the mirror.
    @Test func aFirstCopyIsOfAllocatedBlocksAlone() throws {
        try Sandbox.with { box in
            try box.ok("init", box.pool)
            try box.ok("create", box.pool, "huge.img", "--size", "1T")
            try box.mount()
            let pieceBytes = 256 << 10
            func offset(_ piece: Int) -> Int { piece * (100 << 30) + piece * 12288 }
            let file = try TestFile(box.mountPoint + "/huge.img", O_RDWR)
            for piece in 0..<9 {
                if piece == 7 { try box.ok("snapshot", "create", box.pool, "one") }
                try file.write(pattern(pieceBytes, seed: UInt8(piece + 1)), at: offset(piece))
            }
            try file.sync()
            _ = consume file
            try box.ok("target", "add", box.pool, box.mirror)
            try box.settle()
            try box.untilInStep()

            let copied = UInt64(9 * pieceBytes)
            let target = try box.target()
            #expect(target.resyncedBytes >= copied)
            #expect(target.resyncedBytes < copied + UInt64(pieceBytes))
            #expect(target.comparedBytes == 0)
            let used = try run(["du", "-s", "-B1", box.mirror + "/images"])
            let usedBytes = UInt64(used.output.prefix { $0.isNumber })
            #expect(try #require(usedBytes) < copied + (1 << 20), "\(used)")
            try box.lookIntoMirror()
            let copy = try TestFile(box.look + "/huge.img", O_RDONLY)
            #expect(copy.size == 1 << 40)
            for piece in 0..<9 {
                #expect(
                    try copy.read(pieceBytes, at: offset(piece))
                        == pattern(pieceBytes, seed: UInt8(piece + 1)), "piece \(piece)")
            }
            let snapshot = try TestFile(box.look + "/.snapshots/one/huge.img", O_RDONLY)
            #expect(try snapshot.read(4096, at: offset(6)) == pattern(4096, seed: 7))
            #expect(try snapshot.read(4096, at: offset(7)).allSatisfy { $0 == 0 })
        }
    }

    /// The regions that were being written when the pool's process died are compared, all others are
    /// not looked at; and of those only blocks that differ are sent.
    @Test func afterACrashOnlyActiveRegionsAreCompared() throws {
        try Sandbox.with { box in
            try box.ok("init", box.pool)
            try box.ok("create", box.pool, "a.img", "--size", "64M")
            try box.mount()
            try box.makeFile(box.mountPoint + "/a.img", count: 64 << 20)
            try box.ok("target", "add", box.pool, box.mirror, "--timeout", "500ms")
            try box.settle()
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            try box.untilInStep()
            for region in [1, 10] {
                try box.write(
                    "active", to: box.mountPoint + "/a.img", at: region * Self.regionBytes + 5000)
            }
            try box.settle()
            try box.killDaemon()

            // Until they are compared they are shown as what they are.
            try #require(rename(box.mirror, box.folder + "/away") == 0)
            try box.mount()
            var target = try box.target()
            #expect(target.suspectBytes == UInt64(2 * Self.regionBytes))
            #expect((target.dirtyBytes, target.atRiskBytes, target.comparedBytes) == (0, 0, 0))
            let shown = try box.run("status", box.pool)
            #expect(shown.code == 4)
            #expect(shown.output.contains("compared after an unclean end: up to 8 MiB"), "\(shown)")
            try #require(rename(box.folder + "/away", box.mirror) == 0)
            try box.settle()
            try box.untilInStep()
            target = try box.target()
            #expect(target.comparedBytes == UInt64(2 * Self.regionBytes))
            #expect(target.suspectBytes == 0)
            #expect(target.resyncedBytes < 4096, "both had everything")

            // What the mirror lacks of a region is all that is sent of it.
            try box.ok("unmount", box.mountPoint)
            try box.mount("--no-targets")
            try box.write("alone", to: box.mountPoint + "/a.img", at: 5 * Self.regionBytes)
            try box.killDaemon()
            try box.mount()
            try box.settle()
            try box.untilInStep()
            target = try box.target()
            #expect(target.comparedBytes == UInt64(Self.regionBytes))
            #expect((4096..<16384).contains(target.resyncedBytes), "\(target)")
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    /// Done and to do, how fast and how long still.
    @Test func aResyncTellsHowFarItIs() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.makeFile(box.mountPoint + "/a.img", count: 8 << 20)
            try box.ok("target", "set", box.pool, box.mirror, "--rate", "2MiB")
            try box.ok("target", "resume", box.pool, box.mirror)
            var seen: [TargetLine] = []
            var text = ""
            try box.until("it says how long it takes", seconds: 60) {
                let target = try box.target()
                guard target.state == "resyncing" else { return target.isInStep }
                if target.etaMs != nil, text.isEmpty {
                    text = try box.run("status", box.pool).output
                }
                if target.resyncDoneBytes != seen.last?.resyncDoneBytes { seen.append(target) }
                return seen.filter { $0.etaMs != nil }.count >= 2
            }
            try box.ok("target", "set", box.pool, box.mirror, "--rate", "0")
            let timed = seen.filter { $0.etaMs != nil }
            try #require(timed.count >= 2, "\(seen)")
            for target in timed {
                let (done, total) = (target.resyncDoneBytes!, target.resyncTotalBytes!)
                #expect(done > 0 && done <= total && total == 8 << 20)
                #expect(target.rateBytesPerSecond > 0)
                let ms = (total - done) * 1000 / target.rateBytesPerSecond
                #expect(target.etaMs! >= Int64(ms) - 1 && target.etaMs! < 120_000, "\(target)")
            }
            #expect(timed[0].resyncDoneBytes! < timed[1].resyncDoneBytes!)
            #expect(text.contains("resyncing ") && text.contains("%"), "\(text)")
            #expect(text.contains("/s, done in "), "\(text)")
            try box.settle()
            try box.untilInStep()
            let target = try box.target()
            #expect(target.resyncTotalBytes == nil && target.etaMs == nil)
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    /// A rate holds blocks back, and not what is written meanwhile: neither the guest nor the ring waits
    /// for them. It can be changed at any time.
    @Test func aResyncIsHeldToItsRateAndTheStreamIsNot() throws {
        try Sandbox.withMirror("a.img", "b.img", options: "timeout=500ms,rate=1MiB/s") { box in
            try box.ok("target", "pause", box.pool, box.mirror)
            func fill(_ image: String, megabytes: Int) throws {
                try run([
                    "dd", "if=/dev/urandom", "of=\(box.mountPoint)/\(image)", "bs=1M",
                    "count=\(megabytes)", "conv=notrunc,fsync", "status=none",
                ])
            }
            try fill("a.img", megabytes: 48)
            try box.ok("target", "resume", box.pool, box.mirror)
            try box.until("it is being resynced", seconds: 40) {
                try box.target().resyncDoneBytes ?? 0 > 0
            }
            // More than the ring holds.
            try fill("b.img", megabytes: 80)
            try box.until("the stream is staged", seconds: 40) {
                try box.target().resyncedBytes > 80 << 20
            }
            let target = try box.target()
            #expect(target.rateLimitBytesPerSecond == 1 << 20)
            #expect(target.state == "resyncing")
            let done = try #require(target.resyncDoneBytes)
            #expect(done < 40 << 20, "it does not keep to its rate")
            try box.ok("target", "set", box.pool, box.mirror, "--rate", "0")
            try box.settle()
            try box.untilInStep()
            #expect(try box.target().rateLimitBytesPerSecond == nil)
            #expect(try !box.events().contains { $0.kind == "target-lost" })
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }
}
