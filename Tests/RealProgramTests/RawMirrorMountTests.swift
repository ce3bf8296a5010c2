import Foundation
import TestSupport
import Testing

/// A raw mirror behind a real mount: plain files that other programs read.
@Suite(.enabled(if: hasFuse)) struct RawMirrorMountTests {
    private func with(_ body: (Sandbox, _ raw: String) throws -> Void) throws {
        try Sandbox.with { box in
            let raw = box.folder + "/plain"
            try box.ok("init", box.pool)
            for name in ["a.img", "b.qcow2"] {
                try box.ok("create", box.pool, name, "--size", "8M")
            }
            try box.mount("--mirror", "raw:\(raw),timeout=2s")
            try box.untilInStep("raw:" + raw)
            try body(box, raw)
        }
    }

    private func expectEqual(_ box: Sandbox, _ raw: String) throws {
        for name in try names(in: box.mountPoint) {
            let outcome = try box.shell(
                "cmp '\(box.mountPoint)/\(name)' '\(raw)/\(name)' && if which qemu-img >/dev/null; then "
                    + "qemu-img compare -U -s -f raw -F raw '\(box.mountPoint)/\(name)' "
                    + "'\(raw)/\(name)'; fi")
            #expect(outcome.code == 0, "\(name): \(outcome)")
        }
    }

    @Test func itsFilesAreTheImagesAndCleanAfterAnUnmount() throws {
        try with { box, raw in
            let made = try box.shell(
                """
                set -e; cd '\(box.mountPoint)'; mkdir sub
                head -c 3000000 /dev/urandom > a.img; head -c 500000 /dev/urandom > sub/c.img
                cp a.img sub/d.part; mv sub/d.part sub/d.img; truncate -s 12345 b.qcow2
                fallocate -p -o 8192 -l 65536 a.img; ln -s sub/c.img link; sync
                """)
            try #require(made.code == 0, "\(made)")
            try box.ok("snapshot", "create", box.pool, "one")
            try box.settle()
            let target = try box.target("raw:" + raw)
            #expect((target.kind, target.content) == ("raw", "torn"))
            #expect(try box.ok("target", "list", box.pool).contains("raw"))
            #expect(try box.ok("status", box.pool).contains("torn if this machine goes down"))
            let same = try box.shell(
                "diff -r --no-dereference --exclude=.doppel-mirror '\(box.mountPoint)' '\(raw)'")
            #expect(same.code == 0, "\(same)")
            let sums = try box.shell("cd '\(box.mountPoint)'; sha256sum *.img *.qcow2 sub/*").output
            try box.ok("unmount", box.mountPoint)
            #expect(try box.target("raw:" + raw).content == "clean")
            #expect(try box.shell("cd '\(raw)'; sha256sum *.img *.qcow2 sub/*").output == sums)
            // Sparse there, too.
            let used = try box.shell("du -k '\(raw)/b.qcow2' | cut -f1").output
            #expect(Int(used.trimmingCharacters(in: .whitespacesAndNewlines)) ?? 99 <= 16)
        }
    }

    @Test func whatAKilledPrimaryLeavesIsTornAndHealsWhenItIsBack() throws {
        try with { box, raw in
            try box.makeFile(box.mountPoint + "/a.img", count: 4 << 20)
            try box.settle()
            try box.write("under way", to: box.mountPoint + "/a.img", at: 5 << 20)
            try box.killDaemon()
            #expect(try box.shell("grep -c torn '\(raw)/.doppel-mirror/state.json'").code == 0)
            // Somebody damages it meanwhile: the comparison finds that, and nothing else travels.
            let file = try #require(FileHandle(forUpdatingAtPath: raw + "/a.img"))
            try file.seek(toOffset: 100)
            try file.write(contentsOf: Data("damage".utf8))
            try file.close()
            try box.mount()
            try box.untilInStep("raw:" + raw)
            try box.settle()
            try expectEqual(box, raw)
            let target = try box.target("raw:" + raw)
            #expect(target.comparedBytes >= 4 << 20)
            #expect(target.resyncedBytes < 2 << 20)
            #expect(try box.events().contains { $0.kind == "target-went-back" })
            try box.ok("unmount", box.mountPoint)
            #expect(try box.target("raw:" + raw).content == "clean")
        }
    }
}
