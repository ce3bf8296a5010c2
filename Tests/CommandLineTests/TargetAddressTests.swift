import Foundation
import Glibc
import TestSupport
import Testing

/// Targets that are reached somewhere else from now on, and old primaries that nobody can reach before somebody says how.
@Suite(.enabled(if: hasFuse)) struct TargetAddressTests {
    private func blocks(_ count: Int, at first: Int, _ letter: Character, in path: String) throws {
        let file = try TestFile(path, O_WRONLY)
        let block = [UInt8](repeating: letter.asciiValue!, count: 4096)
        for index in 0..<count { try file.write(block, at: (first + index) * 4096) }
        try file.sync()
    }

    /// First copied beside the pool, then carried to another machine: nothing but what changed meanwhile is sent.
    @Test func aMirrorThatWasCarriedToAServerIsTheSameTarget() throws {
        try Sandbox.withMirror("a.img") { box in
            try blocks(512, at: 0, "0", in: box.mountPoint + "/a.img")
            try box.settle()
            try box.ok("target", "pause", box.pool, box.mirror)
            let server = try MirrorServer(box, isEncrypted: false)
            defer { server.kill() }
            #expect(rename(box.mirror, server.mirror) == 0)
            try blocks(3, at: 100, "1", in: box.mountPoint + "/a.img")
            try box.ok("target", "set", box.pool, box.mirror, "--address", server.address)
            try box.ok("target", "resume", box.pool, server.address)
            try box.settle()
            let target = try box.target(server.address)
            #expect(target.kind == "remote" && target.comparedBytes == 0)
            #expect(target.resyncedBytes >= 3 * 4096 && target.resyncedBytes < 8 * 4096)
            #expect(try box.status().targets?.count == 1)
            try server.expectSame()
        }
    }

    @Test func whatCannotBeMeantIsRefusedAndChangesNothing() throws {
        try Sandbox.withMirror("a.img") { box in
            let (other, plain) = (box.folder + "/other", "raw:" + box.folder + "/plain")
            try box.ok("init", other)
            try box.ok("target", "add", box.pool, plain)
            for (place, code, words) in [
                (other, 1, "nothing was changed"), (plain, 2, "do not become one another"),
                ("web1:/srv/vms", 2, "doppel://HOST:PORT/POOL"),
                (box.pool + "/in", 2, "in each other"),
                ("doppel://nowhere", 2, "no address of a pool"),
            ] {
                let refused = try box.run(
                    "target", "set", box.pool, box.mirror, "--address", place)
                #expect(refused.code == Int32(code), "\(place): \(refused)")
                #expect(refused.errors.contains(words), "\(place): \(refused)")
            }
            try box.untilInStep()
            // What is only not there yet is noted, and said to be so.
            let later = box.folder + "/later"
            let noted = try box.run("target", "set", box.pool, box.mirror, "--address", later)
            #expect(noted.code == 0 && noted.errors.contains("there is no pool"), "\(noted)")
            try box.until("it is behind") { try !box.target(later).isInStep }
            try box.write("meanwhile", to: box.mountPoint + "/a.img")
            #expect(rename(box.mirror, later) == 0)
            try box.untilInStep(later)
        }
    }

    /// Where the settings say at which address a pool is served, nobody has to.
    @Test func aPrimaryThatIsServedSaysWhere() throws {
        try Sandbox.withServer("a.img", isEncrypted: false) { box, server in
            try box.ok("unmount", box.mountPoint)
            let settings = server.configuration("client")
            let lines =
                "[serve]\nroot = '\(box.folder)'\nlisten = ['127.0.0.1:1', '192.0.2.1:7420']\n"
            try Data((box.read(settings) + lines).utf8).write(to: URL(fileURLWithPath: settings))
            try box.mount()
            try box.untilInStep(server.address)
            try box.ok("unmount", box.mountPoint)
            try server.terminate()
            try box.ok("promote", server.mirror, "--force")
            let list = try box.ok("target", "list", server.mirror)
            #expect(list.contains("doppel://192.0.2.1:7420/pool"), "\(list)")
        }
    }

    /// The mirror of a served pool was promoted; its old primary is served in turn. Nobody can connect to where that says
    /// it is; once somebody said how, only what either side changed travels, and what it had alone is kept.
    @Test func theOldPrimaryOfAServedMirrorFollowsIt() throws {
        try Sandbox.withServer("a.img", isEncrypted: false) { box, server in
            let image = box.mountPoint + "/a.img"
            try blocks(512, at: 0, "0", in: image)
            try box.settle()
            // While its primary is connected the server has it, and that is said.
            mkdir(box.look, 0o755)
            for words in [
                ["mount", server.mirror, box.look], ["promote", server.mirror],
                ["snapshot", "list", server.mirror],
            ] {
                let refused = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(refused.code == 3, "\(words): \(refused)")
                #expect(refused.errors.contains("`doppel serve`"), "\(words): \(refused)")
                #expect(refused.errors.contains("doppel failover"), "\(words): \(refused)")
            }
            try box.ok("target", "pause", box.pool, server.address)
            try blocks(7, at: 100, "P", in: image)
            try box.ok("unmount", box.mountPoint)
            let early = try box.run("demote", box.pool, "--to", server.address)
            #expect(
                early.code == 1 && early.errors.contains("is a mirror itself"), "\(early)")
            try box.until("the server has let go of it") {
                try box.run("promote", server.mirror, "--force").code == 0
            }
            try box.ok("mount", server.mirror, box.look)
            try blocks(5, at: 200, "M", in: box.look + "/a.img")

            let old = try #require(try box.status(of: server.mirror).targets?.first)
            #expect(old.address.hasSuffix(":" + box.pool) && !old.address.hasPrefix("/"))
            try box.until("it is said what to do") {
                try box.status(of: server.mirror).targets?.first?.reason?
                    .contains("--address doppel://") ?? false
            }
            let unknown = try box.run("demote", box.pool, "--to", "doppel://127.0.0.1:1/vms")
            #expect(unknown.code == 1 && unknown.errors.contains("cannot be reached"), "\(unknown)")
            let back = try MirrorServer(box, root: box.folder, isEncrypted: false)
            defer { back.kill() }
            let address = "doppel://\(back.place)/pool"
            let tooEarly = try box.run("target", "add", server.mirror, address)
            #expect(tooEarly.code == 1 && tooEarly.errors.contains("doppel demote"), "\(tooEarly)")
            try box.ok("demote", box.pool, "--to", server.address)
            let added = try box.run("target", "add", server.mirror, address)
            #expect(added.code == 0 && added.errors.contains("only what differs"), "\(added)")
            try box.ok("wait", server.mirror, "--timeout", "50s")
            let targets = try box.status(of: server.mirror).targets ?? []
            #expect(targets.map(\.address) == [address])
            #expect(targets.first?.comparedBytes == 0)
            let again = try box.run("target", "add", server.mirror, "doppel://localhost:1/pool")
            #expect(again.code == 1, "\(again)")

            try box.ok("unmount", box.look)
            try back.terminate()
            let snapshots = try box.json(
                box.ok("snapshot", "list", box.pool, "--json"), [SnapshotLine].self)
            let kept = try #require(
                snapshots.first { $0.origin == "diverged" }?.name, "\(snapshots)")
            // The head was empty when the resync began: its blocks are those that travelled.
            let diff = try box.json(
                box.ok("snapshot", "diff", box.pool, kept, "--json"), [DiffLine].self)
            #expect(diff.first { $0.path == "a.img" }?.changedBytes == (7 + 5) * 4096, "\(diff)")
            try box.ok("mount", box.pool, box.look)
            #expect(try box.text(box.look + "/a.img", count: 2, at: 100 * 4096) == "00")
            #expect(try box.text(box.look + "/a.img", count: 2, at: 200 * 4096) == "MM")
            let alone = "\(box.look)/.snapshots/\(kept)/a.img"
            #expect(try box.text(alone, count: 2, at: 100 * 4096) == "PP")
        }
    }
}
