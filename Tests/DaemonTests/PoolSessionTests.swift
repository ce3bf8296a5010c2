import BlockCore
import Foundation
import Pool
import SystemIO
import Testing

@testable import Daemon

/// Requests on a pool that this process holds itself.
@Suite struct PoolSessionTests {
    private func withPool(_ body: (String) throws -> Void) throws {
        try withFolder { folder in
            try PoolStore.initialize(path: folder + "/pool", disk: LinuxDisk())
            try body(folder + "/pool")
        }
    }

    /// Small, so that the tests do not fill the disk with reserves.
    private var options: PoolSession.Options {
        var options = PoolSession.Options()
        options.reserve = .bytes(1 << 20)
        return options
    }

    @Test func requestsNeedTheirArguments() throws {
        try withPool { path in
            let session = try PoolSession(path: path, options: options)
            for command in [
                ControlCommand.create, .resize, .rename, .delete, .restore, .clone, .snapshotDelete,
                .snapshotDiff,
            ] {
                #expect(session.execute(ControlRequest(command)).error?.exitCode == 2)
            }
            // Nobody can unmount what is not mounted.
            #expect(session.execute(ControlRequest(.unmount)).error?.exitCode == 2)
            try session.close()
        }
    }

    @Test func aReplyCarriesTheIDOfItsRequest() throws {
        try withPool { path in
            let session = try PoolSession(path: path, options: options)
            var request = ControlRequest(.list)
            request.id = 42
            #expect(session.execute(request).id == 42)
            request = ControlRequest(.delete) { $0.path = "none" }
            request.id = 43
            #expect(session.execute(request).id == 43)
            try session.close()
        }
    }

    @Test func whatIsDoneIsThereAfterReopening() throws {
        try withPool { path in
            var session = try PoolSession(path: path, options: options)
            let create = ControlRequest(.create) {
                $0.path = "a.img"
                $0.sizeBytes = 12_345
            }
            #expect(session.execute(create).error == nil)
            #expect(session.execute(create).error?.exitCode == 1)
            #expect(session.execute(ControlRequest(.snapshotCreate) { $0.name = "s" }).error == nil)
            try session.close()
            session = try PoolSession(path: path, options: options)
            let images = session.execute(ControlRequest(.list)).result?.images
            #expect(images?.map(\.path) == ["a.img"])
            #expect(images?.first?.sizeBytes == 12_345)
            let status = try #require(session.execute(ControlRequest(.status)).result?.status)
            #expect(status.state == "healthy")
            #expect(status.snapshots == 1)
            try session.close()
        }
    }

    @Test func aSecondOwnerIsRefusedByName() throws {
        try withPool { path in
            let session = try PoolSession(path: path, options: options)
            do {
                _ = try PoolSession(path: path, options: options)
                Issue.record("two owners")
            } catch let failure as ControlFailure {
                #expect(failure.exitCode == 3)
                #expect(failure.message.contains("\(ProcessControl.processID)"))
            }
            try session.close()
        }
    }

    @Test func anOwnerThatDrainsIsWaitedFor() throws {
        try withPool { path in
            let first = try PoolSession(path: path, options: options)
            first.store.markDraining()
            let closer = WorkerThread.start("closer") {
                Pause.microseconds(300_000)
                try? first.close()
            }
            try PoolSession(path: path, options: options).close()
            closer.join()
        }
    }

    /// The kernel has taken the mount away, and the owner has not said yet that it drains.
    @Test func anOwnerWhoseMountIsGoneIsWaitedFor() throws {
        try withPool { path in
            var mounted = options
            mounted.mountPoint = path + "-not-mounted"
            let first = try PoolSession(path: path, options: mounted)
            let closer = WorkerThread.start("closer") {
                Pause.microseconds(300_000)
                try? first.close()
            }
            try PoolSession(path: path, options: options).close()
            closer.join()
        }
    }

    @Test func waitingHasAnEnd() throws {
        try withPool { path in
            let first = try PoolSession(path: path, options: options)
            first.store.markDraining()
            var impatient = options
            impatient.drainTimeoutMs = 100
            #expect(throws: ControlFailure.self) {
                try PoolSession(path: path, options: impatient)
            }
            try first.close()
        }
    }
}
