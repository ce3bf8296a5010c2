import Foundation
import Glibc
import TestSupport
import Testing

/// An image of the primary cannot be opened: what its mirror has of it may be all that is left.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct DamagedImageTests {
    private func onMirror(_ box: Sandbox, _ name: String) throws -> String? {
        mkdir(box.look, 0o755)
        try box.ok("mount", box.mirror, box.look)
        defer { _ = try? box.run("unmount", box.look) }
        guard access("\(box.look)/\(name)", F_OK) == 0 else { return nil }
        return try box.text("\(box.look)/\(name)", count: 5)
    }

    /// - Parameter comesBack: or it is given up.
    @Test(arguments: [true, false]) func aMirrorKeepsWhatItsPrimaryCannotOpen(
        comesBack: Bool
    ) throws {
        try Sandbox.withMirror("a.img", "b.img") { box in
            for name in ["a.img", "b.img"] {
                try box.write("first", to: "\(box.mountPoint)/\(name)")
            }
            try box.settle()
            try box.ok("unmount", box.mountPoint)
            let (data, kept) = (box.pool + "/images/1/1.data", box.folder + "/kept")
            try #require(rename(data, kept) == 0)
            // The mirror is to lack something, and a snapshot has nothing of the image that is gone.
            try box.mount("--no-targets")
            #expect(try box.status().state == "damaged")
            try box.write("later", to: box.mountPoint + "/b.img")
            try box.ok("snapshot", "create", box.pool, "meanwhile")
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            try box.until("the target says why it is not in step") {
                let target = try box.target()
                return !target.isInStep && target.reason?.contains("'a.img'") == true
            }
            #expect(try box.target().reason?.contains("doppel check") == true)
            // A mount through the primary's daemon would go with the next try that fails.
            try box.ok("target", "pause", box.pool, box.mirror)
            #expect(try onMirror(box, "a.img") == "first")
            #expect(try onMirror(box, "b.img") == "first")
            try box.ok("target", "resume", box.pool, box.mirror)
            if comesBack {
                try box.ok("unmount", box.mountPoint)
                try #require(rename(kept, data) == 0)
                try box.mount()
            } else {
                try #require(unlink(box.mountPoint + "/a.img") == 0)
            }
            try box.untilInStep()
            try box.settle()
            #expect(try onMirror(box, "a.img") == (comesBack ? "first" : nil))
            #expect(try onMirror(box, "b.img") == "later")
            // It has nothing of a.img.
            #expect(try onMirror(box, ".snapshots/meanwhile/b.img") == nil)
            try box.ok("snapshot", "create", box.pool, "after")
            try box.settle()
            #expect(try onMirror(box, ".snapshots/after/b.img") == "later")
        }
    }
}
