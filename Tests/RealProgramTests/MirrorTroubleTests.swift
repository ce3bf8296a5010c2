import Foundation
import TestSupport
import Testing

/// A mirror's disk in trouble. For each: the guest goes on (an fsync waits for the timeout at most),
/// status says what is the matter, and when the disk is well again the mirror is brought in step.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct MirrorTroubleTests {
    /// Longer than any wait that is meant, on a machine that is busy with other things.
    private static let patience = 10.0

    /// Writes and flushes until the target is not in step.
    /// - Returns: the longest time that one of them took, in seconds.
    private func writeUntilDegraded(_ box: Sandbox, limit: Int = 2000) throws -> Double {
        let file = try TestFile(box.mountPoint + "/a.img", O_RDWR)
        var longest = 0.0
        for number in 0..<limit {
            let start = Date()
            try file.write(
                pattern(64 << 10, seed: UInt8(truncatingIfNeeded: number)),
                at: number % 128 * (64 << 10))
            try file.sync()
            longest = max(longest, Date().timeIntervalSince(start))
            if number % 4 == 0, try !box.target().isInStep { return longest }
        }
        throw Failure("the target was never degraded")
    }

    /// What every trouble has in common, once the target is degraded.
    private func checkDegraded(_ box: Sandbox, reason words: String...) throws {
        try box.until("the reason is told: \(words)", seconds: 30) {
            let target = try box.target()
            return words.contains { target.reason?.contains($0) == true }
        }
        let start = Date()
        try box.write("meanwhile", to: box.mountPoint + "/a.img", at: 40_000)
        #expect(Date().timeIntervalSince(start) < Self.patience)
        let status = try box.status()
        #expect(status.state == "degraded")
        let target = try box.target()
        #expect(target.modeInForce == "async")
        #expect(target.staleSinceNs != nil)
        #expect(target.atRiskBytes >= 4096)
        #expect(try box.run("status", box.pool).code == 4)
    }

    private func checkInStepAgain(_ box: Sandbox) throws {
        try box.settle()
        try box.untilInStep()
        try box.until("it counts again") { try box.target().modeInForce == "flush" }
        #expect(try box.run("status", box.pool).code == 0)
        try box.killDaemon()
        try box.lookIntoMirror()
        try box.mount("--no-targets")
        try box.expectSame(box.mountPoint, box.look)
    }

    @Test func aMirrorOnADiskThatHangs() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror("a.img", at: lossy.file("mirror")) { box in
                try lossy.tell("hang")
                defer { try? lossy.tell("go") }
                let longest = try writeUntilDegraded(box)
                #expect(longest < Self.patience)
                try checkDegraded(box, reason: "no progress", "in use")
                // Whoever asks is answered, although nothing answers there.
                _ = try box.ok("list", box.pool)
                try lossy.tell("go")
                try checkInStepAgain(box)
            }
        }
    }

    @Test func aMirrorWhoseDiskIsFull() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror("a.img", at: lossy.file("mirror")) { box in
                try lossy.tell("space 400000")
                _ = try writeUntilDegraded(box)
                try checkDegraded(box, reason: "No space left")
                // Its checkpoint can be looked at all the same, once there is room to open it.
                try lossy.tell("space -")
                try checkInStepAgain(box)
            }
        }
    }

    @Test func aMirrorWhoseDiskFailsASync() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror("a.img", at: lossy.file("mirror")) { box in
                try lossy.tell("sync-fails 1000000")
                _ = try writeUntilDegraded(box)
                try checkDegraded(box, reason: "Input/output error", "I/O error")
                try lossy.tell("sync-fails 0")
                try checkInStepAgain(box)
            }
        }
    }

    @Test func aMirrorThatIsDeletedUnderfoot() throws {
        try Sandbox.withMirror("a.img") { box in
            try #require(rename(box.mirror, box.folder + "/away") == 0)
            _ = try writeUntilDegraded(box)
            try checkDegraded(box, reason: box.mirror)
            #expect(access(box.mirror, F_OK) != 0, "it was made anew")
            try #require(rename(box.folder + "/away", box.mirror) == 0)
            try checkInStepAgain(box)
            try box.lookAway()
            try box.ok("unmount", box.mountPoint)
            // For good: the way out is a new one.
            try box.mount()
            try box.untilInStep()
            try #require(try box.shell("rm -r '\(box.mirror)'").code == 0)
            _ = try writeUntilDegraded(box)
            try checkDegraded(box, reason: box.mirror)
            try box.ok("target", "remove", box.pool, box.mirror)
            try box.ok("target", "add", box.pool, box.mirror, "--timeout", "500ms")
            try checkInStepAgain(box)
        }
    }

    @Test(.enabled(if: Machine.canMountGuests, "needs loop devices"))
    func aMirrorOnASmallDiskThatIsFull() throws {
        try SmallStore.with(megabytes: 200) { store in
            try Sandbox.withMirror("a.img", at: store.path + "/mirror") { box in
                try store.fill()
                _ = try writeUntilDegraded(box)
                try checkDegraded(box, reason: "No space left")
                store.empty()
                try checkInStepAgain(box)
            }
        }
    }

    /// As a kernel does it to a disk with errors.
    @Test(.enabled(if: Machine.canMountGuests, "needs loop devices"))
    func aMirrorWhoseFileSystemTurnsReadOnly() throws {
        try SmallStore.with(megabytes: 200) { store in
            try Sandbox.withMirror("a.img", at: store.path + "/mirror") { box in
                let device = try run(["findmnt", "-no", "SOURCE", store.path]).output
                    .filter { $0 != "\n" }
                try #require(run(["mount", "-o", "remount,abort", store.path]).code == 0)
                _ = try writeUntilDegraded(box)
                try checkDegraded(box, reason: "Read-only file system", "Input/output error")
                // Between two tries nobody has a file of it open.
                try box.until("it can be unmounted", seconds: 30) {
                    try run(["umount", store.path]).code == 0
                }
                try #require(run(["mount", device, store.path]).code == 0)
                try checkInStepAgain(box)
            }
        }
    }

    /// What was durable in it does not verify: it takes nothing more, and nothing of it is believed.
    @Test func aMirrorWhoseJournalIsDamaged() throws {
        try Sandbox.withMirror("a.img") { box in
            for number in 0..<20 {
                try box.write("number \(number)", to: box.mountPoint + "/a.img", at: number * 4096)
            }
            try box.settle()
            try box.killDaemon()
            let script = """
                import os, sys
                folder = sys.argv[1] + '/journal'
                names = sorted(n for n in os.listdir(folder))
                assert names
                for name in names:
                    with open(folder + '/' + name, 'r+b') as f:
                        f.seek(4096 + 500); f.write(b'damage' * 100)
                """
            let damaged = try run(["python3", "-c", script, box.mirror])
            try #require(damaged.code == 0, "\(damaged)")
            try box.mount()
            try box.until("it is degraded") { try box.target().modeInForce == "async" }
            try checkDegraded(box, reason: "no longer verifies")
            #expect(try box.target().reason?.contains("attach the mirror anew") == true)
            // It is not shown to anybody as if it were whole.
            let refused = try box.run("promote", box.mirror, "--dry-run")
            #expect(refused.code == 3 || refused.code == 5, "\(refused)")
            try box.ok("target", "remove", box.pool, box.mirror)
            try #require(rename(box.mirror, box.folder + "/damaged") == 0)
            try box.ok("target", "add", box.pool, box.mirror, "--timeout", "500ms")
            try checkInStepAgain(box)
            // All that is left of a pool may be such a mirror.
            let told = try box.run("promote", box.folder + "/damaged")
            #expect(told.code == 5, "\(told)")
            #expect(told.errors.contains("is lost"), "\(told)")
            #expect(told.errors.contains("--force"), "\(told)")
            let done = try box.ok("promote", box.folder + "/damaged", "--force")
            #expect(done.contains("no exact moment"), "\(done)")
            #expect(try !names(in: box.folder + "/damaged/quarantine").isEmpty)
            try box.lookAway()
            try box.ok("mount", box.folder + "/damaged", box.look, "--no-targets")
            #expect(access(box.look + "/a.img", F_OK) == 0)
            #expect(box.writeError(box.look + "/a.img") == 0)
        }
    }

    /// The process that keeps the mirror's store is stopped, as a machine hangs: nothing fails, nothing
    /// answers. The guest goes on writing more than the stream's ring holds.
    @Test func aMirrorWhoseStoreIsStopped() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", at: lossy.file("mirror"), options: "mode=sync,timeout=1s"
            ) { box in
                try box.until("it counts") { try box.target().modeInForce == "sync" }
                let file = try TestFile(box.mountPoint + "/a.img", O_RDWR)
                try lossy.stop()
                defer { lossy.goOn() }
                // 80 MiB through a ring of 64: one write waits for the timeout, the others do not wait.
                var longest = 0.0
                let piece = pattern(1 << 20, seed: 7)
                for number in 0..<80 {
                    let start = Date()
                    try file.write(piece, at: (number % 8) << 20)
                    longest = max(longest, Date().timeIntervalSince(start))
                }
                let start = Date()
                try file.sync()
                longest = max(longest, Date().timeIntervalSince(start))
                #expect(longest >= 0.9, "nobody waited for it")
                #expect(longest < Self.patience, "\(longest) s")
                try checkDegraded(box, reason: "no progress", "in use")
                let target = try box.target()
                #expect(target.staleSinceNs != nil)
                // In the ring nothing is held for it any more: all of it is tracked.
                #expect(target.lagBytes < 64 << 20)
                #expect(target.atRiskBytes >= 8 << 20)
                _ = try box.ok("list", box.pool)
                lossy.goOn()
                try box.settle()
                try box.untilInStep()
                try box.until("it counts again") { try box.target().modeInForce == "sync" }
                try box.lookIntoMirror()
                try box.expectSame(box.mountPoint, box.look)
            }
        }
    }
}
