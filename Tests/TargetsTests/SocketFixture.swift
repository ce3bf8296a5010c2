import BlockCore
import Identity
import Replication
import SystemIO
import TestSupport
import Transport

/// Another kind of target behind a server on the loopback, over TCP with TLS. Nothing of what it was asked is under
/// way when a call returns: what happens next is the suite's alone.
final class SocketFixture: TargetFixture {
    private let inner: any TargetFixture
    private static let serverIdentity = try! HostIdentity.make()
    private static let clientIdentity = try! HostIdentity.make()
    private var run: (server: TransportServer, performer: ReplicaPerformer, target: Severable)?
    private var opened: UInt64 = 0

    init(_ inner: any TargetFixture) { self.inner = inner }
    deinit { end() }

    var disk: SimulatedDisk { inner.disk }

    func open() -> any ReplicaTarget {
        end()
        opened += 1
        let target = Severable(inner.open())
        let performer = ReplicaPerformer(name: "pool", target: target)
        do {
            let server = try TransportServer.start(
                .init(
                    listen: [HostPort(host: "127.0.0.1", port: 0)],
                    keys: try TransportKeys(Self.serverIdentity)),
                TransportHost(
                    admits: { $0 == Self.clientIdentity.fingerprint },
                    find: { (_, _) throws(TargetError) in performer.replica },
                    visitor: { (_, _) throws(TargetError) in throw TargetError(.absent, "") },
                    mayStay: { _, _, _ in true }, tell: { _ in }))
            run = (server, performer, target)
            let link = TransportClient(
                .init(
                    server: server.addresses[0], keys: try TransportKeys(Self.clientIdentity),
                    pinned: [Self.serverIdentity.fingerprint]))
            return Settled(
                RemoteReplica(link, options: .init(pool: "pool"), client: opened))
        } catch { fatalError("the loopback has no server: \(error)") }
    }

    /// The server's process is gone: its target does nothing more.
    private func end() {
        guard let run else { return }
        self.run = nil
        run.target.sever()
        run.server.shutDown(timeoutMs: 10_000)
        run.performer.stop()
    }

    func losePower(_ random: inout SeededRandom) {
        end()
        inner.losePower(&random)
    }

    private func served() throws -> any ReplicaTarget {
        guard let run else { throw Violation("no server runs") }
        return run.target.inner
    }

    func stepBehind(_ target: any ReplicaTarget) throws { try inner.stepBehind(try served()) }
    func show(_ target: any ReplicaTarget) throws -> ShownPool { try inner.show(try served()) }
    func showAlone() throws -> ShownPool? { try inner.showAlone() }
    func snapshots(_ target: any ReplicaTarget) throws -> [SnapshotInfo] {
        try inner.snapshots(try served())
    }
    func showSnapshot(_ target: any ReplicaTarget, _ info: SnapshotInfo) throws -> ShownPool {
        try inner.showSnapshot(try served(), info)
    }
}

/// A target that can be taken away from a server that goes on asking it.
private final class Severable: WrappingTarget, @unchecked Sendable {  // `isSevered`: under `lock`
    let inner: any ReplicaTarget
    private let lock = Lock()
    private var isSevered = false

    init(_ inner: any ReplicaTarget) { self.inner = inner }

    func sever() { lock.withLock { isSevered = true } }

    func reach() throws(TargetError) -> any ReplicaTarget {
        guard !lock.withLock({ isSevered }) else { throw TargetError(.absent, "it is gone") }
        return inner
    }

    func disconnect() {
        guard !lock.withLock({ isSevered }) else { return }
        inner.disconnect()
    }
}

/// A remote replica whose batches of a staging are taken when `stage` returns.
private final class Settled: WrappingTarget, @unchecked Sendable {  // one thread
    private let remote: RemoteReplica
    private var order: UInt64 = 0

    init(_ remote: RemoteReplica) { self.remote = remote }

    var inner: any ReplicaTarget { remote }

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        order = 0
        return try remote.connect(hello)
    }
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        order += 1
        try remote.beginStaging(id: id, shape: shape)
    }
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        order += 1
        try remote.stage(batch, number: number)
        // One that was not taken is found out with the next call.
        for _ in 0..<2000 {
            guard let told = remote.acknowledged, told.staged < order else { return }
            Pause.microseconds(50)
        }
    }
    func syncStaging() throws(TargetError) {
        order += 1
        try remote.syncStaging()
    }
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        order += 1
        try remote.commitStaging(id: id, at: sequence, snapshot: snapshot)
    }
}
