import Glibc
import TestSupport
import Testing

/// The disk below the pool fails: errors come through, and what is in doubt stays so.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct StoreFailureTests {
    @Test func aFailedSyncLatchesItsImageAndNoOther() throws {
        try withPoolOnLossyDisk { lossy, box in
            let a = try TestFile(box.mountPoint + "/a.img")
            let b = try TestFile(box.mountPoint + "/b.img")
            try a.write(pattern(8192), at: 0)
            try a.sync()
            try a.write(pattern(8192, seed: 2), at: 8192)
            try lossy.tell("sync-fails 1")
            #expect(fsync(a.fd) == -1 && errno == EIO)
            // The disk works again; nobody knows what it lost.
            for _ in 0..<3 {
                try a.write(pattern(4096, seed: 3), at: 16384)
                #expect(fsync(a.fd) == -1 && errno == EIO)
            }
            #expect(openError(box.mountPoint + "/a.img", O_RDWR) == 0)
            #expect(try a.read(8192, at: 0) == pattern(8192))
            try b.write(pattern(5000, seed: 4), at: 100)
            try b.sync()

            let status = try box.run("status", box.pool, "--json")
            #expect(status.code == 4, "\(status)")
            #expect(try box.json(status.output, [StatusLine].self).first?.state == "degraded")
            #expect(try box.ok("list", box.pool).contains("latched"))
            #expect(try box.run("snapshot", "create", box.pool, "one").code != 0)
            let log = box.read(
                "/run/doppel/" + box.pool.split(separator: "/").joined(separator: "-") + ".log")
            if isRoot { #expect(log.contains("sync"), "the log tells: \(log)") }

            try box.killDaemon()
            try box.mount()
            let again = try TestFile(box.mountPoint + "/a.img")
            #expect(try again.read(8192, at: 0) == pattern(8192), "flushed before the failure")
            try again.write(pattern(4096, seed: 5), at: 8192)
            try again.sync()
            #expect(try box.run("status", box.pool).code == 0)
            #expect(
                try TestFile(box.mountPoint + "/b.img").read(5000, at: 100)
                    == pattern(5000, seed: 4))
        }
    }

    @Test func aFailedWriteIsToldAndTheNextOneWorks() throws {
        try withPoolOnLossyDisk { lossy, box in
            let a = try TestFile(box.mountPoint + "/a.img")
            try a.write(pattern(8192), at: 0)
            try a.sync()
            try lossy.tell("write-fails 1")
            #expect(pwrite(a.fd, pattern(4096, seed: 2), 4096, 4096) == -1 && errno == EIO)
            try a.write(pattern(4096, seed: 3), at: 8192)
            try a.sync()
            #expect(try a.read(4096, at: 0) == pattern(4096))
            #expect(try a.read(4096, at: 8192) == pattern(4096, seed: 3))
        }
    }

    /// G4 and G9: a snapshot is there, or it is not and that is said; images go on.
    @Test(arguments: 1...12)
    func aSnapshotThatFailsAnywhereIsNotShown(sync: Int) throws {
        try withPoolOnLossyDisk { lossy, box in
            let a = try TestFile(box.mountPoint + "/a.img")
            try a.write(pattern(8192), at: 0)
            try a.sync()
            try lossy.tell("sync-passes \(sync)")
            let made = try box.run("snapshot", "create", box.pool, "one")
            try lossy.tell("sync-fails 0")
            let shown = try names(in: box.mountPoint + "/.snapshots")
            #expect(shown == (made.code == 0 ? ["one"] : []), "\(made)")
            #expect(try a.read(8192, at: 0) == pattern(8192))
            try box.killDaemon()
            try box.mount()
            let kept = try names(in: box.mountPoint + "/.snapshots")
            if made.code == 0 { #expect(kept == ["one"]) }
            for name in kept {
                #expect(
                    try contents("\(box.mountPoint)/.snapshots/\(name)/a.img").prefix(8192)
                        == pattern(8192)[...])
            }
            try box.ok("check", box.pool)
        }
    }

    private func withPoolOnLossyDisk(
        _ body: (LossyMount, Sandbox) throws -> Void
    ) throws {
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in
                try box.ok("init", box.pool)
                for image in ["a.img", "b.img"] {
                    try box.ok("create", box.pool, image, "--size", "1M")
                }
                try box.mount()
                try body(lossy, box)
            }
        }
    }
}
