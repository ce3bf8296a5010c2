import Foundation
import Pool
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// What somebody asks for while a pool is handed over waits, and then hears that the pool takes nothing.
@Suite struct HandoverVerbTests {
    @Test func verbsAreHeldAndThenRefused() throws {
        let folder = try makeTemporaryFolder(in: TestFolders.quick)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let (pool, mirror) = (folder + "/pool", folder + "/mirror")
        try PoolStore.initialize(path: pool, disk: LinuxDisk())
        var options = PoolSession.Options()
        options.connectsTargets = true
        let session = try PoolSession(path: pool, options: options)
        func ok(_ request: ControlRequest) throws {
            if let error = session.execute(request).error { throw error }
        }
        try ok(
            ControlRequest(.create) {
                $0.path = "a.img"
                $0.sizeBytes = 1 << 20
            })
        try ok(ControlRequest(.targetAdd) { $0.target = TargetSpecification(address: mirror) })
        try ok(ControlRequest(.wait) { $0.timeoutMs = 50_000 })
        let verbs = [
            ControlRequest(.resize) {
                $0.path = "a.img"
                $0.sizeBytes = 2 << 20
            },
            ControlRequest(.create) {
                $0.path = "b.img"
                $0.sizeBytes = 1 << 20
            },
            ControlRequest(.rename) {
                $0.path = "a.img"
                $0.newPath = "c.img"
            },
            ControlRequest(.snapshotCreate) { $0.name = "late" },
            ControlRequest(.clone) {
                $0.path = "a.img"
                $0.newPath = "d.img"
            },
        ]
        let other = folder + "/other"
        let targetVerbs = targetVerbs(mirror, other)
        let detach = ControlRequest(.targetRemove) {
            $0.target = TargetSpecification(address: mirror)
            $0.force = true
        }
        var held: [TestThread<ControlReply>] = []
        var detached: ControlReply?
        _ = try session.failOver(to: mirror, timeoutMs: 50_000) { step in
            if step == .held {
                held = (verbs + targetVerbs).map { verb in TestThread { session.execute(verb) } }
            }
            // It waits for nobody; from here on the mirror may be the primary.
            if step == .noted { detached = session.execute(detach) }
        }
        for (thread, verb) in zip(held, verbs + targetVerbs) {
            let error = try thread.join().error
            #expect(
                error?.message.contains("handed over") == true,
                "\(verb.execute): \(String(describing: error))")
        }
        // Now as well, and it is said where the primary is.
        let late = (targetVerbs + [detach]).map { ($0, session.execute($0).error) }
        for (verb, error) in late + [(detach, detached?.error)] {
            #expect(error?.kind == "handedOver", "\(verb.execute): \(String(describing: error))")
            #expect(error?.primary == mirror && error?.message.contains(mirror) == true)
        }
        #expect(session.execute(ControlRequest(.targetList)).result?.targets?.count == 1)
        try session.close()
        #expect(access(other, F_OK) != 0)
        // Nothing of it was done, on either side.
        for path in [pool, mirror] {
            let look = try PoolSession(path: path)
            let names = look.fileSystem.listAll().filter { $0.kind == .file }
            #expect(names.map(\.path) == ["a.img"], "\(path)")
            #expect(names.map(\.sizeBytes) == [1 << 20], "\(path)")
            #expect(try look.volume.snapshots().isEmpty, "\(path)")
            // A mirror has no targets to change, and says whose business that is.
            let error = look.execute(
                ControlRequest(.targetPause) { $0.target = TargetSpecification(address: mirror) }
            ).error
            #expect(error?.primary == (path == pool ? mirror : nil), "\(String(describing: error))")
            let targets = try look.store.catalog.read { try $0.targets() }
            #expect(targets.map(\.address) == [path == pool ? mirror : pool])
            #expect(targets.allSatisfy { $0.mode == .flush && $0.timeoutMs == 5000 })
            try look.close()
        }
    }

    /// A mirror behind a server that nobody can ask any more: before a person decides the pool takes no changes.
    @Test func whereTheMirrorIsLostAPersonDecides() throws {
        let folder = try makeTemporaryFolder(in: TestFolders.quick)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let (pool, lost) = (folder + "/pool", "doppel://127.0.0.1:1/vms")
        try PoolStore.initialize(path: pool, disk: LinuxDisk())
        let store = try PoolStore.open(path: pool, disk: LinuxDisk())
        try store.catalog.write { tx in
            try tx.setHandover(
                HandoverRecord(poolID: "mirror", address: lost, generationID: "planned"))
        }
        try store.close(clean: true, lastSequence: .zero)
        for _ in 0..<2 {
            let refused = #expect(throws: ControlFailure.self) { _ = try PoolSession(path: pool) }
            #expect(refused?.message.contains("target resolve") == true)
        }
        var reading = PoolSession.Options()
        reading.isReadOnly = true
        try PoolSession(path: pool, options: reading).close()
        let text = try PoolAccess.perform(
            ControlRequest(.targetResolve) { $0.target = TargetSpecification(address: lost) },
            on: pool
        ).text
        #expect(text?.contains("cannot be reached") == true)
        let session = try PoolSession(path: pool)
        #expect(session.status().generation == 2)
        #expect(try session.store.catalog.read { try $0.handover() } == nil)
        try session.close()
        // One that is no handover's is not decided from here.
        let other = #expect(throws: ControlFailure.self) {
            _ = try PoolAccess.perform(
                ControlRequest(.targetResolve) {
                    $0.target = TargetSpecification(address: "doppel://127.0.0.1:2/vms")
                }, on: pool)
        }
        #expect(other?.exitCode == ExitKind.usage.rawValue)
    }

    /// The process that handed over dies before it is a mirror; before it is opened again the mirror handed over to a
    /// third pool, and is a mirror itself.
    @Test func whoTookOverMayHaveHandedOverSince() throws {
        let folder = try makeTemporaryFolder(in: TestFolders.quick)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let paths = ["one", "two", "three"].map { folder + "/" + $0 }
        func session(_ path: String) throws -> PoolSession {
            var options = PoolSession.Options()
            options.connectsTargets = true
            return try PoolSession(path: path, options: options)
        }
        func ok(_ session: PoolSession, _ request: ControlRequest) throws {
            if let error = session.execute(request).error { throw error }
        }
        func isReplica(_ path: String) -> Bool? {
            PoolSight.look(at: path, disk: LinuxDisk())?.isReplica
        }
        try PoolStore.initialize(path: paths[0], disk: LinuxDisk())
        let first = try session(paths[0])
        try ok(first, ControlRequest(.targetAdd) { $0.target = .init(address: paths[1]) })
        try ok(first, ControlRequest(.wait) { $0.timeoutMs = 50_000 })
        let own = try first.store.catalog.read { try PoolSight($0) }
        let sequence = first.volume.sequence
        try first.close()
        let mirror = try #require(PoolSight.look(at: paths[1], disk: LinuxDisk()))
        let note = HandoverRecord(
            poolID: mirror.poolID, address: paths[1], generationID: "planned")
        let store = try PoolStore.open(path: paths[0], disk: LinuxDisk())
        try store.catalog.write { try $0.setHandover(note) }
        try store.close(clean: true, lastSequence: sequence)
        let begun = try Handover.promote(
            note, from: own.poolID, primaryAddress: paths[0], at: sequence)

        let second = try session(paths[1])
        try ok(second, ControlRequest(.targetRemove) { $0.target = .init(address: paths[0]) })
        try ok(second, ControlRequest(.targetAdd) { $0.target = .init(address: paths[2]) })
        try ok(second, ControlRequest(.wait) { $0.timeoutMs = 50_000 })
        _ = try second.failOver(to: paths[2], timeoutMs: 50_000)
        try second.close()
        #expect(isReplica(paths[1]) == true && isReplica(paths[2]) == false)

        // It was taken: this one is no primary any more, and a person says whom it follows.
        #expect(Handover.outcome(note) == .taken(begun))
        for _ in 0..<2 {
            let refused = #expect(throws: ControlFailure.self) {
                _ = try PoolSession(path: paths[0])
            }
            #expect(
                refused?.message.contains("doppel demote \(paths[0]) --to") == true,
                "\(String(describing: refused))")
        }
        _ = try PoolDemotion.perform(path: paths[0], to: paths[2])
        #expect(isReplica(paths[0]) == true)
        let third = try session(paths[2])
        try ok(third, ControlRequest(.targetAdd) { $0.target = .init(address: paths[0]) })
        try ok(third, ControlRequest(.wait) { $0.timeoutMs = 50_000 })
        try third.close()
        try PoolSession(path: paths[0]).close()
    }

    private func targetVerbs(_ mirror: String, _ other: String) -> [ControlRequest] {
        func request(
            _ command: ControlCommand, _ address: String,
            _ fill: (inout TargetSpecification) -> Void = { _ in }
        ) -> ControlRequest {
            var target = TargetSpecification(address: address)
            fill(&target)
            return ControlRequest(command) { $0.target = target }
        }
        return [
            request(.targetAdd, other),
            request(.targetSet, mirror) { $0.mode = "async" },
            request(.targetSet, mirror) { $0.rpoMs = 10_000 },
            request(.targetPause, mirror), request(.targetResume, mirror),
            request(.targetRemove, mirror), request(.targetResolve, mirror),
            request(.failover, mirror), request(.wait, mirror),
        ]
    }
}
