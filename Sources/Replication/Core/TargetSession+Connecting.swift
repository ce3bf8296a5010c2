// From the first answer of a target to being in step, and to being waited for.

import BlockCore

extension TargetSession {
    mutating func negotiate(
        _ report: ReplicaReport, _ position: StreamPosition, _ now: Int64,
        _ effects: inout [SessionEffect]
    ) {
        state = .negotiating
        resync?.keep(only: report.staging)
        let isEmpty = report.incarnationID == nil
        let wentBack = report.checkpoint < position.acknowledged
        // The legs of a new target are what one with nothing lacks: no word of what is not here (any more).
        let hasMore = position.isNew && report.checkpoint > .zero
        wantsEverything = !isEmpty && (wentBack || position.isUnknown || hasMore)
        if wantsEverything, hasMore, !position.isUnknown {
            effects.append(
                .tell(
                    kind: "target-known",
                    message:
                        "it has something from before it was a target of this pool; everything is "
                        + "compared"))
        } else if wantsEverything, position.isUnknown {
            effects.append(
                .tell(
                    kind: "target-diverged",
                    message: "it went its own way, and it is not known how far; everything is "
                        + "compared"))
        } else if wantsEverything {
            effects.append(
                .tell(
                    kind: "target-went-back",
                    message: "it lacks what it had confirmed; everything is compared"))
        }
        let isKnown = position.isSameIncarnation && !isEmpty && !wantsEverything
        // An unclean end may have changed active blocks here, too: between two legs, or back. And a
        // dirty file that was lost leaves everything open.
        needsComparing = !isKnown || position.hasUnknown
        mustShip = !isKnown
        levelThrough = .zero
        durable = isKnown ? report.checkpoint : .zero
        (sent, written) = (durable, durable)
        wantedFlushes.remove(through: durable)
        // An answer may have been lost: the target can be further than it was known to be. Sequence
        // numbers never go back, so a cut at or before its checkpoint is one that it has.
        if isKnown { effects.append(.acknowledge(.durable, durable)) }
        // Whatever else it has: what it shows must not go back to a cut from before.
        if !isEmpty { effects.append(.joinLegs(through: report.checkpoint)) }
        if isKnown, position.holdsAllAfterCheckpoint, !position.isDirty, resync == nil, !isDegrading
        {
            stream(now, &effects)
            hasRecords = true
            return
        }
        giveUp("it lacks more than the write stream holds", now, &effects)
        if !needsComparing { bringInStep(now, &effects) }
    }

    mutating func bringInStep(_ now: Int64, _ effects: inout [SessionEffect]) {
        if options.intervalMs == nil { state = .resyncing } else { schedule(now, &effects) }
    }

    /// In step: what comes is sent as it comes.
    mutating func stream(_ now: Int64, _ effects: inout [SessionEffect]) {
        if state != .streaming {
            effects.append(.tell(kind: SessionEffect.inStep, message: "it is in step"))
        }
        if state != .streaming || inStepSinceNs == 0 {
            inStepSinceNs = now
            recordsSinceNs = now
            adaptive?.begin(nowNs: now)
        }
        state = .streaming
        outage = nil
        resync = nil
        unflushed.removeAll()
        underway.removeAll()
        if isLost {
            isLost = false
            effects.append(.find)
        }
        rearm(now, &effects)
    }

    /// One that was left behind is waited for again when it has been in step for a while: longer each
    /// time, so that one that comes and goes does not stop everybody again and again.
    mutating func rearm(_ now: Int64, _ effects: inout [SessionEffect]) {
        guard policy.isWaitedFor, !counts, !isDegrading,
            now - inStepSinceNs >= rearmDelayMs * 1_000_000
        else { return }
        count(now, &effects)
    }

    mutating func count(_ now: Int64, _ effects: inout [SessionEffect]) {
        counts = true
        isArmed = true
        countsSinceNs = now
        effects.append(.countForAcknowledgements)
        // Who comes to wait for what was sent already need not wait for more.
        if policy.hearsOfWrites, written > durable {
            effects.append(.acknowledge(.written, written))
        }
    }
}
