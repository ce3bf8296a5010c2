// Two pools that were one both are primaries. A person says which one goes on; the other becomes its mirror,
// and what that had alone is kept there as a snapshot.
//
//   this one is kept                                              crash: the next open, of either
//     generation   this pool begins one above both                both are primaries still: said again
//     demote       the other follows this one                     a mirror (Demotion.swift)
//     target       it is a target of this pool                    what it did alone is known there; `target
//                                                                 add` makes it one
//   the other is kept: this pool is demoted (`PoolDemotion`)

import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import Volume

extension PoolSession {
    /// This pool goes on.
    /// - Returns: what the person should know.
    func resolve(_ address: String) throws -> String {
        guard let replication else {
            throw ControlFailure(.failed, "\(store.path) is not a primary that can be changed")
        }
        try replication.requireNoSuccessor()
        guard volume.fenceReason == nil || options.mountPoint == nil else {
            throw ControlFailure(
                .inUse, "\(store.path) takes no changes, for it was replaced: unmount it first")
        }
        return try replication.keepHere(address)
    }
}

extension PoolReplication {
    fileprivate func keepHere(_ address: String) throws -> String {
        try changing.withLock {
            try requireNoSuccessor()
            let own = try store.catalog.read { try PoolSight($0) }
            let note = try store.catalog.read { try $0.handover() }
            let isElsewhere = TargetAddress(address).remote != nil
            guard !isElsewhere || note?.address == address else {
                throw ControlFailure(
                    .usage,
                    "\(address) is on another machine: which of the two goes on can be said where both are"
                )
            }
            let sight =
                isElsewhere ? try? RemotePool.look(at: address) : RemotePool.lookHere(address)
            guard !isElsewhere || sight == nil else {
                throw ControlFailure(
                    .usage,
                    "\(address) can be reached: mount the pool, and it says how the handover ended")
            }
            guard sight != nil || note?.address == address else {
                throw ControlFailure(.failed, "\(address) is not a pool that can be looked into")
            }
            if let sight { try check(sight, own, address) }
            if hub == nil { try attach() }
            guard let hub else { throw ControlFailure(.failed, "the pool is closed") }
            try hub.beginGeneration(after: sight?.history.current?.number ?? 0)
            let now = try store.catalog.read { try PoolSight($0) }
            guard let sight else {
                return
                    "\(address) cannot be reached: should it come back as a primary, say the same "
                    + "again"
            }
            if sight.isReplica {
                let other = try PoolStore.open(path: address, disk: LinuxDisk())
                let state = try other.catalog.read { try $0.poolState() }
                defer {
                    try? other.close(
                        clean: !other.wasUnclean, lastSequence: state.lastSequence)
                }
                try Demotion.rebind(other, to: now, at: store.path)
            } else {
                _ = try PoolDemotion.follow(address, now, at: store.path) { _ in }
            }
            if let row = hub.all.first(where: { $0.record.address == address }) {
                try hub.update(row.record.id) {
                    $0.isPaused = false
                    $0.poolID = sight.poolID
                }
            } else {
                _ = try add(TargetSpecification(address: address))
            }
            return
                "\(store.path) goes on, generation \(now.history.current?.number ?? 0); \(address) "
                + "is its mirror, and keeps what it had alone as a snapshot"
        }
    }

    private func check(_ sight: PoolSight, _ own: PoolSight, _ address: String) throws {
        guard !sight.isInUse else {
            throw ControlFailure(.inUse, "\(address) is in use: unmount it first")
        }
        switch own.history.relation(to: sight.history) {
        case .split, .replacedByOther: return
        case .same where sight.isReplica, .replacesOther where sight.isReplica: return
        case .replacesOther:
            throw ControlFailure(
                .failed,
                "\(address) is an old primary that this pool replaced: `doppel demote \(address)`")
        case .same, .unrelated:
            throw ControlFailure(.failed, "\(address) has nothing in common with \(store.path)")
        }
    }
}
