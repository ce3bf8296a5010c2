// How much may be lost with this machine: at most so old, at most so many bytes (RPO). A value without I/O:
// what is at risk goes in, now and then; what is to be done about it comes out.
//
//      share of the goal   0 ───── 0.4 ──────────── 0.8 ───────── 1 ──────────►
//      alarm                                                      passed (kept again below 0.9)
//      throttle                    slowed ·········· as fast as ·· slower than the target takes
//      stop                                                       held
//
// Writers are slowed by what each byte costs them in time: nothing at 0.4, and from there on in proportion
// to the excess, so that at 0.8 they are as fast as the target takes what they write. That is where they
// come to rest, whatever the target's speed: before the goal is passed, and without a jump anywhere.
//
// How old a change gets shows only when it is too late to slow those who made it. So writers are slowed by
// how old what is written now will be when the target has it: all that is at risk, at the target's speed.

/// What an RPO asks for.
package struct RecoveryGoal: Sendable, Hashable {
    /// Age of the oldest change that the target lacks.
    package var ageMs: Int64?
    package var bytes: UInt64?
    package var reaction: RecoveryReaction

    package init(ageMs: Int64?, bytes: UInt64?, reaction: RecoveryReaction) {
        self.ageMs = ageMs
        self.bytes = bytes
        self.reaction = reaction
    }
}

package enum RecoveryReaction: String, Sendable, CaseIterable {
    /// It is told, and shown.
    case alarm
    /// Writers are slowed to what the target takes.
    case throttle
    /// Changes are held until less is at risk.
    case stop
}

package struct RecoveryPoint: Sendable {
    /// What would be lost, and how the target gets on.
    package struct Sight: Sendable {
        package var ageMs: Int64
        package var bytes: UInt64
        /// Sent so far, in all.
        package var sentBytes: UInt64
        /// Something is being sent, or should be.
        package var isShipping: Bool
        package var isInStep: Bool

        package init(
            ageMs: Int64, bytes: UInt64, sentBytes: UInt64, isShipping: Bool, isInStep: Bool
        ) {
            self.ageMs = ageMs
            self.bytes = bytes
            self.sentBytes = sentBytes
            self.isShipping = isShipping
            self.isInStep = isInStep
        }
    }

    package enum Change: Sendable, Hashable { case passed, kept }

    /// Changed, it holds from the next look on.
    package var goal: RecoveryGoal
    /// More is at risk than asked for, since then.
    package private(set) var passedSinceNs: Int64?
    /// How fast changes may begin.
    package private(set) var pace = Pace.free
    /// What is at risk as a share of the goal, evened out.
    private var share = 0.0
    private var speed = TakingSpeed()
    private var lastNs: Int64?
    /// It was in step: before, nobody can keep what was asked for, and nobody is kept from anything.
    private var isArmed: Bool

    /// The target is what everything waits for: how fast it is now is as fast as it can be.
    private static let busyFrom = 0.3
    private static let slowedFrom = 0.4
    private static let restsAt = 0.8
    private static let keptBelow = 0.9
    /// However slow the target is: a guest gives up a disk that takes nothing for long.
    private static let slowestBytesPerSecond = 1_048_576.0
    private static let mostShare = 100.0
    private static let risingNs = 100_000_000.0
    private static let fallingNs = 300_000_000.0

    package init(goal: RecoveryGoal, isArmed: Bool = false) {
        self.goal = goal
        self.isArmed = isArmed
    }

    /// A schedule should not wait for its time: much of what may be lost is used up.
    package var wantsRun: Bool { isArmed && share > Self.slowedFrom }

    package mutating func look(_ sight: Sight, nowNs: Int64) -> Change? {
        let elapsedNs = lastNs.map { max(nowNs - $0, 1) }
        lastNs = nowNs
        let now = max(
            goal.ageMs.map { Double(sight.ageMs) / Double(max($0, 1)) } ?? 0,
            goal.bytes.map { Double(sight.bytes) / Double(max($0, 1)) } ?? 0)
        let isBusy = sight.isShipping && max(now, coming(sight)) > Self.busyFrom
        speed.note(sight.sentBytes, isBusy: isBusy, nowNs: nowNs)
        if sight.isInStep { isArmed = true }
        guard isArmed else { return nil }
        let new = min(max(now, coming(sight)), Self.mostShare)
        let slowness = new > share ? Self.risingNs : Self.fallingNs
        share += (new - share) * (elapsedNs.map { Double($0) / (Double($0) + slowness) } ?? 1)
        let change = compare(now, nowNs)
        pace = pace(sight)
        return change
    }

    /// The share of the goal's age that what is written now will come to.
    private func coming(_ sight: Sight) -> Double {
        guard let ageMs = goal.ageMs, let takes = speed.bytesPerSecond else { return 0 }
        return Double(sight.bytes) / max(takes, 1) / (Double(max(ageMs, 1)) / 1000)
    }

    private mutating func compare(_ now: Double, _ nowNs: Int64) -> Change? {
        if passedSinceNs == nil, now >= 1 {
            passedSinceNs = nowNs
            return .passed
        }
        if passedSinceNs != nil, now < Self.keptBelow {
            passedSinceNs = nil
            return .kept
        }
        return nil
    }

    private func pace(_ sight: Sight) -> Pace {
        switch goal.reaction {
        case .alarm: return .free
        case .stop:
            if passedSinceNs != nil { return .held }
            guard let bytes = goal.bytes else { return .free }
            // Between two looks no more than what is left.
            return .limited(bytes: bytes - min(bytes, sight.bytes))
        case .throttle:
            let excess = (share - Self.slowedFrom) / (Self.restsAt - Self.slowedFrom)
            guard excess > 0 else { return pace(leaving: sight.bytes) }
            let takes = speed.bytesPerSecond ?? 0
            var allowed = max(takes / excess, Self.slowestBytesPerSecond)
            // Not all that is left before the next look but one.
            if let bytes = goal.bytes {
                let left = Double(bytes - min(bytes, sight.bytes))
                allowed = min(allowed, max(takes, Self.slowestBytesPerSecond) + left * 5)
            }
            return allowed < 1e12 ? .slowed(bytesPerSecond: UInt64(allowed)) : .free
        }
    }
}

extension RecoveryPoint {
    /// Nobody is slowed; but until the next look no more begins than up to where writers come to rest.
    private func pace(leaving atRisk: UInt64) -> Pace {
        guard let bytes = goal.bytes else { return .free }
        let resting = UInt64(Double(bytes) * Self.restsAt)
        return .limited(bytes: resting - min(resting, atRisk))
    }
}

/// How fast a target takes what it is sent, while there is something to send; quicker to believe that it
/// is faster than that it is slower. It takes in pieces, so that less than a while tells nothing.
private struct TakingSpeed: Sendable {
    /// nil before it was sent anything.
    private(set) var bytesPerSecond: Double?
    private var begin: (bytes: UInt64, atNs: Int64)?
    private var wasBusy = false
    private static let whileNs: Int64 = 400_000_000
    private static let rising = 0.7
    private static let falling = 0.3

    mutating func note(_ bytes: UInt64, isBusy: Bool, nowNs: Int64) {
        wasBusy = wasBusy || isBusy
        guard let (from, sinceNs) = begin, bytes >= from else {
            begin = (bytes, nowNs)
            return
        }
        guard nowNs - sinceNs >= Self.whileNs else { return }
        let seen = Double(bytes - from) * 1e9 / Double(nowNs - sinceNs)
        if let known = bytesPerSecond {
            if seen > known || wasBusy {
                bytesPerSecond =
                    known + (seen - known) * (seen > known ? Self.rising : Self.falling)
            }
        } else if seen > 0 {
            bytesPerSecond = seen
        }
        (begin, wasBusy) = ((bytes, nowNs), false)
    }
}
