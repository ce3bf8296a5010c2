// After a crash of the primary's machine: what its disk lost, and a target has, is fetched from there before
// the pool is served.
//
//   noted     the open says that the machine went down, and since where   crash: said again
//   looked    what is durable here for certain is noted, before anything   crash: the same
//             is changed
//   asked     a target that was in step: how far is it?                     crash: the same
//   compared  the active regions, by hash, and the names
//   kept      what this disk has becomes the snapshot `diverged-<time>`      crash: the same; it is made once
//   pulled    blocks and sizes, into the heads, and flushed                  crash: pulled again
//   named     names, and the note goes: one catalog transaction              crash: all of it is done
//
// Invariants
//   P1 Nothing is pulled from a target that something was answered without (it is not *whole*), nor from one
//      in mode async, which may lack what was flushed; in semi-sync from one alone that lost nothing of what
//      it was given.
//   P2 So what was flushed and acknowledged is on the target: to become what it has at its checkpoint loses
//      nothing of that. What is durable here beyond the checkpoint stays all the same.
//   P3 Region marks stay as they are. What was pulled is compared by the next session like all that a crash
//      left open.
//   P4 What did not travel in the stream is no content of the checkpoint: images restored at or after it,
//      and those that have no name there, are left alone.

import BlockCore
import Logging
import Pool
import Replication
import SystemIO
import Volume

package final class RecoveryPull {
    /// What a target that was asked says.
    package enum Answer {
        /// It has what the crash may have taken.
        case ahead(PatientTarget, ReplicaReport)
        /// It answers, and has nothing for this pool.
        case nothing(String)
        case silent(String)
    }

    package struct Summary: Sendable, Hashable {
        package var blocks: UInt64 = 0
        package var images = 0
        package var hasNames = false
        package var keptSnapshot: String?
    }

    let store: PoolStore
    var note: LostPowerRecord
    /// The targets that may be asked, those that promise most first.
    package let sources: [TargetRecord]
    let images: [TargetID: [ImageID: TargetImageRecord]]
    let log = Logger(label: "doppel.recovery")

    /// nil where nothing has to be asked for.
    package init?(_ store: PoolStore) throws {
        let (found, targets, images) = try store.catalog.read {
            (try $0.lostPower(), try $0.targets(), try $0.targetImages())
        }
        guard let found else { return nil }
        self.store = store
        note = found
        self.images = Dictionary(grouping: images, by: \.targetID).mapValues { rows in
            Dictionary(rows.map { ($0.imageID, $0) }, uniquingKeysWith: { $1 })
        }
        let byTarget = self.images
        sources = targets.filter { record in
            // P1. A raw mirror is torn by the crash: its files are of no one moment.
            record.isWhole && record.stale == nil && !TargetAddress(record.address).isRaw
                && record.policy(byTarget[record.id] ?? [:]).isWaitedFor
        }.sorted { Self.rank($0.mode) > Self.rank($1.mode) }
    }

    private static func rank(_ mode: TargetRecord.Mode) -> Int {
        mode.replication.writePoint.map { Int($0.rawValue) + 1 } ?? 0
    }

    /// More than what was flushed was promised: to go on without it may lose what was acknowledged.
    package var promisesWrites: Bool { sources.contains(where: promisesWrites(by:)) }
    package func promisesWrites(by record: TargetRecord) -> Bool {
        policy(of: record).hearsOfWrites
    }

    func policy(of record: TargetRecord) -> TargetPolicy { record.policy(images[record.id] ?? [:]) }

    // MARK: Asking

    package typealias Source = (record: TargetRecord, report: ReplicaReport)
    /// One that is ahead, connected.
    package typealias Asked = (
        record: TargetRecord, target: PatientTarget, report: ReplicaReport
    )

    /// Whom to pull from, of those that answered; nil where one that promises more is silent still, or nobody
    /// has anything.
    package func best(of ahead: [Source], silent: [TargetRecord]) -> Int? {
        guard let best = ahead.indices.max(by: { isBetter(ahead[$1], ahead[$0], for: nil) }) else {
            return nil
        }
        let isWaitedFor = silent.contains { record in
            ([nil] + policy(of: record).images.keys.map(Optional.some)).contains { image in
                let most = ahead.map { worth($0, for: image) }.max() ?? 0
                return most < 2 && policy(of: record).policy(for: image).mode.hearsOfWrites
            }
        }
        return isWaitedFor ? nil : best
    }

    /// Images that wait for another of them in a way that promises more than the best one does.
    package func others(of ahead: [Source], beside best: Int) -> [(
        index: Int, images: Set<ImageID>
    )] {
        let special = Set(ahead.flatMap { policy(of: $0.record).images.keys })
        var result: [Int: Set<ImageID>] = [:]
        for image in special {
            guard
                let index = ahead.indices.max(by: { isBetter(ahead[$1], ahead[$0], for: image) }),
                worth(ahead[index], for: image) > worth(ahead[best], for: image)
            else { continue }
            result[index, default: []].insert(image)
        }
        return result.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }

    private func isBetter(_ one: Source, _ other: Source, for image: ImageID?) -> Bool {
        (worth(one, for: image), one.report.checkpoint)
            > (worth(other, for: image), other.report.checkpoint)
    }

    /// 2: it has all the writes that were answered. 1: what was flushed; the rest it promised nothing of, or
    /// its machine went down, too. 0: nothing, or what it promised was in its memory (P1).
    /// - Parameter image: nil for those that have no policy of their own.
    private func worth(_ source: Source, for image: ImageID?) -> Int {
        guard isPromised(image, by: source.record, source.report) else { return 0 }
        let hearsOfWrites = policy(of: source.record).policy(for: image).mode.hearsOfWrites
        return hearsOfWrites && source.report.keptAllReceived ? 2 : 1
    }

    package func ask(_ record: TargetRecord, _ target: PatientTarget) -> Answer {
        do throws(TargetError) {
            let hello = try PoolSource.hello(of: store)
            let report = try target.call { (target) throws(TargetError) in
                try target.connect(hello)
            }
            guard report.incarnationID != nil, report.diverged == nil,
                report.checkpoint >= note.floor
            else {
                target.disconnect()
                return .nothing("it has nothing of what this pool did last")
            }
            return .ahead(target, report)
        } catch {
            switch error.kind {
            case .fenced:
                noteFence(by: record, error.message)
                return .nothing(error.message)
            case .splitBrain: return .nothing(error.message)
            case .absent, .noSpace, .io, .damaged: return .silent(error.message)
            }
        }
    }

    /// Who was told that the pool was replaced serves nobody before a session hears it once more (G6).
    private func noteFence(by record: TargetRecord, _ message: String) {
        let reason = TargetHub.fenceReason(store.path, message)
        do { try store.catalog.write { try $0.setFence(by: record.id, reason: reason) } } catch {
            log.error("that \(store.path) was replaced cannot be written down: \(error)")
        }
    }

    // MARK: Ending

    /// The pool goes on as it is. What a target has beyond that is kept there before it is overwritten.
    package func goOnWithout(_ reason: String) throws {
        try store.catalog.write { tx in
            for var record in sources {
                record.keepsDiverged = true
                try tx.updateTarget(record)
            }
            try tx.setLostPower(nil)
            guard !sources.isEmpty else { return }
            try tx.addEvent(
                event(
                    "recovery-skipped",
                    "the machine went down, and the pool goes on without what its targets may have "
                        + "beyond it (\(reason)); they keep it as a snapshot"))
        }
    }

    /// Everybody was asked, and nobody has anything.
    package func goOn() throws { try store.catalog.write { try $0.setLostPower(nil) } }

    func event(_ kind: String, _ message: String) -> EventRecord {
        EventRecord(atNs: store.disk.now(), kind: kind, subject: store.path, message: message)
    }

    func change(_ change: (inout LostPowerRecord) -> Void) throws(TargetError) {
        var next = note
        change(&next)
        let new = next
        try write { try $0.setLostPower(new) }
        note = new
    }

    func write(_ body: (CatalogTransaction) throws -> Void) throws(TargetError) {
        do { try store.catalog.write(body) } catch {
            throw TargetError(.io, "the catalog of \(store.path) took no change: \(error)")
        }
    }

    /// Before anything is changed, also by mending what the crash left: how far is each image durable?
    package func look() throws(TargetError) {
        guard note.heads == nil else { return }
        let (rows, layers) = try TargetHub.read(store) { (try $0.images(), try $0.layers()) }
        let byID = Dictionary(uniqueKeysWithValues: layers.map { ($0.id, $0) })
        var heads: [ImageID: SequenceNumber] = [:]
        for row in rows where !row.isDeleted {
            guard let head = row.headLayerID.flatMap({ byID[$0] }), !head.isSealed else { continue }
            heads[row.id] = durableThrough(head, byID)
        }
        try change { $0.heads = heads }
    }

    /// The first commit of a layer is from before the cut, or the restore, that made it the head. It says nothing
    /// of what is below, unless that is sealed, and so durable: a cut that the crash came into was not complete.
    private func durableThrough(
        _ head: LayerRecord, _ layers: [LayerID: LayerRecord]
    ) -> SequenceNumber? {
        var layer = head
        while true {
            let path = store.mapPath(image: layer.imageID, layer: layer.id)
            // One that does not open is set aside with its image.
            let map = try? LayerMapFile.open(
                disk: store.disk, path: path, layer: layer.id, isSealed: false, readOnly: true
            ) { _ in }
            defer { map?.file.close() }
            guard let last = map?.lastCommit else { return nil }
            guard last.epoch == 1 else { return last.sequence }
            guard let below = layer.parentID.flatMap({ layers[$0] }) else { return nil }
            if below.isSealed { return last.sequence }
            layer = below
        }
    }
}
