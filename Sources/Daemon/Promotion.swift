import BlockCore
import Pool
import Replication
import SystemIO
import Targets

package struct PromotionInfo: Codable, Sendable, Hashable {
    package var path: String
    package var generation: UInt64
    package var primaryPool: String
    /// Everything up to here is in it, and nothing beyond.
    package var checkpointSequence: UInt64
    /// When the last operation in it was made.
    package var shownNs: Int64
    /// What the old primary may have, and the mirror has not.
    package var loss: LossPreview
    /// Copies that could be taken instead, and hold more.
    package var better: [String]
    package var isPromoted = false
    /// The mirror's journal does not verify.
    package var damage: JournalDamage?

    /// Nothing is lost by it.
    package var isSure: Bool { loss.isNothing && better.isEmpty && damage == nil }
}

/// What a promotion cannot apply, because it was damaged on the mirror's disk.
package struct JournalDamage: Codable, Sendable, Hashable {
    package var reason: String
    /// Everything up to here is there.
    package var throughSequence: UInt64
    /// Of the journal, beyond that; they are kept in `quarantine/`.
    package var lostBytes: UInt64

    fileprivate init(_ found: Journal.Salvage) {
        reason = found.reason
        throughSequence = found.last.rawValue
        lostBytes = found.lostBytes
    }

    /// Blocks may be newer than that: they were written in place before the damage was met.
    package var text: String {
        "its journal does not verify (\(reason)): what came after operation \(throughSequence) is lost, "
            + "\(ByteSize(bytes: lostBytes)) of journal at most, which go to quarantine/. Blocks that were "
            + "written after it may be there all the same, so what it shows is no exact moment: let file "
            + "systems in it be checked"
    }
}

package enum PoolPromotion {
    /// - Parameters:
    ///   - force: also where the mirror's journal is damaged.
    ///   - reportsDamage: says with `dryRun` what is damaged, where it would fail otherwise.
    ///   - dryRun: says what would be, and changes nothing that opening does not.
    ///   - generationID: of the generation that begins; nil for any.
    ///   - accept: asked where something may be lost; false leaves the mirror as it is.
    package static func perform(
        path: String, dryRun: Bool, force: Bool, reportsDamage: Bool = false,
        generationID: String? = nil, accept: (PromotionInfo) throws -> Bool
    ) throws -> PromotionInfo {
        do {
            let store = try PoolStore.open(path: path, disk: LinuxDisk())
            let mirror: RecoveredMirror
            var damage: JournalDamage?
            do {
                if dryRun, reportsDamage, let info = try damagedPreview(of: store) {
                    try? store.close(clean: false, lastSequence: .zero)
                    return info
                }
                damage = try cutOffDamage(of: store, force: force && !dryRun)
                mirror = try RecoveredMirror(store: store, runsInBackground: false)
            } catch {
                try? store.close(clean: false, lastSequence: .zero)
                throw error
            }
            defer { mirror.close() }
            let view = try mirror.newestView()
            let checkpoint = view.sequence
            let shownNs = LossPreview.lastChange(of: mirror, view)
            view.release()
            var info = PromotionInfo(
                path: path, generation: (mirror.record.generation?.number ?? 0) + 1,
                primaryPool: mirror.record.primaryPoolID,
                checkpointSequence: checkpoint.rawValue, shownNs: shownNs,
                loss: try LossPreview.make(mirror, own: store.identity.id, path),
                better: [])
            info.damage = damage
            let others = try OtherCopies.ask(mirror, checkpoint, store)
            info.better = others.ahead
            info.loss.add(others.stale)
            guard mirror.record.incarnationID != nil else {
                throw ControlFailure(
                    .failed, "\(path) never reached a first checkpoint: there is nothing to promote"
                )
            }
            guard !dryRun else { return info }
            let isSure = info.isSure
            guard try isSure || accept(info) else { return info }
            info.generation = try mirror.promote(
                NewGeneration(cause: isSure ? .promoted : .forced, id: generationID)
            ).number
            info.isPromoted = true
            return info
        } catch { throw PoolSession.failure(error) }
    }

    /// A mirror that cannot be brought to its last operation is not opened to be looked at.
    private static func damagedPreview(of store: PoolStore) throws -> PromotionInfo? {
        guard let found = try RecoveredMirror.journalDamage(of: store),
            let record = try RecoveredMirror.replica(of: store)
        else { return nil }
        let shownNs = try store.catalog.read { tx in
            try tx.nodes().map { max($0.modifyNs, $0.changeNs) }.max() ?? 0
        }
        var info = PromotionInfo(
            path: store.path, generation: (record.generation?.number ?? 0) + 1,
            primaryPool: record.primaryPoolID, checkpointSequence: found.last.rawValue,
            shownNs: shownNs,
            loss: LossPreview(
                knowledge: .unknown, primary: record.primaryAddress,
                reason: "what its journal had is not all there", fromNs: shownNs,
                heardNs: record.heardNs), better: [])
        info.damage = JournalDamage(found)
        return info
    }

    private static func cutOffDamage(
        of store: PoolStore, force: Bool
    ) throws -> JournalDamage? {
        guard let found = try RecoveredMirror.journalDamage(of: store) else { return nil }
        let damage = JournalDamage(found)
        guard force else {
            throw ControlFailure(
                .damaged, "\(store.path): \(damage.text). `doppel promote --force` takes it over so"
            )
        }
        try RecoveredMirror.cutOff(found, of: store)
        try store.catalog.write {
            try $0.addEvent(
                EventRecord(
                    atNs: store.disk.now(), kind: "journal-cut", subject: store.path,
                    message: damage.text))
        }
        return damage
    }
}
