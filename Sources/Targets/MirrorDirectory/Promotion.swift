// How a mirror becomes a primary.
//
//   put back    a resync that was under way is given up           crash: a mirror, at its checkpoint
//   applied     all that the journal has, durably                 crash: the same
//   dirty file  for the primary so far: nothing, since the        crash: the same; a file without a
//               checkpoint                                         row is removed at the next promotion
//   role file   for primaries that come while somebody has the    crash: the same; the next open
//               pool open                                          writes it as the catalog has it
//   commit      role, generation, history, sequence, ids, and     crash: a primary
//               a target for each copy that there is: at once
//   close       the journal goes, and with it the history
//
// From the commit on the pool is one like any other, and its old primary is refused. What changes from
// then on is kept track of for the old primary, from the first change on: it needs only what either
// side changed since. For other copies it is not known what they lack: they are compared as a whole.
//
// Sequence numbers go on far above all that the old primary may still give, ids of images and names too:
// what two pools did on their own never has the same number.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

/// What a promotion is to begin.
package struct NewGeneration: Sendable, Hashable {
    package var cause: GenerationHistory.Cause
    /// Of a handover, which names it before.
    package var id: String?
    /// Of a handover: where the old primary is. Otherwise where it said it was.
    package var primaryAddress: String?

    package init(
        cause: GenerationHistory.Cause, id: String? = nil, primaryAddress: String? = nil
    ) {
        self.cause = cause
        self.id = id
        self.primaryAddress = primaryAddress
    }
}

enum Promotion {
    private static let sequenceShift: UInt64 = 48

    /// Nobody replays it any more. What a crash leaves of it only takes space.
    static func removeJournal(_ pool: String, disk: Disk) {
        let directory = pool + "/journal"
        for entry in (try? disk.list(directory)) ?? [] {
            try? disk.removeFile(directory + "/" + entry.name)
        }
    }

    static func run(
        _ pool: MirrorPool, _ new: NewGeneration
    ) throws(TargetError) -> Generation {
        let (store, replica) = (pool.store, pool.state)
        let (state, before) = try pool.rows { (try $0.poolState(), try $0.history()) }
        let checkpoint = pool.checkpoint
        // A primary that was not resynced since is promoted from its own story.
        let known = max(replica.generation?.number ?? 0, state.generation.number)
        let generation = Generation(
            number: known + 1, id: new.id ?? PoolStore.randomID(),
            parentID: replica.contentGenerationID ?? replica.generation?.id,
            startSequence: checkpoint)
        let now = store.disk.now()
        let history = GenerationHistory(
            before.entries + [
                .init(
                    generation: generation, poolID: store.identity.id, begunNs: now,
                    cause: new.cause)
            ])
        let targets = try pool.rows { tx in
            try nextTargets(tx, of: pool, new, history, at: now)
        }
        try makeDirtyFiles(targets, of: pool)
        let sight = PoolSight(
            poolID: store.identity.id, isReplica: false, primaryPoolID: replica.primaryPoolID,
            history: history)
        try TargetError.system { () throws(SystemError) in
            try sight.write(to: store.path, disk: store.disk)
        }
        try pool.update(also: { tx in
            var next = state
            next.generation = generation
            next.incarnation += 1
            next.incarnationID = PoolStore.randomID()
            next.lastSequence = firstSequence(after: max(checkpoint, state.lastSequence))
            try tx.setPoolState(next)
            try tx.setHistory(history)
            try tx.jumpIDs()
            try tx.setLostReceived(false)
            try tx.setNamesSequence(max(checkpoint, try tx.namesSequence()))
            for each in try tx.snapshots() where each.isInternal { try tx.deleteSnapshot(each.id) }
            for old in try tx.targets() { try tx.deleteTarget(old.id) }
            for target in targets {
                guard try tx.insertTarget(target.record) == target.record.id else {
                    throw TargetError(.io, "the ids of targets went on meanwhile")
                }
            }
            try tx.addEvent(
                EventRecord(
                    atNs: now, kind: "promoted", subject: store.path,
                    message: "was a mirror of pool \(replica.primaryPoolID); generation "
                        + "\(generation.number) begins"))
        }) { record in
            record.role = .primary
            record.generation = generation
            record.contentGenerationID = generation.id
            record.divergence = nil
        }
        return generation
    }

    private static func firstSequence(after known: SequenceNumber) -> SequenceNumber {
        SequenceNumber(rawValue: (known.rawValue >> sequenceShift + 1) << sequenceShift)
    }

    // MARK: Who is to follow

    private struct NextTarget {
        var record: TargetRecord
        /// What it has in common with this pool is known; otherwise all of it is compared.
        var base: SequenceNumber?
    }

    /// The targets that the pool had when it was a primary itself, its primary, and the other copies that
    /// it heard of. All of them get new ids: what the dirty files of the old ones say is over.
    private static func nextTargets(
        _ tx: CatalogTransaction, of pool: MirrorPool, _ new: NewGeneration,
        _ history: GenerationHistory, at now: Int64
    ) throws -> [NextTarget] {
        let (own, replica) = (pool.store.identity.id, pool.state)
        var records = try tx.targets()
        func add(_ poolID: String, _ address: String) {
            if let index = records.firstIndex(where: {
                $0.poolID == poolID || $0.address == address
            }) {
                records[index].poolID = poolID
                // What a person here said of how it is reached counts, and not what it says of itself over a line.
                let isKnown = TargetAddress(records[index].address).remote != nil
                let said = TargetAddress(address)
                if !(isKnown && (said.isElsewhere || said.remote != nil)) {
                    records[index].address = address
                }
            } else {
                records.append(
                    TargetRecord(
                        address: address, poolID: poolID, mode: .flush,
                        timeoutMs: TargetRecord.defaultTimeoutMs,
                        historyMs: TargetRecord.defaultHistoryMs, addedNs: now))
            }
        }
        if let address = new.primaryAddress ?? replica.primaryAddress {
            add(replica.primaryPoolID, address)
        }
        for peer in try tx.peers() where peer.poolID != own && !peer.address.isEmpty {
            guard peer.poolID != replica.primaryPoolID else { continue }
            add(peer.poolID, peer.address)
        }
        var seen: Set<String> = []
        records = records.filter { seen.insert($0.address).inserted }
        var id = try tx.lastTargetID().rawValue
        // A pool that was not resynced since it was a primary has nothing in common that is known.
        let isLevel = replica.divergence == nil
        return records.map { record in
            var record = record
            id += 1
            record.id = TargetID(rawValue: id)
            record.isWhole = false
            record.isPaused = false
            let isPrimary = record.poolID == replica.primaryPoolID
            // The primary may have lost, and gone on without, what another copy has. What it has alone itself it
            // says when it comes back.
            record.keepsDiverged = !isPrimary
            record.stale = TargetRecord.Stale(
                sinceNs: now, sequence: pool.checkpoint,
                reason: isPrimary
                    ? "it was the primary until now, and is to follow this pool"
                    : "it is to follow this pool, which was promoted")
            return NextTarget(record: record, base: isPrimary && isLevel ? pool.checkpoint : nil)
        }
    }

    /// A row without its file is compared as a whole; a file without its row must never be taken for
    /// that of a later row with the same id.
    private static func makeDirtyFiles(
        _ targets: [NextTarget], of pool: MirrorPool
    ) throws(TargetError) {
        let store = pool.store
        let last = try pool.rows { try $0.lastTargetID() }
        for entry in (try? store.disk.list(store.path + "/targets")) ?? [] {
            guard let id = Int64(entry.name), id > last.rawValue else { continue }
            try removeDirtyFile(TargetID(rawValue: id), of: store)
        }
        let incarnation = try pool.rows { try $0.poolState() }.incarnation + 1
        for target in targets {
            guard let base = target.base else { continue }
            let path = store.dirtyPath(target: target.record.id)
            try TargetError.dirty { () throws(DirtyFileError) in
                try DirtyFile.create(
                    disk: store.disk, path: path, target: target.record.id,
                    DirtyFileState(acknowledged: base, incarnation: incarnation, legs: []))
            }.close()
        }
    }

    private static func removeDirtyFile(
        _ id: TargetID, of store: PoolStore
    ) throws(TargetError) {
        try TargetError.system { () throws(SystemError) in
            try DirtyFile.remove(disk: store.disk, path: store.dirtyPath(target: id))
        }
    }
}
