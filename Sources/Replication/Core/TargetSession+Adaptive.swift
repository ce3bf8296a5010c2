// A target in mode `adaptive`: waited for as much as its answers allow (AdaptiveMode). What changes is the
// policy in force, which status shows.
//
//   sync ◄──► semi-sync     at once; who waits already is answered as the new mode has it
//   semi-sync ──► async     first it is written down that the target is stale (S2), as when it is left
//                           behind; it goes on streaming
//   async ──► semi-sync     it counts, and is not stale any more
//
// One that is left behind for another reason is in `async`, and comes up from there.

import BlockCore

extension TargetSession {
    /// Called after every event.
    mutating func adapt(_ now: Int64, _ effects: inout [SessionEffect]) {
        // One that was never waited for yet is, as soon as it is in step (`rearm`).
        guard adaptive != nil, state == .streaming, !isDegrading, !metBarrier,
            counts || policy.all.mode == .async
        else { return }
        let waitingNs = waitingNs(now)
        guard let step = adaptive?.step(waitingNs: waitingNs, nowNs: now),
            let mode = adaptive?.mode
        else { return }
        if mode == .async {
            isDegrading = true
            isSteppingDown = true
            effects.append(.recordStale(since: durable, reason: tooLate))
            return
        }
        policy.all.mode = mode
        effects += [.policyChanged(policy), .tell(kind: "mode-changed", message: news(step, mode))]
        // What an fsync may wait for now nobody has asked the target for.
        if mode == .sync { wantFlush(sent, now) }
        if !counts { count(now, &effects) }
    }

    /// How long the oldest request waits that was not answered, as far as that can be known.
    private func waitingNs(_ now: Int64) -> Int64 {
        let givenNs = underway.records.sinceNs.map { now - $0 } ?? 0
        if policy.all.mode == .sync, underway.flushAsked > durable,
            let sinceNs = wantedFlushes.sinceNs
        {
            return max(givenNs, now - sinceNs)
        }
        return max(givenNs, waitingForAnswerNs(now))
    }

    private func waitingForAnswerNs(_ now: Int64) -> Int64 {
        switch outstanding?.operation {
        case .send: return now - sendingSinceNs
        case .flush:
            if policy.all.mode == .sync, let sinceNs = wantedFlushes.sinceNs {
                return now - sinceNs
            }
            // Writes may have come meanwhile.
            let ageNs = now - (outstanding?.sinceNs ?? now)
            return ageNs > 1_000_000_000 ? ageNs : 0
        default: return 0
        }
    }

    /// That it is stale is written down.
    /// - Returns: whether it goes on streaming.
    mutating func stopCountingAdaptive(
        _ now: Int64, _ effects: inout [SessionEffect]
    ) -> Bool {
        let goesOn = isSteppingDown && state == .streaming
        if !isSteppingDown { adaptive?.fall(nowNs: now) }
        isSteppingDown = false
        (isArmed, isLost, isReleasing) = (false, false, false)
        policy.all.mode = .async
        effects += [
            .releaseWaiters, .policyChanged(policy),
            .tell(kind: "mode-changed", message: news(.down, .async)),
        ]
        return goesOn
    }

    private var tooLate: String { "its answers take longer than \(budget)" }
    private var budget: String {
        let us = options.latencyBudgetUs ?? 0
        return us % 1000 == 0 ? "\(us / 1000) ms" : "\(us) us"
    }

    private func news(_ step: AdaptiveMode.Step, _ mode: ReplicationMode) -> String {
        let why = step == .up ? "its answers come within \(budget)" : tooLate
        return "\(mode.rawValue) is in force: \(why)"
    }
}
