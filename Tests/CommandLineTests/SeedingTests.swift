import Foundation
import TestSupport
import Testing

/// Targets that have something already: carried there by hand, or left from before.
@Suite(.enabled(if: hasFuse)) struct SeedingTests {
    /// A pool with two images, mounted without a target, and copies of them in a folder.
    private func with(_ body: (Sandbox, _ seed: String) throws -> Void) throws {
        try Sandbox.with { box in
            let seed = box.folder + "/carried"
            try box.ok("init", box.pool)
            try box.mount()
            let made = try box.shell(
                """
                set -e; cd '\(box.mountPoint)'; mkdir sub
                head -c 6291456 /dev/urandom > a.img; head -c 2097152 /dev/urandom > sub/b.img
                sync a.img sub/b.img; mkdir '\(seed)'; cp -r . '\(seed)'
                """)
            try #require(made.code == 0, "\(made)")
            // Something was written after the copies were made.
            try box.write("newer", to: box.mountPoint + "/a.img", at: 1 << 20)
            try body(box, seed)
        }
    }

    @Test func onlyWhatDiffersTravelsAndWhatWasThereIsKept() throws {
        try with { box, seed in
            try Data("theirs".utf8).write(to: URL(filePath: seed + "/extra.img"))
            let added = try box.run("target", "add", box.pool, seed, "--seed")
            #expect(added.code == 0, "\(added)")
            #expect(added.errors.contains("2 of 2 images"), "\(added)")
            try box.settle()
            let target = try box.target(seed)
            #expect(target.comparedBytes >= 8 << 20)
            #expect(target.resyncedBytes < 1 << 20)
            #expect(try box.ok("status", box.pool).contains("compared"))
            try box.write("and on", to: box.mountPoint + "/sub/b.img")
            try box.settle()
            let content = try box.bytes(box.mountPoint + "/a.img")
            try box.ok("unmount", box.mountPoint)
            try box.ok("mount", seed, box.mountPoint)
            #expect(try box.bytes(box.mountPoint + "/a.img") == content)
            #expect(try box.text(box.mountPoint + "/sub/b.img", count: 6) == "and on")
            #expect(access(box.mountPoint + "/extra.img", F_OK) != 0)
            let kept = try names(in: box.mountPoint + "/.snapshots")
            #expect(kept.count == 1 && kept.first?.hasPrefix("diverged-") == true)
            let old = box.mountPoint + "/.snapshots/" + (kept.first ?? "")
            #expect(try box.text(old + "/extra.img", count: 6) == "theirs")
            #expect(try box.text(old + "/a.img", count: 5, at: 1 << 20) != "newer")
        }
    }

    @Test func aPoolThatWasAdoptedFromTheCopiesIsTaken() throws {
        try with { box, seed in
            // As this pool numbers them: made in the same order.
            try box.ok("unmount", box.mountPoint)
            try box.ok("eject", box.pool)
            try box.ok("adopt", box.pool)
            try box.ok("adopt", seed)
            try box.mount()
            try box.ok("target", "add", box.pool, seed, "--seed")
            // Nothing was written yet, and it is waited for until all is compared.
            try box.settle()
            #expect(try box.target(seed).comparedBytes >= 8 << 20)
            #expect(try box.target(seed).resyncedBytes < 1 << 20)
        }
    }

    @Test func whatIsNoCopyIsRefusedAndLeftAlone() throws {
        try with { box, seed in
            let other = box.folder + "/other"
            mkdir(other, 0o755)
            try Data("mine".utf8).write(to: URL(filePath: other + "/file"))
            let nothing = try box.run("target", "add", box.pool, other, "--seed")
            #expect(nothing.code == 1 && nothing.errors.contains("nothing in"), "\(nothing)")
            #expect(try names(in: other) == ["file"])
            // Numbered otherwise: c.img was first there.
            try Data(count: 4096).write(to: URL(filePath: seed + "/Aa.img"))
            try box.ok("adopt", seed)
            let numbered = try box.run("target", "add", box.pool, seed, "--seed")
            #expect(numbered.code == 1 && numbered.errors.contains("doppel eject"), "\(numbered)")
            try box.ok("eject", seed)
            try box.ok("target", "add", box.pool, seed, "--seed")
            try box.settle()
            #expect(try box.target(seed).resyncedBytes < 1 << 20)
        }
    }

    @Test func aRawMirrorIsSeededAndWhatIsForeignStays() throws {
        try with { box, seed in
            let raw = "raw:" + seed
            try Data("mine".utf8).write(to: URL(filePath: seed + "/notes.txt"))
            try box.shell("truncate -s 5 '\(seed)/sub/b.img'").expectOK()
            let refused = try box.run("target", "add", box.pool, raw, "--seed")
            #expect(
                refused.code == 1 && refused.errors.contains("sub/b.img has 5 bytes"), "\(refused)")
            #expect(access(seed + "/.doppel-mirror", F_OK) != 0)
            try box.shell("rm '\(seed)/sub/b.img'").expectOK()
            let added = try box.run("target", "add", box.pool, raw, "--seed")
            #expect(added.code == 0 && added.errors.contains("1 of 2 images"), "\(added)")
            try box.settle()
            let target = try box.target(raw)
            #expect(target.comparedBytes >= 6 << 20)
            #expect(target.resyncedBytes < 3 << 20, "the image that was missing")
            for name in ["a.img", "sub/b.img"] {
                #expect(
                    try box.bytes(seed + "/" + name) == box.bytes(box.mountPoint + "/" + name))
            }
            #expect(box.read(seed + "/notes.txt") == "mine")
        }
    }

    /// What was trimmed while the mirror was no target is gone there as well.
    @Test func aMirrorThatIsAddedAgainIsComparedAsAWhole() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.makeFile(box.mountPoint + "/a.img", count: 8 << 20)
            try box.settle()
            try box.ok("target", "remove", box.pool, box.mirror)
            try box.shell("fallocate -p -o 1048576 -l 65536 '\(box.mountPoint)/a.img'").expectOK()
            try box.ok("target", "add", box.pool, box.mirror)
            try box.settle()
            #expect(try box.target().resyncedBytes < 1 << 20)
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    // MARK: A raw mirror becomes a pool

    /// A mounted pool with one image, and a raw mirror that has all of it.
    /// - Parameter content: a command that prints what is in the image.
    private func withRawMirror(
        of content: String, _ body: (Sandbox, _ plain: String) throws -> Void
    ) throws {
        try Sandbox.with { box in
            let plain = box.folder + "/plain"
            try box.ok("init", box.pool)
            try box.mount("--mirror", "raw:\(plain),timeout=2s")
            let image = box.mountPoint + "/a.img"
            try box.shell("\(content) > '\(image)'; sync '\(image)'").expectOK()
            try box.settle()
            try body(box, plain)
        }
    }

    @Test func aRawMirrorIsPromotedAndTheOldPrimaryFollows() throws {
        try withRawMirror(of: "head -c 4000000 /dev/urandom") { box, plain in
            let content = try box.bytes(box.mountPoint + "/a.img")
            try box.killDaemon()
            let refused = try box.run("promote", "raw:" + plain)
            #expect(refused.code == 1 && refused.errors.contains("torn"), "\(refused)")
            #expect(access(plain + "/a.img", F_OK) == 0)
            #expect(try box.run("adopt", plain).errors.contains("promote raw:"))
            try box.mount()
            try box.untilInStep("raw:" + plain)
            try box.settle()
            try box.ok("unmount", box.mountPoint)
            try box.ok("promote", "raw:" + plain)
            #expect(access(plain + "/.doppel-mirror", F_OK) != 0)
            // The old primary hears of it, and takes no more.
            try box.mount()
            try box.until("the old primary is fenced") {
                box.writeError(box.mountPoint + "/a.img") == EROFS
            }
            try box.ok("unmount", box.mountPoint)
            try box.ok("demote", box.pool)
            try box.ok("mount", plain, box.mountPoint)
            #expect(try box.bytes(box.mountPoint + "/a.img") == content)
            try box.write("new", to: box.mountPoint + "/a.img")
            try box.ok("wait", plain, "--target", box.pool, "--timeout", "50s")
            let status = try box.status(of: plain)
            #expect(status.generation == 2)
            #expect(status.targets?.first.map { $0.resyncedBytes < 1 << 20 } == true)
        }
    }

    @Test func aTornOneIsPromotedByForceAlone() throws {
        try withRawMirror(of: "printf flushed") { box, plain in
            try box.killDaemon()
            let look = try box.run("promote", "raw:" + plain, "--dry-run")
            #expect(look.code == 0 && look.output.contains("torn"), "\(look)")
            try box.ok("promote", "raw:" + plain, "--force")
            mkdir(box.look, 0o755)
            try box.ok("mount", plain, box.look)
            #expect(try box.text(box.look + "/a.img", count: 7) == "flushed")
        }
    }
}

extension Outcome {
    fileprivate func expectOK() throws { try #require(code == 0, "\(self)") }
}
