// A mirror directory behind a server: whichever primary connects, the mirror's own records say whether it may.
// Nothing of it is remembered here; while nobody is connected the pool is closed. From any thread, beside the one
// caller, it can be looked into (`look`).

import BlockCore
import Pool
import Replication
import SystemIO

package final class ServedMirror: ForwardingTarget, @unchecked Sendable {  // one caller at a time
    private let path: String
    /// What it lies below; folders on the way are made with it.
    private let root: String
    private let disk: Disk
    private let options: MirrorOptions
    private let openStore: @Sendable () throws(PoolError) -> PoolStore
    private let lock = Lock()
    /// Under `lock`, for those who look; changed by the one caller alone.
    private var shared: MirrorTarget?
    private var isConnected = false
    private var mirror: MirrorTarget? {
        get { lock.withLock { shared } }
        set { lock.withLock { shared = newValue } }
    }

    package init(
        path: String, below root: String, disk: Disk, options: MirrorOptions,
        openStore: @escaping @Sendable () throws(PoolError) -> PoolStore
    ) {
        self.path = path
        self.root = root
        self.disk = disk
        self.options = options
        self.openStore = openStore
    }

    // MARK: Connecting

    package func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        try refuseInside()
        if hello.laysOut { try layOut(for: hello) }
        let mirror = try mirror(for: hello)
        var report = try mirror.connect(hello)
        lock.withLock { isConnected = true }
        report.poolID = mirror.poolID
        return report
    }

    private func mirror(for hello: PrimaryHello) throws(TargetError) -> MirrorTarget {
        if let mirror, mirror.primaryPoolID == hello.poolID {
            if let expected = hello.mirrorID, let found = mirror.poolID, expected != found {
                throw TargetError(
                    .absent,
                    "\(path) is pool \(found), not the mirror \(expected) that belongs here: nothing in "
                        + "it was touched")
            }
            return mirror
        }
        // Another primary, which takes its place: who copies what the other one shipped begins anew.
        mirror?.disconnect(endsViews: true)
        let (path, disk) = (path, disk)
        let new = MirrorTarget(
            path: path, primaryPoolID: hello.poolID, poolID: hello.mirrorID, disk: disk,
            options: options, look: { PoolSight.look(at: path, disk: disk) }, openStore: openStore)
        mirror = new
        return new
    }

    /// A pool in a pool would be its files.
    private func refuseInside() throws(TargetError) {
        var folder = parentPath(path)
        while folder.count > root.count {
            if PoolStore.isPool(folder, disk: disk) {
                throw TargetError(.absent, "\(folder) is a pool: there is none in it")
            }
            folder = parentPath(folder)
        }
    }

    /// Where something is, that is looked at and not changed.
    private func layOut(for hello: PrimaryHello) throws(TargetError) {
        guard hello.mirrorID == nil, !PoolStore.isPool(path, disk: disk) else { return }
        var missing: [String] = []
        var folder = parentPath(path)
        try TargetError.system { () throws(SystemError) in
            while folder.count > root.count, try disk.status(folder) == nil {
                missing.append(folder)
                folder = parentPath(folder)
            }
            for folder in missing.reversed() {
                try disk.createDirectory(folder, mode: 0o700)
                try disk.syncDirectory(parentPath(folder))
            }
        }
        try MirrorTarget.create(path: path, primaryPoolID: hello.poolID, disk: disk)
    }

    /// One of which a copy is being made stays open for that.
    package func disconnect() {
        lock.withLock { isConnected = false }
        mirror?.disconnect()
        if mirror?.pool == nil { mirror = nil }
    }

    /// All that it shows, while no session has it; it is closed when that is let go of, or its primary has been here.
    /// - Throws: `.absent` where it is no mirror, or shows nothing yet.
    package func copyAlone() throws(TargetError) -> MirrorCopy {
        if let open = mirror, let pool = open.pool { return try MirrorCopy(pool) }
        guard let sight = PoolSight.look(at: path, disk: disk) else {
            throw TargetError(.absent, "\(path) holds no pool that can be looked into")
        }
        guard sight.isReplica, let primaryPoolID = sight.primaryPoolID else {
            throw TargetError(
                .absent,
                "\(path) is a primary: `doppel target add` there makes a copy, and keeps it in step"
            )
        }
        let (path, disk) = (path, disk)
        let new = MirrorTarget(
            path: path, primaryPoolID: primaryPoolID, poolID: nil, disk: disk, options: options,
            look: { PoolSight.look(at: path, disk: disk) }, openStore: openStore)
        let pool = try new.openAlone()
        mirror = new
        // Closes it when nobody looks into it any more.
        defer { disconnect() }
        return try MirrorCopy(pool)
    }

    /// Whoever copies it finds out at the next thing that he reads.
    package func endCopies() {
        guard let mirror else { return }
        mirror.disconnect(endsViews: true)
        self.mirror = nil
    }

    /// What is open now, for somebody who only looks: nothing of the session waits for him, but for the pool's closing,
    /// and that as long as `body` runs.
    /// - Returns: nil where nothing is open.
    package func look<T>(_ body: (OpenMirror) throws -> T) rethrows -> T? {
        guard let mirror, let pool = mirror.pool else { return nil }
        let hasPrimary = lock.withLock { isConnected }
        return try pool.look { try body(OpenMirror(pool, hasPrimary: hasPrimary)) }
    }

    private func connected() throws(TargetError) -> MirrorTarget {
        guard let mirror else { throw TargetError(.absent, "\(path) is not open") }
        return mirror
    }

    // MARK: The mirror's

    package func reach() throws(TargetError) -> any ReplicaTarget { try connected() }
    package var durableThrough: SequenceNumber? { mirror?.durableThrough }
}
