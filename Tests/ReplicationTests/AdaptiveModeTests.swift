import BlockCore
import Replication
import TestSupport
import Testing

@Suite struct AdaptiveModeTests {
    private static let ms: Int64 = 1_000_000
    private static let second: Int64 = 1_000_000_000
    private static let options = AdaptiveMode.Options(
        budgetNs: 5 * ms, holdNs: 10 * second, longestHoldNs: 600 * second)

    /// A target that answers a write in so long, an fsync in so long; 100 of each in a second.
    private struct Line {
        var mode = AdaptiveMode(options: AdaptiveModeTests.options)
        var nowNs: Int64 = 0
        var steps: [(atNs: Int64, mode: ReplicationMode)] = []

        mutating func run(
            seconds: Int, write: (Int) -> Int64, flush: (Int) -> Int64
        ) {
            for number in 0..<seconds * 100 {
                nowNs += 10 * AdaptiveModeTests.ms
                mode.note(.written, tookNs: write(number), nowNs: nowNs)
                mode.note(.durable, tookNs: flush(number), nowNs: nowNs)
                if mode.step(waitingNs: 0, nowNs: nowNs) != nil { steps.append((nowNs, mode.mode)) }
            }
        }
        mutating func run(seconds: Int, writeMs: Int64, flushMs: Int64) {
            run(
                seconds: seconds, write: { _ in writeMs * AdaptiveModeTests.ms },
                flush: { _ in flushMs * AdaptiveModeTests.ms })
        }
        var modes: [ReplicationMode] { steps.map(\.mode) }
    }

    @Test func aTargetThatIsQuickStaysInSync() {
        var line = Line()
        line.run(seconds: 60, writeMs: 1, flushMs: 4)
        #expect(line.modes.isEmpty)
        // One of a hundred late, by far less than a standstill: what happens everywhere.
        line.run(
            seconds: 60, write: { $0 % 100 == 0 ? 30 * Self.ms : Self.ms }, flush: { _ in Self.ms })
        #expect(line.modes.isEmpty)
    }

    @Test func slowSyncsCostSyncAndSlowWritesAll() {
        var line = Line()
        line.run(seconds: 5, writeMs: 1, flushMs: 12)
        #expect(line.modes == [.semiSync])
        line.run(seconds: 4, writeMs: 8, flushMs: 12)
        #expect(line.modes == [.semiSync, .async])
        line.run(seconds: 30, writeMs: 8, flushMs: 12)
        #expect(line.modes == [.semiSync, .async])
        line.run(seconds: 30, writeMs: 1, flushMs: 1)
        #expect(line.modes == [.semiSync, .async, .semiSync, .sync])
    }

    /// Just within the budget is not well within it: no step up, and none down.
    @Test func betweenTheTwoBoundsNothingMoves() {
        var line = Line()
        line.run(seconds: 5, writeMs: 8, flushMs: 8)
        #expect(line.mode.mode == .async)
        let count = line.steps.count
        line.run(seconds: 120, writeMs: 4, flushMs: 4)
        #expect(line.steps.count == count)
    }

    /// A step up that has to be taken back is tried again later and later, up to a bound.
    @Test func whatDoesNotHoldIsTriedLessAndLessOften() {
        var line = Line()
        // Quick, but for fsyncs: sync never holds.
        line.run(seconds: 4000, writeMs: 1, flushMs: 12)
        let ups = line.steps.filter { $0.mode == .sync }.map(\.atNs)
        let gaps = zip(ups, ups.dropFirst()).map { ($1 - $0) / Self.second }
        #expect(gaps.count >= 6, "\(gaps)")
        for (one, next) in zip(gaps, gaps.dropFirst()) {
            #expect(next >= min(one * 2 - 2, 600) && next < one * 2 + 2, "\(gaps)")
        }
        #expect(gaps.allSatisfy { $0 <= 602 }, "\(gaps)")
        #expect(!line.modes.contains(.async))
    }

    @Test func oneThatStandsStillIsNotWaitedForLong() {
        var mode = AdaptiveMode(options: Self.options)
        #expect(mode.step(waitingNs: 90 * Self.ms, nowNs: Self.second) == nil)
        #expect(mode.step(waitingNs: 101 * Self.ms, nowNs: Self.second) == .down)
        #expect(mode.step(waitingNs: 201 * Self.ms, nowNs: 2 * Self.second) == .down)
        #expect(mode.mode == .async)
        // The while in which it has to be quick begins when it is.
        for number in 3..<60 {
            #expect(mode.step(waitingNs: Self.second, nowNs: Int64(number) * Self.second) == nil)
        }
        #expect(mode.step(waitingNs: 0, nowNs: 68 * Self.second) == nil)
        #expect(mode.step(waitingNs: 0, nowNs: 70 * Self.second) == .up)
    }

    /// Whatever the answers are: one step at a time, never up before the while is over.
    @Test(arguments: Seeds.run(20))
    func stepsAreSingleAndNeverHasty(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var line = Line()
        for _ in 0..<40 {
            let (write, flush) = (Int64(random.below(8)), Int64(random.below(20)))
            line.run(seconds: 1 + random.below(30), writeMs: write, flushMs: flush)
        }
        let order: [ReplicationMode] = [.async, .semiSync, .sync]
        var (last, lastNs) = (2, Int64(0))
        for (atNs, mode) in line.steps {
            let place = order.firstIndex(of: mode)!
            #expect(abs(place - last) == 1, "seed \(seed)")
            if place > last { #expect(atNs - lastNs >= Self.options.holdNs, "seed \(seed)") }
            (last, lastNs) = (place, atNs)
        }
    }

    // MARK: In a session

    /// Streaming in sync, at 10.
    private func session(nowNs: Int64 = 0) -> TargetSession {
        var options = SessionOptions()
        options.mode = .sync
        options.latencyBudgetUs = 5000
        var session = TargetSession(options: options, seed: 1)
        _ = session.apply(.start, now: nowNs)
        let effects = session.apply(.connectedInStep(at: sequence(10)), now: nowNs)
        #expect(effects.contains(.countForAcknowledgements))
        return session
    }

    /// What is sent first waited since it came in step, and not for ever.
    @Test func whatWaitedBeforeItWasInStepIsNotHeldAgainstIt() {
        var session = session(nowNs: 1000 * Self.second)
        let nowNs = 1000 * Self.second + Self.ms
        _ = session.apply(.sent(through: sequence(11), isBarrierNext: false), now: nowNs)
        _ = session.apply(.tick, now: nowNs)
        #expect(session.policy.all.mode == .sync)
    }

    /// Nobody is answered without the target before it is written down that it is stale; then it goes
    /// on streaming, and comes up again.
    @Test func aStepToAsyncIsWrittenDownFirst() {
        var session = session()
        _ = session.apply(.sent(through: nil, isBarrierNext: false), now: 0)
        _ = session.apply(.recordsWaiting, now: Self.second)
        let first = session.apply(.tick, now: Self.second + 200 * Self.ms)
        #expect(session.policy.all.mode == .semiSync)
        #expect(first.contains(.policyChanged(session.policy)))
        let second = session.apply(.tick, now: Self.second + 300 * Self.ms)
        #expect(
            second == [
                .recordStale(since: sequence(10), reason: "its answers take longer than 5 ms")
            ])
        #expect(session.counts && session.policy.all.mode == .semiSync)
        let third = session.apply(.staleRecorded, now: Self.second + 301 * Self.ms)
        #expect(!session.counts && session.policy.all.mode == .async)
        #expect(third.contains(.releaseWaiters) && !third.contains(.stopStreaming))
        #expect(session.state == .streaming)
        _ = session.apply(.sent(through: sequence(11), isBarrierNext: false), now: 2 * Self.second)
        _ = session.apply(.sent(through: nil, isBarrierNext: false), now: 2 * Self.second)
        // Well within the budget again, for the hold time.
        var effects: [SessionEffect] = []
        for tick in 21...140 where !session.counts {
            effects = session.apply(.tick, now: Int64(tick) * 100 * Self.ms)
            if effects.contains(.run(.flush)) {
                effects += session.apply(
                    .flushed(through: sequence(11)), now: Int64(tick) * 100 * Self.ms)
            }
        }
        #expect(session.policy.all.mode == .semiSync)
        #expect(effects.contains(.policyChanged(session.policy)))
        #expect(effects.contains(.countForAcknowledgements))
    }

    /// One that fails while that is being written down is left behind like any other.
    @Test func whatFailsOnTheWayDownIsLeftBehind() {
        var session = session()
        _ = session.apply(.sent(through: nil, isBarrierNext: false), now: 0)
        _ = session.apply(.recordsWaiting, now: Self.second)
        _ = session.apply(.tick, now: Self.second + 200 * Self.ms)
        _ = session.apply(.tick, now: Self.second + 300 * Self.ms)
        _ = session.apply(.failed(TargetError(.io, "gone")), now: Self.second + 301 * Self.ms)
        let effects = session.apply(.staleRecorded, now: Self.second + 302 * Self.ms)
        #expect(effects.contains(.releaseWaiters) && effects.contains(.stopStreaming))
        #expect(!session.counts && session.policy.all.mode == .async)
    }
}
