import TestSupport
import Testing
import Volume

/// Power off at a random sync or commit, again and again; the next open must find what G1, G3, G5 and
/// G7 say.
@Suite struct CrashTests {
    static func run(
        seed: UInt64, rounds: Int = 6, _ change: (inout CheckedPool.Options) -> Void = { _ in }
    ) throws {
        var options = CheckedPool.Options(maxBytes: 200_000)
        // Over a border of regions.
        if seed % 5 == 0 { options.originBytes = (4 << 20) - 100_000 }
        change(&options)
        let pool = try CheckedPool(seed: seed, options: options)
        pool.interleaves = 40
        for _ in 0..<rounds {
            try pool.runToCrash(atSync: 1 + pool.random.below(60), stepLimit: 60)
        }
        try pool.reopenCleanly()
    }

    @Test(arguments: Seeds.run(30))
    func nothingPromisedIsLost(seed: UInt64) {
        do { try Self.run(seed: seed) } catch { Issue.record("seed \(seed): \(error)") }
    }
}
