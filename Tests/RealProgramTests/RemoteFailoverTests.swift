import Foundation
import Glibc
import SystemIO
import TestSupport
import Testing

/// A pool's role goes to its mirror behind a server, planned and forced; whoever dies when, there is one primary.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RemoteFailoverTests {
    private struct Seen: Decodable {
        struct Replica: Decodable { var role: String }
        var generation: UInt64
        var mountPoint: String?
        var replica: Replica
    }

    private func seen(_ box: Sandbox, _ place: String) throws -> Seen {
        // A new primary lacks its old one: it is degraded.
        let outcome = try box.run("status", place, "--json")
        guard [0, 4].contains(outcome.code) else { throw Unexpected("\(outcome)") }
        return try #require(try box.json(outcome.output, [Seen].self).first)
    }

    // MARK: Planned

    @Test func aMountedPoolIsHandedOverWhileItIsWritten() throws {
        try Sandbox.withServer("a.img") { box, server in
            let writer = try NumberWriter(box, "a.img")
            defer { writer.kill() }
            // Not by somebody who may only replicate: and nothing changes.
            let refused = try box.run(
                "failover", box.pool, "--to", server.address, "--planned", "--timeout", "30s")
            #expect(refused.code == 1 && refused.errors.contains("'admin'"), "\(refused)")
            #expect(writer.isRunning)
            try server.allow("admin")
            try box.untilInStep(server.address)
            let outcome = try box.json(
                box.ok("failover", box.pool, "--to", server.address, "--planned", "--json"),
                HandoverLine.self)
            #expect(outcome.generation == 2 && outcome.to == server.address)
            #expect(outcome.pauseMs >= 0 && outcome.pauseMs < 20_000)
            try box.until("the writer hears of it") { !writer.isRunning }
            #expect(box.writeError(box.mountPoint + "/a.img") == EROFS)
            #expect(try seen(box, server.address).replica.role == "primary")
            // The server has let go of it.
            mkdir(box.look, 0o755)
            try box.ok("mount", server.mirror, box.look)
            try writer.expectLast(in: box.look)
            try box.write("of the new one", to: box.look + "/a.img", at: 3 << 20)
            let mounted = try seen(box, server.address)
            #expect(mounted.mountPoint == box.look && mounted.generation == 2)
            try box.lookAway()
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            #expect(try box.status().replica?.role == "replica")
        }
    }

    /// From the other side: the primary's host serves the pool that it has mounted, and is asked to give it up.
    @Test func aPrimaryIsAskedToGiveUpItsRole() throws {
        try Sandbox.withServer("a.img") { box, server in
            try server.allow("admin")
            try box.write("first", to: box.mountPoint + "/a.img")
            let pools = box.folder + "/own"
            mkdir(pools, 0o700)
            try #require(symlink(box.pool, pools + "/vms") == 0)
            let own = try MirrorServer(box, root: pools, isEncrypted: false)
            defer { own.kill() }
            #expect(try seen(box, own.address).replica.role == "primary")
            try box.ok("failover", own.address, "--to", server.address, "--planned")
            #expect(box.writeError(box.mountPoint + "/a.img") == EROFS)
            #expect(try seen(box, server.address).replica.role == "primary")
        }
    }

    /// SIGKILL of the primary, or of the server, at each step of the order; then whoever is the primary goes on.
    private static let kills: [(step: String, isServer: Bool)] =
        getenv("DOPPEL_SOAK") == nil
        ? [("promoted", false), ("noted", true)]
        : ["held", "drained", "noted", "promoted", "fenced", "settled", "demoted"]
            .flatMap { [($0, false), ($0, true)] }

    @Test(arguments: kills)
    func aHandoverThatIsKilledLeavesOnePrimary(_ kill: (step: String, isServer: Bool)) throws {
        let (step, isServer) = kill
        try Sandbox.with { box in
            let server = try MirrorServer(box)
            defer { server.kill() }
            try server.allow("admin")
            let file = try box.makeReplicated(to: server.address, count: 3 << 20)
            try box.ok("create", box.pool, "late.img", "--size", "1M")
            let pid = try #require(server.pid)
            let died = try box.execute(
                [Sandbox.products + "/HandoverFixture", box.pool, server.address, step]
                    + (isServer ? ["\(pid)"] : []), input: "/dev/null")
            #expect(died.code != 0 || step == "demoted", "\(died)")
            if isServer {
                server.kill()
                // Nobody can be asked: nothing is changed before.
                if !["held", "demoted"].contains(step) {
                    let unknown = try box.run("create", box.pool, "x.img", "--size", "1M")
                    #expect(unknown.code == 1 && unknown.errors.contains("target resolve"))
                }
                try server.start()
            }
            let isOver = ["promoted", "fenced", "settled", "demoted"].contains(step)
            let expected = isOver ? server.mirror : box.pool
            #expect(
                try box.primaries(creating: "after.img", mirror: server.mirror) == [expected],
                "killed when \(step)")
            if !isOver { try box.ok("wait", box.pool, "--timeout", "50s") }
            let (one, other) = (
                try box.content(of: box.pool), try box.content(of: server.mirror)
            )
            let all = ["a.img", "after.img", "late.img"]
            #expect(other.keys.sorted() == all)
            #expect(one.keys.sorted() == (isOver ? ["a.img", "late.img"] : all))
            #expect(try one["a.img"] == box.bytes(file) && one["a.img"] == other["a.img"])
        }
    }

    /// A server whose disk hangs lives, and its line too: who is held because of it is not held for ever.
    @Test func aHandoverToADiskThatHangsEnds() throws {
        try LossyMount.with { lossy in
            try Sandbox.with { box in
                let server = try MirrorServer(
                    box, root: lossy.file("served"), isEncrypted: false)
                defer {
                    try? lossy.tell("go")
                    server.kill()
                }
                let file = try box.makeReplicated(to: server.address, count: 1 << 20)
                let words = [
                    Sandbox.products + "/HandoverFixture", box.pool, server.address, "noted",
                    lossy.file(".lossy"),
                ]
                let done = try box.execute(words, input: "/dev/null", limitSeconds: 40)
                #expect(done.code == 1, "\(done)")
                #expect(done.output.contains("does not say whether it took over"), "\(done)")
                try lossy.tell("go")
                // It is asked now, and says: one of the two is the primary.
                let primaries = try box.primaries(creating: "after.img", mirror: server.mirror)
                #expect(primaries.count == 1, "\(primaries)")
                #expect(try box.content(of: primaries.first ?? "")["a.img"] == box.bytes(file))
            }
        }
    }

    /// A run that ends finishes what came, a promotion too: the next one is not asked for it meanwhile.
    @Test func theNextServerWaitsForTheOneBefore() throws {
        try Sandbox.with { box in
            let server = try MirrorServer(box, isEncrypted: false)
            defer { server.kill() }
            let log = box.folder + "/next.log"
            let next = try BackgroundShell(
                "exec \"$1\" serve \"$2\" --without-keys --listen 127.0.0.1:0 2>\"$3\"",
                [Sandbox.binary, server.root, log])
            defer { next.kill() }
            try box.until("the next one waits") {
                box.read(log).contains("process \(server.pid ?? 0)): it is waited for")
            }
            #expect(!box.read(log).contains(" at 127.0.0.1:"))
            #expect(try server.terminate() == 0)
            try box.until("the next one listens") { box.read(log).contains(" at 127.0.0.1:") }
        }
    }

    /// What came before the end is done after it, and the folder is nobody else's meanwhile.
    @Test func aServerThatEndsHasItsFolderUntilAllIsDone() throws {
        try LossyMount.with { lossy in
            try Sandbox.with { box in
                let root = lossy.file("served")
                let server = try MirrorServer(box, root: root, isEncrypted: false)
                defer { server.kill() }
                try box.ok("init", box.pool)
                try box.ok("create", box.pool, "a.img", "--size", "1M")
                try box.mount("--mirror", server.address + ",mode=sync,timeout=3s")
                try box.untilInStep(server.address)
                try lossy.tell("hang")
                defer { try? lossy.tell("go") }
                // It is given to the server, which cannot write it: whoever waits for that is let go in the end.
                try box.write("received", to: box.mountPoint + "/a.img")
                try box.killDaemon()
                let pid = try #require(server.pid)
                server.signal(SIGTERM)
                let port = try #require(server.place.split(separator: ":").last)
                try box.until("it listens no more") {
                    try box.run(
                        "-c", ": </dev/tcp/127.0.0.1/\(port)", as: "/bin/bash"
                    ).code != 0
                }
                #expect(try LinuxDisk().tryLockDirectory(root) == nil)
                #expect(LinuxDisk().lockHolders(ofDirectory: root) == [pid])
                try lossy.tell("go")
                #expect(try server.terminate() == 0, "\(server.words)")
                let free = try #require(try LinuxDisk().tryLockDirectory(root))
                free.release()
                mkdir(box.look, 0o755)
                try box.ok("mount", server.mirror, box.look)
                #expect(try box.text(box.look + "/a.img", count: 8) == "received")
            }
        }
    }

    // MARK: Forced

    @Test func aMirrorIsPromotedWhileItsPrimaryIsConnected() throws {
        try Sandbox.withServer("a.img") { box, server in
            try box.write("first", to: box.mountPoint + "/a.img", at: 1 << 20)
            try box.settle()
            let refused = try box.run("failover", "--to", server.address, "--forced", "--yes")
            #expect(refused.code == 1 && refused.errors.contains("'admin'"), "\(refused)")
            try server.allow("admin")
            try box.untilInStep(server.address)
            let preview = try box.json(
                box.ok("failover", "--to", server.address, "--forced", "--dry-run", "--json"),
                PromotionLine.self)
            #expect(!preview.isPromoted && preview.loss.knowledge == "unknown")
            #expect(preview.path == server.address && preview.generation == 2)
            let unsure = try box.run("promote", server.address)
            #expect(unsure.code == 1 && unsure.errors.contains("is connected"), "\(unsure)")
            // Nobody heard of that.
            #expect(try box.target(server.address).isInStep)
            #expect(box.writeError(box.mountPoint + "/a.img") == 0)
            let done = try box.json(
                box.ok("failover", "--to", server.address, "--forced", "--yes", "--json"),
                PromotionLine.self)
            #expect(done.isPromoted && done.generation == 2)
            // It comes again, and is fenced.
            try box.until("the old primary is fenced") {
                try box.status().replica?.role == "fenced"
            }
            #expect(box.writeError(box.mountPoint + "/a.img") == EROFS)
            mkdir(box.look, 0o755)
            try box.ok("mount", server.mirror, box.look)
            #expect(try box.text(box.look + "/a.img", count: 5, at: 1 << 20) == "first")
            try box.lookAway()
            // Once more is once too often.
            let again = try box.run("promote", server.address, "--force")
            #expect(again.code == 1, "\(again)")
            // The old one follows, and says so.
            try box.ok("unmount", box.mountPoint)
            try box.ok("demote", box.pool)
            try box.mount()
            #expect(try box.status().replica?.role == "replica")
        }
    }

    @Test func aPrimaryThatIsGoneIsReplaced() throws {
        try Sandbox.withServer("a.img") { box, server in
            try server.allow("admin")
            try box.write("first", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.killDaemon()
            try box.until("the server has noticed") {
                try box.json(box.ok("status", server.address, "--json"), [Connection].self)
                    .first?.replica.isConnected == nil
            }
            try box.ok("promote", server.address, "--force")
            #expect(try seen(box, server.address).replica.role == "primary")
            // It does not know yet, and hears it when it connects.
            try box.mount()
            try box.until("the old primary is fenced") {
                try box.status().replica?.role == "fenced"
            }
        }
    }
    private struct Connection: Decodable {
        struct Replica: Decodable { var isConnected: Bool? }
        var replica: Replica
    }
}
