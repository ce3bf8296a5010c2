// The keeper's round: what sessions say of their targets is written down, and told to the others.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

extension TargetHub {
    /// - Returns: false when it is over.
    func keepOnce() -> Bool {
        keepHouse()
        return lock.withLock {
            if isEnding { return false }
            if !targets.values.contains(where: \.hasWork) {
                _ = changed.wait(lock, timeoutMs: targets.isEmpty ? 60_000 : options.tickMs)
            }
            return !isEnding
        }
    }

    /// Does what is due: once for each tick, by hand where nothing runs behind.
    package func keepHouse() {
        let now = disk.monotonic()
        lock.withLock { samples.add(stream.lastSequence, atNs: now) }
        for target in all {
            recordStale(target)
            recordInStep(target)
            recordFence(target)
            recordEvents(target)
            if target.takeDirtyWork() {
                do throws(TargetError) { try target.secure(upTo: .zero, stream, store) } catch {
                    log.error("target \(target.record.address): \(error)")
                }
            }
            target.driver?.tick()
            target.meter(nowNs: now)
            watchRecoveryPoint(of: target, nowNs: now)
        }
        _ = announceArrivals()
        releaseLeaving()
    }

    /// H3. A full store is tried again at the next tick: until then nobody is answered.
    func recordStale(_ target: AttachedTarget, tellsOthers: Bool = true) {
        guard let stale = target.staleWork else { return }
        // It has all there is, and all there will be before it is known who goes on: should the power go
        // here, it is asked for what this disk lost.
        guard !target.isHandedTo else {
            target.clearStaleWork()
            return target.driver?.staleRecorded() ?? ()
        }
        if !stale.isRecorded {
            guard writeStale(target, stale) else { return }
            target.noteStaleRecorded(
                stale, announcedAt: tellsOthers ? announce(target.record) : nil)
        }
        guard !tellsOthers || othersKnow(of: target.record.id, at: target.staleWork?.announcedAt)
        else { return }
        target.clearStaleWork()
        target.driver?.staleRecorded()
    }

    private func writeStale(_ target: AttachedTarget, _ stale: StaleWork) -> Bool {
        target.recording.lock()
        defer { target.recording.unlock() }
        // H4, also for who comes back meanwhile.
        volume.gate.setOnRecord(target.record.id, false)
        var record = target.record
        record.isWhole = false
        if record.stale == nil {
            record.stale = TargetRecord.Stale(
                sinceNs: disk.now(), sequence: stale.since, reason: stale.reason)
        }
        do throws(TargetError) {
            let new = record
            try write { try $0.updateTarget(new) }
        } catch {
            log.error("target \(record.address): that it is stale cannot be written down: \(error)")
            if store.catalog.isFailed { volume.gate.fail() }
            return false
        }
        target.update { $0 = record }
        return true
    }

    /// It counts again: what the catalog says of it is over. A full store is tried again at the next tick:
    /// until then writes wait (H4).
    private func recordInStep(_ target: AttachedTarget) {
        do throws(TargetError) {
            if let new = try writeInStep(target) { _ = announce(new) }
            volume.gate.answer()
        } catch {
            log.error(
                "target \(target.record.address): that it is in step cannot be written down: \(error)"
            )
            if store.catalog.isFailed { volume.gate.fail() }
        }
    }

    /// - Returns: nil where there is nothing to write.
    private func writeInStep(_ target: AttachedTarget) throws(TargetError) -> TargetRecord? {
        target.recording.lock()
        defer { target.recording.unlock() }
        let isInStep =
            hasAllSinceItCounts(target) || !target.policy.isWaitedFor && isInStep(target)
        let isArmed = target.policy.hasStandstill || target.record.stopsWhenBehind
        guard isInStep,
            target.record.stale != nil || target.record.isArmed != isArmed
                || !target.record.isWhole || target.record.keepsDiverged
        else {
            if isInStep { noteOnRecord(target) }
            return nil
        }
        var record = target.record
        record.stale = nil
        record.isArmed = isArmed
        record.isWhole = true
        record.keepsDiverged = false
        let new = record
        try write { try $0.updateTarget(new) }
        target.update { $0 = new }
        noteOnRecord(target)
        return new
    }

    /// Under `recording`: nobody writes down meanwhile that it is stale.
    private func noteOnRecord(_ target: AttachedTarget) {
        target.clearInStep()
        volume.gate.setOnRecord(target.record.id, !target.isWithheld)
    }

    /// What was answered before it counted may be on its way still: until it is there, the target is no
    /// copy that has everything.
    private func hasAllSinceItCounts(_ target: AttachedTarget) -> Bool {
        guard let from = target.awaitedInStep else { return false }
        guard stream.standing(target.record.id)?.durable ?? .zero >= from else {
            target.driver?.wantFlush(from)
            return false
        }
        return true
    }

    /// It holds in memory already; this is for the next open.
    func recordFence(_ target: AttachedTarget) {
        guard let reason = target.fenceWork else { return }
        let id = target.record.id
        do throws(TargetError) {
            try write { try $0.setFence(by: id, reason: reason) }
            target.clearFenceWork()
        } catch { log.error("target \(target.record.address): \(error)") }
    }

    /// For people: what cannot be written down is in the log all the same.
    private func recordEvents(_ target: AttachedTarget) {
        let events = target.takeEvents()
        guard !events.isEmpty else { return }
        _ = try? writeOnce { tx in for event in events { try tx.addEvent(event) } }
    }

    func wakeKeeper() { lock.withLock { changed.broadcast() } }
}

// MARK: What sessions say

extension TargetHub {
    func counts(_ id: TargetID, _ policy: TargetPolicy, durable: SequenceNumber) {
        guard let target = target(id) else { return }
        volume.gate.count(
            id, policy, durable: durable, isOnRecord: target.record.isWhole && !target.isWithheld)
        target.noteInStep(from: stream.lastSequence)
        wakeKeeper()
    }

    /// H4
    func withhold(_ id: TargetID, _ isWithheld: Bool) {
        guard let target = target(id), target.isWithheld != isWithheld else { return }
        target.recording.withLock {
            target.setWithheld(isWithheld)
            volume.gate.setOnRecord(id, !isWithheld && target.record.isWhole)
        }
        volume.gate.answer()
    }

    func fence(_ id: TargetID, reason: String) {
        let reason = Self.fenceReason(store.path, reason)
        volume.fence(reason)
        target(id)?.setFenceWork(reason)
        wakeKeeper()
    }

    static func fenceReason(_ path: String, _ reason: String) -> String {
        "\(path) is read-only, for it was replaced: \(reason). What was written here since, and is "
            + "not there, is in this pool alone. To give this pool up, unmount it; to use it on its "
            + "own all the same, `doppel target remove` and mount it again"
    }

    func tell(_ id: TargetID, kind: String, message: String) {
        // That sessions end with their pool is no news.
        guard let target = target(id), !lock.withLock({ isEnding }) else { return }
        let record = target.record
        if kind == SessionEffect.inStep { target.noteArrival() }
        log.notice("\(kind): \(record.address): \(message)")
        target.addEvent(
            EventRecord(atNs: disk.now(), kind: kind, subject: record.address, message: message))
        wakeKeeper()
    }
}
