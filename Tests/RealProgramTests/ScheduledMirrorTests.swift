import Foundation
import TestSupport
import Testing

/// A mirror that is shipped to once in an interval.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct ScheduledMirrorTests {
    @Test func aMirrorWithAnIntervalIsBroughtFromCheckpointToCheckpoint() throws {
        try Sandbox.withMirror("a.img", options: "mode=async,interval=1s") { box in
            let image = box.mountPoint + "/a.img"
            #expect(try box.target().intervalMs == 1000)
            try box.write("by itself", to: image)
            try box.until("the next run has it") { try box.target().atRiskBytes == 0 }

            // Live; from now on nothing is due.
            try box.ok("target", "set", box.pool, box.mirror, "--interval", "1h")
            try box.until("it is at a checkpoint") { try box.target().state == "scheduled" }
            for number in 0..<5 { try box.write("again \(number)", to: image, at: 8192) }
            try box.until("time passes") { try box.target().lagMs >= 300 }
            let target = try box.target()
            #expect(target.state == "scheduled")
            #expect(target.isInStep)
            // A block that is written often is shipped once.
            #expect((target.dirtyBytes, target.lagBytes) == (4096, 0))
            #expect(target.lagMs < 60_000, "\(target.lagMs)")
            let inOneHour = Int64(Date().timeIntervalSince1970 + 3600) * 1_000_000_000
            #expect(abs(try #require(target.nextRunNs) - inOneHour) < 60_000_000_000)
            let shown = try box.run("status", box.pool)
            #expect(shown.code == 0, "\(shown)")
            #expect(shown.output.contains("every 1h, next at "), "\(shown)")

            // Who waits has it now; and where nothing was changed nothing is shipped.
            try box.settle()
            let settled = try box.target()
            #expect((settled.atRiskBytes, settled.lagMs) == (0, 0))
            try box.settle()
            #expect(try box.target().resyncedBytes == settled.resyncedBytes)

            // A snapshot travels, and so does what comes before a clean end.
            try box.ok("snapshot", "create", box.pool, "cut")
            try box.write("last of all", to: image, at: 8192)
            try box.ok("unmount", box.mountPoint)
            try box.lookIntoMirror()
            #expect(try box.text(box.look + "/a.img", count: 9) == "by itself")
            #expect(try box.text(box.look + "/a.img", count: 11, at: 8192) == "last of all")
            #expect(
                try box.text(box.look + "/.snapshots/cut/a.img", count: 7, at: 8192) == "again 4")
        }
    }

    /// What cannot be done is refused at once, and changes nothing (G4).
    @Test func whatDoesNotGoTogetherIsRefused() throws {
        try Sandbox.withPool("a.img") { box in
            func refused(_ why: String, _ words: [String]) throws {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(outcome.code == 2, "\(words): \(outcome)")
                #expect(outcome.errors.contains(why), "\(words): \(outcome)")
            }
            func refusedAdding(_ why: String, _ words: String...) throws {
                try refused(why, ["target", "add", box.pool, box.mirror] + words)
            }
            func refusedSetting(_ why: String, _ words: String...) throws {
                try refused(why, ["target", "set", box.pool, box.mirror] + words)
            }
            try refusedAdding("interval", "--interval", "30s")
            try refusedAdding("rpo", "--mode", "sync", "--rpo", "10s")
            try refusedAdding("rpo", "--mode", "async", "--on-rpo", "stop")
            try refusedAdding("interval", "--mode", "async", "--interval", "30s", "--rpo", "30s")
            try refusedAdding("budget", "--mode", "sync", "--latency-budget", "5ms")
            try refusedAdding("degrade", "--mode", "adaptive", "--on-timeout", "block")
            for options in ["interval=30s", "mode=sync,interval=30s", "mode=async,rpo=soon"] {
                try refused(
                    options.contains("rpo") ? "rpo" : "interval",
                    ["mount", box.pool, box.mountPoint, "--mirror", box.mirror + "," + options])
            }
            #expect(!FileManager.default.fileExists(atPath: box.mirror))
            #expect(try box.status().targets?.isEmpty == true)

            try box.ok(
                "target", "add", box.pool, box.mirror, "--mode", "async", "--interval", "30s",
                "--rpo", "40s", "--rpo", "64MiB", "--on-rpo", "throttle")
            try refusedSetting("interval", "--mode", "flush")
            try refusedSetting("interval", "--interval", "1m")
            try refusedSetting("interval", "--image", "a.img", "--mode", "sync")
            let target = try box.target()
            #expect((target.intervalMs, target.rpoMs) == (30_000, 40_000))
            #expect((target.rpoBytes, target.onRPO) == (64 << 20, "throttle"))
            try box.ok(
                "target", "set", box.pool, box.mirror, "--mode", "adaptive", "--interval", "0s",
                "--rpo", "0")
            try refusedSetting("adaptive", "--image", "a.img", "--mode", "sync")
            let changed = try box.target()
            #expect((changed.intervalMs, changed.onRPO, changed.mode) == (nil, nil, "adaptive"))
        }
    }
}
