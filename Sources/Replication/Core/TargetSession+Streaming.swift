// In step: what was sent, what the target said of it, and how long it has said nothing.
//
// A target is given a batch, and the answer tells that it has it; so with a flush. Or, where it is far away, it is
// given the next batch, and asked for the next flush, while the last are on their way:
//
//     send ──► given(through) ──────┐ underway, until
//     flush ─► flushAsked(through) ─┴───────────────► heard(written, durable, hasRoom)
//
// Everything that is under way ends with the connection, and is given again after the next.

import BlockCore

/// What was given to a target, or asked of it, and not heard of again.
struct Underway: Sendable {
    private static let mostFlushes = 8

    /// Since when what they hold waits: an answer is as late as it is for whoever waits for it.
    var records = SentStretches(stretchNs: 100_000)
    /// Up to where each of them asks.
    private(set) var flushes: [SequenceNumber] = []
    private(set) var flushSinceNs: Int64 = 0
    /// Since when it takes no more.
    var fullSinceNs: Int64?
    /// When it last had more of it.
    var progressNs: Int64 = 0

    var mayFlush: Bool { flushes.count < Self.mostFlushes }
    /// Everything up to here is durable, or will be told to be.
    var flushAsked: SequenceNumber { flushes.last ?? .zero }

    mutating func noteFlush(through: SequenceNumber, nowNs: Int64) {
        if flushes.isEmpty { flushSinceNs = nowNs }
        flushes.append(through)
    }

    mutating func noteDurable(_ through: SequenceNumber, nowNs: Int64) {
        flushes.removeAll { $0 <= through }
        flushSinceNs = nowNs
        progressNs = nowNs
    }

    /// Since when nothing was heard of something that has to be; nil where there is no such thing.
    var silentSinceNs: Int64? {
        let flushNs = flushes.isEmpty ? nil : flushSinceNs
        let recordsNs = [records.sinceNs, fullSinceNs].compactMap { $0 }.min()
        // What was given before a flush is done before it.
        return [recordsNs, flushNs].compactMap { $0 }.min().map { max($0, progressNs) }
    }

    mutating func removeAll() {
        records.removeAll()
        flushes.removeAll(keepingCapacity: true)
        fullSinceNs = nil
    }
}

extension TargetSession {
    mutating func noteSent(
        _ through: SequenceNumber?, _ bytes: Int, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        guard let through else {
            hasRecords = false
            return
        }
        sent = max(sent, through)
        written = sent
        adaptive?.note(.written, tookNs: now - sendingSinceNs, nowNs: now)
        if policy.hearsOfWrites { effects.append(.acknowledge(.written, sent)) }
        unflushed.note(through: sent, bytes: UInt64(bytes), nowNs: now)
    }

    // MARK: Under way

    mutating func noteGiven(_ through: SequenceNumber, _ bytes: Int, _ now: Int64) {
        sent = max(sent, through)
        underway.records.note(through: sent, bytes: UInt64(bytes), nowNs: sendingSinceNs)
        unflushed.note(through: sent, bytes: UInt64(bytes), nowNs: now)
    }

    mutating func noteFull(_ now: Int64) {
        underway.fullSinceNs = underway.fullSinceNs ?? now
    }

    mutating func noteFlushAsked(_ through: SequenceNumber, _ now: Int64) {
        unflushed.removeAll()
        guard through > durable else { return }
        underway.noteFlush(through: through, nowNs: now)
    }

    mutating func wantFlush(_ sequence: SequenceNumber, _ now: Int64) {
        if sequence > max(flushWanted, durable) {
            wantedFlushes.note(through: sequence, bytes: 0, nowNs: now)
        }
        flushWanted = max(flushWanted, sequence)
    }

    mutating func hear(
        _ progress: TargetProgress, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        guard state == .streaming else { return }
        if progress.hasRoom, underway.fullSinceNs != nil {
            underway.fullSinceNs = nil
            underway.progressNs = now
        }
        let has = min(max(progress.written, progress.durable), sent)
        if has > written {
            written = has
            underway.progressNs = now
            if let sinceNs = underway.records.remove(through: has) {
                adaptive?.note(.written, tookNs: now - sinceNs, nowNs: now)
            }
            if policy.hearsOfWrites { effects.append(.acknowledge(.written, written)) }
        }
        let isDurable = min(progress.durable, sent)
        if isDurable > durable { noteDurable(isDurable, now, &effects) }
    }

    /// With this everything is heard of that was given or asked for.
    package func isAnswered(by progress: TargetProgress) -> Bool {
        outstanding == nil && progress.written >= sent && progress.durable >= underway.flushAsked
    }
    /// Nothing can be done before the target is heard, whatever the stream has.
    package var awaitsTarget: Bool {
        state == .streaming && outstanding == nil && (underway.fullSinceNs != nil || metBarrier)
    }

    // MARK: Durable

    mutating func noteFlushed(
        _ through: SequenceNumber, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        unflushed.removeAll()
        guard through > durable else { return }
        becomeDurable(through, now, &effects)
    }

    /// It got further without being asked.
    mutating func noteDurable(
        _ through: SequenceNumber, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        unflushed.remove(through: through)
        becomeDurable(through, now, &effects)
    }

    private mutating func becomeDurable(
        _ through: SequenceNumber, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        durable = through
        flushProgressNs = now
        underway.noteDurable(through, nowNs: now)
        if let sinceNs = wantedFlushes.remove(through: through) {
            adaptive?.note(.durable, tookNs: now - sinceNs, nowNs: now)
        }
        effects.append(.acknowledge(.durable, durable))
    }

    mutating func commit(_ now: Int64, _ effects: inout [SessionEffect]) {
        guard let done = resync else { return }
        durable = max(durable, done.stagedThrough)
        (sent, written) = (durable, durable)
        wantedFlushes.remove(through: durable)
        effects += [.legIsClean, .acknowledge(.durable, durable)]
        resync = nil
        mustShip = false
        // After the head, and after a head that a cut turned into a snapshot, the stream goes on.
        guard done.holdsStream else { return }
        if options.intervalMs != nil { return endRun(now, &effects) }
        hasRecords = true
        stream(now, &effects)
    }

    // MARK: Silence

    /// A target in step that makes no progress is left behind, not waited for. (One that is being
    /// brought in step keeps nobody waiting.)
    mutating func watch(_ now: Int64, _ effects: inout [SessionEffect]) {
        let limitNs = options.timeoutMs * 1_000_000
        let silence = "it has made no progress for \(options.timeoutMs) ms"
        if state == .streaming {
            guard isSilent(now, limitNs) else { return rearm(now, &effects) }
            fail(TargetError(.io, silence), now, &effects)
            giveUp(silence, now, &effects)
        } else if counts, !isLost, !isDegrading, let outage, now - outage.sinceNs > limitNs {
            giveUp(outage.reason, now, &effects)
        }
    }

    private func isSilent(_ now: Int64, _ limitNs: Int64) -> Bool {
        if let outstanding, now - outstanding.sinceNs > limitNs { return true }
        let isFlushDue = outstanding != nil || underway.flushAsked > durable
        if isFlushDue, let sinceNs = wantedFlushes.sinceNs,
            now - max(sinceNs, flushProgressNs) > limitNs
        {
            return true
        }
        return underway.silentSinceNs.map { now - $0 > limitNs } ?? false
    }
}
