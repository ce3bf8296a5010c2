// A target that is shipped to once in an interval (periodic `async`). It never streams: what changes is
// kept track of in its legs, and each *run* is a resync to a new checkpoint.
//
//                 due, or somebody waits           something lacks
//      scheduled ────────────────────────► look ──────────────────► resyncing … head's leg committed
//          ▲                                │ nothing lacks                        │
//          └────────────────────────────────┴───────────── endRun ◄────────────────┘
//
// Functions: connected `schedule`, due `nextWhenScheduled`, looked `look`, committed `endRun`.
//
// Invariants
//   P1 The stream is held for the target while the head's leg is under way, and at no other time.
//   P2 A run that failed is gone on with as soon as the target is there, whatever the schedule says.
//   P3 A run that takes longer than the interval is followed by the next one at its time, by none at once.

import BlockCore

extension TargetSession {
    /// It holds what it should: all but what is on its way, or what its schedule leaves for the next
    /// run. A run that takes too long is none of that.
    package func isInStep(nowNs: Int64) -> Bool {
        guard let intervalMs = options.intervalMs else { return state == .streaming }
        guard state == .scheduled || state == .resyncing, outage == nil else { return false }
        let longestNs = (intervalMs + options.timeoutMs) * 1_000_000
        return runSinceNs.map { nowNs - $0 <= longestNs } ?? true
    }

    /// It is connected, and what it lacks is known.
    mutating func schedule(_ now: Int64, _ effects: inout [SessionEffect]) {
        state = .scheduled
        // What a run had left is shipped first.
        if resync != nil, runSinceNs == nil { runSinceNs = now }
        if !mustShip, runSinceNs == nil { beAtCheckpoint(&effects) }
    }

    private mutating func beAtCheckpoint(_ effects: inout [SessionEffect]) {
        if outage != nil {
            effects.append(.tell(kind: "target-in-step", message: "it is at a checkpoint"))
        }
        outage = nil
    }

    mutating func nextWhenScheduled(
        _ now: Int64, _ effects: inout [SessionEffect]
    ) -> SessionOperation? {
        guard mustShip || runSinceNs != nil || flushWanted > durable || now >= nextRunNs else {
            effects.append(.wake(atNs: nextRunNs))
            return nil
        }
        if runSinceNs == nil {
            runSinceNs = now
            nextRunNs = now + (options.intervalMs ?? 0) * 1_000_000
        }
        return .look
    }

    mutating func look(
        _ isLevel: Bool, _ through: SequenceNumber, _ effects: inout [SessionEffect]
    ) {
        // Who waits asks for a checkpoint.
        guard isLevel, !mustShip, resync == nil, flushWanted <= durable else {
            state = .resyncing
            return
        }
        levelThrough = through
        runSinceNs = nil
        beAtCheckpoint(&effects)
    }

    mutating func endRun(_ now: Int64, _ effects: inout [SessionEffect]) {
        state = .scheduled
        runSinceNs = nil
        hasRecords = false
        let intervalNs = max((options.intervalMs ?? 0) * 1_000_000, 1)
        if nextRunNs <= now { nextRunNs += ((now - nextRunNs) / intervalNs + 1) * intervalNs }
        effects.append(.stopStreaming)
        beAtCheckpoint(&effects)
    }
}
