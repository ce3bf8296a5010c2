/// A set of blocks: bitmaps of 1,024 blocks where anything is set, nothing where not.
///
/// A region (4 MiB of image) where some blocks are set costs 160 bytes and its entry; one where all
/// are set only the entry, for all of those share one bitmap.
package struct BlockSet: Sendable, Equatable {
    package typealias Words = ContiguousArray<UInt64>
    package static let wordsPerRegion = 16
    private static let empty = Words(repeating: 0, count: wordsPerRegion)
    private static let full = Words(repeating: .max, count: wordsPerRegion)

    /// Region number to its bits; never an entry without a bit.
    private var regions: [UInt64: Words] = [:]
    package private(set) var count: UInt64 = 0

    package init() {}
    package init(_ ranges: [BlockRange]) { for range in ranges { insert(range) } }

    package var isEmpty: Bool { count == 0 }
    package var regionCount: Int { regions.count }

    package func contains(_ block: UInt64) -> Bool {
        guard let words = regions[block >> 10] else { return false }
        return words[Int(block & 1023) >> 6] & (1 << (block & 63)) != 0
    }

    package func containsAll(_ range: BlockRange) -> Bool {
        var holdsAll = true
        Self.forEachPart(of: range) { region, first, end in
            guard holdsAll, let words = regions[region] else {
                holdsAll = false
                return
            }
            Self.forEachWord(first, end) { if words[$0] & $1 != $1 { holdsAll = false } }
        }
        return holdsAll
    }

    package mutating func insert(_ range: BlockRange) {
        Self.forEachPart(of: range) { region, first, end in
            if end - first == 1024 { return replace(region, with: Self.full) }
            // Taken out, so that the array is not copied before it is changed.
            var words = regions.removeValue(forKey: region) ?? Self.empty
            var added = 0
            Self.forEachWord(first, end) { word, mask in
                added += (mask & ~words[word]).nonzeroBitCount
                words[word] |= mask
            }
            count += UInt64(added)
            regions[region] = words == Self.full ? Self.full : words
        }
    }

    package mutating func remove(_ range: BlockRange) {
        Self.forEachPart(of: range) { region, first, end in
            guard var words = regions.removeValue(forKey: region) else { return }
            var removed = 0
            Self.forEachWord(first, end) { word, mask in
                removed += (mask & words[word]).nonzeroBitCount
                words[word] &= ~mask
            }
            count -= UInt64(removed)
            if words != Self.empty { regions[region] = words }
        }
    }

    private mutating func replace(_ region: UInt64, with words: Words) {
        let old = regions[region].map(Self.bits) ?? 0
        let new = Self.bits(words)
        regions[region] = new == 0 ? nil : new == 1024 ? Self.full : words
        count += UInt64(new)
        count -= UInt64(old)
    }

    private static func bits(_ words: Words) -> Int {
        words.reduce(0) { $0 + $1.nonzeroBitCount }
    }

    /// The parts of a range in each region: first block in it, and the end.
    private static func forEachPart(of range: BlockRange, _ body: (UInt64, Int, Int) -> Void) {
        var block = range.start
        while block < range.end {
            let stop = min(range.end, (block >> 10 + 1) << 10)
            body(block >> 10, Int(block & 1023), Int(block & 1023) + Int(stop - block))
            block = stop
        }
    }

    private static func forEachWord(_ first: Int, _ end: Int, _ body: (Int, UInt64) -> Void) {
        var bit = first
        while bit < end {
            let stop = min(end, (bit >> 6 + 1) << 6)
            let bits = stop - bit
            body(bit >> 6, (bits == 64 ? UInt64.max : (1 << UInt64(bits)) - 1) << UInt64(bit & 63))
            bit = stop
        }
    }

    package mutating func formUnion(_ other: BlockSet) {
        for (region, theirs) in other.regions {
            guard let ours = regions[region] else {
                replace(region, with: theirs)
                continue
            }
            replace(region, with: Words((0..<Self.wordsPerRegion).map { ours[$0] | theirs[$0] }))
        }
    }

    package mutating func formIntersection(_ other: BlockSet) {
        for (region, ours) in regions {
            guard let theirs = other.regions[region] else {
                replace(region, with: Self.empty)
                continue
            }
            replace(region, with: Words((0..<Self.wordsPerRegion).map { ours[$0] & theirs[$0] }))
        }
    }

    package mutating func subtract(_ other: BlockSet) {
        let keys = other.regions.count < regions.count ? other.regions.keys : regions.keys
        for region in keys {
            guard let ours = regions[region], let theirs = other.regions[region] else { continue }
            replace(region, with: Words((0..<Self.wordsPerRegion).map { ours[$0] & ~theirs[$0] }))
        }
    }

    // MARK: Region by region

    /// The regions in which anything is set, ascending.
    package var regionNumbers: [UInt64] { regions.keys.sorted() }

    /// The first run of a region at or after a block, which ends with the region at the latest.
    package func nextRun(inRegion region: UInt64, from block: UInt64 = 0) -> BlockRange? {
        guard let words = regions[region] else { return nil }
        var start = block > region << 10 ? Int(min(block - region << 10, 1024)) : 0
        while start < 1024 {
            let rest = words[start >> 6] >> UInt64(start & 63)
            if rest != 0 {
                start += rest.trailingZeroBitCount
                break
            }
            start = (start >> 6 + 1) << 6
        }
        guard start < 1024 else { return nil }
        var end = start
        while end < 1024, words[end >> 6] & (1 << UInt64(end & 63)) != 0 { end += 1 }
        return BlockRange(start: region << 10 + UInt64(start), count: UInt64(end - start))
    }

    /// The bits of a region as ``forEachRegion(_:)`` gives them; nil where nothing is set.
    package func words(inRegion region: UInt64) -> Words? { regions[region] }

    /// The regions where anything is set, ascending, with one bit a block: block n of the region is
    /// bit n mod 64 of word n ÷ 64.
    package func forEachRegion(_ body: (UInt64, Words) -> Void) {
        for region in regions.keys.sorted() { body(region, regions[region]!) }
    }

    /// - Parameter words: ``wordsPerRegion`` of them, as ``forEachRegion(_:)`` gives them.
    package mutating func insert(region: UInt64, words: Words) {
        guard let ours = regions[region] else { return replace(region, with: words) }
        replace(region, with: Words((0..<Self.wordsPerRegion).map { ours[$0] | words[$0] }))
    }

    /// The set as runs, ascending.
    package var ranges: [BlockRange] {
        var result: [BlockRange] = []
        forEachRegion { region, words in
            for (index, word) in words.enumerated() where word != 0 {
                var rest = word
                while rest != 0 {
                    let start = rest.trailingZeroBitCount
                    let length = (~(rest >> UInt64(start))).trailingZeroBitCount
                    Self.append(
                        BlockRange(
                            start: region << 10 + UInt64(index * 64 + start), count: UInt64(length)),
                        to: &result)
                    if start + length >= 64 { break }
                    rest &= ~(((1 << UInt64(length)) - 1) << UInt64(start))
                }
            }
        }
        return result
    }

    private static func append(_ range: BlockRange, to result: inout [BlockRange]) {
        if let last = result.last, last.end == range.start {
            result[result.count - 1].count += range.count
        } else {
            result.append(range)
        }
    }
}
