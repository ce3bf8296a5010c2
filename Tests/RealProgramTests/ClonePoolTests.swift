import Foundation
import Glibc
import TestSupport
import Testing

/// `doppel clone-pool` from a server, as a person uses it.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct ClonePoolTests {
    private struct Made: Decodable {
        var snapshots: [String]
        var images: Int
        var wasResumed: Bool
        var copiedBytes: UInt64
        var verifiedBytes: UInt64
    }

    private func look(_ box: Sandbox, at copy: String, _ body: () throws -> Void) throws {
        mkdir(box.look, 0o755)
        try box.ok("mount", copy, box.look)
        do { try body() } catch {
            try? box.lookAway()
            throw error
        }
        try box.lookAway()
    }

    /// Two images, written in turns: what a copy shows is of one moment.
    @Test func aCopyIsAPrefixAndIsUsedAsAnyMirror() throws {
        try Sandbox.withServer("a.img", "b.img") { box, server in
            let copy = box.folder + "/site"
            let filled = try box.shell(
                "head -c 6000000 /dev/urandom | dd of='\(box.mountPoint)/a.img' bs=64k seek=1 conv=notrunc,fsync"
            )
            try #require(filled.code == 0)
            try box.ok("snapshot", "create", box.pool, "one")
            let writer = try BackgroundShell(
                """
                n=1000000; while [ ! -e '\(box.folder)/enough' ]; do n=$((n+1)); for f in a b; do
                printf %s $n | dd of='\(box.mountPoint)/'$f.img bs=7 conv=notrunc,fsync 2>/dev/null || exit 1
                done; done
                """)
            let made = try box.json(
                box.ok("clone-pool", server.address, copy, "--json"), Made.self)
            #expect(made.snapshots == ["one"] && made.images == 2 && !made.wasResumed)
            #expect(made.copiedBytes >= 6_000_000 && made.verifiedBytes >= made.copiedBytes)
            #expect(try box.target(server.address).isInStep, "the primary does not notice")
            #expect(FileManager.default.createFile(atPath: box.folder + "/enough", contents: nil))
            #expect(try writer.wait() == 0)
            try look(box, at: copy) {
                let a = Int(try box.text(box.look + "/a.img", count: 7)) ?? -1
                let b = Int(try box.text(box.look + "/b.img", count: 7)) ?? 1_000_000
                #expect(a == b || a == b + 1, "\(a), then \(b)")
                try box.expectSame(
                    box.mountPoint + "/.snapshots/one", box.look + "/.snapshots/one")
            }
            // Its primary takes it: hashes travel, and little else.
            try box.ok("target", "add", box.pool, copy)
            try box.settle()
            let target = try box.target(copy)
            #expect(target.comparedBytes >= 6 << 20 && target.resyncedBytes < 1 << 20, "\(target)")
            try box.ok("unmount", box.mountPoint)
            try box.ok("mount", box.pool, box.mountPoint, "--read-only")
            try look(box, at: copy) { try box.expectSame(box.mountPoint, box.look) }
        }
    }

    /// Killed at any moment, with the server killed now and then, and started again.
    @Test func aCopyThatIsKilledGoesOn() throws {
        try Sandbox.withServer("a.img", "b.img") { box, server in
            let copy = box.folder + "/site"
            var random = SeededRandom(seed: Seeds.run(1)[0])
            for image in ["a", "b"] {
                let filled = try box.shell(
                    "head -c 8388608 /dev/urandom | dd of='\(box.mountPoint)/\(image).img' bs=1M conv=notrunc,fsync"
                )
                try #require(filled.code == 0)
            }
            try box.ok("snapshot", "create", box.pool, "one")
            try box.write("after", to: box.mountPoint + "/a.img", at: 4096)
            try box.settle()
            mkdir(box.look, 0o755)
            for _ in 0..<6 {
                let clone = try BackgroundShell(
                    "DOPPEL_CONFIG='\(server.configuration("client"))' exec '\(Sandbox.binary)' clone-pool "
                        + "'\(server.address)' '\(copy)' >/dev/null 2>&1")
                usleep(UInt32(5000 + random.below(120_000)))
                if random.chance(30) {
                    server.kill()
                    #expect(try clone.wait() != 0 || access(copy, F_OK) == 0)
                    try server.start()
                }
                clone.kill()
                guard access(copy + "/catalog.sqlite", F_OK) == 0 else { continue }
                let seen = try box.run("status", copy)
                if seen.code == 0 { break }
                #expect(seen.errors.contains("unfinished copy"), "\(seen)")
                let mount = try box.run("mount", copy, box.look)
                #expect(mount.code != 0 && mount.errors.contains("doppel clone-pool"), "\(mount)")
            }
            if try box.run("status", copy).code != 0 {
                try box.untilInStep(server.address)
                let text = try box.ok("clone-pool", server.address, copy)
                #expect(text.contains("every block has the source's hash"), "\(text)")
            }
            try box.untilInStep(server.address)
            try look(box, at: copy) {
                try box.expectSame(box.mountPoint, box.look)
                try box.expectSame(
                    box.mountPoint + "/.snapshots/one", box.look + "/.snapshots/one")
            }
        }
    }

    @Test func whoMayNotReadGetsNothing() throws {
        try Sandbox.withServer("a.img") { box, server in
            let copy = box.folder + "/site"
            let other = try box.run("clone-pool", "doppel://\(server.place)/other", copy)
            #expect(other.code == 1 && other.errors.contains("may not read"), "\(other)")
            let none = try box.run("clone-pool", "doppel://\(server.place)/db/none", copy)
            #expect(none.code == 1 && none.errors.contains("there is no pool"), "\(none)")
            #expect(access(copy, F_OK) != 0, "nothing was laid out for it")
            // Nobody is connected: its primary comes while it is copied from then on.
            try box.ok("unmount", box.mountPoint)
            try box.ok(
                "pair", "--config", server.configuration("server"), "--accept",
                server.line("client"), "--pools", "vms", "--right", "read")
            #expect(try box.ok("clone-pool", server.address, copy).contains("1 images"))
            let again = try box.run("clone-pool", server.address, copy)
            #expect(again.code == 1 && again.errors.contains("a pool already"), "\(again)")
        }
    }
}

/// The place of a copy runs full, and gets room.
@Suite(.enabled(if: Machine.canMountGuests, "needs root, /dev/fuse and loop devices"))
struct ClonePoolFullTests {
    @Test func aFullDiskIsSaidAndWithRoomItGoesOn() throws {
        try SmallStore.with(megabytes: 48) { store in
            try Sandbox.withServer("a.img", "b.img") { box, server in
                let copy = store.path + "/site"
                for image in ["a", "b"] {
                    let filled = try box.shell(
                        "head -c 8388608 /dev/urandom | dd of='\(box.mountPoint)/\(image).img' bs=1M conv=notrunc,fsync"
                    )
                    try #require(filled.code == 0)
                }
                try box.settle()
                let taken = try box.shell(
                    "head -c \(max(store.freeBytes - (10 << 20), 0)) /dev/zero > '\(store.path)/somebody-else'"
                )
                try #require(taken.code == 0)
                let full = try box.run("clone-pool", server.address, copy)
                #expect(full.code == 1 && full.errors.contains("Make room"), "\(full)")
                #expect(try box.run("status", copy).errors.contains("unfinished copy"))
                store.empty()
                try box.ok("clone-pool", server.address, copy)
                mkdir(box.look, 0o755)
                try box.ok("mount", copy, box.look)
                try box.expectSame(box.mountPoint, box.look)
                try box.lookAway()
            }
        }
    }
}
