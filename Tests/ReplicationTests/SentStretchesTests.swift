import BlockCore
import Testing

@testable import Replication

@Suite struct SentStretchesTests {
    private func number(_ value: UInt64) -> SequenceNumber { SequenceNumber(rawValue: value) }
    private static let ms: Int64 = 1_000_000

    /// Never less than there is, and never younger; at most a stretch more.
    @Test func itKnowsHowMuchAndSinceWhen() {
        var unflushed = SentStretches()
        #expect(unflushed.sinceNs == nil)
        for turn in UInt64(1)...1000 {
            unflushed.note(through: number(turn), bytes: 4096, nowNs: Int64(turn) * Self.ms)
        }
        #expect(unflushed.bytes == 4_096_000)
        #expect(unflushed.sinceNs == Self.ms)
        for through in [UInt64(1), 49, 50, 333, 700, 999] {
            unflushed.remove(through: number(through))
            let left = (1000 - through) * 4096
            #expect(unflushed.bytes >= left && unflushed.bytes <= left + 50 * 4096)
            let sinceMs = unflushed.sinceNs! / Self.ms
            #expect(sinceMs <= Int64(through) + 1 && sinceMs > Int64(through) - 50)
        }
        unflushed.remove(through: number(1000))
        #expect(unflushed.bytes == 0 && unflushed.sinceNs == nil)
    }

    @Test func largeBatchesAreStretchesOfTheirOwn() {
        var unflushed = SentStretches()
        for turn in UInt64(1)...3 {
            unflushed.note(through: number(turn), bytes: 4 << 20, nowNs: Int64(turn))
        }
        #expect(unflushed.remove(through: number(2)) == 1)
        #expect(unflushed.bytes == 4 << 20 && unflushed.sinceNs == 3)
        #expect(unflushed.remove(through: number(2)) == nil)
    }
}
