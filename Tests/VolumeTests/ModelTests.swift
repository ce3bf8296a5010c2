import Testing
import TestSupport
import Volume

/// Every operation on a simulated disk that works, against arrays of bytes.
@Suite struct ModelTests {
    @Test(arguments: Seeds.run(6))
    func operationsLeaveWhatTheModelSays(seed: UInt64) throws {
        do {
            // Sizes up to 2, 5 and 8 MiB: within one region, and over its border.
            let sizes = [2 << 20, 5 << 20, (8 << 20) - 1234]
            let pool = try CheckedPool(
                seed: seed, options: .init(imageCount: 2, maxBytes: sizes[Int(seed % 3)]))
            for number in 1...400 {
                try pool.step()
                if number % 100 == 0 { try pool.reopenCleanly() }
            }
            while try pool.volume.mergeStep() {}
            try pool.compareAll()
            while try pool.volume.coverNextLayer() {}
            let damaged = try pool.volume.scrub().damaged
            if !damaged.isEmpty { throw Violation("\(damaged)") }
            try pool.reopenCleanly()
        } catch { Issue.record("seed \(seed): \(error)") }
    }
}
