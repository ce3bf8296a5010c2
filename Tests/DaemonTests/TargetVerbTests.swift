import BlockCore
import Foundation
import Pool
import SystemIO
import TestSupport
import Testing
import Volume

@testable import Daemon

/// What verbs for targets do to a pool that is open, where that needs no mount.
@Suite struct TargetVerbTests {
    private func with(_ body: (_ pool: String, _ mirror: String) throws -> Void) throws {
        let folder = try makeTemporaryFolder(in: TestFolders.quick)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try body(folder + "/pool", folder + "/mirror")
    }

    private func open(_ path: String, connects: Bool) throws -> PoolSession {
        var options = PoolSession.Options()
        options.connectsTargets = connects
        return try PoolSession(path: path, options: options)
    }

    private func ok(_ session: PoolSession, _ request: ControlRequest) throws {
        if let error = session.execute(request).error { throw error }
    }

    /// Nothing was ever written to a pool that was adopted; it has content all the same.
    @Test func theFirstCopyOfAnAdoptedPoolIsWaitedFor() throws {
        try with { pool, mirror in
            let content = pattern(3 << 20, seed: 7)
            mkdir(pool, 0o755)
            try Data(content).write(to: URL(filePath: pool + "/a.img"))
            _ = try Adoption.adopt(pool)
            var session = try open(pool, connects: false)
            try ok(
                session,
                ControlRequest(.targetAdd) { $0.target = TargetSpecification(address: mirror) })
            try session.close()
            try #require(rename(mirror, mirror + "-away") == 0)

            session = try open(pool, connects: true)
            #expect(session.volume.sequence == .zero)
            let error = session.execute(ControlRequest(.wait) { $0.timeoutMs = 300 }).error
            let late = try #require(error, "nothing is there yet")
            #expect(late.exitCode == ExitKind.degraded.rawValue)
            #expect(late.message.contains("\(mirror), behind since 20"), "\(late)")
            #expect(late.message.contains("there is no \(mirror)"), "\(late)")
            #expect(!late.message.contains("doppel init"), "\(late)")

            try #require(rename(mirror + "-away", mirror) == 0)
            try ok(session, ControlRequest(.wait) { $0.timeoutMs = 50_000 })
            try session.close()
            let look = try open(mirror, connects: false)
            defer { try? look.close() }
            let image = try look.volume.image(try #require(look.volume.imageIDs.first))
            var bytes = [UInt8](repeating: 0, count: content.count)
            let count = try bytes.withUnsafeMutableBytes { try image.read(into: $0, at: 0) }
            #expect(count == content.count)
            #expect(difference(bytes, from: content) == nil)
        }
    }

    /// Each target is shipped to as fast as was asked for it, whatever the others have.
    @Test func eachTargetHasItsOwnRate() throws {
        try with { pool, mirror in
            mkdir(pool, 0o755)
            try Data(pattern(24 << 20, seed: 7)).write(to: URL(filePath: pool + "/a.img"))
            _ = try Adoption.adopt(pool)
            let session = try open(pool, connects: true)
            func target(_ command: ControlCommand, _ path: String, rate: UInt64?) throws {
                try ok(
                    session,
                    ControlRequest(command) {
                        $0.target = TargetSpecification(address: path, mode: "async")
                        $0.target?.rateBytesPerSecond = rate
                    })
            }
            func wait(_ path: String) throws {
                try ok(
                    session,
                    ControlRequest(.wait) {
                        $0.target = TargetSpecification(address: path)
                        $0.timeoutMs = 50_000
                    })
            }
            let slow = mirror + "-slow"
            try target(.targetAdd, slow, rate: 1 << 20)
            try target(.targetAdd, mirror, rate: nil)
            try wait(mirror)
            let targets = try #require(
                session.execute(ControlRequest(.targetList)).result?.targets)
            #expect(targets.map(\.rateLimitBytesPerSecond) == [1 << 20, nil])
            #expect(targets.map { $0.dirtyBytes > 12 << 20 } == [true, false], "\(targets)")
            try target(.targetSet, slow, rate: 0)
            try wait(slow)
            try session.close()
        }
    }

    /// What may be lost, and how fast blocks go, is no matter of the session that is under way.
    @Test func anRPOIsChangedWhileTheSessionGoesOn() throws {
        try with { pool, mirror in
            try PoolStore.initialize(path: pool, disk: LinuxDisk())
            let session = try open(pool, connects: true)
            func set(_ fill: (inout TargetSpecification) -> Void) throws {
                var target = TargetSpecification(address: mirror)
                fill(&target)
                try ok(session, ControlRequest(.targetSet) { $0.target = target })
            }
            func status() throws -> TargetInfo {
                try #require(session.execute(ControlRequest(.targetList)).result?.targets?.first)
            }
            func sessions() throws -> Int {
                let reply = session.execute(ControlRequest(.events) { $0.limit = 1000 })
                return try #require(reply.result?.events).count { $0.kind == "target-in-step" }
            }
            try ok(
                session,
                ControlRequest(.targetAdd) {
                    $0.target = TargetSpecification(address: mirror, mode: "async")
                })
            try ok(session, ControlRequest(.wait) { $0.timeoutMs = 50_000 })
            while try sessions() == 0 { usleep(5000) }
            try set {
                $0.rpoMs = 20_000
                $0.rpoBytes = 1 << 20
                $0.onRPO = "stop"
            }
            var target = try status()
            #expect((target.rpoMs, target.rpoBytes, target.onRPO) == (20_000, 1 << 20, "stop"))
            #expect(target.state == "streaming")
            try set {
                $0.rpoBytes = 0
                $0.onRPO = "throttle"
                $0.rateBytesPerSecond = 5 << 20
            }
            target = try status()
            #expect((target.rpoMs, target.rpoBytes, target.onRPO) == (20_000, nil, "throttle"))
            #expect(target.rateLimitBytesPerSecond == 5 << 20)
            try set { ($0.rpoMs, $0.onRPO) = (0, "alarm") }
            target = try status()
            #expect((target.rpoMs, target.onRPO, target.state) == (nil, nil, "streaming"))
            // Nothing travels to a directory.
            #expect(throws: (any Error).self) { try set { $0.compress = "on" } }
            try set { $0.compress = "off" }
            #expect(try status().state == "streaming")
            // Its mode is, and the session that follows says so.
            #expect(try sessions() == 1)
            try set { $0.mode = "flush" }
            try ok(session, ControlRequest(.wait) { $0.timeoutMs = 50_000 })
            while try sessions() == 1 { usleep(5000) }
            try session.close()
            let kept = try open(pool, connects: false)
            defer { try? kept.close() }
            let record = try kept.store.catalog.read { try $0.targets() }.first
            #expect(record?.rateBytesPerSecond == 5 << 20 && record?.rpoMs == nil)
            #expect(record?.compress == .off)
        }
    }
}
