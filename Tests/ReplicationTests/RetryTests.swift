import BlockCore
import Replication
import Testing

/// When a target that cannot be reached is tried again.
@Suite struct RetryTests {
    private static let millisecondNs: Int64 = 1_000_000

    /// Nobody answers, ever.
    private struct Line {
        var session: TargetSession
        var nowNs: Int64 = 0
        var delaysMs: [Int64] = []
        var tries = 0

        init(seed: UInt64, spreadPercent: Int64) {
            var options = SessionOptions()
            options.firstRetryMs = 200
            options.longestRetryMs = 1000
            options.retrySpreadPercent = spreadPercent
            session = TargetSession(options: options, seed: seed)
        }

        mutating func tell(_ event: SessionEvent) {
            var wakeNs: Int64?
            for effect in session.apply(event, now: nowNs) {
                switch effect {
                case .run(.connect):
                    tries += 1
                    tell(.failed(TargetError(.absent, "nobody listens")))
                case .run(.disconnect): tell(.disconnected)
                case .run(let other): Issue.record("\(other)")
                case .recordStale: tell(.staleRecorded)
                case .wake(let atNs): wakeNs = atNs
                default: break
                }
            }
            if let wakeNs, wakeNs > nowNs {
                delaysMs.append((wakeNs - nowNs) / RetryTests.millisecondNs)
                nowNs = wakeNs
            }
        }

        mutating func tryOften(_ count: Int) {
            tell(.start)
            // One that gave up would stand still here.
            for _ in 0..<2 * count where tries < count { tell(.tick) }
        }
    }

    /// For ever, later and later up to a bound; those that lost one server do not come all at once.
    @Test func itIsTriedForEverAndNotByAllAtOnce() {
        var lines = (1...8).map { Line(seed: $0, spreadPercent: 50) }
        for index in lines.indices {
            lines[index].tryOften(500)
            let line = lines[index]
            #expect(line.tries == 500)
            let delays = line.delaysMs.prefix(499)
            #expect(delays.count == 499)
            for (number, ms) in delays.enumerated() {
                let usual = min(Int64(200) << Int64(min(number, 10)), 1000)
                #expect((usual / 2...usual).contains(ms), "try \(number): \(ms) ms")
            }
            #expect(Set(delays.suffix(400)).count > 100)
        }
        for number in [0, 10, 400] {
            #expect(Set(lines.map { $0.delaysMs[number] }).count > 4, "try \(number)")
        }
        var plain = Line(seed: 1, spreadPercent: 0)
        plain.tryOften(6)
        #expect(plain.delaysMs.prefix(5) == [200, 400, 800, 1000, 1000])
    }
}
