import Foundation
import MountCalls
import SystemIO
import TestSupport
import Testing

/// What a write and an fsync wait for in each mode, with a mirror on a disk that hangs.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct ModesTests {
    private struct Case: CustomTestStringConvertible, Sendable {
        var mode: String
        var writeWaits: Bool
        var flushWaits: Bool
        var testDescription: String { mode }
    }
    private static let cases = [
        Case(mode: "async", writeWaits: false, flushWaits: false),
        Case(mode: "flush", writeWaits: false, flushWaits: true),
        Case(mode: "semi-sync", writeWaits: true, flushWaits: true),
        Case(mode: "sync", writeWaits: true, flushWaits: true),
    ]

    @Test(arguments: cases) private func eachModeWaitsForWhatItSays(_ each: Case) throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", "b.img", "c.img", "d.img", "e.img", at: lossy.file("mirror"),
                options: "mode=\(each.mode),timeout=60s"
            ) { box in
                let path = box.mountPoint + "/a.img"
                #expect(try box.target().modeInForce == each.mode)
                let content = pattern(4096, seed: 1)
                let file = try TestFile(path, O_RDWR)
                try file.write(content, at: 0)
                try lossy.tell("hang")
                defer { try? lossy.tell("go") }
                // Each on a file of its own: the kernel lets most of them alone only with theirs.
                func check(
                    _ what: String, _ name: String, waits: Bool, flags: Int32 = 0,
                    _ body: @escaping @Sendable (Int32) -> Bool
                ) throws -> BackgroundRequest {
                    let before = try box.status().waitingRequests ?? 0
                    let request = BackgroundRequest(
                        box.mountPoint + "/" + name, O_RDWR | flags, body)
                    try box.until("\(what) \(waits ? "waits" : "returns")", seconds: 30) {
                        waits
                            ? try box.status().waitingRequests == before + 1
                            : request.code != nil
                    }
                    #expect((request.code == nil) == waits, "\(what)")
                    return request
                }
                let requests = [
                    try check("a write", "a.img", waits: each.writeWaits) {
                        pwrite($0, content, 4096, 4096) == 4096
                    },
                    try check("a trim", "b.img", waits: each.writeWaits) {
                        mc_fallocate($0, 3, 0, 4096) == 0  // punch a hole, keep the size
                    },
                    try check("an fsync", "c.img", waits: each.flushWaits) { fsync($0) == 0 },
                    try check(
                        "a write with O_DSYNC", "d.img", waits: each.flushWaits, flags: O_DSYNC
                    ) { pwrite($0, content, 4096, 8192) == 4096 },
                    try check("a resize", "e.img", waits: each.writeWaits) {
                        ftruncate($0, 9 << 20) == 0
                    },
                ]
                // What waits is there to be read, and reads do not wait.
                #expect(try file.read(4096, at: 4096) == content)
                #expect(try box.target().modeInForce == each.mode)
                try lossy.tell("go")
                for request in requests {
                    try box.until("it is answered", seconds: 30) { request.code != nil }
                    #expect(request.code == 0)
                }
                try box.settle()
                try box.lookIntoMirror()
                try box.expectSame(box.mountPoint, box.look)
            }
        }
    }

    /// In sync every write that returned is in the mirror when the primary's process is gone; nobody
    /// flushed.
    @Test(arguments: ["semi-sync", "sync"]) func whatReturnedIsInTheMirror(mode: String) throws {
        try Sandbox.withMirror("a.img", options: "mode=\(mode),timeout=60s") { box in
            let file = try TestFile(box.mountPoint + "/a.img", O_RDWR)
            let model = try file.writeAtRandom(count: 200)
            try box.killDaemon()
            try box.lookIntoMirror()
            let found = try contents(box.look + "/a.img")
            #expect(difference(found, from: model) == nil)
        }
    }

    /// Nobody is told that a write is safe on two machines when it is not: first it is written down
    /// that the mirror is stale.
    @Test func aSilentMirrorIsLeftBehindAfterItsTimeout() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", at: lossy.file("mirror"), options: "mode=sync,timeout=700ms"
            ) { box in
                try lossy.tell("hang")
                defer { try? lossy.tell("go") }
                let started = Date()
                try box.write("meanwhile", to: box.mountPoint + "/a.img")
                #expect(Date().timeIntervalSince(started) >= 0.6)
                let target = try box.target()
                #expect(target.modeInForce == "async")
                #expect(target.staleSinceNs != nil)
                #expect(target.atRiskBytes >= 4096)
                #expect(try box.events().contains { $0.kind == "target-degraded" })
                try lossy.tell("go")
                try box.settle()
                try box.until("it counts again") { try box.target().modeInForce == "sync" }
            }
        }
    }

    // MARK: On timeout

    /// A call that has to come back within a second, whatever hangs. Where programs are started, what that
    /// takes on a busy machine is measured beside it.
    @discardableResult private func quickly<T>(
        _ what: String, _ box: Sandbox, _ body: () throws -> T
    ) throws -> T {
        func time<U>(_ body: () throws -> U) rethrows -> (U, Double) {
            let started = Date()
            let result = try body()
            return (result, Date().timeIntervalSince(started))
        }
        let before = try time { try box.ok("version") }.1
        let (result, took) = try time(body)
        let after = try time { try box.ok("version") }.1
        #expect(took < 1 + max(before, after), "\(what) took \(took) s")
        return result
    }

    private func untilStopped(_ box: Sandbox) throws {
        try box.until("writes are stopped", seconds: 30) { try box.target().stoppedSinceNs != nil }
    }

    /// Writes are held before they change anything, hold no thread of the mount, and go on when the
    /// target is there again. Everything else answers meanwhile.
    @Test(arguments: getenv("DOPPEL_SOAK") == nil ? ["sync"] : ["flush", "sync"])
    func blockHoldsWritesUntilTheMirrorIsThereAgain(
        mode: String
    ) throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", "b.img", "c.img", at: lossy.file("mirror"),
                options: "mode=\(mode),timeout=500ms,on-timeout=block"
            ) { box in
                try box.ok(
                    "target", "set", box.pool, box.mirror, "--image", "b.img", "--mode", "async")
                try box.until("it counts") { try box.target().modeInForce == mode }
                let (a, b) = (box.mountPoint + "/a.img", box.mountPoint + "/b.img")
                try box.write("before", to: a)
                try lossy.tell("hang")
                defer { try? lossy.tell("go") }
                let first = BackgroundRequest(box.mountPoint + "/c.img", O_RDWR) {
                    pwrite($0, "parked", 6, 4096) == 6 && fsync($0) == 0
                }
                try untilStopped(box)
                #expect(first.code == nil)
                #expect(try box.target().modeInForce == mode)
                // More than the mount has threads.
                let held = (0..<48).map { number in
                    BackgroundRequest(a, O_RDWR) {
                        pwrite($0, "held", 4, (number + 2) * 4096) == 4
                    }
                }
                try box.until("they are held", seconds: 30) {
                    try box.status().waitingRequests == held.count + 1
                }
                let read = try quickly("a read", box) { try box.text(a, count: 6) }
                #expect(read == "before")
                #expect(
                    try box.text(a, count: 4, at: 2 * 4096) == "\0\0\0\0", "it changed something")
                try quickly("another image", box) { try box.write("goes on", to: b) }
                try quickly("status", box) { _ = try box.run("status", box.pool) }
                #expect(held.allSatisfy { $0.code == nil })
                #expect(first.code == nil)
                try lossy.tell("go")
                try box.until("all go on", seconds: 40) {
                    first.code == 0 && held.allSatisfy { $0.code == 0 }
                }
                try box.settle()
                #expect(try box.target().stoppedSinceNs == nil)
                #expect(try box.target().staleSinceNs == nil)
                try box.lookIntoMirror()
                try box.expectSame(box.mountPoint, box.look)
            }
        }
    }

    @Test func failGivesEIOBeforeAnythingChanges() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", "b.img", at: lossy.file("mirror"), options: "mode=sync,timeout=500ms"
            ) { box in
                try box.ok(
                    "target", "set", box.pool, box.mirror, "--image", "a.img", "--on-timeout",
                    "fail")
                try box.until("it counts") { try box.target().modeInForce == "sync" }
                let (a, b) = (box.mountPoint + "/a.img", box.mountPoint + "/b.img")
                try box.write("before", to: a)
                try lossy.tell("hang")
                defer { try? lossy.tell("go") }
                let parked = BackgroundRequest(a, O_RDWR) { pwrite($0, "parked", 6, 4096) == 6 }
                try box.until("it is told", seconds: 30) { parked.code != nil }
                #expect(parked.code == EIO)
                try untilStopped(box)
                #expect(box.writeError(a) == EIO)
                #expect(try box.text(a, count: 6) == "before", "it changed something")
                let synced = BackgroundRequest(a, O_RDWR) { fsync($0) == 0 }
                try box.until("it is told", seconds: 30) { synced.code != nil }
                #expect(synced.code == EIO)
                // The other image goes on without the mirror.
                try box.write("goes on", to: b)
                #expect(try box.target().staleSinceNs != nil)
                try lossy.tell("go")
                try box.until("it goes on", seconds: 40) { box.writeError(a) == 0 }
                try box.settle()
                try box.lookIntoMirror()
                try box.expectSame(box.mountPoint, box.look)
            }
        }
    }

    /// The way out while writes are held by a target that hangs.
    @Test(arguments: ["remove", "unmount"]) func aHungTargetIsLetGoOfAtOnce(by verb: String) throws
    {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", at: lossy.file("mirror"),
                options: "mode=sync,timeout=500ms,on-timeout=block"
            ) { box in
                let a = box.mountPoint + "/a.img"
                try lossy.tell("hang")
                defer { try? lossy.tell("go") }
                let parked = BackgroundRequest(a, O_RDWR) { pwrite($0, "parked", 6, 0) == 6 }
                try untilStopped(box)
                let held = BackgroundRequest(a, O_RDWR) { pwrite($0, "held", 4, 4096) == 4 }
                try box.until("it is held") { try box.status().waitingRequests == 2 }
                if verb == "remove" {
                    try quickly("remove", box) {
                        try box.ok("target", "remove", box.pool, box.mirror, "--detach")
                    }
                    try box.until("both go on") { parked.code == 0 && held.code == 0 }
                    #expect(try box.status().targets?.isEmpty == true)
                } else {
                    try quickly("unmount", box) {
                        _ = try box.run("unmount", box.mountPoint, "--force")
                    }
                    #expect(!box.isMounted)
                    try lossy.tell("go")
                    try box.until("both go on", seconds: 40) {
                        parked.code == 0 && held.code == 0
                    }
                }
            }
        }
    }

    /// A target that comes and goes is waited for only when it has been in step for a while.
    @Test func aMirrorThatFlapsIsTrustedAgainSlowly() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", at: lossy.file("mirror"), options: "mode=sync,timeout=500ms"
            ) { box in
                var waits: [Double] = []
                for round in 0..<2 {
                    try lossy.tell("hang")
                    defer { try? lossy.tell("go") }
                    try box.write("round \(round)", to: box.mountPoint + "/a.img")
                    #expect(try box.target().modeInForce == "async")
                    try lossy.tell("go")
                    try box.untilInStep()
                    let started = Date()
                    try box.until("it counts again", seconds: 30) {
                        try box.target().modeInForce == "sync"
                    }
                    waits.append(Date().timeIntervalSince(started))
                }
                // Twice the timeout, then twice that.
                #expect(waits[1] > 1.2, "\(waits)")
            }
        }
    }

    // MARK: Several targets

    /// Each has a mode, a session and a fate of its own: one that dies is left behind, and the other is
    /// waited for as before.
    @Test func oneOfTwoMirrorsDies() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", at: lossy.file("mirror"), options: "mode=sync,timeout=700ms"
            ) { box in
                let other = box.folder + "/other"
                try box.ok("target", "add", box.pool, other, "--mode", "semi-sync")
                try box.until("both count") {
                    try box.target(other).modeInForce == "semi-sync"
                        && box.target().modeInForce == "sync"
                }
                let a = box.mountPoint + "/a.img"
                try box.write("on both", to: a)
                try lossy.tell("hang")
                defer { try? lossy.tell("go") }
                try box.write("on one", to: a, at: 4096)
                #expect(try box.target().modeInForce == "async")
                #expect(try box.target().staleSinceNs != nil)
                let standing = try box.target(other)
                #expect(standing.modeInForce == "semi-sync")
                #expect(standing.staleSinceNs == nil)
                #expect(try box.run("status", box.pool).code == 4)
                try lossy.tell("go")
                try box.settle()
                try box.until("both count again", seconds: 30) {
                    try box.target().modeInForce == "sync"
                }
                try box.killDaemon()
                // Each of them holds all of it.
                for mirror in [box.mirror, other] {
                    mkdir(box.look, 0o755)
                    try box.ok("mount", mirror, box.look)
                    #expect(try box.text(box.look + "/a.img", count: 7) == "on both")
                    #expect(try box.text(box.look + "/a.img", count: 6, at: 4096) == "on one")
                    try box.lookAway()
                }
            }
        }
    }

    /// A target that answers, and always later than its timeout, is left behind like a silent one.
    @Test func aMirrorThatIsSlowerThanItsTimeoutIsLeftBehind() throws {
        try LossyMount.with { lossy in
            try Sandbox.withMirror(
                "a.img", at: lossy.file("mirror"), options: "mode=sync,timeout=500ms"
            ) { box in
                try lossy.tell("slow 2000")
                defer { try? lossy.tell("slow 0") }
                let started = Date()
                try box.write("meanwhile", to: box.mountPoint + "/a.img")
                #expect(Date().timeIntervalSince(started) >= 0.4)
                try box.until("it is degraded") { try box.target().staleSinceNs != nil }
                #expect(try box.target().modeInForce == "async")
                try box.write("goes on", to: box.mountPoint + "/a.img", at: 4096)
                try lossy.tell("slow 0")
                try box.settle()
                try box.until("it counts again", seconds: 30) {
                    try box.target().modeInForce == "sync"
                }
                try box.lookIntoMirror()
                try box.expectSame(box.mountPoint, box.look)
            }
        }
    }
}
