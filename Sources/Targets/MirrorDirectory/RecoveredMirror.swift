// A mirror that is opened for itself, while no primary writes to it: to mount it, to look back, or to
// promote it.
//
// Opening brings the images to the last checkpoint: what is in the journal is applied. A resync that was
// under way is left as it is (its primary goes on with it), and the checkpoint is shown as a view.
//
// Promotion
//   put back    a resync that was under way is given up           crash: a mirror, at its checkpoint
//   applied     all that the journal has, durably                 crash: the same
//   note        the file `promoted`, for primaries that come      crash: the same; the next open that
//               while somebody has the pool open                  finds a mirror removes it
//   commit      role, generation and sequence, at once            crash: a primary
//   close       the journal goes, and with it the history
// From the commit on the pool is one like any other, and its old primary is refused.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

package final class RecoveredMirror: Sendable {
    private let pool: MirrorPool
    package var volume: Volume { pool.volume }
    package var record: ReplicaRecord { pool.state }
    /// Everything up to here is there, and nothing beyond.
    package var checkpoint: SequenceNumber { pool.checkpoint }

    /// nil where the pool is no mirror, or one that was promoted.
    package static func replica(of store: PoolStore) throws(TargetError) -> ReplicaRecord? {
        guard let record = try MirrorPool.replica(of: store), record.role == .replica else {
            return nil
        }
        return record
    }

    /// - Parameter runsInBackground: merges and checksums; off where the pool is closed again soon.
    /// - Throws: `.absent` where the pool is no mirror. The store stays the caller's then.
    package init(store: PoolStore, runsInBackground: Bool) throws(TargetError) {
        guard let record = try Self.replica(of: store) else {
            throw TargetError(.absent, "\(store.path) is no mirror")
        }
        Promotion.forget(store.path, disk: store.disk)
        var options = MirrorOptions()
        options.historyMs = nil
        options.runsInBackground = runsInBackground
        options.toleratesDamage = true
        pool = try MirrorPool(
            store: store, primaryPoolID: record.primaryPoolID, options: options)
        do throws(TargetError) { try settle() } catch {
            pool.volume.abandon()
            throw error
        }
    }

    /// On a full disk the history goes first, then the reserve.
    private func settle() throws(TargetError) {
        do throws(TargetError) { try pool.applyAll() } catch {
            guard error.kind == .noSpace, pool.store.reserveBytes > 0 else { throw error }
            pool.store.releaseReserve()
            try pool.applyAll()
        }
    }

    package func newestView() throws(TargetError) -> MirrorView { try pool.newestView() }
    /// See ``MirrorPool/view(atNs:)``.
    package func view(atNs timeNs: Int64) throws(TargetError) -> MirrorView {
        try pool.view(atNs: timeNs)
    }
    package func view(at sequence: SequenceNumber) throws(TargetError) -> MirrorView {
        try pool.view(at: sequence)
    }
    /// How far back every moment can be had; nil where none can.
    package func reachNs() throws(TargetError) -> Int64? { try pool.reachNs() }

    /// Makes the mirror a primary of its own, with a new generation. Close it then, and open the pool
    /// as one opens any other.
    package func promote() throws(TargetError) -> Generation {
        try pool.putBack()
        try settle()
        return try Promotion.run(pool)
    }

    /// Ends it, with its store.
    package func close() {
        let isPromoted = record.role == .primary
        pool.close(isSound: true)
        if isPromoted { Promotion.removeJournal(pool.store.path, disk: pool.store.disk) }
    }
}

enum Promotion {
    private static func path(_ pool: String) -> String { pool + "/promoted" }

    /// The UUID of the pool that the one at `path` was promoted from; best effort, for when nobody
    /// but its owner can look into its catalog.
    static func promotedFrom(_ pool: String, disk: Disk) -> String? {
        (try? disk.readAll(path(pool))).flatMap { String(validating: $0, as: UTF8.self) }?
            .split(separator: "\n").first.map(String.init)
    }

    static func forget(_ pool: String, disk: Disk) {
        guard ((try? disk.status(path(pool))) ?? nil) != nil else { return }
        try? disk.removeFile(path(pool))
        try? disk.syncDirectory(pool)
    }

    /// Nobody replays it any more. What a crash leaves of it only takes space.
    static func removeJournal(_ pool: String, disk: Disk) {
        let directory = pool + "/journal"
        for entry in (try? disk.list(directory)) ?? [] {
            try? disk.removeFile(directory + "/" + entry.name)
        }
    }

    static func run(_ pool: MirrorPool) throws(TargetError) -> Generation {
        let (store, replica) = (pool.store, pool.state)
        let state = try pool.rows { try $0.poolState() }
        let generation = Generation(
            number: max(replica.generation?.number ?? 0, state.generation.number) + 1,
            id: PoolStore.randomID(), parentID: replica.generation?.id,
            startSequence: pool.checkpoint)
        do throws(SystemError) {
            try store.disk.writeDurably(
                path(store.path), contents: Array((replica.primaryPoolID + "\n").utf8))
        } catch { throw TargetError(.io, error.description, errno: error.errno) }
        try pool.update(also: { tx in
            var next = state
            next.generation = generation
            next.incarnation += 1
            next.incarnationID = PoolStore.randomID()
            next.lastSequence = max(pool.checkpoint, state.lastSequence)
            try tx.setPoolState(next)
            try tx.setNamesSequence(max(pool.checkpoint, try tx.namesSequence()))
            for each in try tx.snapshots() where each.isInternal { try tx.deleteSnapshot(each.id) }
            try tx.addEvent(
                EventRecord(
                    atNs: store.disk.now(), kind: "promoted", subject: store.path,
                    message: "was a mirror of pool \(replica.primaryPoolID); generation "
                        + "\(generation.number) begins"))
        }) { record in
            record.role = .primary
            record.generation = generation
        }
        return generation
    }
}
