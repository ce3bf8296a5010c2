// A mirror that is open: its store, its volume, its journal, and what the catalog says of it.
//
// Invariants
//   R1 Images are changed in place only by what the journal holds durably, or by a staging.
//   R2 `appliedSequence` in the catalog names what is durable in the images; segments of the journal
//      after it are kept.
//   R3 While a staging is under way the journal holds nothing after `appliedSequence`, and the snapshot
//      `staging/<id>` is the checkpoint.
//   R4 One catalog transaction ends a staging: before it the old checkpoint is there whole, after it
//      the new one.
//   R5 A change of structure (names, images, snapshots) and how far structure is are one transaction:
//      a replay does none of them twice.
//
//   streaming ── beginStaging ──► staging ── commitStaging ──► streaming
//       ▲                            │
//       └──────── putBack ◄──────────┘  another staging, or a promotion
//
// What the next open finds, when power goes
//   a batch is written, not synced      whole, or as a torn tail that is cut: not acknowledged
//   it is synced, not applied           replayed
//   it is applied, not flushed          some of it is in the images; replayed over them
//   it is flushed, not noted            the same
//   it is noted                         not looked at again; its segment goes, or is history
// A staging's own points are in MirrorPool+Staging.swift.
//
// Locks, in the order they are taken: `applying`, `updating`, the volume's, `recordLock` and
// `countLock`, which are leaves.

import BlockCore
import Logging
import Pool
import Replication
import SystemIO
import Volume

package struct MirrorOptions: Sendable {
    package var journal = JournalOptions()
    /// How far back the mirror can be mounted as it was. nil: what is there is left as it is.
    package var historyMs: Int64? = 0
    /// What is kept for looking back is given up for no primary: not on a full disk, not when one goes back in its own
    /// story, and how long it is kept goes by this machine's clock alone. For a primary that this machine's owner does
    /// not trust with it.
    package var keepsHistory = false
    /// Off for tests that apply and merge by hand.
    package var runsInBackground = true
    /// Beyond this, who appends applies first: the journal must not fill the disk with what the
    /// images lack.
    package var maxUnappliedBytes: UInt64 = 1 << 30
    /// Bytes that are applied before the images are synced and the journal's segments may go, at most
    /// (see ``SettleBudget``). (PostgreSQL's `max_wal_size`, with its default.)
    package var settleBytes: UInt64 = 1 << 30
    /// When nothing came for so long, it is done all the same.
    package var settleIdleMs: Int64 = 5000
    /// Images that do not verify are left out, instead of refusing the whole mirror.
    package var toleratesDamage = false
    package init() {}
}

final class MirrorPool: @unchecked Sendable {  // see the locks above
    let store: PoolStore
    let options: MirrorOptions
    let log = Logger(label: "doppel.mirror")
    let volume: Volume
    let journal: Journal
    /// One at a time changes the images; held across I/O.
    let applying = Lock()
    /// One change of the record at a time; held across its transaction.
    private let updating = Lock()
    private let recordLock = Lock()
    private var record: ReplicaRecord
    let countLock = Lock()
    var unapplied: UInt64 = 0
    var applyFailure: TargetError?
    private var openViews = 0
    private var lookers = 0
    private var isEnding = false
    private let lookerLeft = Condition()
    private var whenViewless: (@Sendable () -> Void)?
    /// What it has that the primary which is connected has not.
    var divergence: Divergence?
    /// Of the views that are open.
    let lease = ViewLease()
    // Under `applying`:
    var applier: RecordApplier?
    var reader: JournalReader?
    /// In the images, durable or not.
    var position: SequenceNumber
    var bytesSinceNoted: UInt64 = 0
    var settleBudget: SettleBudget
    /// When the newest base of the history was made, or given up; 0 where there is none in this story.
    var newestBaseNs: Int64 = 0
    var nextViewNumber = 1

    /// - Parameter record: of a replica.
    init(
        store: PoolStore, record: ReplicaRecord, options: MirrorOptions
    ) throws(TargetError) {
        self.store = store
        self.options = options
        self.record = record
        position = record.appliedSequence
        settleBudget = SettleBudget(
            leastBytes: options.journal.segmentBytes, mostBytes: options.settleBytes)
        volume = try TargetError.volume { () throws(VolumeError) in
            try Volume(
                store: store,
                options: VolumeOptions(
                    runsInBackground: options.runsInBackground, isReplica: true))
        }
        do throws(TargetError) {
            if let damaged = volume.damagedImages.first, !options.toleratesDamage {
                throw TargetError(
                    .damaged, "\(store.path) does not verify: \(damaged.error). Attach it anew")
            }
            journal = try TargetError.journal { () throws(JournalError) in
                try Journal.open(
                    disk: store.disk, directory: store.path + "/journal", options: options.journal,
                    firstSegment: record.journalSegment, applied: record.appliedSequence)
            }
        } catch {
            volume.abandon()
            throw error
        }
        do throws(TargetError) {
            try dropLeftovers()
            try findBases()
            unapplied = journal.backlogBytes
            settleBudget.limit(freeBytes: freeBytes)
        } catch {
            volume.abandon()
            throw error
        }
    }

    static func replica(of store: PoolStore) throws(TargetError) -> ReplicaRecord? {
        try roles(of: store).replica
    }

    static func roles(
        of store: PoolStore
    ) throws(TargetError) -> (sight: PoolSight, replica: ReplicaRecord?) {
        do { return try store.catalog.read { (try PoolSight($0), try $0.replica()) } } catch {
            throw TargetError(.damaged, "the catalog of \(store.path) cannot be read: \(error)")
        }
    }

    // MARK: What the catalog says

    var state: ReplicaRecord { recordLock.withLock { record } }

    typealias Rows = (CatalogTransaction) throws -> Void

    /// Changes the record durably.
    /// - Parameter transaction: makes the one transaction, which also has the rows it is given.
    func update(
        _ change: (inout ReplicaRecord) -> Void,
        in transaction: (Rows) throws(TargetError) -> Void
    ) throws(TargetError) {
        updating.lock()
        defer { updating.unlock() }
        var next = state
        change(&next)
        let new = next
        try transaction { try $0.setReplica(new) }
        recordLock.withLock { record = new }
    }

    /// - Parameter also: other rows of the same transaction.
    func update(
        also: Rows = { _ in }, _ change: (inout ReplicaRecord) -> Void
    ) throws(TargetError) {
        try update(change) { (record) throws(TargetError) in
            try changeRows { tx in
                try also(tx)
                try record(tx)
            }
        }
    }

    func changeRows(_ rows: Rows) throws(TargetError) {
        try TargetError.volume { () throws(VolumeError) in try volume.changeStructure(rows) }
    }

    func rows<T>(_ body: (CatalogTransaction) throws -> T) throws(TargetError) -> T {
        do { return try store.catalog.read(body) } catch {
            throw TargetError(.io, "the catalog of \(store.path) cannot be read: \(error)")
        }
    }

    /// What a mount would show: everything up to here.
    var checkpoint: SequenceNumber {
        let state = state
        return state.staging == nil ? journal.durableSequence : state.appliedSequence
    }

    func snapshots() throws(TargetError) -> [SnapshotInfo] {
        try TargetError.volume { () throws(VolumeError) in try volume.snapshots() }.map {
            SnapshotInfo(
                name: $0.name, createdNs: $0.createdNs, origin: $0.origin, sequence: $0.sequence)
        }
    }

    func internalSnapshots(_ prefix: String = "") throws(TargetError) -> [SnapshotRecord] {
        try rows { tx in
            try tx.snapshots().filter { $0.isInternal && $0.name.hasPrefix(prefix) }
        }
    }

    func delete(_ snapshots: [SnapshotRecord]) throws(TargetError) {
        guard !snapshots.isEmpty else { return }
        try changeRows { tx in for each in snapshots { try tx.deleteSnapshot(each.id) } }
        try TargetError.volume { () throws(VolumeError) in try volume.tidy() }
    }

    /// Internal snapshots, and files, that a crash left and nobody needs.
    func dropLeftovers() throws(TargetError) {
        let needed = state.staging.map { Self.stagingName($0.id) }
        for entry in (try? store.disk.list(store.path)) ?? []
        where entry.name.hasPrefix(OverlayView.namePrefix) {
            try? store.disk.removeFile(store.path + "/" + entry.name)
        }
        try delete(
            try internalSnapshots().filter {
                $0.name != needed && !Self.isBase($0) && !isPinned($0)
            })
    }

    // MARK: Views

    func viewOpened() { countLock.withLock { openViews += 1 } }

    func viewReleased() {
        let action = countLock.withLock { () -> (@Sendable () -> Void)? in
            openViews -= 1
            return openViews == 0 ? whenViewless : nil
        }
        action?()
    }

    /// Runs `body` once no view is open.
    /// - Returns: false when none is: `body` is the caller's to run.
    func afterViews(_ body: (@Sendable () -> Void)?) -> Bool {
        countLock.withLock {
            whenViewless = body
            return openViews > 0
        }
    }

    // MARK: Looking

    /// Runs `body` while the pool stays open; it is to be short.
    /// - Returns: nil where the pool is being closed.
    func look<T>(_ body: () throws -> T) rethrows -> T? {
        let isOpen = countLock.withLock {
            lookers += isEnding ? 0 : 1
            return !isEnding
        }
        guard isOpen else { return nil }
        defer {
            countLock.withLock {
                lookers -= 1
                lookerLeft.broadcast()
            }
        }
        return try body()
    }

    private func waitForLookers() {
        countLock.lock()
        defer { countLock.unlock() }
        isEnding = true
        while lookers > 0 { lookerLeft.wait(countLock) }
    }

    // MARK: Ending

    /// - Parameter isSound: all went well; otherwise everything is left to the next open.
    func close(isSound: Bool) {
        waitForLookers()
        lease.end()
        guard isSound else {
            volume.abandon()
            try? store.close(clean: false, lastSequence: volume.sequence)
            return
        }
        do throws(TargetError) {
            _ = try flush()
            try applyAll()
            try TargetError.volume { () throws(VolumeError) in try volume.close() }
            // A promotion has set it far ahead.
            let known = try rows { try $0.poolState() }.lastSequence
            try TargetError.pool { () throws(PoolError) in
                try store.close(
                    clean: true, lastSequence: max(volume.sequence, checkpoint, known))
            }
        } catch {
            log.error("closing the mirror \(store.path): \(error)")
            volume.abandon()
            try? store.close(clean: false, lastSequence: volume.sequence)
        }
    }
}
