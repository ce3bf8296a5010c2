import Foundation
import Pool
import SystemIO
import TestSupport
import Testing

@testable import Daemon

/// What somebody asks for while a pool is handed over waits, and then hears that the pool takes nothing.
@Suite struct HandoverVerbTests {
    @Test func verbsAreHeldAndThenRefused() throws {
        let folder = try makeTemporaryFolder()
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
        var held: [TestThread<ControlReply>] = []
        _ = try session.failOver(to: mirror, timeoutMs: 50_000) { step in
            guard step == .held else { return }
            held = verbs.map { verb in TestThread { session.execute(verb) } }
        }
        for (thread, verb) in zip(held, verbs) {
            let error = try thread.join().error
            #expect(
                error?.message.contains("handed over") == true,
                "\(verb.execute): \(String(describing: error))")
        }
        try session.close()
        // Nothing of it was done, on either side.
        for path in [pool, mirror] {
            let look = try PoolSession(path: path)
            let names = look.fileSystem.listAll().filter { $0.kind == .file }
            #expect(names.map(\.path) == ["a.img"], "\(path)")
            #expect(names.map(\.sizeBytes) == [1 << 20], "\(path)")
            #expect(try look.volume.snapshots().isEmpty, "\(path)")
            try look.close()
        }
    }
}
