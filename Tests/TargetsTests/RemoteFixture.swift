import BlockCore
import Replication
import SystemIO
import TestSupport

/// Any other kind of target behind a server, over connections in memory that cut bytes anywhere. Whatever holds
/// for it next to its primary holds here.
final class RemoteFixture: TargetFixture {
    private let inner: any TargetFixture
    private let bulkConnections: Int
    private var served: (any ReplicaTarget)?
    private var link: MemoryLink?
    private var opened: UInt64 = 0

    init(_ inner: any TargetFixture, bulkConnections: Int) {
        self.inner = inner
        self.bulkConnections = bulkConnections
    }

    var disk: SimulatedDisk { inner.disk }

    /// Another run of the server, too.
    func open() -> any ReplicaTarget {
        opened += 1
        let target = inner.open()
        let link = MemoryLink(seed: opened, ["pool": target])
        self.served = target
        self.link = link
        var options = RemoteReplica.Options(pool: "pool")
        options.bulkConnections = bulkConnections
        // Whatever holds without holds with it.
        if opened % 2 == 0 { options.compression = LineCompression(.on) }
        return RemoteReplica(link, options: options, client: opened)
    }

    func losePower(_ random: inout SeededRandom) {
        // What is on the line never arrives.
        link = nil
        served = nil
        inner.losePower(&random)
    }

    /// What was sent and not answered yet is done before anybody looks.
    private func settled() throws -> any ReplicaTarget {
        guard let served, let link else { throw Violation("no server runs") }
        link.settle()
        return served
    }

    func stepBehind(_ target: any ReplicaTarget) throws { try inner.stepBehind(try settled()) }
    func show(_ target: any ReplicaTarget) throws -> ShownPool {
        try inner.show(try settled())
    }
    func showAlone() throws -> ShownPool? {
        link?.settle()
        return try inner.showAlone()
    }
    func snapshots(_ target: any ReplicaTarget) throws -> [SnapshotInfo] {
        try inner.snapshots(try settled())
    }
    func showSnapshot(_ target: any ReplicaTarget, _ info: SnapshotInfo) throws -> ShownPool {
        try inner.showSnapshot(try settled(), info)
    }
}
