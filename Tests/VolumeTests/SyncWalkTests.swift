import BlockCore
import TestSupport
import Testing
import Volume

/// Every kind of operation, with the power going at its first sync or commit, then at its second, and
/// so on until it comes to its end; what the disk lost of the rest differs with the seed.
@Suite struct SyncWalkTests {
    struct Walk: Sendable, CustomTestStringConvertible {
        var testDescription: String
        var prepare: @Sendable (CheckedPool) throws -> Void
        var run: @Sendable (CheckedPool) throws -> Void

        init(
            _ name: String, prepare: @escaping @Sendable (CheckedPool) throws -> Void = Walk.layers,
            run: @escaping @Sendable (CheckedPool) throws -> Void
        ) {
            testDescription = name
            self.prepare = prepare
            self.run = run
        }

        /// Two images, two snapshots, and writes since that are not flushed.
        static let layers: @Sendable (CheckedPool) throws -> Void = { pool in
            for _ in 0..<2 {
                try write(pool, times: 3)
                try pool.snapshot()
            }
            try write(pool, times: 3)
        }
        static func write(_ pool: CheckedPool, times: Int) throws {
            for id in pool.images.keys.sorted() {
                for _ in 0..<times {
                    let length = 1 + pool.random.below(20_000)
                    try pool.write(
                        id, at: pool.random.below(pool.options.maxBytes - length), length: length)
                }
            }
        }
    }

    private static let one = ImageID(rawValue: 1)

    static let walks = [
        Walk("write and flush a plain image", prepare: { _ in }) { pool in
            for _ in 0..<3 {
                try Walk.write(pool, times: 2)
                try pool.flush(one)
            }
        },
        Walk("write and flush") { pool in
            for _ in 0..<3 {
                try Walk.write(pool, times: 2)
                try pool.flush(one)
            }
        },
        Walk("write into several regions") { pool in
            for region in 0..<3 { try pool.write(one, at: region << 22, length: 5000) }
            try pool.flush(one)
        },
        Walk("the first snapshot", prepare: { try Walk.write($0, times: 3) }) { pool in
            try pool.snapshot()
            try Walk.write(pool, times: 1)
            try pool.flush(one)
        },
        Walk("snapshots one after another") { pool in
            try pool.snapshot()
            try pool.write(one, at: 3000, length: 9000)
            try pool.snapshot()
        },
        Walk("restore") { pool in
            try pool.restore(one, from: "s1")
            try pool.write(one, at: 3000, length: 9000)
            try pool.flush(one)
        },
        Walk("restore and again") { pool in
            try pool.restore(one, from: "s1")
            try pool.restore(one, from: "s2")
        },
        Walk("delete a snapshot and merge") { pool in
            try pool.snapshot()
            try pool.deleteSnapshot("s2")
            try pool.mergeAll()
            try pool.write(one, at: 3000, length: 9000)
            try pool.flush(one)
        },
        Walk("delete the newest snapshot") { pool in
            try pool.deleteSnapshot("s2")
            try pool.deleteSnapshot("s1")
        },
        Walk("grow") { pool in
            try pool.resize(one, to: 300_001)
            try pool.flush(one)
        },
        Walk("shrink and grow") { pool in
            try pool.resize(one, to: 30_001)
            try pool.flush(one)
            try pool.resize(one, to: 100_000)
            try pool.flush(one)
        },
        Walk("shrink and grow a plain image", prepare: { try Walk.write($0, times: 3) }) { pool in
            try pool.resize(one, to: 30_001)
            try pool.flush(one)
            try pool.resize(one, to: 100_000)
            try pool.flush(one)
        },
        Walk("trim") { pool in
            try pool.trim(one, 5000..<60_000)
            try pool.flush(one)
            try pool.write(one, at: 20_000, length: 5000)
            try pool.flush(one)
        },
        Walk("clone") { pool in
            try pool.clone(one, from: "s1")
            let new = pool.images.keys.max()!
            try pool.write(new, at: 3000, length: 9000)
            try pool.flush(new)
        },
        Walk("create") { pool in
            try pool.createImage()
            let new = pool.images.keys.max()!
            try pool.write(new, at: 3000, length: 9000)
            try pool.flush(new)
        },
        Walk("delete an image") { pool in
            try pool.deleteImage(one)
        },
        Walk("checksums") { pool in
            try pool.coverOnce()
            try pool.coverOnce()
        },
        Walk("settle") { pool in
            try pool.flush(one)
            try pool.settle(one, all: true)
            try pool.write(one, at: 3000, length: 9000)
            try pool.settle(one, all: false)
            try pool.settle(one, all: false)
        },
        Walk("close") { pool in
            for id in pool.images.keys { pool.images[id]!.settling() }
            try pool.volume.close()
        },
    ]

    /// Flushes that are acknowledged between the cut and the end of the snapshot.
    static let snapshotWhileOthersWrite = Walk("snapshot while others write") { pool in
        pool.interleaves = 100
        try pool.snapshot()
    }

    @Test(arguments: walks + [snapshotWhileOthersWrite], Seeds.run(1))
    func theNextOpenFindsWhatWasPromised(walk: Walk, seed: UInt64) {
        for count in 1...1000 {
            do {
                if try walk.run(seed: seed, powerOffAtSync: count) {
                    #expect(count > 1, "it has no sync at all")
                    return
                }
            } catch {
                Issue.record("seed \(seed), power off at sync \(count): \(error)")
                return
            }
        }
        Issue.record("seed \(seed): it does not end")
    }
}

extension SyncWalkTests.Walk {
    /// - Returns: whether it came to its end before.
    @discardableResult
    func run(
        seed: UInt64, powerOffAtSync count: Int,
        _ change: (inout CheckedPool.Options) -> Void = { _ in }
    ) throws -> Bool {
        var options = CheckedPool.Options(maxBytes: 100_000)
        change(&options)
        let pool = try CheckedPool(seed: seed, options: options)
        pool.interleaves = 40
        try prepare(pool)
        // The operations are the same at every sync; what the disk forgets is not.
        pool.forgetting = SeededRandom(seed: seed &* 1000 &+ UInt64(count))
        let isDone = try pool.run(toCrashAtSync: count) { try run(pool) }
        try pool.reopenCleanly()
        return isDone
    }
}
