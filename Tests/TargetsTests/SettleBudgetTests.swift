import Testing

@testable import Targets

@Suite struct SettleBudgetTests {
    private static let mebibyte: UInt64 = 1 << 20
    private static let second: Int64 = 1_000_000_000

    private func budget() -> SettleBudget {
        SettleBudget(leastBytes: 64 * Self.mebibyte, mostBytes: 1024 * Self.mebibyte)
    }

    @Test func itBecomesWhatTheDiskSyncsInASecond() {
        var budget = budget()
        #expect(budget.bytes == 64 * Self.mebibyte)
        // 640 MiB a second, but not all at once.
        budget.settled(64 * Self.mebibyte, tookNs: Self.second / 10)
        #expect(budget.bytes == 256 * Self.mebibyte)
        budget.settled(256 * Self.mebibyte, tookNs: Self.second * 2 / 5)
        #expect(budget.bytes == 640 * Self.mebibyte)
        // The disk is slow now.
        budget.settled(640 * Self.mebibyte, tookNs: Self.second * 5)
        #expect(budget.bytes == 128 * Self.mebibyte)
        budget.settled(128 * Self.mebibyte, tookNs: Self.second * 60)
        #expect(budget.bytes == 64 * Self.mebibyte)
    }

    @Test func itEndsSomewhere() {
        var budget = budget()
        for _ in 0..<5 { budget.settled(budget.bytes, tookNs: 0) }
        #expect(budget.bytes == 1024 * Self.mebibyte)
        budget.limit(freeBytes: 1600 * Self.mebibyte)
        #expect(budget.bytes == 200 * Self.mebibyte)
        budget.limit(freeBytes: 0)
        #expect(budget.bytes == 64 * Self.mebibyte)
    }

    /// One that has little to do takes as long as one that has not.
    @Test func aSmallSyncSaysNothing() {
        var budget = budget()
        budget.settled(64 * Self.mebibyte, tookNs: 1)
        budget.settled(Self.mebibyte, tookNs: Self.second)
        #expect(budget.bytes == 256 * Self.mebibyte)
    }
}
