import BlockCore
import SystemIO
import TestSupport
import Testing
import Volume

/// A full disk and syncs that fail (G9): a clear error, everything acknowledged is kept, and there is a
/// way out.
@Suite struct FaultTests {
    @Test(arguments: Seeds.run(12))
    func aFullDiskLosesNothingAndHasAWayOut(seed: UInt64) {
        do {
            var options = CheckedPool.Options(maxBytes: 200_000)
            options.expectsNoSpace = true
            let pool = try CheckedPool(seed: seed, options: options)
            for _ in 0..<30 { try pool.step() }
            pool.disk.limitSpace(toBytes: pool.random.below(40) * 4096)
            for _ in 0..<60 { try pool.step() }
            try pool.compareAll()
            // The way out, with what the reserve gives.
            pool.disk.limitSpace(toBytes: pool.disk.spaceLeftBytes + 64 * 4096)
            for name in pool.snapshots.keys.sorted() { try pool.deleteSnapshot(name) }
            #expect(pool.snapshots.isEmpty)
            try pool.mergeAll()
            try pool.compareAll()
            pool.disk.limitSpace(toBytes: 64 << 20)
            for _ in 0..<20 { try pool.step() }
            for id in pool.images.keys.sorted() { try pool.flush(id) }
            try pool.recover()
            try pool.reopenCleanly()
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    /// A disk that fails once forgets what it was to make durable and says nothing more. After a
    /// failed sync nothing of the image is acknowledged until the pool was opened again.
    @Test(arguments: Seeds.run(24))
    func afterAFailedSyncNothingIsAcknowledged(seed: UInt64) {
        do {
            var options = CheckedPool.Options(maxBytes: 200_000)
            options.expectsFailedSyncs = true
            let pool = try CheckedPool(seed: seed, options: options)
            for _ in 0..<3 {
                for _ in 0..<20 { try pool.step() }
                let ends = [".data", ".map", "/activity", "/images/1", ""]
                let end = ends[pool.random.below(ends.count)]
                let left = Countdown(1 + pool.random.below(2))
                pool.disk.failSyncs { $0.hasSuffix(end) && left.isNotOver() }
                for _ in 0..<40 {
                    do { try pool.step() } catch let error as VolumeError {
                        guard error.kind == .io || error.kind == .latched else { throw error }
                        // What it has done in memory, only the next open tells.
                        break
                    }
                }
                pool.disk.failSyncs { _ in false }
                try pool.recover()
            }
            try pool.reopenCleanly()
        } catch { Issue.record("seed \(seed): \(error)") }
    }
}

/// So many times yes, then no.
private final class Countdown: @unchecked Sendable {  // `left` is under `lock`
    private let lock = Lock()
    private var left: Int
    init(_ count: Int) { left = count }

    func isNotOver() -> Bool {
        lock.withLock {
            left -= 1
            return left >= 0
        }
    }
}
