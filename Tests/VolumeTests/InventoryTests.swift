import BlockCore
import Pool
import SystemIO
import TestSupport
import Testing
import Volume

/// What a volume says of its blocks to who copies it elsewhere: step by step, nothing is missing.
@Suite struct InventoryTests {
    @Test(arguments: Seeds.run(3))
    func aCopyOfTheStepsIsEverySnapshotAndTheHead(seed: UInt64) throws {
        let pool = try CheckedVolume(seed: seed)
        defer { pool.remove() }
        for _ in 0..<120 { try pool.step() }
        let legs = try pool.volume.inventory {}
        #expect(legs.last?.snapshot == nil)
        var copy: [ImageID: [UInt8]] = [:]
        for leg in legs {
            let content = try leg.snapshot.map { try #require(pool.snapshots[$0.name]) }
            let shown = content ?? pool.images
            for (id, bytes) in shown {
                Self.apply(leg.blocks[id] ?? BlockSet(), of: bytes, to: &copy[id, default: []])
                let isSame = copy[id] == bytes
                try #require(
                    isSame,
                    "seed \(seed): image \(id.rawValue) of \(leg.snapshot?.name ?? "the head")")
            }
        }
        let all = try pool.volume.allocatedBlocks()
        let whole = try pool.snapshots.filter {
            try pool.volume.snapshot(named: $0.key).isOfWholePool
        }
        for content in [pool.images] + whole.values {
            for (id, bytes) in content {
                var fresh: [UInt8] = []
                Self.apply(all[id] ?? BlockSet(), of: bytes, to: &fresh)
                let isSame = fresh == bytes
                try #require(isSame, "seed \(seed): image \(id.rawValue)")
            }
        }
    }

    private static func apply(_ blocks: BlockSet, of bytes: [UInt8], to copy: inout [UInt8]) {
        if copy.count > bytes.count { copy.removeSubrange(bytes.count...) }
        copy += [UInt8](repeating: 0, count: bytes.count - copy.count)
        for range in blocks.ranges {
            let low = min(Int(range.startByte), bytes.count)
            let high = min(Int(range.startByte + range.lengthBytes), bytes.count)
            if low < high { copy.replaceSubrange(low..<high, with: bytes[low..<high]) }
        }
    }

    @Test func aSnapshotOfOneImageIsNoStep() throws {
        let pool = try CheckedVolume(seed: 1)
        defer { pool.remove() }
        while !pool.snapshots.keys.contains(where: {
            (try? pool.volume.snapshot(named: $0).isOfWholePool) == false
        }) {
            try pool.step()
        }
        for leg in try pool.volume.inventory(whileStill: {}) {
            #expect(leg.snapshot?.isOfWholePool ?? true)
        }
    }
}
