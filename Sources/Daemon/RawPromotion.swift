// How a raw mirror becomes a pool, and a primary.
//
//   looked at    by its files: whole, or torn                    crash: a raw mirror
//   adopted      by rename (Adoption.swift), under the ids that  crash: the same command goes on; nobody else
//                its primary knows, with the next generation,    takes it for a pool or a raw mirror of his
//                in the transaction that makes it a pool
//   tidied       `.doppel-mirror` goes                            crash: a pool; the same command tidies
//
// The old primary, when it connects, finds a pool that replaced it, and is fenced. It is a target of the new
// one: what it lacks is not known, so all of it is compared by hash when it follows.

import BlockCore
import Pool
import SystemIO
import Targets

package struct RawPromotionInfo: Codable, Sendable, Hashable {
    package var path: String
    package var generation: UInt64
    package var primaryPool: String
    package var checkpointSequence: UInt64
    /// Its files are of no one moment of its primary, since then.
    package var isTorn: Bool
    package var tornSinceNs: Int64?
    /// The old primary may have more: why; nil: it is known that it has not.
    package var mayLack: String?
    package var images: Int
    package var isPromoted = false
}

package enum RawPromotion {
    private static let sequenceShift: UInt64 = 48

    /// - Parameter accept: asked where something may be lost; false leaves the mirror as it is.
    package static func perform(
        path: String, dryRun: Bool, accept: (RawPromotionInfo) throws -> Bool
    ) throws -> RawPromotionInfo {
        do {
            let disk = LinuxDisk()
            guard let state = try RawFolderState.read(of: path, disk: disk) else {
                throw ControlFailure(.failed, "\(path) is no raw mirror")
            }
            guard let lock = try disk.tryLock(RawFolderState.folder(of: path) + "/lock") else {
                throw ControlFailure(
                    .inUse, "\(path) is being written by its primary: stop that first")
            }
            defer { lock.release() }
            var info = describe(state, path, disk)
            if PoolStore.isPool(path, disk: disk) {
                // It went no further the last time; what says which file is what may be gone.
                if !dryRun { try tidy(path, disk) }
                info.isPromoted = true
                return info
            }
            guard state.incarnationID != nil,
                let contents = try RawMirror.look(at: path, disk: disk)
            else {
                throw ControlFailure(
                    .failed, "\(path) never reached a first checkpoint: there is nothing to promote"
                )
            }
            // Files that are on their way into the pool are missing; whoever began that was sure, or said so.
            let isOnItsWay = Adoption.interruption(path, disk: disk) != nil
            if !isOnItsWay { info.isTorn = !contents.isWhole }
            info.images = contents.ids.known.values.count { $0.image != nil }
            guard !dryRun else { return info }
            let isSure = !info.isTorn && info.mayLack == nil
            guard try isSure || isOnItsWay || accept(info) else { return info }
            let plan = try Adoption.adopt(
                path, ids: contents.ids,
                also: { tx in
                    try enter(state, as: isSure ? .promoted : .forced, path, at: disk.now(), tx)
                })
            try tidy(path, disk)
            info.images = plan.files.count
            info.isPromoted = true
            return info
        } catch { throw PoolSession.failure(error) }
    }

    private static func describe(
        _ state: RawFolderState, _ path: String, _ disk: LinuxDisk
    ) -> RawPromotionInfo {
        RawPromotionInfo(
            path: path, generation: (state.generation?.number ?? 0) + 1,
            primaryPool: state.primaryPoolID, checkpointSequence: state.checkpoint.rawValue,
            isTorn: !state.isWhole, tornSinceNs: state.sinceNs, mayLack: mayLack(state, disk),
            images: 0)
    }

    /// Whether the old primary has ended with nothing that is not here.
    private static func mayLack(_ state: RawFolderState, _ disk: LinuxDisk) -> String? {
        guard let address = state.primaryAddress else {
            return "it is not known where the old primary is"
        }
        var last: SequenceNumber?
        let sight = PoolSight.look(at: address, disk: disk) { tx in
            let state = try tx.poolState()
            if state.cleanlyClosed { last = max(state.lastSequence, try tx.namesSequence()) }
        }
        guard let sight, sight.poolID == state.primaryPoolID else {
            return "the old primary at \(address) cannot be read"
        }
        guard !sight.isInUse else { return "the old primary at \(address) is in use" }
        guard let last else { return "the old primary at \(address) was not closed cleanly" }
        return last <= state.checkpoint ? nil : "the old primary at \(address) went on after that"
    }

    private static func enter(
        _ state: RawFolderState, as cause: GenerationHistory.Cause, _ path: String, at now: Int64,
        _ tx: CatalogTransaction
    ) throws {
        let pool = try tx.identity().id
        let generation = Generation(
            number: (state.generation?.number ?? 0) + 1, id: PoolStore.randomID(),
            parentID: state.history.current?.id ?? state.generation?.id,
            startSequence: state.checkpoint)
        var next = try tx.poolState()
        next.generation = generation
        next.lastSequence = SequenceNumber(
            rawValue: (state.checkpoint.rawValue >> sequenceShift + 1) << sequenceShift)
        try tx.setPoolState(next)
        try tx.setHistory(
            GenerationHistory(
                state.history.entries + [
                    .init(generation: generation, poolID: pool, begunNs: now, cause: cause)
                ]))
        try tx.jumpIDs()
        if let address = state.primaryAddress {
            let record = TargetRecord(
                address: address, poolID: state.primaryPoolID, mode: .flush,
                timeoutMs: TargetRecord.defaultTimeoutMs, historyMs: TargetRecord.defaultHistoryMs,
                addedNs: now,
                stale: .init(
                    sinceNs: now, sequence: state.checkpoint,
                    reason: "it was the primary until now, and is to follow this pool"))
            _ = try tx.insertTarget(record)
        }
        try tx.addEvent(
            EventRecord(
                atNs: now, kind: "promoted", subject: path,
                message: "was a raw mirror of pool \(state.primaryPoolID); generation "
                    + "\(generation.number) begins"))
    }

    /// The state of the raw mirror goes, the one file that says so last.
    private static func tidy(_ path: String, _ disk: LinuxDisk) throws {
        let folder = RawFolderState.folder(of: path)
        for entry in (try? disk.list(folder + "/unnamed")) ?? [] {
            // A folder on its way has a name by now, or none.
            if entry.kind == .directory {
                try disk.removeDirectory(folder + "/unnamed/" + entry.name)
            } else {
                try disk.removeFile(folder + "/unnamed/" + entry.name)
            }
        }
        if try disk.status(folder + "/unnamed") != nil {
            try disk.removeDirectory(folder + "/unnamed")
        }
        for name in ["names", "README", "state.json.new", "names.new", "lock", "state.json"]
        where try disk.status(folder + "/" + name) != nil {
            try disk.removeFile(folder + "/" + name)
        }
        try disk.removeDirectory(folder)
        try disk.syncDirectory(path)
    }
}
