import BlockCore
import TestSupport
import Testing

@Suite struct BlockSetTests {
    @Test func anEmptySetHasNothing() {
        let set = BlockSet()
        #expect(set.isEmpty)
        #expect(set.count == 0)
        #expect(set.ranges.isEmpty)
        #expect(!set.contains(0))
    }

    @Test func runsJoinAcrossWordsAndRegions() {
        var set = BlockSet()
        set.insert(BlockRange(start: 1000, count: 24))
        set.insert(BlockRange(start: 1024, count: 2048))
        #expect(set.ranges == [BlockRange(start: 1000, count: 2072)])
        #expect(set.count == 2072)
    }

    @Test func aHoleInTheMiddleSplitsARun() {
        var set = BlockSet([BlockRange(start: 0, count: 4096)])
        set.remove(BlockRange(start: 100, count: 3000))
        #expect(
            set.ranges == [BlockRange(start: 0, count: 100), BlockRange(start: 3100, count: 996)])
        set.remove(BlockRange(start: 0, count: 4096))
        #expect(set == BlockSet())
    }

    @Test func theLastBlockOfTheLargestImageFits() {
        let last = Geometry.maxImageSizeBytes / Geometry.blockSizeBytes - 1
        let set = BlockSet([BlockRange(start: last, count: 1)])
        #expect(set.contains(last))
        #expect(set.ranges == [BlockRange(start: last, count: 1)])
    }

    @Test(arguments: Seeds.run(20))
    func itIsASetOfNumbers(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var set = BlockSet()
        var model: Set<UInt64> = []
        var other = BlockSet()
        var otherModel: Set<UInt64> = []
        for _ in 0..<200 {
            let range = BlockRange(
                start: UInt64(random.below(3000)),
                count: UInt64(random.below(random.chance(10) ? 3000 : 200)))
            switch random.below(4) {
            case 0:
                set.remove(range)
                model.subtract(range.start..<range.end)
            case 1:
                other.insert(range)
                otherModel.formUnion(range.start..<range.end)
            default:
                set.insert(range)
                model.formUnion(range.start..<range.end)
            }
        }
        func expectEqual(_ set: BlockSet, _ model: Set<UInt64>) {
            #expect(set.count == UInt64(model.count))
            #expect(set.ranges.flatMap { $0.start..<$0.end } == model.sorted(), "seed \(seed)")
            for (a, b) in zip(set.ranges, set.ranges.dropFirst()) { #expect(a.end < b.start) }
            for range in [BlockRange(start: 500, count: 700), BlockRange(start: 7, count: 0)] {
                #expect(
                    set.containsAll(range) == model.isSuperset(of: range.start..<range.end))
            }
            var copy = BlockSet()
            set.forEachRegion { copy.insert(region: $0, words: $1) }
            #expect(copy == set)
            for region in set.regionNumbers {
                let here = model.filter { $0 >> 10 == region }
                #expect(set.nextRun(inRegion: region)?.start == here.min())
                let from = region << 10 + UInt64(random.below(1100))
                let next = set.nextRun(inRegion: region, from: from)
                #expect(next?.start == here.filter { $0 >= from }.min())
                #expect(next.map { !here.contains($0.end) } ?? true)
            }
        }
        expectEqual(set, model)
        var union = set
        union.formUnion(other)
        expectEqual(union, model.union(otherModel))
        var both = set
        both.formIntersection(other)
        expectEqual(both, model.intersection(otherModel))
        set.subtract(other)
        expectEqual(set, model.subtracting(otherModel))
    }
}
