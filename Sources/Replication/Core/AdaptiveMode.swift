// How a target in mode `adaptive` is waited for: as much as its answers allow within a latency budget. A
// value without I/O: it hears how long answers took, and says when to take a step.
//
//               answers take too long            answers take too long
//      sync ─────────────────────────► semi-sync ─────────────────────► async
//        ▲                                │  ▲                            │
//        └────── quick for a while ───────┘  └───── quick for a while ────┘
//
//   too long  more than a twentieth of the answers of the last seconds beyond the budget, and at least three;
//             or one that is, or would be, ten times as late
//   quick     no more than a twentieth of them beyond seven tenths of it
//   a while   the hold time, doubled each time that a step up had to be taken back
//
// What `async` and `semi-sync` do not wait for is not held against them: how long an fsync would take to be
// durable there shows only when it is tried.

package struct AdaptiveMode: Sendable {
    package struct Options: Sendable, Hashable {
        package var budgetNs: Int64
        package var holdNs: Int64
        package var longestHoldNs: Int64

        package init(budgetNs: Int64, holdNs: Int64, longestHoldNs: Int64) {
            self.budgetNs = max(budgetNs, 1)
            self.holdNs = holdNs
            self.longestHoldNs = max(longestHoldNs, holdNs)
        }
    }

    package enum Step: Sendable, Hashable { case up, down }

    package let options: Options
    package private(set) var mode = ReplicationMode.sync
    private var holdNs: Int64
    private var steppedNs: Int64 = 0
    /// The last step up, as long as none went down since.
    private var upNs: Int64?
    private var recent = Answers()
    private var earlier = Answers()
    private var recentSinceNs: Int64 = 0

    /// Answers are remembered for one to two of these.
    private static let windowNs: Int64 = 2_000_000_000
    private static let leastLate = 3
    private static let share = 20
    private static let standstill: Int64 = 10
    private static let leastStandstillNs: Int64 = 100_000_000

    private struct Answers: Sendable {
        var all = 0
        /// Beyond the budget.
        var late = 0
        /// Not well within it.
        var slow = 0
        var isStandstill = false
    }

    package init(options: Options) {
        self.options = options
        holdNs = options.holdNs
    }

    /// An answer of the kind that a write waits for, or an fsync, in the mode `sync`.
    package mutating func note(_ point: AckPoint, tookNs: Int64, nowNs: Int64) {
        if point == .durable, mode != .sync { return }
        age(nowNs)
        recent.all += 1
        if tookNs > options.budgetNs { recent.late += 1 }
        if tookNs > options.budgetNs / 10 * 7 { recent.slow += 1 }
        if tookNs > standstillNs { recent.isStandstill = true }
    }

    private var standstillNs: Int64 {
        max(options.budgetNs * Self.standstill, Self.leastStandstillNs)
    }

    private mutating func age(_ nowNs: Int64) {
        guard nowNs - recentSinceNs > Self.windowNs else { return }
        earlier = nowNs - recentSinceNs > 2 * Self.windowNs ? Answers() : recent
        recent = Answers()
        recentSinceNs = nowNs
    }

    /// - Parameter waitingNs: how long the oldest is waited for that was not answered; 0 for none.
    /// - Returns: the step that was taken; nil for none.
    package mutating func step(waitingNs: Int64, nowNs: Int64) -> Step? {
        age(nowNs)
        let (all, late) = (recent.all + earlier.all, recent.late + earlier.late)
        let isStandstill =
            recent.isStandstill || earlier.isStandstill || waitingNs > standstillNs
        if isStandstill || late >= Self.leastLate && late * Self.share > all {
            return stepDown(nowNs)
        }
        let slow = recent.slow + earlier.slow
        guard mode != .async || waitingNs <= options.budgetNs, slow * Self.share <= all,
            nowNs - steppedNs >= holdNs
        else { return nil }
        return stepUp(nowNs)
    }

    /// It is in step: the while in which it has to be quick begins.
    package mutating func begin(nowNs: Int64) {
        forget(nowNs)
        steppedNs = nowNs
    }

    /// Nobody waits for it any more, for another reason.
    package mutating func fall(nowNs: Int64) {
        while stepDown(nowNs) != nil {}
    }

    private mutating func stepDown(_ nowNs: Int64) -> Step? {
        forget(nowNs)
        guard mode != .async else {
            // Still too slow: the while begins anew.
            steppedNs = nowNs
            return nil
        }
        if let upNs {
            let wasTrusted = nowNs - upNs >= options.longestHoldNs
            holdNs = wasTrusted ? options.holdNs : min(holdNs * 2, options.longestHoldNs)
        }
        upNs = nil
        steppedNs = nowNs
        mode = mode == .sync ? .semiSync : .async
        return .down
    }

    private mutating func stepUp(_ nowNs: Int64) -> Step? {
        guard mode != .sync else { return nil }
        forget(nowNs)
        upNs = nowNs
        steppedNs = nowNs
        mode = mode == .async ? .semiSync : .sync
        return .up
    }

    /// What was measured in one mode says little of another.
    private mutating func forget(_ nowNs: Int64) {
        (recent, earlier, recentSinceNs) = (Answers(), Answers(), nowNs)
    }
}
