// All targets of a pool: opens them with it, tells flushes who counts, and shows how each stands.
//
//            ┌─ SessionDriver ── ReplicaTarget        one for each target, a thread each
//   TargetHub┼─ …
//            ├─ PoolSource      what sessions read of the pool
//            ├─ DirtyFile       what each target lacks, durably
//            └─ keeper          one thread: timers, what has to be written down (TargetHub+Keeping.swift)
//
// Invariants
//   H1 A target is attached to the stream before the pool takes its first change, and with all that
//      its dirty file and an unclean end leave open: from then on nothing passes it by (G3).
//   H2 What an unclean end left unknown stays in the region log until every target's dirty file has it.
//   H3 Nobody is answered without a target that counted before the catalog says since when it is
//      stale, and before every other target that can be reached holds that durably, too.
//   H4 A write is answered on the strength of a target only when the catalog says that it is *whole*: that
//      it has all that was answered without it, too. Only such a one is asked after a loss of power.
//   H5 A target's place is never initialised again: only `add` lays out a mirror, in an empty folder.

import BlockCore
import Logging
import Pool
import Replication
import SystemIO
import Volume

package struct HubOptions: Sendable {
    /// Sessions and the keeper run on threads of their own; off for whoever steps them.
    package var runsInBackground = true
    /// Sessions connect; otherwise what targets lack is kept track of, and nothing is sent.
    package var connects = true
    package var session = SessionOptions()
    /// How long a clean end waits for targets that are nearly in step.
    package var drainTimeoutMs: Int64 = 10_000
    /// How long a clean end waits at least for a target to let go.
    package var stopTimeoutMs: Int64 = 5000
    package var tickMs: Int64 = 100
    package init() {}
}

/// Opens the target of a record; called for every attempt to connect.
package typealias TargetOpener =
    @Sendable (TargetRecord) throws(TargetError) -> any ReplicaTarget

package final class TargetHub: @unchecked Sendable {  // tables are under `lock`
    package let volume: Volume
    package let stream: WriteStream
    let options: HubOptions
    let source: PoolSource
    private let opener: TargetOpener
    let log = Logger(label: "doppel.targets")
    let lock = Lock()
    /// Something is to be written down, or a target got further.
    let changed = Condition()
    var targets: [TargetID: AttachedTarget] = [:]
    var isEnding = false
    /// Targets that were removed, and are waited for until the others know of it.
    var leaving: [(id: TargetID, place: SequenceNumber?)] = []
    /// Targets that were removed, for those that do not hear of it at once.
    var departed: [CopyStanding] = []
    private var keeper: WorkerThread?
    var samples = SequenceSamples()

    var store: PoolStore { volume.store }
    var disk: Disk { volume.store.disk }

    /// Attaches every target that the catalog knows. The pool has not taken a change yet.
    /// - Parameter suspects: blocks that an unclean end left unknown.
    package init(
        volume: Volume, stream: WriteStream, suspects: [ImageID: BlockSet],
        options: HubOptions = HubOptions(), opener: @escaping TargetOpener
    ) throws(TargetError) {
        self.volume = volume
        self.stream = stream
        self.options = options
        self.opener = opener
        source = try PoolSource(volume: volume, stream: stream)
        source.attach(self)
        volume.gate.attach { [weak self] sequence in self?.wantFlush(sequence) }
        let (records, images) = try Self.read(volume.store) {
            (try $0.targets(), try $0.targetImages())
        }
        for record in records {
            let target = try AttachedTarget.open(
                record, volume: volume, stream: stream, incarnation: source.hello.incarnation,
                suspects: suspects)
            target.setImages(images)
            targets[record.id] = target
        }
        if !options.connects { try noteAbsence() }
    }

    static func read<T>(
        _ store: PoolStore, _ body: (CatalogTransaction) throws -> T
    ) throws(TargetError) -> T {
        do { return try store.catalog.read(body) } catch {
            throw TargetError(.io, "the catalog of \(store.path) cannot be read: \(error)")
        }
    }

    /// On a full disk with the reserve's help: nobody is answered without a target before it is written
    /// down that it is stale.
    func write<T>(_ body: (CatalogTransaction) throws -> T) throws(TargetError) -> T {
        do throws(TargetError) { return try writeOnce(body) } catch {
            guard error.kind == .noSpace, store.reserveBytes > 0 else { throw error }
            return try store.withReserve { () throws(TargetError) in try writeOnce(body) }
        }
    }

    func writeOnce<T>(
        _ body: (CatalogTransaction) throws -> T
    ) throws(TargetError) -> T {
        do { return try store.catalog.write(body) } catch {
            let isFull = (error as? CatalogError)?.isNoSpace ?? false
            throw TargetError(
                isFull ? .noSpace : .io, "the catalog of \(store.path) took no change: \(error)")
        }
    }

    // MARK: Running

    /// - Parameter names: the names of the pool at a moment when nobody changes them.
    package func start(names: @escaping @Sendable () -> @Sendable () -> [NodeRecord]) {
        source.setNames(names)
        // Opening itself changes names; from here on nothing does.
        if let reason = try? Self.read(store, { try $0.fence() }) { volume.fence(reason) }
        for target in all { launch(target) }
        guard options.runsInBackground else { return }
        let thread = WorkerThread.start("doppel-targets") { [weak self] in
            while self?.keepOnce() ?? false {}
        }
        lock.withLock { keeper = thread }
    }

    /// What is done from here on is answered without anybody.
    private func noteAbsence() throws(TargetError) {
        for target in all where target.record.isWhole {
            var record = target.record
            record.isWhole = false
            let new = record
            try write { try $0.updateTarget(new) }
            target.update { $0 = new }
        }
    }

    func launch(_ target: AttachedTarget) {
        guard options.connects, !target.record.isPaused else { return }
        var session = options.session
        session.take(target)
        let record = target.record
        // H3: until it is connected, or the timeout has passed, fsyncs wait for one that was in step.
        let counts = session.policy.isWaitedFor && record.stale == nil
        // Who does not go on without it does not do so because the pool was opened anew.
        let isArmed = record.isArmed && session.policy.hasStandstill
        if counts || isArmed {
            volume.gate.count(
                record.id, session.policy,
                durable: stream.standing(record.id)?.durable ?? .zero,
                as: counts ? .counting : .lost, isOnRecord: record.isWhole)
        }
        let driver = SessionDriver(
            id: record.id, options: session, seed: sessionSeed, counts: counts,
            isArmed: isArmed, stream: stream, source: source,
            clock: { [disk] in disk.monotonic() }
        ) { [opener] () throws(TargetError) in try opener(record) }
        // Only who waits for a target is held back for it.
        stream.setHoldsWriters(record.id, session.policy.isWaitedFor)
        target.setDriver(driver)
        // It counts already, and nothing is answered without it from here on: it has only to get there.
        if counts, !record.isWhole { target.noteInStep(from: stream.lastSequence) }
        beginRecoveryPoint(of: target)
        driver.start(onThread: options.runsInBackground)
    }

    /// A staging that another primary began must never be taken for one's own, also where the clocks of both
    /// say the same.
    private var sessionSeed: UInt64 {
        let id = source.hello.incarnationID.utf8
        return id.reduce(UInt64(bitPattern: disk.now())) { ($0 ^ UInt64($1)) &* 0x0100_0000_01b3 }
    }

    package var all: [AttachedTarget] {
        lock.withLock { targets.values.sorted { $0.record.id < $1.record.id } }
    }
    package func target(_ id: TargetID) -> AttachedTarget? { lock.withLock { targets[id] } }

    /// Somebody's fsync waits: of no concern to targets that nobody waits for.
    private func wantFlush(_ sequence: SequenceNumber) {
        for target in all {
            guard let driver = target.driver, driver.options.mayBeWaitedFor else { continue }
            driver.wantFlush(sequence)
        }
    }

    package func isInStep(_ target: AttachedTarget) -> Bool {
        target.driver?.snapshot.isInStep(nowNs: disk.monotonic()) ?? false
    }

    // MARK: Waiting and ending

    /// Returns when the targets hold everything that was done before the call, durably.
    /// - Returns: those that do not when the time has passed.
    package func wait(for ids: [TargetID]?, timeoutMs: Int64?) -> [TargetID] {
        let deadline = timeoutMs.map { disk.monotonic() + $0 * 1_000_000 }
        while true {
            let behind = wait(for: ids, upTo: stream.lastSequence, deadline)
            // Who just came in step is told of the others, and they of it: that counts, too.
            guard behind.isEmpty, announceArrivals() else { return behind }
        }
    }

    private func wait(
        for ids: [TargetID]?, upTo sequence: SequenceNumber, _ deadline: Int64?
    ) -> [TargetID] {
        for target in all where ids?.contains(target.record.id) ?? true {
            target.driver?.wantFlush(sequence)
        }
        lock.lock()
        defer { lock.unlock() }
        while true {
            let behind = targets.values.filter { target in
                (ids?.contains(target.record.id) ?? true) && !holds(target.record.id, sequence)
            }
            if behind.isEmpty || isEnding { return behind.map(\.record.id).sorted() }
            if let deadline, disk.monotonic() >= deadline {
                return behind.map(\.record.id).sorted()
            }
            _ = changed.wait(lock, timeoutMs: 50)
        }
    }

    private func holds(_ id: TargetID, _ sequence: SequenceNumber) -> Bool {
        stream.standing(id)?.holds(sequence) ?? false
    }

    /// Lets targets that are in step have the rest, writes down what the others lack, and lets go.
    /// The pool takes no changes any more.
    /// - Returns: whether all of it is written down: otherwise the pool must not be marked clean.
    package func close() -> Bool {
        let inStep = all.filter(isInStep).map(\.record.id)
        if !inStep.isEmpty, options.runsInBackground {
            _ = wait(for: inStep, timeoutMs: options.drainTimeoutMs)
        }
        lock.withLock {
            isEnding = true
            changed.broadcast()
        }
        lock.withLock { keeper }?.join()
        releaseLeaving(all: true)
        var isSound = true
        let last = stream.lastSequence
        for target in all {
            let isLevel = holds(target.record.id, last)
            if let driver = target.driver {
                // A target that is well has a mirror to close behind it.
                _ = driver.stop(timeoutMs: max(target.record.timeoutMs, options.stopTimeoutMs))
                // One that has everything is not stale because its primary ended.
                if !isLevel { recordStale(target, tellsOthers: false) }
            }
            // Heard a moment ago, it is known to no other run yet (G6).
            recordFence(target)
            do throws(TargetError) { try target.secure(upTo: last, stream, store) } catch {
                log.error("target \(target.record.address): \(error)")
                isSound = false
            }
        }
        return isSound
    }
}

// MARK: Guarantees towards the pool

extension TargetHub: TargetKeeper {
    package func secure(upTo sequence: SequenceNumber) throws(VolumeError) {
        for target in all {
            do throws(TargetError) { try target.secure(upTo: sequence, stream, store) } catch {
                throw VolumeError(error.kind == .noSpace ? .noSpace : .io, error.message)
            }
        }
    }

    package func letGo(of cut: SequenceNumber) { source.letGo(of: cut) }
}
