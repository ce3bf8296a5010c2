import Foundation
import MountCalls
import TestSupport
import Testing

/// What may be lost with this machine is kept to what was asked for.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RecoveryPointMountTests {
    @Test func whatIsAtRiskIsKeptToWhatWasAskedFor() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", "b.img", at: lossy.file("mirror"), options: "mode=async,timeout=60s,rpo=1s"
            ) { box in
                let image = box.mountPoint + "/a.img"
                try alarm(box, lossy, image)
                try stop(box, lossy, image)
                try throttle(box, lossy, image)
                try box.settle()
                try box.lookIntoMirror()
                try box.expectSame(box.mountPoint, box.look)
            }
        }
    }

    private func alarm(_ box: Sandbox, _ lossy: LossyMount, _ image: String) throws {
        #expect(try (box.target().rpoMs, box.target().onRPO) == (1000, "alarm"))
        #expect(try box.run("status", box.pool).code == 0)
        try lossy.tell("hang")
        defer { try? lossy.tell("go") }
        try box.write("at risk", to: image)
        try box.until("more is at risk") { try box.target().rpoPassedSinceNs != nil }
        let shown = try box.run("status", box.pool)
        #expect(shown.code == 4, "\(shown)")
        #expect(shown.output.contains("MORE IS AT RISK since"), "\(shown)")
        // It is told, and nobody is kept from anything.
        try box.write("goes on", to: image, at: 4096)
        try lossy.tell("go")
        try box.until("it is kept again") { try box.target().rpoPassedSinceNs == nil }
        #expect(try box.run("status", box.pool).code == 0)
        let kinds = try box.events().map(\.kind)
        #expect(kinds.contains("rpo-passed") && kinds.contains("rpo-kept"), "\(kinds)")
    }

    /// Held writes hold no thread, and the rest answers.
    private func stop(_ box: Sandbox, _ lossy: LossyMount, _ image: String) throws {
        try box.ok(
            "target", "set", box.pool, box.mirror, "--rpo", "0", "--rpo", "1MiB", "--on-rpo", "stop"
        )
        try box.untilInStep()
        try box.write("in step", to: image)
        try box.settle()
        try lossy.tell("hang")
        defer { try? lossy.tell("go") }
        let writers = (0..<24).map { number in
            BackgroundRequest(image, O_RDWR) {
                pwrite($0, pattern(128 << 10, seed: 3), 128 << 10, number << 17) == 128 << 10
            }
        }
        try box.until("the rest is held", seconds: 30) {
            try box.target().stoppedSinceNs != nil && writers.contains { $0.code == 0 }
                && box.status().waitingRequests == writers.count { $0.code == nil }
        }
        let target = try box.target()
        // What had begun when it was reached may be beyond it: a write of each thread of the mount.
        #expect(target.atRiskBytes >= 1 << 20 && target.atRiskBytes < 3 << 20, "\(target)")
        #expect(target.modeInForce == "async")
        #expect(try box.text(box.mountPoint + "/b.img", count: 1) == "\0")
        let shown = try box.run("status", box.pool)
        #expect(shown.code == 4 && shown.output.contains("WRITES are held"), "\(shown)")
        try lossy.tell("go")
        try box.until("all go on", seconds: 40) { writers.allSatisfy { $0.code == 0 } }
    }

    /// A writer that is faster than the target gets what the target takes, evenly.
    private func throttle(_ box: Sandbox, _ lossy: LossyMount, _ image: String) throws {
        let goal: UInt64 = 4 << 20
        try box.ok(
            "target", "set", box.pool, box.mirror, "--rpo", "4MiB", "--on-rpo", "throttle")
        try box.untilInStep()
        try box.write("in step", to: image)
        try box.settle()
        try lossy.tell("slow 20")
        defer { try? lossy.tell("slow 0") }
        let gaps = Gaps()
        let writer = BackgroundRequest(image, O_RDWR) { file in
            let content = pattern(64 << 10, seed: 9)
            // As much as is far beyond the goal.
            for number in 0..<400 {
                let started = Date()
                guard pwrite(file, content, content.count, number % 128 << 16) > 0 else {
                    return false
                }
                gaps.add(Date().timeIntervalSince(started))
            }
            return true
        }
        var (most, isSlowed) = (UInt64(0), false)
        try box.until("all is written", seconds: 60) {
            let target = try box.target()
            most = max(most, target.atRiskBytes)
            isSlowed = isSlowed || target.slowedToBytesPerSecond != nil
            return writer.code != nil
        }
        #expect(writer.code == 0)
        #expect(isSlowed)
        #expect(most < goal + goal / 2, "\(most) bytes were at risk")
        #expect(gaps.longest < 1, "a write took \(gaps.longest) s")
    }

    private final class Gaps: @unchecked Sendable {  // one writer; read when it is done
        private(set) var longest: Double = 0
        func add(_ gap: Double) { longest = max(longest, gap) }
    }
}
