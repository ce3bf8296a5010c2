import Foundation
import Glibc
import TestSupport
import Testing

/// A pool and its mirror on two hosts of a network: links that are cut, packets that are lost on one way, a peer that
/// stands still. Each time: what the guest sees, what status shows and when, and that what was promised is there.
@Suite(.serialized, .enabled(if: hasFuse && hasNamespaces, "needs /dev/fuse, root, ip and nsenter"))
struct NetworkFaultTests {
    private let hosts: NamespacePair
    init() throws { hosts = try NamespacePair() }

    private func withPool(
        _ options: String, body: (Sandbox, MirrorServer) throws -> Void
    ) throws {
        defer { hosts.end() }
        try Sandbox.withServer("a.img", across: hosts, options: options, body: body)
    }

    private func seconds(_ body: () throws -> Void) rethrows -> Double {
        let began = Date()
        try body()
        return Date().timeIntervalSince(began)
    }

    private func notices(_ box: Sandbox, _ server: MirrorServer) throws -> Double {
        try seconds {
            try box.until("it is noticed") { try !box.target(server.address).isInStep }
        }
    }
    private func returns(_ box: Sandbox, _ server: MirrorServer) throws -> Double {
        try seconds { try box.untilInStep(server.address) }
    }

    // MARK: The link is cut

    @Test func aLinkIsCutForAMomentForLongAndUntilTheStreamOverflows() throws {
        try withPool("timeout=5s") { box, server in
            try cutForAMoment(box, server)
            try box.ok("target", "set", box.pool, server.address, "--timeout", "400ms")
            try box.untilInStep(server.address)
            try cutForLong(box, server)
            try box.settle()
            try box.ok(
                "target", "set", box.pool, server.address, "--timeout", "60s", "--mode", "async")
            try box.untilInStep(server.address)
            try cutUntilItOverflows(box, server)
            try box.settle()
            try server.expectSame()
        }
    }

    /// For less than the timeout: an fsync takes as long, and that is all there is to see.
    private func cutForAMoment(_ box: Sandbox, _ server: MirrorServer) throws {
        try hosts.cut()
        let writer = try BackgroundShell(
            "printf short | dd of='\(box.mountPoint)/a.img' bs=4096 conv=notrunc,fsync 2>/dev/null"
        )
        sleep(1)
        #expect(writer.isRunning, "an fsync returned without the mirror")
        try hosts.mend()
        let waited = try seconds {
            let code = try writer.wait()
            #expect(code == 0)
        }
        print("1 s: the fsync returned \(waited) s after the link")
        #expect(waited < 4)
        #expect(try box.target(server.address).staleSinceNs == nil)
        #expect(try !box.events().contains { $0.kind == "target-degraded" }, "it was left behind")
    }

    /// For six times the timeout: the guest waits for that once, and goes on; what is missing is shown, and follows.
    private func cutForLong(_ box: Sandbox, _ server: MirrorServer) throws {
        let image = box.mountPoint + "/a.img"
        // It is waited for only when it was in step for a while.
        try box.until("flush is in force") {
            try box.target(server.address).modeInForce == "flush"
        }
        let began = Date()
        try hosts.cut()
        let waited = try seconds { try box.write("first", to: image) }
        let noticed = try notices(box, server) + waited
        #expect(waited >= 0.3 && noticed < 3, "\(waited), \(noticed)")
        let later = try seconds { try box.write("second", to: image, at: 1 << 20) }
        #expect(later < 2, "who comes later does not wait")
        let status = try box.run("status", box.pool)
        #expect(status.code == 4 && status.output.contains("behind since"), "\(status)")
        let target = try box.target(server.address)
        #expect(target.modeInForce == "async" && target.staleSinceNs != nil)
        #expect(target.atRiskBytes >= 2 * 4096)
        while Date().timeIntervalSince(began) < 2.4 { usleep(20_000) }
        #expect(
            try box.target(server.address).reason?.contains("cannot be reached") ?? false,
            "\(target.reason ?? "")")
        try hosts.mend()
        let back = try returns(box, server)
        print("2.4 s, timeout 0.4 s: an fsync took \(waited) s, in step again after \(back) s")
        // Two seconds, and what a busy machine needs to say so.
        #expect(back < 4)
        #expect(try box.events().contains { $0.kind == "target-degraded" })
    }

    /// Until what the mirror lacks does not fit into the memory for it: then that is tracked, and the guest goes on.
    private func cutUntilItOverflows(_ box: Sandbox, _ server: MirrorServer) throws {
        let some = try box.makeFile("some", count: 8 << 20)
        try hosts.cut()
        // 80 MiB, and the stream holds 64.
        let writing = try seconds {
            let outcome = try box.shell(
                "for n in 1 2 3 4 5 6 7 8 9 10; do "
                    + "dd if='\(some)' of='\(box.mountPoint)/a.img' bs=1M conv=notrunc 2>/dev/null; done"
            )
            #expect(outcome.code == 0, "\(outcome)")
        }
        // Long before the timeout.
        let noticed = try notices(box, server)
        let target = try box.target(server.address)
        #expect(target.reason?.contains("write stream") ?? false, "\(target.reason ?? "")")
        // The image as it is, and not what was written to it.
        #expect(target.atRiskBytes >= 8 << 20 && target.atRiskBytes < 64 << 20)
        try box.write("after", to: box.mountPoint + "/a.img")
        let before = target.resyncedBytes
        try hosts.mend()
        let back = try returns(box, server)
        print("80 MiB in \(writing) s, told \(noticed) s later, in step again after \(back) s")
        #expect(try box.target(server.address).resyncedBytes >= before + 8 << 20)
    }

    // MARK: Packets

    /// Neither end is told: who hears nothing any more, or is not heard, notices it by that. What returned in sync
    /// before is on the other host, also when nothing else ever gets there.
    @Test func packetsOfOneDirectionAreLost() throws {
        try withPool("timeout=500ms,mode=sync") { box, server in
            let image = box.mountPoint + "/a.img"
            func untilSync() throws {
                try box.until("sync is in force", seconds: 40) {
                    try box.target(server.address).modeInForce == "sync"
                }
            }
            func lose(from host: NamespacePair.Host) throws {
                try hosts.drop(from: host)
                let waited = try seconds { try box.write("from the \(host)", to: image) }
                let noticed = try notices(box, server) + waited
                #expect(waited >= 0.3 && noticed < 3, "\(waited), \(noticed)")
                let target = try box.target(server.address)
                #expect(target.modeInForce == "async" && target.atRiskBytes >= 4096)
                print("from the \(host): a write took \(waited) s")
            }
            try untilSync()
            try lose(from: .standby)
            try hosts.deliver(from: .standby)
            let back = try returns(box, server)
            print("in step again after \(back) s")
            #expect(back < 4)
            try untilSync()
            let file = try TestFile(image, O_RDWR)
            try file.write(Array("promised".utf8), at: 8192)
            try lose(from: .primary)
            try box.killDaemon()
            #expect(try server.terminate() == 0)
            mkdir(box.look, 0o755)
            try box.ok("mount", server.mirror, box.look)
            #expect(try box.text(box.look + "/a.img", count: 16) == "from the standby")
            #expect(try box.text(box.look + "/a.img", count: 8, at: 8192) == "promised")
        }
    }

    // MARK: The peer

    /// A server that stands still is noticed within the timeout, and so is that it goes on.
    @Test func aServerThatStandsStillIsLeftBehind() throws {
        try withPool("mode=sync,timeout=700ms") { box, server in
            try box.until("sync is in force") {
                try box.target(server.address).modeInForce == "sync"
            }
            server.signal(SIGSTOP)
            let waited = try seconds { try box.write("meanwhile", to: box.mountPoint + "/a.img") }
            #expect(waited >= 0.5 && waited < 4)
            let target = try box.target(server.address)
            #expect(target.modeInForce == "async")
            #expect(target.atRiskBytes >= 4096)
            server.signal(SIGCONT)
            let back = try returns(box, server)
            print("stopped: went on after \(waited) s; continued: in step again after \(back) s")
            try box.until("it counts again", seconds: 40) {
                try box.target(server.address).modeInForce == "sync"
            }
        }
    }

    /// A primary that stands still is replaced meanwhile. When it goes on it is refused, and its guest hears of that: what
    /// it was just about to write is nowhere but in it.
    @Test func aPrimaryThatStandsStillAndIsReplacedIsFenced() throws {
        try withPool("mode=sync,timeout=700ms") { box, server in
            let image = box.mountPoint + "/a.img"
            try server.allow("admin")
            try box.untilInStep(server.address)
            try box.write("before", to: image)
            let daemon = try box.daemon()
            kill(daemon, SIGSTOP)
            defer { kill(daemon, SIGCONT) }
            let writer = try BackgroundShell(
                "printf late | dd of='\(image)' bs=4096 seek=1 conv=notrunc,fsync 2>/dev/null")
            try box.ok("failover", "--to", server.address, "--forced", "--yes")
            mkdir(box.look, 0o755)
            try box.ok("mount", server.mirror, box.look)
            #expect(try box.text(box.look + "/a.img", count: 6) == "before")
            try box.write("after", to: box.look + "/a.img")
            kill(daemon, SIGCONT)
            let heard = try seconds {
                try box.until("it is fenced") { try box.status().replica?.role == "fenced" }
            }
            print("a primary that was replaced hears of it after \(heard) s")
            _ = try writer.wait()
            #expect(box.writeError(image) == EROFS)
            #expect(try box.text(box.look + "/a.img", count: 5) == "after")
            #expect(try box.text(box.look + "/a.img", count: 4, at: 4096) == "\0\0\0\0")
        }
    }
}
