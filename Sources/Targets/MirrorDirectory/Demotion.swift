// How a primary becomes a mirror of the pool that took its place.
//
//   settled     opened and closed as a primary once more: clean,   crash: a primary
//               and its dirty files have what an unclean end left
//   journal     what is left of a life as a mirror before goes,    crash: a primary
//               durably: the new one begins after all there was
//   role file   for who comes while the pool is held               crash: the same; the next open
//                                                                  writes it as the catalog has it
//   commit      role, whom it follows, what its content is of,     crash: a mirror
//               which dirty file says what it did alone: at once
//
// Nothing of the images changes. As a mirror it shows what it had, until its new primary has brought it to
// a checkpoint; what it had alone is a snapshot then (MirrorPool+Divergence.swift).

import BlockCore
import Pool
import Replication
import SystemIO

package enum Demotion {
    /// - Parameters:
    ///   - store: of a primary, opened and held.
    ///   - primary: what is known of the pool to follow; its generation is the oldest that may write here.
    ///   - address: where it is.
    ///   - sequence: how far a pool that is open is; of one that was just opened the catalog says it.
    ///   - isSettled: the pool was closed cleanly: its dirty files say all there is to say.
    package static func run(
        _ store: PoolStore, to primary: PoolSight, at address: String,
        sequence: SequenceNumber = .zero, isSettled: Bool
    ) throws(TargetError) {
        // What a promotion removed is gone for good when the directory is synced, and not before.
        try syncJournal(of: store)
        let next = try journalEnd(of: store) + 1
        Promotion.removeJournal(store.path, disk: store.disk)
        try syncJournal(of: store)
        do {
            var sight = try store.catalog.read { try PoolSight($0) }
            sight.isReplica = true
            sight.primaryPoolID = primary.poolID
            try sight.write(to: store.path, disk: store.disk)
            try store.catalog.write { tx in
                let state = try tx.poolState()
                let last = max(state.lastSequence, try tx.namesSequence(), sequence)
                var replica = ReplicaRecord(primaryPoolID: primary.poolID)
                replica.primaryAddress = address
                replica.generation = primary.history.current
                replica.contentGenerationID = state.generation.id
                replica.incarnationID = state.incarnationID
                replica.appliedSequence = last
                replica.structureSequence = last
                replica.journalSegment = next
                let row = try tx.targets().first { $0.poolID == primary.poolID }
                replica.divergence =
                    isSettled ? row.map { .tracked($0.id) } ?? .unknown : .unknown
                try tx.setReplica(replica)
                try tx.clearFence()
                try tx.setLostPower(nil)
                // Whoever is a mirror has been handed over, or will not be: as a primary again it asks nobody.
                try tx.setHandover(nil)
                try tx.addEvent(
                    EventRecord(
                        atNs: store.disk.now(), kind: "demoted", subject: store.path,
                        message: "follows pool \(primary.poolID) at \(address) from now on"))
            }
        } catch let error as SystemError {
            throw TargetError(.io, error.description, errno: error.errno)
        } catch { throw TargetError(.io, "\(store.path) was not demoted: \(error)") }
    }

    /// A mirror of another pool follows this one, although that one did not come from what it followed.
    package static func rebind(
        _ store: PoolStore, to primary: PoolSight, at address: String
    ) throws(TargetError) {
        do {
            try store.catalog.write { tx in
                guard var replica = try tx.replica(), replica.role == .replica else { return }
                replica.primaryPoolID = primary.poolID
                replica.primaryAddress = address
                replica.generation = primary.history.current
                if replica.incarnationID != nil { replica.divergence = .unknown }
                try tx.setReplica(replica)
            }
            try store.writeRole()
        } catch { throw TargetError(.io, "\(store.path) does not follow: \(error)") }
    }

    private static func journalEnd(of store: PoolStore) throws(TargetError) -> UInt64 {
        try withJournal(of: store) { (directory) throws(SystemError) in
            try store.disk.list(directory).compactMap { UInt64($0.name) }.max()
        } ?? 0
    }

    private static func syncJournal(of store: PoolStore) throws(TargetError) {
        try withJournal(of: store) { (directory) throws(SystemError) in
            try store.disk.syncDirectory(directory)
        }
    }

    /// - Returns: nil where there is none.
    @discardableResult
    private static func withJournal<T>(
        of store: PoolStore, _ body: (String) throws(SystemError) -> T?
    ) throws(TargetError) -> T? {
        try TargetError.system { () throws(SystemError) in
            let directory = store.path + "/journal"
            return try store.disk.status(directory) == nil ? nil : try body(directory)
        }
    }
}
