// A mirror directory as a target: another pool, in this process.
//
//   closed ── connect ──► open ── anything fails for good ──► broken
//     ▲                    │                                    │
//     └─── disconnect ─────┴──────────── disconnect ────────────┘
//
// A broken mirror does nothing more until it is opened anew: what is on its disk is read back and
// verified, nothing is retried and hoped over. A full disk breaks nothing: the same may go through later.
// Who may connect: MirrorTarget+Admission.swift.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

package final class MirrorTarget: ReplicaTarget, @unchecked Sendable {
    // One caller at a time but for `pool`, which is under `lock`.
    struct Staging {
        var applier: RecordApplier
        var lastBatch: UInt64
        var highest = SequenceNumber.zero
    }

    package let path: String
    package let primaryPoolID: String
    let options: MirrorOptions
    private let openStore: @Sendable () throws(PoolError) -> PoolStore
    /// What can be said of the pool without opening it; nil where nothing can.
    private let look: (@Sendable () -> PoolSight?)?
    private let disk: Disk
    private let lock = Lock()
    private var openPool: MirrorPool?
    private var boundPoolID: String?
    private var reach: (fromNs: Int64?, readAtNs: Int64) = (nil, 0)
    private var worker: ApplyWorker?
    var syncer: JournalSyncer?
    private var failure: TargetError?
    private var openedCatalog: (device: UInt64, inode: UInt64)?
    private(set) var hello: PrimaryHello?
    /// Its machine went down, and what it had been given may be lost up to here, until it has it again.
    var lostThrough: SequenceNumber?
    /// Begun on this connection.
    var staging: Staging?
    /// The checkpoint under a staging that was not, for who compares it.
    var comparing: MirrorView?

    var pool: MirrorPool? { lock.withLock { openPool } }

    package convenience init(
        path: String, primaryPoolID: String, poolID: String?, disk: Disk,
        options: MirrorOptions = MirrorOptions()
    ) {
        self.init(
            path: path, primaryPoolID: primaryPoolID, poolID: poolID, disk: disk, options: options,
            look: { PoolSight.look(at: path, disk: disk) }
        ) { () throws(PoolError) in
            try PoolStore.open(path: path, disk: disk)
        }
    }

    /// - Parameters:
    ///   - poolID: the UUID that the mirror had at the first contact; nil before.
    ///   - look: what can be said of the pool without opening it; nil where that is nothing.
    ///   - openStore: opens the pool at `path`; throws `.notAPool` where none is.
    package init(
        path: String, primaryPoolID: String, poolID: String?, disk: Disk, options: MirrorOptions,
        look: (@Sendable () -> PoolSight?)? = nil,
        openStore: @escaping @Sendable () throws(PoolError) -> PoolStore
    ) {
        self.path = path
        self.primaryPoolID = primaryPoolID
        boundPoolID = poolID
        self.disk = disk
        self.options = options
        self.look = look
        self.openStore = openStore
    }

    /// Lays out a new mirror in a new or empty directory, bound to its primary.
    /// - Throws: `.absent` where something else is.
    package static func create(
        path: String, primaryPoolID: String, disk: Disk
    ) throws(TargetError) {
        try TargetError.pool { () throws(PoolError) in
            try PoolStore.initialize(path: path, disk: disk) { tx in
                try tx.setReplica(ReplicaRecord(primaryPoolID: primaryPoolID))
                try tx.setHistory(GenerationHistory())
            }
        }
    }

    /// The UUID of the mirror's own pool, for the primary to note; nil before the first contact.
    package var poolID: String? { lock.withLock { boundPoolID } }

    // MARK: Connecting

    package func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        if failure != nil { disconnect() }
        syncer?.forget()
        staging = nil
        guard hello.poolID == primaryPoolID else {
            throw TargetError(.absent, "\(path) is a mirror of another pool")
        }
        if pool == nil {
            openedCatalog = catalogFile()
            let opened = try open(hello)
            lock.withLock { openPool = opened }
        }
        return try guarded { (pool) throws(TargetError) in
            _ = pool.afterViews(nil)
            try admit(hello, to: pool)
            self.hello = hello
            // What an earlier connection appended counts, too.
            if pool.state.staging == nil { try noteGiven(try pool.flush(), pool) }
            if syncer == nil { startWorkers(pool) }
            worker?.wake()
            let state = pool.state
            let diverged = try pool.divergence(from: hello)
            pool.divergence = diverged
            var report = ReplicaReport(
                incarnationID: state.incarnationID, generation: state.generation,
                checkpoint: diverged?.common ?? pool.checkpoint, snapshots: try pool.snapshots(),
                staging: state.staging.map { .init(id: $0.id, durableBatch: $0.durableBatch) },
                diverged: diverged)
            report.keptAllReceived = try pool.rows { try !$0.lostReceived() }
            return report
        }
    }

    private func open(_ hello: PrimaryHello) throws(TargetError) -> MirrorPool {
        // A pool that is a primary is not even opened: that would count as using it.
        if let sight = look?() { try refuse(primary: sight, hello) }
        let store: PoolStore
        do throws(PoolError) { store = try openStore() } catch {
            if error.kind == .inUse, let sight = PoolSight.inFile(of: path, disk: disk) {
                try refuse(primary: sight, hello)
            }
            if error.kind == .notAPool { throw absence(error) }
            throw TargetError(error)
        }
        do throws(TargetError) {
            if let bound = poolID, bound != store.identity.id {
                throw TargetError(
                    .absent,
                    "\(path) is pool \(store.identity.id), not the mirror \(bound) that belongs "
                        + "here: nothing in it was touched")
            }
            let (found, record) = try MirrorPool.roles(of: store)
            try refuse(primary: found, hello)
            guard let record else {
                throw TargetError(.absent, "\(path) is a pool, but not a mirror")
            }
            try check(hello, against: record, found.history)
            let pool = try MirrorPool(store: store, record: record, options: options)
            lock.withLock { boundPoolID = store.identity.id }
            return pool
        } catch {
            try? store.close(clean: false, lastSequence: .zero)
            throw error
        }
    }

    /// Nothing to be laid out anew: whoever reads this may have a disk that is not mounted.
    private func absence(_ error: PoolError) -> TargetError {
        if Adoption.interruption(path, disk: disk) != nil { return TargetError(error) }
        let isThere = ((try? disk.status(path)) ?? nil) != nil
        return TargetError(
            .absent,
            "the mirror is not there: "
                + (isThere ? "\(path) holds no pool" : "there is no \(path)")
                + ". Is the disk mounted that it is on?")
    }

    private func startWorkers(_ pool: MirrorPool) {
        let applier = options.runsInBackground ? ApplyWorker(pool) : nil
        worker = applier
        syncer = JournalSyncer(onThread: options.runsInBackground) { [weak self] in
            guard let self, let durable = try? pool.flush(), (try? requireInPlace()) != nil else {
                return nil
            }
            applier?.wake()
            return durable
        }
    }

    /// Without a primary, to be looked into.
    func openAlone() throws(TargetError) -> MirrorPool {
        let store = try TargetError.pool { () throws(PoolError) in try openStore() }
        do throws(TargetError) {
            guard let record = try MirrorPool.roles(of: store).replica, record.role == .replica
            else { throw TargetError(.absent, "\(path) is a pool, but not a mirror") }
            let pool = try MirrorPool(store: store, record: record, options: options)
            lock.withLock {
                openPool = pool
                boundPoolID = store.identity.id
            }
            openedCatalog = catalogFile()
            return pool
        } catch {
            try? store.close(clean: false, lastSequence: .zero)
            throw error
        }
    }

    package func disconnect() { disconnect(endsViews: false) }

    /// - Parameter endsViews: who reads the mirror does not go on doing so.
    func disconnect(endsViews: Bool) {
        syncer?.stop()
        syncer = nil
        worker?.stop()
        worker = nil
        endComparing()
        let isSound = failure == nil
        hello = nil
        lostThrough = nil
        staging = nil
        failure = nil
        // Who reads the mirror goes on doing so, as long as nothing is wrong with it.
        if isSound, !endsViews, let pool,
            pool.afterViews({ [weak self] in self?.close(isSound: true) })
        {
            return
        }
        close(isSound: isSound)
    }

    func endComparing() {
        comparing?.release()
        comparing = nil
    }

    private func close(isSound: Bool) {
        let closing = lock.withLock {
            defer { openPool = nil }
            return openPool
        }
        closing?.close(isSound: isSound)
    }

    /// Runs a request on the open mirror; what fails for good breaks it.
    func guarded<T>(
        _ body: (MirrorPool) throws(TargetError) -> T
    ) throws(TargetError) -> T {
        if let failure { throw failure }
        guard let pool else { throw TargetError(.absent, "\(path) is not open") }
        do throws(TargetError) { return try body(pool) } catch {
            switch error.kind {
            case .noSpace, .fenced, .splitBrain: break
            case .absent, .io, .damaged: failure = error
            }
            throw error
        }
    }

    /// Which file the open pool's catalog is.
    private func catalogFile() -> (device: UInt64, inode: UInt64)? {
        ((try? disk.status(path + "/catalog.sqlite")) ?? nil).map { ($0.device, $0.inode) }
    }

    /// Files that were deleted underfoot take and sync everything, for nobody.
    func requireInPlace() throws(TargetError) {
        // Without one there would have been nothing to open, but for a store that is elsewhere.
        guard let opened = openedCatalog else { return }
        guard let now = catalogFile(), now == opened else {
            throw TargetError(
                .absent,
                "\(path) was removed or replaced while it was in use: nothing is written to what is "
                    + "left of it")
        }
    }

    // MARK: Streaming

    package func append(_ batch: RecordBatch) throws(TargetError) {
        try guarded { (pool) throws(TargetError) in
            let state = pool.state
            guard state.staging == nil, state.incarnationID == hello?.incarnationID else {
                throw TargetError(
                    .io, "the stream does not go on from what \(path) has: it needs a resync")
            }
            try pool.append(batch)
            syncer?.appended(batch.lengthBytes)
            try noteGiven(batch.lastSequence, pool)
        }
    }

    package var durableThrough: SequenceNumber? { syncer?.durableThrough }

    /// Syncs the journal, where nobody does it behind.
    /// - Returns: false when nothing was appended.
    package func syncStep() -> Bool { syncer?.step() ?? false }

    package func flush() throws(TargetError) -> SequenceNumber {
        defer { worker?.wake() }
        return try guarded { (pool) throws(TargetError) in
            noteReach(of: pool)
            if pool.state.staging != nil { return pool.checkpoint }
            let durable = try pool.flush()
            try requireInPlace()
            return durable
        }
    }

    /// Applies one batch of what is durable, where nobody does it behind.
    /// - Returns: false when there is none.
    package func applyStep() throws(TargetError) -> Bool {
        try guarded { (pool) throws(TargetError) in try pool.applyStep() }
    }

    // MARK: For whoever mounts the mirror while its primary runs

    /// What the mirror shows now, for as long as the view is open.
    package func newestView() throws(TargetError) -> MirrorView { try opened().newestView() }
    /// Not between two tries to be a target: then nobody has it.
    package var isOpen: Bool { pool != nil }
    /// See ``MirrorPool/view(atNs:)``.
    package func view(atNs timeNs: Int64) throws(TargetError) -> MirrorView {
        try opened().view(atNs: timeNs)
    }
    /// How far back every moment can be had; nil where none can.
    package func reachNs() throws(TargetError) -> Int64? { try opened().reachNs() }
    /// The same as of a moment ago; asks nothing of the mirror's disk, which may hang.
    package var lastReachNs: Int64? { lock.withLock { reach.fromNs } }

    private func noteReach(of pool: MirrorPool) {
        let now = disk.monotonic()
        guard lock.withLock({ now - reach.readAtNs > 1_000_000_000 }) else { return }
        let found = (try? pool.reachNs()) ?? nil
        lock.withLock { reach = (found, now) }
    }
    /// In its journal, and not yet in its images.
    package var unappliedBytes: UInt64 { pool?.unappliedBytes ?? 0 }

    func opened() throws(TargetError) -> MirrorPool {
        guard let pool else { throw TargetError(.absent, "\(path) is not open") }
        return pool
    }
}
