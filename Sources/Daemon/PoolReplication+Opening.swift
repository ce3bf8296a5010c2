// How the target of a record is reached: a mirror beside the pool, plain files, or a pool behind a server.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets

extension PoolReplication {
    func open(_ record: TargetRecord) throws(TargetError) -> any ReplicaTarget {
        if case .raw(let path) = TargetAddress(record.address) {
            let raw = RawMirror(
                path: path, primaryPoolID: store.identity.id, id: record.poolID, disk: LinuxDisk())
            lock.withLock { rawMirrors[record.id] = raw }
            return raw
        }
        if let remote = TargetAddress(record.address).remote {
            return try access.replica(remote, of: store, record, compression: line(of: record))
        }
        if TargetAddress(record.address).isElsewhere {
            throw Self.elsewhere(record, of: store)
        }
        // Who wants to look into the mirror meanwhile asks here.
        var owner = PoolOwner.current()
        if runs, let directory = try? RuntimePaths.directory(disk: LinuxDisk()) {
            owner.socketPath = RuntimePaths.socket(of: store.identity.id, in: directory)
        }
        let mirror = Self.mirror(record, of: store, owner: owner)
        lock.withLock { mirrors[record.id] = mirror }
        return ShownTarget(mirror, mounts)
    }

    /// What goes to a target on another machine, over all its sessions.
    private func line(of record: TargetRecord) -> LineCompression {
        let line = lock.withLock {
            let line = lines[record.id] ?? LineCompression()
            lines[record.id] = line
            return line
        }
        line.choice = record.compress
        return line
    }

    /// A target to be asked after a crash, closed.
    static func source(_ record: TargetRecord, of store: PoolStore) throws(TargetError)
        -> any ReplicaTarget
    {
        let address = TargetAddress(record.address)
        if address.isElsewhere { throw elsewhere(record, of: store) }
        guard let remote = address.remote else {
            return mirror(record, of: store, owner: .current())
        }
        return try RemoteAccess.shared.replica(remote, of: store, record)
    }

    /// The mirror directory of a target, closed.
    static func mirror(
        _ record: TargetRecord, of store: PoolStore, owner: PoolOwner
    ) -> MirrorTarget {
        var options = MirrorOptions()
        options.historyMs = record.historyMs > 0 ? record.historyMs : nil
        let disk = LinuxDisk()
        var owner = owner
        owner.writesMirror = true
        return MirrorTarget(
            path: record.address, primaryPoolID: store.identity.id, poolID: record.poolID,
            disk: disk, options: options,
            look: { PoolSight.look(at: record.address, disk: disk) }
        ) { [owner] () throws(PoolError) in
            // An owner that drains is waited for by trying again.
            try PoolStore.open(
                path: record.address, disk: disk, owner: owner, drainTimeoutMs: 0)
        }
    }
}

/// A mirror that may be mounted beside: before it is let go of, nobody reads it any more.
private final class ShownTarget: WrappingTarget, Sendable {
    private let mirror: MirrorTarget
    private let mounts: MirrorMounts

    init(_ mirror: MirrorTarget, _ mounts: MirrorMounts) {
        self.mirror = mirror
        self.mounts = mounts
    }

    var inner: any ReplicaTarget { mirror }

    func disconnect() {
        mounts.end(of: mirror.path)
        mirror.disconnect()
    }
}
