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
}
