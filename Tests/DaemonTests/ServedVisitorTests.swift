import BlockCore
import Foundation
import Identity
import Pool
import Replication
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// What a server does with a pool's role for somebody who is allowed to ask for that.
@Suite struct ServedVisitorTests {
    private typealias Pools = (own: String, primary: String)

    /// A mirror `vms` below a folder that is served, at a checkpoint, with nobody connected.
    private func withMirror(
        _ body: (_ pools: ServedPools, _ path: String, Pools, UInt64) throws -> Void
    ) throws {
        let folder = try makeTemporaryFolder(in: TestFolders.quick)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let (pool, root) = (folder + "/pool", folder + "/root")
        try PoolStore.initialize(path: pool, disk: LinuxDisk())
        try LinuxDisk().createDirectory(root, mode: 0o700)
        var options = PoolSession.Options()
        options.connectsTargets = true
        let session = try PoolSession(path: pool, options: options)
        for request in [
            ControlRequest(.create) {
                $0.path = "a.img"
                $0.sizeBytes = 1 << 20
            },
            ControlRequest(.targetAdd) {
                $0.target = TargetSpecification(address: root + "/vms")
            },
            ControlRequest(.wait) { $0.timeoutMs = 50_000 },
        ] { if let error = session.execute(request).error { throw error } }
        let sequence = session.volume.sequence.rawValue
        try session.close()
        let pools = ServedPools(root: root, historyMs: 0, mostPools: 4)
        defer { pools.close() }
        let sight = try #require(PoolSight.look(at: root + "/vms", disk: LinuxDisk()))
        try body(pools, root + "/vms", (sight.poolID, sight.primaryPoolID ?? ""), sequence)
    }

    private func ask(
        _ pools: ServedPools, _ request: ControlRequest, right: Right = .admin,
        of name: String = "vms"
    ) throws -> ControlReply {
        let visitor = try ServedVisitor(name, pools) { $0 <= right }
        defer { visitor.end() }
        guard case .answered(let text) = try visitor.answer(.control(JSONLine.encode(request)))
        else { throw Unexpected("no answer") }
        return try JSONLine.decode(ControlReply.self, text)
    }

    private func promotion(_ generation: String, _ pool: Pools, _ sequence: UInt64)
        -> ControlRequest
    {
        ControlRequest(.promote) {
            $0.generationID = generation
            $0.poolID = pool.own
            $0.primaryPoolID = pool.primary
            $0.sequence = sequence
        }
    }

    @Test func aHandoverThatWasCalledOffIsNeverCarriedOut() throws {
        try withMirror { pools, path, id, sequence in
            func isReplica() -> Bool {
                PoolSight.look(at: path, disk: LinuxDisk())?.isReplica ?? false
            }
            let outcome = ControlRequest(.handoverOutcome) {
                $0.generationID = "one"
                $0.poolID = id.own
            }
            // Whoever asks is told that it was not done; what stalled on the line comes after that.
            let asked = try ask(pools, outcome)
            #expect(asked.result?.sight?.sight.isReplica == true)
            let late = try ask(pools, promotion("one", id, sequence))
            #expect(late.error?.message.contains("called off") == true, "\(late)")
            #expect(isReplica())
            // Another attempt is another generation.
            let done = try ask(pools, promotion("two", id, sequence))
            #expect(done.result?.sight?.sight.history.current?.id == "two", "\(done)")
            #expect(!isReplica())
            let after = try ask(pools, ControlRequest(.handoverOutcome) { $0.generationID = "two" })
            #expect(after.result?.sight?.sight.began("two") == true)
            // The server holds nothing of it.
            try PoolSession(path: path).close()
        }
    }

    /// Whoever holds it may be about to carry it out.
    @Test func ofAPoolThatAnotherProcessHoldsNothingIsSaid() throws {
        try withMirror { pools, path, id, sequence in
            let outcome = ControlRequest(.handoverOutcome) {
                $0.generationID = "one"
                $0.poolID = id.own
            }
            let other = try PoolStore.open(path: path, disk: LinuxDisk())
            let asked = try ask(pools, outcome)
            #expect(asked.error?.exitCode == ExitKind.inUse.rawValue, "\(asked)")
            // Its file says so before it is done: power may go in between.
            var ahead = try other.catalog.read { try PoolSight($0) }
            ahead.isReplica = false
            ahead.history = GenerationHistory([
                .init(
                    generation: Generation(
                        number: 2, id: "one", parentID: nil, startSequence: .zero),
                    poolID: id.own, begunNs: 0, cause: .planned)
            ])
            try ahead.write(to: path, disk: LinuxDisk())
            let opening = TestThread { () -> Void in
                Pause.microseconds(200_000)
                try other.writeRole()
                try other.close(clean: true, lastSequence: .zero)
            }
            let free = try ask(pools, outcome)
            try opening.join()
            #expect(free.result?.sight?.sight.began("one") == false, "\(free)")
            let late = try ask(pools, promotion("one", id, sequence))
            #expect(late.error?.message.contains("called off") == true, "\(late)")
        }
    }

    /// Those that are in use stay; one that nobody uses makes way.
    @Test func morePoolsThanMayBeAreRefused() throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let pools = ServedPools(root: folder, historyMs: 0, mostPools: 2)
        defer { pools.close() }
        _ = try pools.find("idle")
        let isTaken = try pools.find("one").replica.inTurn {
            try pools.find("two").replica.inTurn {
                let refused = #expect(throws: TargetError.self) { _ = try pools.find("three") }
                #expect(refused?.kind == .absent)
                #expect(refused?.message.contains("as many as may be") == true)
                _ = try pools.find("one")
                pools.change(mostPools: 3)
                _ = try pools.find("three")
                return true
            }
        }
        #expect(isTaken == .some(.some(true)))
    }

    @Test func aMirrorThatLacksSomethingIsNotHandedTo() throws {
        try withMirror { pools, path, id, sequence in
            let refusals = [
                try ask(pools, promotion("one", id, sequence + 1)),
                try ask(pools, promotion("one", ("another", id.primary), sequence)),
                try ask(pools, promotion("one", (id.own, "another"), sequence)),
                try ask(pools, ControlRequest(.promote)),
                try ask(pools, promotion("one", id, sequence), right: .replicate),
                try ask(pools, ControlRequest(.handoverOutcome), right: .replicate),
                try ask(pools, ControlRequest(.create)),
                try ask(pools, ControlRequest(.status), of: "other"),
            ]
            for refused in refusals { #expect(refused.error != nil, "\(refused)") }
            #expect(refusals[4].error?.kind == "notPermitted")
            #expect(refusals[5].error?.kind == "notPermitted")
            #expect(refusals[6].error?.exitCode == ExitKind.usage.rawValue)
            #expect(PoolSight.look(at: path, disk: LinuxDisk())?.isReplica == true)
            let status = try ask(pools, ControlRequest(.status), right: .read)
            #expect(status.result?.status?.replica.role == "replica")
        }
    }

    @Test func aDamagedMirrorIsPromotedByAWordForThatAlone() throws {
        try withMirror { pools, path, _, _ in
            let disk = LinuxDisk()
            let store = try PoolStore.open(path: path, disk: disk)
            let first = try #require(try store.catalog.read { try $0.replica() }).journalSegment
            try store.close(clean: true, lastSequence: .zero)
            let names = try disk.list(path + "/journal").map(\.name) + ["\(first)"]
            for name in names {
                try disk.writeDurably(
                    path + "/journal/" + name, contents: [UInt8](repeating: 0xd0, count: 8192))
            }
            let preview = try ask(pools, ControlRequest(.promote) { $0.dryRun = true })
            #expect(preview.result?.promotion?.damage != nil, "\(preview)")
            #expect(preview.result?.promotion?.isSure == false)
            let forced = try ask(
                pools,
                ControlRequest(.promote) {
                    $0.generationID = "one"
                    $0.force = true
                })
            #expect(forced.error?.exitCode == ExitKind.damaged.rawValue, "\(forced)")
            #expect(PoolSight.look(at: path, disk: disk)?.isReplica == true)
            let done = try ask(
                pools,
                ControlRequest(.promote) {
                    $0.generationID = "two"
                    $0.force = true
                    $0.acceptsDamage = true
                })
            #expect(done.result?.promotion?.isPromoted == true, "\(done)")
            #expect(PoolSight.look(at: path, disk: disk)?.isReplica == false)
        }
    }

    @Test func whatIsNoRequestIsSaidToBeNone() throws {
        try withMirror { pools, _, _, _ in
            let visitor = try ServedVisitor("vms", pools) { _ in true }
            defer { visitor.end() }
            for text in [
                "", "{}", "[]", "{\"execute\":\"fly\"}", "{\"execute\":\"status\",\"id\":\"x\"}",
            ] {
                guard case .answered(let answer) = try visitor.answer(.control(Array(text.utf8)))
                else { continue }
                let reply = try JSONLine.decode(ControlReply.self, answer)
                #expect(reply.error?.exitCode == ExitKind.usage.rawValue, "\(text): \(reply)")
            }
        }
    }
}
