// Two layers that are to become one, made in every shape there is.

import BlockCore
import Pool
import TestSupport
import Volume

/// A pool with one image and a pair of layers that a deleted snapshot left behind.
struct MergeScene {
    enum Upper: String, CaseIterable { case sealed, head }
    enum Lower: String, CaseIterable { case plain, mapped }

    static let blocks = 24
    let upper: Upper
    let lower: Lower
    let direction: MergeRecord.Direction

    static let all: [MergeScene] = Upper.allCases.flatMap { upper in
        Lower.allCases.flatMap { lower in
            [.down, .up].map { MergeScene(upper: upper, lower: lower, direction: $0) }
        }
    }

    var name: String { "\(upper.rawValue) on \(lower.rawValue), \(direction)" }

    /// Layers when nothing is left to merge: the pair's one, the one that `bottom` keeps, and the head
    /// over `top`.
    var layersInTheEnd: Int { 1 + (lower == .mapped ? 1 : 0) + (upper == .sealed ? 1 : 0) }

    /// Only the lower layer has these.
    private static let below = 13..<16

    func make(seed: UInt64, batchBlocks: UInt64 = 11) throws -> CheckedPool {
        var options = CheckedPool.Options(imageCount: 1, maxBytes: (Self.blocks + 8) * 4096)
        options.volume.mergeBatchBlocks = batchBlocks
        let pool = try CheckedPool(seed: seed, options: options)
        // Nobody else writes, so that the layers are what the name says.
        let interleaves = pool.interleaves
        pool.interleaves = 0
        defer { pool.interleaves = interleaves }
        let id = try pool.anyImage()
        if lower == .mapped {
            try fill(pool, id, chance: 50)
            try pool.snapshot()
        }
        try fill(pool, id, chance: direction == .down ? 90 : 35)
        try pool.write(id, at: Self.below.lowerBound * 4096, length: Self.below.count * 4096)
        try pool.trim(id, 3 * 4096..<6 * 4096)
        try pool.snapshot()
        let between = pool.snapshots.keys.max()!
        while try pool.volume.coverNextLayer() {}
        try fill(pool, id, chance: direction == .down ? 20 : 80, skipping: Self.below)
        try pool.trim(id, 8 * 4096..<10 * 4096 + 77)
        try pool.resize(id, to: Self.blocks * 4096 - 1234)
        if upper == .sealed {
            try pool.snapshot()
            while try pool.volume.coverNextLayer() {}
        }
        try pool.flush(id)
        try pool.deleteSnapshot(between)
        return pool
    }

    private func fill(
        _ pool: CheckedPool, _ id: ImageID, chance: Int, skipping skipped: Range<Int> = 0..<0
    ) throws {
        for block in 0..<Self.blocks where pool.random.chance(chance) && !skipped.contains(block) {
            let start = pool.random.chance(25) ? pool.random.below(4000) : 0
            try pool.write(
                id, at: block * 4096 + start, length: min(4096 - start, 1 + pool.random.below(9000))
            )
        }
        try pool.write(id, at: (Self.blocks - 1) * 4096, length: 4000)
        try pool.flush(id)
    }
}

extension CheckedPool {
    var layerCount: Int { get throws { try catalog.read { try $0.layers() }.count } }

    /// Steps of merging with a guest at work between them, until nothing is left to do.
    func mergeWithGuest(limit: Int = 60) throws {
        var isLeft = true
        for _ in 0..<limit where isLeft {
            isLeft = try volume.mergeStep()
            if disk.isPoweredOff { throw Violation("the power is off") }
            try guestOperation()
        }
        try mergeAll()
        if disk.isPoweredOff { throw Violation("the power is off") }
    }

    private func guestOperation() throws {
        let id = try anyImage()
        let end = options.maxBytes
        switch random.below(10) {
        case 0..<4:
            let length = 1 + random.below(9000)
            try write(id, at: random.below(end - length), length: length)
        case 4..<5:
            let start = random.below(end)
            try trim(id, start..<start + 1 + random.below(30_000))
        case 5..<6: try resize(id, to: end / 2 + random.below(end / 2))
        case 6..<8: try flush(id)
        default: try compareLive(id)
        }
    }
}
