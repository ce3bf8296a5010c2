import Foundation
import TestSupport
import Testing

/// What a promotion may lose is told before it is done.
@Suite(.enabled(if: hasFuse)) struct LossPreviewTests {
    private func plan(_ box: Sandbox) throws -> PromotionLine {
        try box.json(box.ok("promote", box.mirror, "--dry-run", "--json"), PromotionLine.self)
    }

    @Test func whatWouldBeLostIsListedExactly() throws {
        try Sandbox.withMirror("a.img", "b.img") { box in
            try box.write("both", to: box.mountPoint + "/a.img")
            try box.write("gone", to: box.mountPoint + "/b.img")
            try box.settle()
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.write("one", to: box.mountPoint + "/a.img", at: 10 * 4096)
            try box.write("two", to: box.mountPoint + "/a.img", at: 20 * 4096)
            // Written again as it was: nothing is lost by that.
            try box.write("both", to: box.mountPoint + "/a.img")
            try FileManager.default.removeItem(atPath: box.mountPoint + "/b.img")
            try box.makeFile(box.mountPoint + "/new.img", count: 9000)
            for isKilled in [true, false] {
                if isKilled {
                    try box.killDaemon()
                } else {
                    try box.mount("--no-targets")
                    try box.ok("unmount", box.mountPoint)
                }
                let loss = try plan(box).loss
                #expect(loss.knowledge == "exact")
                #expect(loss.images.map(\.path) == ["a.img", "b.img", "new.img"], "\(loss)")
                #expect(loss.images.map(\.change) == ["changed", "removed", "added"])
                #expect(loss.images[0].ranges == 2)
                #expect(loss.images[0].bytes == 8192)
                #expect(loss.bytes >= 8192 + 9000)
                #expect(loss.throughNs ?? 0 > loss.fromNs)
                #expect(loss.staleSinceNs ?? 0 > 0)
                let refused = try box.run("promote", box.mirror)
                #expect(refused.code == 1)
                #expect(refused.errors.contains("a.img: changed, 8 KiB in 2 ranges"), "\(refused)")
                #expect(refused.errors.contains("--force"))
            }
            #expect(try box.status(of: box.mirror).replica?.role == "replica")
            try box.ok("promote", box.mirror, "--force")
        }
    }

    @Test func aMirrorThatHasEverythingIsPromotedWithoutForce() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.write("both", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.killDaemon()
            let done = try box.json(box.ok("promote", box.mirror, "--json"), PromotionLine.self)
            #expect(done.isPromoted)
            #expect(done.loss.knowledge == "exact")
            #expect(done.loss.images.isEmpty)
        }
    }

    @Test func whereThePrimaryCannotBeReadABoundIsSaid() throws {
        try Sandbox.withMirror("a.img") { box in
            let before = Int64(Date().timeIntervalSince1970 * 1e9)
            try box.write("both", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.killDaemon()
            try #require(rename(box.pool, box.folder + "/away") == 0)
            let loss = try plan(box).loss
            #expect(loss.knowledge == "unknown")
            #expect(loss.images.isEmpty)
            #expect(loss.fromNs >= before - 1_000_000_000)
            #expect(loss.heardNs ?? 0 > 0)
            let refused = try box.run("promote", box.mirror)
            #expect(refused.code == 1)
            #expect(refused.errors.contains("not known"), "\(refused)")
            #expect(refused.errors.contains("may be missing"), "\(refused)")
            try box.ok("promote", box.mirror, "--force")
            try #require(rename(box.folder + "/away", box.pool) == 0)
        }
    }

    @Test func aPrimaryThatRunsGoesOnAndThatIsSaid() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.settle()
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.write("later", to: box.mountPoint + "/a.img")
            let loss = try plan(box).loss
            #expect(loss.knowledge == "growing")
            #expect(loss.bytes >= 4096)
            #expect(loss.staleSinceNs ?? 0 > 0)
            let refused = try box.run("promote", box.mirror)
            #expect(refused.errors.contains("more by the moment"), "\(refused)")
        }
    }
}
