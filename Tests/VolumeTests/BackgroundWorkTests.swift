import BlockCore
import Synchronization
import SystemIO
import TestSupport
import Testing

@testable import Volume

@Suite struct BackgroundWorkTests {
    private static let ms: Int64 = 1_000_000

    private func number(_ value: UInt64) -> SequenceNumber { SequenceNumber(rawValue: value) }

    /// It has looked for work since it began.
    private func looked() -> BackgroundWork {
        let work = BackgroundWork()
        work.rest(after: 1, workedNs: 1, at: number(99))
        #expect(!work.waitOutRest { 0 })
        return work
    }

    @Test func whereNobodyWritesNothingRests() {
        let work = BackgroundWork()
        work.rest(after: 0, workedNs: 1, at: number(7))
        work.rest(after: 1000 * Self.ms, workedNs: 30 * Self.ms, at: number(7))
        #expect(work.waitOutRest { 1000 * Self.ms })
    }

    /// A fifth of the time, and never long enough to be forgotten.
    @Test func besideAWriterAFifthOfTheTimeIsWorked() {
        let work = looked()
        work.rest(after: 0, workedNs: 0, at: number(7))
        for (workedMs, restMs) in [(Int64(30), Int64(120)), (9000, 1000)] {
            work.rest(
                after: 5000 * Self.ms, workedNs: workedMs * Self.ms, at: number(UInt64(workedMs)))
            // A millisecond before the end, and at it.
            var looks: Int64 = 0
            let rested = work.waitOutRest {
                looks += 1
                return (5000 + restMs - 2 + looks) * Self.ms
            }
            #expect(rested)
            #expect(looks == 2)
        }
    }

    /// What cannot wait comes first.
    @Test func whoIsWokenLooksForOtherWork() {
        let work = looked()
        work.rest(after: 0, workedNs: 100 * Self.ms, at: number(1))
        let waker = TestThread { work.wake(settling: ImageID(rawValue: 3)) }
        #expect(!work.waitOutRest { 0 })
        #expect(work.takeSettling() == ImageID(rawValue: 3))
        try? waker.join()
    }
}
