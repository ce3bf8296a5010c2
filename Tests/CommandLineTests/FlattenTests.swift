import Foundation
import TestSupport
import Testing

private let hasPython = access("/usr/bin/python3", X_OK) == 0

/// What docs/disk-format.md says is enough to get an image back without Doppel.
@Suite struct FlattenTests {
    private static let script = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("examples/flatten.py").path

    private func flatten(_ box: Sandbox, _ images: [String]) throws {
        for (number, image) in images.enumerated() {
            let flat = box.folder + "/flat\(number)"
            _ = try box.shell("rm -f '\(flat)'")
            let run = try box.shell("python3 '\(Self.script)' '\(box.pool)' '\(image)' '\(flat)'")
            #expect(run.code == 0, "\(image): \(run)")
        }
    }

    private func expectExported(_ box: Sandbox, _ images: [String]) throws {
        for (number, image) in images.enumerated() {
            let exported = box.folder + "/exported\(number)"
            _ = try box.shell("rm -f '\(exported)'")
            try box.ok("export", box.pool, image, exported)
            let same = try box.shell("cmp '\(box.folder)/flat\(number)' '\(exported)'")
            #expect(same.code == 0, "\(image): \(same)")
        }
    }

    private func expectSame(_ box: Sandbox, _ images: [String]) throws {
        try flatten(box, images)
        try expectExported(box, images)
    }

    @Test(.enabled(if: hasPython)) func imagesAndSnapshotsAreReadFromTheirFilesAlone() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: (4 << 20) - 777, seed: 1)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            try expectSame(box, ["a.img"])
            for (name, size) in [("one", "2500K"), ("two", "1M"), ("three", "3M")] {
                try box.ok("snapshot", "create", box.pool, name)
                try box.ok("resize", box.pool, "a.img", size, "--shrink")
            }
            try box.ok("clone", box.pool, "a.img@two", "b.img")
            try box.ok("resize", box.pool, "b.img", "5M")
            try expectSame(box, ["a.img", "a.img@one", "a.img@two", "a.img@three", "b.img"])
            try box.ok("snapshot", "delete", box.pool, "one")
            try expectSame(box, ["a.img", "a.img@two", "a.img@three", "b.img"])
        }
    }

    /// The daemon dies, perhaps in the middle of a merge; what it leaves is flattened before it is opened.
    @Test(.enabled(if: hasFuse && hasPython)) func aPoolThatWasKilledIsReadToo() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            for (number, name) in ["one", "two"].enumerated() {
                let fill = try box.makeFile("fill.raw", count: 3 << 20, seed: UInt64(number))
                let done = try box.shell(
                    "dd if='\(fill)' of='\(box.mountPoint)/a.img' bs=1M seek=\(number) "
                        + "conv=notrunc,fsync")
                #expect(done.code == 0, "\(done)")
                try box.ok("snapshot", "create", box.pool, name)
            }
            try box.ok("snapshot", "delete", box.pool, "one")
            let last = try box.shell(
                "dd if=/dev/urandom of='\(box.mountPoint)/a.img' bs=5000 count=7 seek=3 "
                    + "conv=notrunc,fsync")
            #expect(last.code == 0, "\(last)")
            try box.killDaemon()
            try flatten(box, ["a.img", "a.img@two"])
            try box.ok("unmount", box.mountPoint, "--force")
            try expectExported(box, ["a.img", "a.img@two"])
        }
    }
}
