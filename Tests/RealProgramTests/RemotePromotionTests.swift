import Foundation
import Glibc
import TestSupport
import Testing

/// A mirror behind a server is made the primary, and the server is killed in the middle of that, or what it answers is
/// lost: it is done once, or not at all, and whoever asked finds out.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RemotePromotionTests {
    private struct Seen: Decodable {
        struct Replica: Decodable { var role: String }
        var generation: UInt64
        var replica: Replica
    }
    private struct Handover: Decodable { var generation: UInt64 }

    private func seen(_ box: Sandbox, _ place: String) throws -> Seen {
        let outcome = try box.run("status", place, "--json")
        guard [0, 4].contains(outcome.code) else { throw Unexpected("\(outcome)") }
        return try #require(try box.json(outcome.output, [Seen].self).first)
    }

    /// No while the server has it open.
    private func isPrimary(_ box: Sandbox, _ path: String) throws -> Bool {
        let outcome = try box.run("status", path, "--json")
        guard [0, 4].contains(outcome.code) else { return false }
        return try box.json(outcome.output, [Seen].self).first?.replica.role == "primary"
    }

    private func promotions(_ path: String, _ box: Sandbox) throws -> Int {
        try box.json(box.ok("events", path, "--json"), [EventLine].self)
            .filter { $0.kind == "promoted" }.count
    }

    private func contents(_ path: String, _ box: Sandbox) throws -> [String: Data] {
        mkdir(box.look, 0o755)
        try box.ok("mount", path, box.look, "--read-only")
        defer { _ = try? box.run("unmount", box.look) }
        var result: [String: Data] = [:]
        for name in try names(in: box.look) { result[name] = try box.bytes(box.look + "/" + name) }
        return result
    }

    /// A verb that goes on beside the test.
    private func begin(_ box: Sandbox, _ log: String, _ words: [String]) throws -> BackgroundShell {
        let script =
            "log=\"$1\" DOPPEL_CONFIG=\"$2\" && export DOPPEL_CONFIG && shift 2 "
            + "&& exec \"$@\" >\"$log\" 2>&1 </dev/null"
        return try BackgroundShell(
            script, [log, box.variables["DOPPEL_CONFIG"] ?? "", Sandbox.binary] + words)
    }

    // MARK: Killed

    /// A pool and its mirror, which the server has on the lossy disk, as they are before each round.
    private final class Scene {
        let box: Sandbox
        let lossy: LossyMount
        let server: MirrorServer
        let expected: [String: Data]
        private var kept: String { box.folder + "/kept" }

        init(_ box: Sandbox, _ lossy: LossyMount) throws {
            (self.box, self.lossy) = (box, lossy)
            server = try MirrorServer(box, root: lossy.file("served"))
            try server.allow("admin")
            let file = try box.makeReplicated(to: server.address, count: 1 << 20)
            try box.ok("create", box.pool, "late.img", "--size", "64k")
            try box.ok("wait", box.pool, "--timeout", "50s")
            expected = try ["a.img": box.bytes(file), "late.img": Data(count: 64 << 10)]
            try server.terminate()
            mkdir(kept, 0o700)
            let copied = try box.shell(
                "cp -a '\(box.pool)' '\(kept)/pool' && cp -a '\(server.mirror)' '\(kept)/vms'")
            guard copied.code == 0 else { throw Unexpected("\(copied)") }
        }

        /// All of it durable, and the server runs.
        func begin() throws {
            try server.terminate()
            let copied = try box.shell(
                """
                rm -rf '\(box.pool)' '\(server.mirror)' && cp -a '\(kept)/pool' '\(box.pool)' \
                && cp -a '\(kept)/vms' '\(server.root)/' && find '\(lossy.path)' -type f -exec sync {} + \
                && find '\(lossy.path)' -type d -exec sync {} +
                """)
            guard copied.code == 0 else { throw Unexpected("\(copied)") }
            try server.start()
        }

        /// Its disk hangs, and the server is killed there. What is left is all that it did, or with `power` what was
        /// synced, and some of the rest.
        func kill(power: String?) throws {
            server.signal(SIGKILL)
            if power != nil { try lossy.tell("off 0") }
            try lossy.tell("go")
            server.kill()
            if let power { try lossy.tell(power) }
        }
    }

    private func with(
        _ seed: UInt64, _ body: (Scene, inout SeededRandom) throws -> Void
    ) throws {
        print("seed \(seed)")
        var random = SeededRandom(seed: seed)
        try LossyMount.with { lossy in
            try Sandbox.with { box in
                let scene = try Scene(box, lossy)
                defer {
                    try? lossy.tell("go")
                    scene.server.kill()
                }
                try body(scene, &random)
            }
        }
    }

    private static let rounds = getenv("DOPPEL_SOAK") == nil ? 2 : 80

    /// Begins the verb; the server's disk hangs at a sync of it.
    /// - Parameter count: of the syncs that it takes when nothing happens.
    private func cutOff(
        _ scene: Scene, _ words: [String], _ count: Int, _ random: inout SeededRandom
    ) throws -> (verb: BackgroundShell, wasKilled: Bool) {
        try scene.begin()
        // Most of what changes a role is in the second half.
        let first = random.chance(75) ? count / 2 : 0
        try scene.lossy.tell("hang \(first + random.below(count - first))")
        let verb = try begin(scene.box, scene.box.folder + "/verb.log", words)
        var hangs = false
        try scene.box.until("its disk hangs, or it is done", seconds: 40) {
            hangs = try scene.lossy.standing().hangs
            return hangs || !verb.isRunning
        }
        guard hangs else {
            // It took fewer syncs than the one before; where it was to hang lies behind its end.
            try scene.lossy.tell("go")
            return (verb, false)
        }
        let power = [nil, "drop", "drop \(random.next())"][random.below(3)]
        try scene.kill(power: power)
        return (verb, true)
    }

    private func countSyncs(_ scene: Scene, _ words: [String]) throws -> Int {
        try scene.begin()
        let before = try scene.lossy.standing().syncs
        let done = try scene.box.execute([Sandbox.binary] + words, input: "/dev/null")
        guard done.code == 0 else { throw Unexpected("\(words): \(done)") }
        try scene.server.terminate()
        return try scene.lossy.standing().syncs - before
    }

    @Test(arguments: Seeds.run(1)) func aPromotionThatIsKilledIsWholeOrNotBegun(seed: UInt64) throws
    {
        try with(seed) { scene, random in
            let (box, server) = (scene.box, scene.server)
            let words = ["promote", server.address, "--force"]
            let count = try countSyncs(scene, words)
            for round in 1...Self.rounds {
                let place = "seed \(seed), round \(round)"
                let (verb, wasKilled) = try cutOff(scene, words, count, &random)
                #expect(try (verb.wait() == 0) == !wasKilled, "\(place)")
                if wasKilled { try server.start() }
                let found = try seen(box, server.address)
                let isWhole = found.replica.role == "primary"
                #expect(found.generation == (isWhole ? 2 : 1), "\(place): \(found)")
                #expect(isWhole || wasKilled, "\(place)")
                let again = try box.run("promote", server.address, "--force")
                // Of one that is whole it is said.
                #expect(again.code == (isWhole ? 1 : 0), "\(place): \(again)")
                let after = try seen(box, server.address)
                #expect(after.replica.role == "primary" && after.generation == 2, "\(place)")
                try server.terminate()
                #expect(try promotions(server.mirror, box) == 1, "\(place)")
                #expect(try contents(server.mirror, box) == scene.expected, "\(place)")
                try box.ok("create", server.mirror, "after.img", "--size", "64k")
            }
        }
    }

    /// The primary asks the next run of the server how it ended, while whoever wants to change something is held.
    @Test(arguments: Seeds.run(1)) func aHandoverWhoseServerIsKilledIsWholeOrNotBegun(
        seed: UInt64
    ) throws {
        try with(seed) { scene, random in
            let (box, server) = (scene.box, scene.server)
            let words = ["failover", box.pool, "--to", server.address, "--planned"]
            let count = try countSyncs(scene, words)
            for round in 1...Self.rounds {
                let place = "seed \(seed), round \(round)"
                let (verb, wasKilled) = try cutOff(scene, words, count, &random)
                if wasKilled { try server.start() }
                let code = try verb.wait()
                let said = box.read(box.folder + "/verb.log")
                let isOver = try seen(box, server.address).replica.role == "primary"
                #expect((code == 0) == isOver, "\(place): \(said)")
                try server.terminate()
                // Each is asked for a change; one takes it.
                let takers = try [box.pool, server.mirror].filter {
                    try box.run("create", $0, "after.img", "--size", "64k").code == 0
                }
                #expect(takers == [isOver ? server.mirror : box.pool], "\(place): \(said)")
                if !isOver {
                    try server.start()
                    try box.ok("wait", box.pool, "--timeout", "50s")
                    try server.terminate()
                }
                var expected = scene.expected
                expected["after.img"] = Data(count: 64 << 10)
                #expect(try contents(server.mirror, box) == expected, "\(place)")
                #expect(try promotions(server.mirror, box) == (isOver ? 1 : 0), "\(place)")
                if !isOver { #expect(try contents(box.pool, box) == expected, "\(place)") }
            }
        }
    }

    // MARK: The answer is lost

    /// A planned handover, up to where the server did it and its answer is held back.
    private func handOverUnheard(
        _ box: Sandbox, _ server: MirrorServer, _ relay: Relay, _ options: [String]
    ) throws -> (verb: BackgroundShell, log: String) {
        let log = box.folder + "/verb.log"
        try box.write("before", to: box.mountPoint + "/a.img")
        relay.holdAnswers(to: "\"generationID\"")
        let verb = try begin(
            box, log, ["failover", box.pool, "--to", server.address, "--planned"] + options)
        try box.until("the server did it") {
            try relay.isHolding && isPrimary(box, server.mirror)
        }
        return (verb, log)
    }

    /// The server did it, and the line broke before it could say so: the primary asks, and hears that it was done.
    @Test func aHandoverWhoseAnswerIsLostIsDoneOnce() throws {
        let relay = try Relay()
        defer { relay.end() }
        try Sandbox.withServer("a.img", isEncrypted: false, through: relay) { box, server in
            let (verb, log) = try handOverUnheard(box, server, relay, ["--json"])
            // The old one does not know yet: nobody is answered by it, and nobody hears an error.
            let writer = try BackgroundShell(
                "exec dd if=/dev/zero of=\"$1\" bs=4k count=1 conv=notrunc,fsync 2>/dev/null",
                [box.mountPoint + "/a.img"])
            defer { writer.kill() }
            #expect(verb.isRunning)
            relay.dropConnections()
            #expect(try verb.wait() == 0, "\(box.read(log))")
            #expect(try box.json(box.read(log), Handover.self).generation == 2)
            #expect(try writer.wait() != 0, "it was written by who is no primary any more")
            try isHandedOver(box, server)
        }
    }

    /// The same, and the line stays away for longer than anybody waits: the pool takes nothing, and says what to do.
    @Test func aHandoverThatNobodyHearsTheEndOfIsFoundOutLater() throws {
        let relay = try Relay()
        defer { relay.end() }
        try Sandbox.withServer("a.img", isEncrypted: false, through: relay) { box, server in
            let (verb, log) = try handOverUnheard(box, server, relay, ["--timeout", "1s"])
            relay.cut()
            #expect(try verb.wait() == 1)
            #expect(box.read(log).contains("does not say whether it took over"), "\(box.read(log))")
            #expect(box.writeError(box.mountPoint + "/a.img") == EROFS)
            let again = try box.run(
                "failover", box.pool, "--to", server.address, "--planned", "--timeout", "1s")
            #expect(again.code == 1, "\(again)")
            relay.hold([])
            relay.mend()
            try isHandedOver(box, server)
        }
    }

    private func isHandedOver(_ box: Sandbox, _ server: MirrorServer) throws {
        #expect(box.writeError(box.mountPoint + "/a.img") == EROFS)
        try box.ok("unmount", box.mountPoint)
        try box.mount()
        let old = try box.status()
        #expect(old.replica?.role == "replica")
        try box.ok("unmount", box.mountPoint)
        try server.terminate()
        #expect(try promotions(server.mirror, box) == 1)
        #expect(try promotions(box.pool, box) == 0)
        #expect(try seen(box, server.mirror).generation == 2)
        let one = try contents(box.pool, box)
        #expect(one["a.img"]?.prefix(6) == Data("before".utf8))
        #expect(try contents(server.mirror, box) == one)
    }

    /// A person asks for it, and does not hear that it was done.
    @Test(arguments: [true, false]) func aPromotionWhoseAnswerIsLostIsDoneOnce(isMended: Bool)
        throws
    {
        let relay = try Relay()
        defer { relay.end() }
        try Sandbox.withServer("a.img", isEncrypted: false, through: relay) { box, server in
            let log = box.folder + "/verb.log"
            try box.write("before", to: box.mountPoint + "/a.img")
            try box.settle()
            try box.killDaemon()
            relay.holdAnswers(to: "\"generationID\"")
            let verb = try begin(box, log, ["promote", server.address, "--force"])
            try box.until("the server did it") {
                try relay.isHolding && isPrimary(box, server.mirror)
            }
            #expect(verb.isRunning)
            if isMended { relay.dropConnections() } else { relay.cut() }
            #expect(try verb.wait() == (isMended ? 0 : 1), "\(box.read(log))")
            relay.hold([])
            relay.mend()
            let again = try box.run("promote", server.address, "--force")
            #expect(again.code == 1, "\(again)")
            #expect(again.errors.contains("is a primary, of generation 2"), "\(again)")
            let found = try seen(box, server.address)
            #expect(found.replica.role == "primary" && found.generation == 2)
            try server.terminate()
            #expect(try promotions(server.mirror, box) == 1)
            #expect(
                try contents(server.mirror, box)["a.img"]?.prefix(6) == Data("before".utf8))
        }
    }
}
