import Foundation
import Glibc
import MountCalls
import TestSupport
import Testing

/// A mounted pool, and its mirror in another process that is reached over TCP: what holds for a mirror directory
/// holds here.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RemoteMirrorTests {
    @Test(arguments: [true, false]) func aPoolIsReplicated(isEncrypted: Bool) throws {
        let compress = isEncrypted ? "on" : "auto"
        try Sandbox.withServer(
            "a.img", "b.img", isEncrypted: isEncrypted,
            options: "timeout=700ms,compress=\(compress)"
        ) { box, server in
            #expect(try box.target(server.address).kind == "remote")
            #expect(try box.target(server.address).compress == compress)
            try box.write("first", to: box.mountPoint + "/a.img", at: 12345)
            try box.ok("snapshot", "create", box.pool, "one")
            try box.write("second", to: box.mountPoint + "/b.img", at: 1 << 20)
            try box.ok("create", box.pool, "c.img", "--size", "3M")
            try box.settle()
            try server.expectSame {
                let names = try box.ok("snapshot", "list", server.mirror)
                #expect(names.contains("one"))
            }
            // The next run of the server is connected to, and goes on from there.
            try box.untilInStep(server.address)
            try box.write("third", to: box.mountPoint + "/c.img")
            try box.ok("delete", box.pool, "b.img")
            try box.settle()
            try server.expectSame()
            // So does the next mount.
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            try box.untilInStep(server.address)
            try box.write("fourth", to: box.mountPoint + "/a.img")
            try box.settle()
            if isEncrypted { try compressionIsSwitchedOff(box, server) }
            try server.expectSame()
        }
    }

    private func compressionIsSwitchedOff(_ box: Sandbox, _ server: MirrorServer) throws {
        let seen = try box.target(server.address)
        #expect(seen.compress == "on" && seen.isCompressing == true)
        #expect(seen.lineSentBytes! < seen.lineRawBytes!, "\(seen)")
        try box.ok("target", "set", box.pool, server.address, "--compress", "off")
        #expect(try box.target(server.address).isInStep, "the session goes on")
        try box.write("fifth", to: box.mountPoint + "/a.img", at: 8192)
        try box.settle()
        let plain = try box.target(server.address)
        #expect(plain.compress == "off" && plain.isCompressing == false)
        #expect(
            plain.lineRawBytes! - seen.lineRawBytes! == plain.lineSentBytes! - seen.lineSentBytes!)
    }

    /// Killed in the middle, again and again, while a guest writes and flushes: it goes on, and all of it is there in
    /// the end.
    @Test func aServerIsKilledUnderLoad() throws {
        try Sandbox.withServer("a.img", "b.img") { box, server in
            let writer = try BackgroundShell(
                "while [ ! -e '\(box.folder)/enough' ]; do dd if=/dev/urandom of='\(box.mountPoint)/a.img' "
                    + "bs=64k count=8 seek=$(( $(od -An -N1 -tu1 /dev/urandom) % 100 )) conv=notrunc,fsync "
                    + "2>/dev/null || exit 1; done")
            for _ in 0..<3 {
                usleep(200_000)
                server.kill()
                try box.until("it is noticed", seconds: 20) {
                    try !box.target(server.address).isInStep
                }
                #expect(try box.target(server.address).staleSinceNs != nil)
                try server.start()
                try box.untilInStep(server.address)
            }
            #expect(FileManager.default.createFile(atPath: box.folder + "/enough", contents: nil))
            #expect(try writer.wait() == 0, "the guest saw nothing of it")
            try box.settle()
            try server.expectSame()
        }
    }

    /// In sync every write that returned is on the other machine when this one is gone; nobody flushed.
    @Test func whatReturnedIsOnTheOtherMachine() throws {
        try Sandbox.withServer("a.img", options: "mode=sync,timeout=60s") { box, server in
            let file = try TestFile(box.mountPoint + "/a.img", O_RDWR)
            let model = try file.writeAtRandom(count: 200)
            try box.killDaemon()
            #expect(try server.terminate() == 0)
            mkdir(box.look, 0o755)
            try box.ok("mount", server.mirror, box.look)
            let found = try contents(box.look + "/a.img")
            #expect(difference(found, from: model) == nil)
        }
    }

    // MARK: The line

    /// A line that breaks, and one that hangs in either direction, while bytes are taken in both: noticed within the
    /// timeout also while nobody writes, used again within two seconds. What happens to packets: `NetworkFaultTests`.
    @Test func aLineThatIsCutIsNoticedAndUsedAgain() throws {
        let relay = try Relay()
        defer { relay.end() }
        try Sandbox.withServer("a.img", through: relay, options: "timeout=1s") { box, server in
            let ways: [(String, () -> Void)] = [
                ("cut", { relay.cut() }),
                ("silent from there", { relay.hold([.toClient]) }),
                ("silent to there", { relay.hold([.toServer]) }),
            ]
            for (what, happens) in ways {
                happens()
                let began = Date()
                try box.until("\(what): noticed") { try !box.target(server.address).isInStep }
                // The timeout, and what a busy machine needs to say so.
                #expect(Date().timeIntervalSince(began) < 4, "\(what)")
                try box.write(what, to: box.mountPoint + "/a.img", at: 4096)
                relay.mend()
                relay.hold([])
                let mended = Date()
                try box.untilInStep(server.address)
                #expect(Date().timeIntervalSince(mended) < 4, "\(what)")
            }
            try box.settle()
            try server.expectSame()
        }
    }

    // MARK: Who may

    @Test func aServerWithAnotherKeyGetsNothing() throws {
        try Sandbox.with { box in
            let server = try MirrorServer(box)
            try box.ok("init", box.pool)
            try box.ok("create", box.pool, "a.img", "--size", "1M")
            let key = try server.line("server").split(separator: " ")[0]
            try box.ok("pair", "--remove", "server")
            // Nothing is known of it.
            let unknown = try box.run("target", "add", box.pool, server.address)
            #expect(unknown.code == 1, "\(unknown)")
            // Another one is expected there.
            try server.configure("other")
            try box.ok("pair", "--accept", try server.line("other"), "--host", server.place)
            let wrong = try box.run("target", "add", box.pool, server.address)
            #expect(wrong.code == 1)
            #expect(wrong.errors.contains(key), "\(wrong)")
            #expect(try FileManager.default.contentsOfDirectory(atPath: server.root).isEmpty)
            #expect(try box.ok("target", "list", box.pool, "--json").contains("doppel://") == false)
        }
    }

    @Test func whatIsNotAllowedIsRefusedAndWrittenDown() throws {
        try Sandbox.withServer("a.img") { box, server in
            let elsewhere = "doppel://\(server.place)/other"
            let pool = try box.run("target", "add", box.pool, elsewhere)
            #expect(pool.code == 1 && pool.errors.contains("may not replicate"), "\(pool)")
            for name in ["../vms", "vms/../../x", ".hidden", "a//b", ""] {
                let odd = try box.run("target", "add", box.pool, "doppel://\(server.place)/\(name)")
                #expect(odd.code == 2, "\(name): \(odd)")
            }
            let history = try box.run("target", "set", box.pool, server.address, "--history", "1s")
            #expect(history.code == 2, "\(history)")
            // Taken away while it is in use.
            try box.ok("pair", "--config", server.configuration("server"), "--remove", "client")
            try box.until("the session has ended") { try !box.target(server.address).isInStep }
            try box.write("alone", to: box.mountPoint + "/a.img")
            try box.until("the reason is told") {
                try box.target(server.address).reason?.contains("does not take this host's key")
                    ?? false
            }
            try box.until("the server wrote it down") {
                try box.ok("events", "--host", "--config", server.configuration("server"))
                    .contains("not known here")
            }
            try box.ok(
                "pair", "--config", server.configuration("server"), "--accept",
                try server.line("client"), "--pools", "vms")
            try box.untilInStep(server.address)
        }
    }

    /// Several pools of several hosts: each is replicated, none hears of another's end, and who may have one pool of the
    /// server has no other.
    @Test func severalHostsShareAServer() throws {
        try Sandbox.withServer("a.img") { box, server in
            try Sandbox.with { other in
                try server.configure("other")
                other.variables["DOPPEL_CONFIG"] = server.configuration("other")
                try box.ok(
                    "pair", "--config", server.configuration("server"), "--accept",
                    try server.line("other"), "--pools", "db/*")
                try other.ok("pair", "--accept", try server.line("server"), "--host", server.place)
                let second = other.folder + "/two"
                for (pool, name) in [(other.pool, "one"), (second, "two")] {
                    try other.ok("init", pool)
                    let refused = try other.run("target", "add", pool, server.address)
                    #expect(
                        refused.code == 1 && refused.errors.contains("may not replicate"),
                        "\(refused)")
                    try other.ok("create", pool, "b.img", "--size", "1M")
                    try other.ok("target", "add", pool, "doppel://\(server.place)/db/\(name)")
                }
                try other.mount()
                try other.write("theirs", to: other.mountPoint + "/b.img")
                try box.write("ours", to: box.mountPoint + "/a.img")
                try other.settle()
                try box.settle()
                try other.killDaemon()
                try box.write("ours, later", to: box.mountPoint + "/a.img", at: 8192)
                try box.settle()
                #expect(try box.target(server.address).isInStep, "it is not disturbed")
                try other.ok("unmount", "--force", other.mountPoint)
                try other.ok("wait", second, "--timeout", "50s")
                try server.expectSame()
                try server.terminate()
                mkdir(other.look, 0o755)
                try other.ok("mount", server.root + "/db/one", other.look)
                #expect(try other.text(other.look + "/b.img", count: 6) == "theirs")
                try other.lookAway()
            }
        }
    }

    /// Another pool under the same name, and a pool whose mirror was taken away from its address: nothing is touched,
    /// nothing is made anew.
    @Test func anotherPoolUnderTheNameIsRefused() throws {
        try Sandbox.withServer("a.img") { box, server in
            try box.write("mine", to: box.mountPoint + "/a.img")
            try box.settle()
            let second = box.folder + "/second"
            try box.ok("init", second)
            let refused = try box.run("target", "add", second, server.address)
            #expect(refused.code == 1, "\(refused)")
            try server.expectSame()
            try server.terminate()
            #expect(rename(server.mirror, server.root + "/away") == 0)
            try server.start()
            try box.until("it is absent") {
                try box.target(server.address).reason?.contains("not there") ?? false
            }
            #expect(!FileManager.default.fileExists(atPath: server.mirror))
            try server.terminate()
            #expect(rename(server.root + "/away", server.mirror) == 0)
            try server.start()
            try box.untilInStep(server.address)
            try server.expectSame()
        }
    }
}
