// A mirror that is opened for itself, while no primary writes to it: to mount it, to look back, or to
// promote it.
//
// Opening brings the images to the last checkpoint: what is in the journal is applied. A resync that was
// under way is left as it is (its primary goes on with it), and the checkpoint is shown as a view.
// Promotion.swift makes a primary of it.

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

    /// - Parameters:
    ///   - runsInBackground: merges and checksums; off where the pool is closed again soon.
    ///   - keepsHistory: see ``MirrorOptions``.
    /// - Throws: `.absent` where the pool is no mirror. The store stays the caller's then.
    package init(
        store: PoolStore, runsInBackground: Bool, keepsHistory: Bool = false
    ) throws(TargetError) {
        guard let record = try Self.replica(of: store) else {
            // Who asks again for what was done, and did not hear of it, is told.
            let number = (try? store.catalog.read { try $0.poolState() })?.generation.number
            let role = number.map { ": it is a primary, of generation \($0)" } ?? ""
            throw TargetError(.absent, "\(store.path) is no mirror\(role)")
        }
        // A promotion that was cut off left it ahead.
        try TargetError.system { () throws(SystemError) in try store.writeRole() }
        var options = MirrorOptions()
        options.historyMs = nil
        options.keepsHistory = keepsHistory
        options.runsInBackground = runsInBackground
        options.toleratesDamage = true
        pool = try MirrorPool(
            store: store, record: record, options: options)
        do throws(TargetError) {
            try requireAllThatMayBeSound()
            try settle()
        } catch {
            pool.volume.abandon()
            throw error
        }
    }

    // MARK: A journal that does not verify

    /// What the journal lacks.
    /// - Returns: nil where all that has to be applied verifies.
    package static func journalDamage(
        of store: PoolStore
    ) throws(TargetError) -> Journal.Salvage? {
        guard let record = try replica(of: store) else { return nil }
        return try TargetError.journal { () throws(JournalError) in
            try Journal.examine(
                disk: store.disk, directory: store.path + "/journal",
                firstSegment: record.journalSegment, applied: record.appliedSequence)
        }
    }

    /// Cuts the journal off before the damage; what is cut off is in `quarantine/`.
    package static func cutOff(
        _ damage: Journal.Salvage, of store: PoolStore
    ) throws(TargetError) {
        try TargetError.journal { () throws(JournalError) in
            try Journal.cutOff(damage, disk: store.disk) { (path) throws(SystemError) in
                try store.quarantineCopy(path)
            } move: { (path) throws(SystemError) in
                store.quarantine(path, reason: "it follows what does not verify: \(damage.reason)")
                guard try store.disk.status(path) == nil else {
                    throw SystemError(operation: "set aside", path: path, errno: 5)
                }
            }
        }
    }

    /// What is in the journal for an image that is set aside is passed over. One that is sound, and opens the next
    /// time, would lack it then, and nobody would know.
    private func requireAllThatMayBeSound() throws(TargetError) {
        guard pool.unappliedBytes > 0,
            let image = pool.volume.damagedImages.first(where: \.mayBeSound)
        else { return }
        throw TargetError(
            .io,
            "\(pool.store.path) cannot be brought to its last checkpoint: \(image.error.message). Check the "
                + "disk, then try again; an image whose files were taken away is given up, the others are "
                + "shown")
    }

    /// On a full disk the history goes first, unless it is to be kept, then the reserve.
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
    /// All that it shows, for somebody who makes a copy of it.
    package func copy() throws(TargetError) -> MirrorCopy { try MirrorCopy(pool) }
    /// How far back every moment can be had; nil where none can.
    package func reachNs() throws(TargetError) -> Int64? { try pool.reachNs() }

    /// Makes the mirror a primary of its own, with a new generation. Close it then, and open the pool
    /// as one opens any other.
    package func promote(
        _ new: NewGeneration = NewGeneration(cause: .forced)
    ) throws(TargetError) -> Generation {
        try pool.putBack()
        try settle()
        return try Promotion.run(pool, new)
    }

    /// Ends it, with its store.
    package func close() {
        let isPromoted = record.role == .primary
        pool.close(isSound: true)
        if isPromoted { Promotion.removeJournal(pool.store.path, disk: pool.store.disk) }
    }
}
