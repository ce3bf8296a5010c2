import BlockCore
import Replication
import Testing

/// How long a target that was left behind has to be in step before it is waited for again.
@Suite struct RearmTests {
    private static let secondNs: Int64 = 1_000_000_000

    /// A session with the product's own options, and a target that is there whenever it is asked.
    private struct Line {
        var session = TargetSession(options: SessionOptions(), seed: 1)
        var nowNs: Int64 = 0

        mutating func tell(_ event: SessionEvent) {
            for effect in session.apply(event, now: nowNs) {
                switch effect {
                case .run(.connect): tell(.connectedInStep(at: sequence(10)))
                case .run(.disconnect): tell(.disconnected)
                case .run(.send): tell(.sent(through: nil, isBarrierNext: false))
                case .run(let other): Issue.record("\(other)")
                case .recordStale: tell(.staleRecorded)
                default: break
                }
            }
        }

        /// Ticks, as the keeper's, until it is so.
        /// - Returns: the seconds that it took.
        mutating func until(_ isSo: (TargetSession) -> Bool) -> Int64 {
            let startNs = nowNs
            while !isSo(session), nowNs - startNs < 10_000 * secondNs {
                nowNs += secondNs
                tell(.tick)
            }
            return (nowNs - startNs) / secondNs
        }
    }

    @Test func tenSecondsAndTwiceAsLongEachTimeUpToTenMinutes() {
        var line = Line()
        line.tell(.start)
        #expect(line.session.counts, "the first time it is in step")
        func leaveBehind(_ line: inout Line) -> Int64 {
            line.tell(.ringOverflowed)
            #expect(!line.session.counts)
            _ = line.until { $0.state == .streaming }
            return line.until { $0.counts }
        }
        #expect((0..<8).map { _ in leaveBehind(&line) } == [10, 20, 40, 80, 160, 320, 600, 600])
        // One that was waited for so long is trusted as before.
        line.nowNs += 599 * Self.secondNs
        #expect(leaveBehind(&line) == 600)
        line.nowNs += 600 * Self.secondNs
        #expect(leaveBehind(&line) == 10)
        #expect(leaveBehind(&line) == 20)
    }

    /// It has to be in step all the while.
    @Test func whoGoesAgainMeanwhileBeginsAnew() {
        var line = Line()
        line.tell(.start)
        line.tell(.ringOverflowed)
        _ = line.until { $0.state == .streaming }
        line.nowNs += 9 * Self.secondNs
        line.tell(.tick)
        #expect(!line.session.counts)
        line.tell(.ringOverflowed)
        _ = line.until { $0.state == .streaming }
        #expect(line.until { $0.counts } == 10)
    }
}
