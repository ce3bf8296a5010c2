import TestSupport
import Testing
import Volume

/// Every operation on a simulated disk that works, against arrays of bytes.
@Suite struct ModelTests {
    @Test(arguments: Seeds.run(6))
    func operationsLeaveWhatTheModelSays(seed: UInt64) throws {
        do {
            var options = CheckedPool.Options(maxBytes: seed % 2 == 0 ? 400_000 : 200_000)
            // Over a border of regions.
            if seed % 3 == 0 { options.originBytes = (4 << 20) - 150_000 }
            let pool = try CheckedPool(seed: seed, options: options)
            pool.interleaves = 40
            for number in 1...400 {
                try pool.step()
                if number % 100 == 0 { try pool.reopenCleanly() }
            }
            try pool.mergeAll()
            try pool.compareAll()
            while try pool.volume.coverNextLayer() {}
            try pool.checkHouse()
            try pool.reopenCleanly()
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    /// What said zero while there were layers must not say so of the plain file they end as.
    @Test func aBlockTrimmedBeforeAMergeShowsWhatIsWrittenAfterIt() throws {
        let pool = try CheckedPool(seed: 1, options: .init(maxBytes: 100_000))
        let id = try #require(pool.images.keys.min())
        try pool.write(id, at: 0, length: 40_000)
        try pool.snapshot()
        try pool.trim(id, 8192..<16_384)
        try pool.snapshot()
        try pool.write(id, at: 100, length: 100)
        for name in pool.snapshots.keys.sorted() { try pool.deleteSnapshot(name) }
        try pool.mergeAll()
        try pool.write(id, at: 8192, length: 6000)
        try pool.compareAll()
        try pool.resize(id, to: 3000)
        try pool.write(id, at: 30_000, length: 6000)
        try pool.compareAll()
        try pool.reopenCleanly()
    }
}
