// In step: what was sent, what the target said of it, and how long it has said nothing.

import BlockCore

extension TargetSession {
    mutating func noteSent(
        _ through: SequenceNumber?, _ bytes: Int, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        guard let through else {
            hasRecords = false
            return
        }
        sent = max(sent, through)
        adaptive?.note(.written, tookNs: now - sendingSinceNs, nowNs: now)
        if policy.hearsOfWrites { effects.append(.acknowledge(.written, sent)) }
        unflushed.note(through: sent, bytes: UInt64(bytes), nowNs: now)
    }

    mutating func noteFlushed(
        _ through: SequenceNumber, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        unflushed.removeAll()
        guard through > durable else { return }
        if flushWanted > durable {
            adaptive?.note(.durable, tookNs: now - flushWantedSinceNs, nowNs: now)
        }
        becomeDurable(through, now, &effects)
        if flushWanted > durable { flushWantedSinceNs = now }
    }

    /// It got further without being asked. Who waits for more than that waits since it began to.
    mutating func noteDurable(
        _ through: SequenceNumber, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        unflushed.remove(through: through)
        if flushWanted > durable, flushWanted <= through {
            adaptive?.note(.durable, tookNs: now - flushWantedSinceNs, nowNs: now)
        }
        becomeDurable(through, now, &effects)
    }

    private mutating func becomeDurable(
        _ through: SequenceNumber, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        durable = through
        flushProgressNs = now
        effects.append(.acknowledge(.durable, durable))
    }

    mutating func commit(_ now: Int64, _ effects: inout [SessionEffect]) {
        guard let done = resync else { return }
        durable = max(durable, done.stagedThrough)
        sent = durable
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
        if state == .streaming, let outstanding {
            let isWaitedFor =
                flushWanted > durable && now - max(flushWantedSinceNs, flushProgressNs) > limitNs
            guard now - outstanding.sinceNs > limitNs || isWaitedFor else {
                return rearm(now, &effects)
            }
            fail(TargetError(.io, silence), now, &effects)
            giveUp(silence, now, &effects)
        } else if counts, !isLost, !isDegrading, let outage, now - outage.sinceNs > limitNs {
            giveUp(outage.reason, now, &effects)
        }
        if state == .streaming { rearm(now, &effects) }
    }
}
