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
            var model = [UInt8](repeating: 0, count: 8 << 20)
            var random = SeededRandom(seed: Seeds.run(1)[0])
            for number in 0..<200 {
                let offset = random.below(1024) * 8192 + random.below(4096)
                let content = pattern(1 + random.below(4096), seed: UInt8(number))
                try file.write(content, at: offset)
                model.replaceSubrange(offset..<offset + content.count, with: content)
            }
            try box.killDaemon()
            try box.lookIntoMirror()
            let found = try contents(box.look + "/a.img")
            #expect(found == model)
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
}
