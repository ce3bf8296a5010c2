import TestSupport
import Testing
import Volume

/// Every operation on a simulated disk that works, against arrays of bytes.
@Suite struct ModelTests {
    @Test(arguments: Seeds.run(9))
    func operationsLeaveWhatTheModelSays(seed: UInt64) throws {
        do {
            // Mostly within one region; over its border with every third seed.
            let sizes = [600_000, 300_000, (8 << 20) - 1234]
            let pool = try CheckedPool(
                seed: seed, options: .init(imageCount: 2, maxBytes: sizes[Int(seed % 3)]))
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
