import BlockCore
import Replication
import Testing

@Suite struct CourtesyTests {
    private func number(_ value: UInt64) -> SequenceNumber { SequenceNumber(rawValue: value) }

    @Test func whereNobodyWritesThereIsNoRest() {
        var courtesy = Courtesy()
        for turn in Int64(0)..<20 {
            courtesy.look(at: number(7), nowNs: turn * 10_000_000)
            #expect(!courtesy.isWritten)
            courtesy.worked(forNs: 5_000_000, nowNs: turn * 10_000_000 + 5_000_000)
            #expect(courtesy.restsUntilNs == 0)
        }
    }

    /// A third of the time at most, while somebody writes, and for a moment after.
    @Test func beneathAWriterAThirdOfTheTimeIsWorked() {
        var courtesy = Courtesy()
        var (now, worked, sequence): (Int64, Int64, UInt64) = (1_000_000_000, 0, 1)
        courtesy.look(at: number(sequence), nowNs: now)
        let start = now
        while now < start + 1_000_000_000 {
            sequence += 3
            courtesy.look(at: number(sequence), nowNs: now)
            #expect(courtesy.isWritten)
            courtesy.worked(forNs: 4_000_000, nowNs: now + 4_000_000)
            worked += 4_000_000
            now = max(now + 4_000_000, courtesy.restsUntilNs)
        }
        #expect(worked * 3 <= now - start + 4_000_000)
        #expect(worked * 4 >= now - start)
        courtesy.look(at: number(sequence), nowNs: now + 200_000_000)
        #expect(!courtesy.isWritten)
    }

    @Test func aSlowDiskIsNotRestedFromForEver() {
        var courtesy = Courtesy()
        courtesy.look(at: number(1), nowNs: 0)
        courtesy.look(at: number(2), nowNs: 1)
        courtesy.worked(forNs: 10_000_000_000, nowNs: 10_000_000_001)
        #expect(courtesy.restsUntilNs <= 10_050_000_001)
    }
}
