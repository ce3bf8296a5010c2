import BlockCore
import Replication
import Testing

/// When a target with an interval is shipped to.
@Suite struct ScheduleTests {
    private static let second: Int64 = 1_000_000_000

    /// At its checkpoint 10 of a pool that is at 10; its next run is due at 30 s.
    private func session() -> TargetSession {
        var options = SessionOptions()
        options.mode = .async
        options.intervalMs = 30_000
        var session = TargetSession(options: options, seed: 1)
        _ = session.apply(.start, now: 0)
        // It is not known when the last run was: it begins with a look.
        #expect(operation(connect(&session, now: 0)) == .look)
        _ = session.apply(.looked(isLevel: true, through: sequence(10)), now: 0)
        #expect(session.isInStep(nowNs: 0))
        return session
    }

    private func operation(_ effects: [SessionEffect]) -> SessionOperation? {
        for case .run(let operation) in effects { return operation }
        return nil
    }

    /// A run from its look to its commit, which takes so long.
    private func run(_ session: inout TargetSession, from startNs: Int64, takesNs: Int64) {
        let opening = session.apply(
            .looked(isLevel: false, through: sequence(20)), now: startNs)
        guard case .openLeg = operation(opening) else {
            Issue.record("\(opening)")
            return
        }
        let leg = LegSummary(
            end: .head, blocks: [:], shapeSequence: sequence(20), streamFrom: sequence(20)
        )
        var effects = session.apply(.legOpened(leg), now: startNs)
        if operation(effects) == .stageStream {
            effects = session.apply(.streamStaged(StagedStretch()), now: startNs)
        }
        guard case .commitLeg = operation(effects) else {
            Issue.record("\(effects)")
            return
        }
        let end = session.apply(.legCommitted, now: startNs + takesNs)
        // P1, after what was committed left the ring.
        let committed = end.firstIndex(of: .acknowledge(.durable, sequence(20)))
        let released = end.firstIndex(of: .stopStreaming)
        #expect(committed != nil && released != nil && committed! < released!)
        #expect(session.state == .scheduled)
        #expect(session.durable == sequence(20))
    }

    @Test func aRunBeginsAtItsTimeAndNotBefore() {
        var session = session()
        let waiting = session.apply(.recordsWaiting, now: 29 * Self.second)
        #expect(waiting == [.wake(atNs: 30 * Self.second)])
        #expect(operation(session.apply(.tick, now: 30 * Self.second)) == .look)
        run(&session, from: 30 * Self.second, takesNs: Self.second)
        #expect(session.nextRunNs == 60 * Self.second)
    }

    @Test func whoWaitsNeedNotWaitForTheTime() {
        var session = session()
        #expect(operation(session.apply(.flushWanted(sequence(10)), now: 1)) == nil)
        #expect(operation(session.apply(.flushWanted(sequence(20)), now: 2)) == .look)
        run(&session, from: 2, takesNs: 1)
        #expect(operation(session.apply(.tick, now: 3)) == nil)
    }

    /// Who waits asks for a checkpoint, also where the content is the same.
    @Test func aCheckpointIsMadeForWhoWaitsThoughNothingLacks() {
        var session = session()
        _ = session.apply(.flushWanted(sequence(20)), now: 2)
        let effects = session.apply(.looked(isLevel: true, through: sequence(20)), now: 2)
        guard case .openLeg = operation(effects) else {
            Issue.record("\(effects)")
            return
        }
    }

    /// Nothing is made up for.
    /// What comes while a run is under way may come faster than the target takes it.
    @Test func aRunNeedNotKeepPaceWithTheWriters() {
        var session = session()
        #expect(operation(session.apply(.tick, now: 30 * Self.second)) == .look)
        let looked = SessionEvent.looked(isLevel: false, through: sequence(20))
        guard case .openLeg = operation(session.apply(looked, now: 30 * Self.second)) else {
            Issue.record("no run begins")
            return
        }
        let leg = LegSummary(
            end: .head, blocks: [:], shapeSequence: sequence(20), streamFrom: sequence(20)
        )
        // What the target is to be told comes with the run: some of the stream is in it.
        #expect(
            operation(session.apply(.legOpened(leg), now: 30 * Self.second)) == .stageStream)
        var stretch = StagedStretch()
        stretch.through = sequence(25)
        let next = operation(session.apply(.streamStaged(stretch), now: 31 * Self.second))
        guard case .commitLeg(_, let place, .head) = next else {
            Issue.record("\(String(describing: next))")
            return
        }
        #expect(place == sequence(25))
    }

    @Test func aTimeThatPassedDuringARunIsLeftOut() {
        var session = session()
        #expect(operation(session.apply(.tick, now: 30 * Self.second)) == .look)
        run(&session, from: 30 * Self.second, takesNs: 65 * Self.second)
        #expect(session.nextRunNs == 120 * Self.second)
        #expect(operation(session.apply(.tick, now: 96 * Self.second)) == nil)
        #expect(operation(session.apply(.tick, now: 120 * Self.second)) == .look)
    }

    @Test func aRunThatTakesTooLongIsNotInStep() {
        var session = session()
        _ = session.apply(.tick, now: 30 * Self.second)
        _ = session.apply(
            .looked(isLevel: false, through: sequence(20)), now: 30 * Self.second)
        #expect(session.isInStep(nowNs: 60 * Self.second))
        #expect(!session.isInStep(nowNs: 66 * Self.second))
    }

    /// P2
    @Test func aRunThatFailedGoesOnWhenTheTargetIsThere() {
        var session = session()
        _ = session.apply(.tick, now: 30 * Self.second)
        _ = session.apply(.failed(TargetError(.absent, "it is gone")), now: 31 * Self.second)
        #expect(!session.isInStep(nowNs: 31 * Self.second))
        _ = session.apply(.disconnected, now: 31 * Self.second)
        #expect(operation(session.apply(.tick, now: 33 * Self.second)) == .connect)
        let position = StreamPosition(
            isSameIncarnation: true, holdsAllAfterCheckpoint: false, isDirty: true,
            acknowledged: sequence(10))
        let effects = session.apply(.connected(.at(sequence(10)), position), now: 33 * Self.second)
        #expect(operation(effects) == .look)
        #expect(!session.isInStep(nowNs: 33 * Self.second))
        run(&session, from: 33 * Self.second, takesNs: 1)
        #expect(session.isInStep(nowNs: 34 * Self.second))
    }

    /// P2: nothing is left of the run that failed.
    @Test func whoComesBackFromARunAndLacksNothingIsInStep() {
        var session = session()
        _ = session.apply(.tick, now: 30 * Self.second)
        _ = session.apply(.failed(TargetError(.absent, "it is gone")), now: 31 * Self.second)
        _ = session.apply(.disconnected, now: 31 * Self.second)
        #expect(operation(session.apply(.tick, now: 33 * Self.second)) == .connect)
        #expect(operation(connect(&session, now: 33 * Self.second)) == .look)
        let level = session.apply(
            .looked(isLevel: true, through: sequence(10)), now: 33 * Self.second)
        #expect(level.contains(.tell(kind: "target-in-step", message: "it is at a checkpoint")))
        #expect(session.isInStep(nowNs: 33 * Self.second))
    }

    private func connect(_ session: inout TargetSession, now: Int64) -> [SessionEffect] {
        let position = StreamPosition(
            isSameIncarnation: true, holdsAllAfterCheckpoint: false, isDirty: false,
            acknowledged: sequence(10))
        return session.apply(.connected(.at(sequence(10)), position), now: now)
    }
}
