import Foundation
import TestSupport
import Testing

/// A pool that is mirrored, as its users see it: the real program on real mounts.
@Suite(.enabled(if: hasFuse)) struct MirrorTests {
    // MARK: Following

    @Test func whatIsThereIsCopiedAndWhatComesFollows() throws {
        try Sandbox.withPool("a.img", "b.img") { box in
            try box.mount()
            try box.makeFile(box.mountPoint + "/a.img", count: 300_000)
            try box.ok("snapshot", "create", box.pool, "one")
            try box.write("changed", to: box.mountPoint + "/a.img", at: 5000)
            try box.ok("unmount", box.mountPoint)
            try box.mount("--mirror", box.mirror + ",timeout=500ms")
            try box.settle()
            let mount = box.mountPoint
            let script = """
                set -e; cd '\(mount)'; mkdir sub; cp a.img sub/c.img; chmod 640 sub/c.img
                truncate -s 5000 b.img; fallocate -p -o 4096 -l 8192 a.img; ln -s a.img link
                touch -d 2020-02-02 sub/c.img; rm -f none; mv sub other; sync
                """
            let changes = try box.shell(script)
            try #require(changes.code == 0, "\(changes)")
            try box.ok("snapshot", "create", box.pool, "two")
            try box.write("after", to: mount + "/b.img")
            let listed = try box.shell("cd '\(mount)'; stat -c '%n %s %a %u %Y' * other/*")
            let copy = box.folder + "/copy"
            try #require(
                try box.shell("mkdir '\(copy)'; cp -a --sparse=always '\(mount)'/. '\(copy)'").code
                    == 0)
            try box.killDaemon()
            try box.lookIntoMirror()
            try box.expectSame(copy, box.look)
            #expect(
                try box.shell("cd '\(box.look)'; stat -c '%n %s %a %u %Y' * other/*").output
                    == listed.output)
            // Both snapshots arrived, the one from before the mirror too.
            let snapshots = try box.json(
                box.ok("snapshot", "list", box.look, "--json"), [SnapshotLine].self)
            #expect(snapshots.map(\.name).sorted() == ["one", "two"])
            try box.mount()
            for name in ["one/a.img", "two/b.img", "two/other/c.img"] {
                #expect(
                    try box.bytes(box.mountPoint + "/.snapshots/" + name)
                        == box.bytes(box.look + "/.snapshots/" + name), "\(name)")
            }
        }
    }

    @Test func aMirrorThatWasAwayGetsOnlyWhatChanged() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.makeFile(box.mountPoint + "/a.img", count: 8 << 20)
            try box.settle()
            try box.ok("target", "pause", box.pool, box.mirror)
            try box.write("changed", to: box.mountPoint + "/a.img", at: 3 << 20)
            #expect(try box.target().dirtyBytes <= 64 << 10)
            #expect(try box.target().dirtyBytes >= 4096)
            try box.ok("target", "resume", box.pool, box.mirror)
            try box.settle()
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    @Test func withoutTargetsWhatChangedIsTrackedAndShippedLater() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.ok("unmount", box.mountPoint)
            try box.mount("--no-targets")
            let before = try box.target().durableSequence
            try box.write("without", to: box.mountPoint + "/a.img", at: 9000)
            #expect(try box.target().state == "idle")
            #expect(try box.target().atRiskBytes >= 4096)
            #expect(try box.run("status", box.pool).code == 4)
            #expect(try box.target().durableSequence == before)
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            try box.settle()
            try box.untilInStep()
            try box.lookIntoMirror()
            try box.expectSame(box.mountPoint, box.look)
        }
    }

    @Test func verbsOnAPoolThatIsNotMountedAreTracked() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.ok("unmount", box.mountPoint)
            #expect(try box.target().state == "level")
            #expect(try box.run("status", box.pool).code == 0)
            let file = try box.makeFile("source.raw", count: 700_000)
            try box.ok("create", box.pool, "new.img", "--size", "3M")
            try box.ok("import", box.pool, file, "--as", "imported.img")
            try box.ok("snapshot", "create", box.pool, "between")
            try box.ok("rename", box.pool, "a.img", "renamed.img")
            try box.ok("resize", box.pool, "renamed.img", "9M")
            #expect(try box.target().state == "idle")
            #expect(try box.run("status", box.pool).code == 4)
            try box.mount()
            try box.settle()
            try box.killDaemon()
            try box.lookIntoMirror()
            #expect(
                try FileManager.default.contentsOfDirectory(atPath: box.look).sorted()
                    == ["imported.img", "new.img", "renamed.img"])
            #expect(try box.bytes(box.look + "/imported.img") == box.bytes(file))
            let between = box.look + "/.snapshots/between"
            #expect(try box.bytes(between + "/imported.img") == box.bytes(file))
            #expect(access(between + "/a.img", F_OK) == 0)
        }
    }

    @Test func waitShipsWhatAPoolLacksThatIsNotMounted() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.ok("unmount", box.mountPoint)
            try box.ok("create", box.pool, "new.img", "--size", "3M")
            try box.settle()
            #expect(try box.target().state == "level")
            try box.lookIntoMirror()
            #expect(access(box.look + "/new.img", F_OK) == 0)
        }
    }

    /// Copies that get their name when they are complete are there whole, or not by that name.
    @Test func aCopyIsThereWholeBeforeItHasItsName() throws {
        try Sandbox.withMirror { box in
            let source = try box.makeFile("source.raw", count: 12 << 20)
            let script = """
                cd "$2" && for i in 1 2 3 4 5 6; do
                    qemu-img convert -f raw -O raw "$1" new.tmp && mv new.tmp "new$i.img" || exit 1
                done
                """
            let copies = try BackgroundShell(script, [source, box.mountPoint])
            var looks = 0
            func check() throws {
                for name in try FileManager.default.contentsOfDirectory(atPath: box.look)
                where name != "new.tmp" {
                    #expect(try box.bytes(box.look + "/" + name) == box.bytes(source), "\(name)")
                    looks += 1
                }
            }
            try box.until("four copies", seconds: 60) {
                try box.lookIntoMirror()
                try check()
                try box.lookAway()
                return access(box.mountPoint + "/new4.img", F_OK) == 0 || !copies.isRunning
            }
            try box.killDaemon()
            copies.kill()
            try box.lookIntoMirror()
            try check()
            #expect(looks > 0)
        }
    }

    /// Of replication nothing stays behind in a plain folder.
    @Test func aPoolWithTargetsAndAPromotedMirrorAreEjected() throws {
        try Sandbox.withMirror("a.img") { box in
            try box.write("here", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.ok("unmount", box.mountPoint)
            try box.ok("eject", box.pool)
            try box.ok("promote", box.mirror, "--force")
            try box.ok("eject", box.mirror)
            for folder in [box.pool, box.mirror] {
                #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["a.img"])
                #expect(try box.text(folder + "/a.img", count: 4) == "here")
            }
        }
    }
}
