/// A set of blocks: bitmaps of 1,024 blocks where anything is set, nothing where not.
///
/// A run of set blocks costs 128 bytes for each 4 MiB of image, a lone block the same.
package struct BlockSet: Sendable, Equatable {
    private static let wordsPerRegion = 16

    /// Region number to its bits; never an entry without a bit.
    private var regions: [UInt64: ContiguousArray<UInt64>] = [:]
    package private(set) var count: UInt64 = 0

    package init() {}
    package init(_ ranges: [BlockRange]) { for range in ranges { insert(range) } }

    package var isEmpty: Bool { count == 0 }

    package func contains(_ block: UInt64) -> Bool {
        guard let words = regions[block >> 10] else { return false }
        return words[Int(block & 1023) >> 6] & (1 << (block & 63)) != 0
    }

    package mutating func insert(_ range: BlockRange) {
        Self.forEachWord(range) { region, word, mask in
            var words =
                regions.removeValue(forKey: region)
                ?? ContiguousArray(repeating: 0, count: Self.wordsPerRegion)
            count += UInt64((mask & ~words[word]).nonzeroBitCount)
            words[word] |= mask
            regions[region] = words
        }
    }

    package mutating func remove(_ range: BlockRange) {
        Self.forEachWord(range) { region, word, mask in
            guard var words = regions.removeValue(forKey: region) else { return }
            count -= UInt64((mask & words[word]).nonzeroBitCount)
            words[word] &= ~mask
            if words.contains(where: { $0 != 0 }) { regions[region] = words }
        }
    }

    private static func forEachWord(_ range: BlockRange, _ body: (UInt64, Int, UInt64) -> Void) {
        var block = range.start
        while block < range.end {
            let stop = min(range.end, (block >> 6 + 1) << 6)
            let bits = stop - block
            let mask = (bits == 64 ? UInt64.max : (1 << bits) - 1) << (block & 63)
            body(block >> 10, Int(block & 1023) >> 6, mask)
            block = stop
        }
    }

    package mutating func formUnion(_ other: BlockSet) {
        for range in other.ranges { insert(range) }
    }
    package mutating func subtract(_ other: BlockSet) {
        for range in other.ranges { remove(range) }
    }

    /// The set as runs, ascending.
    package var ranges: [BlockRange] {
        var result: [BlockRange] = []
        for region in regions.keys.sorted() {
            let words = regions[region]!
            for (index, word) in words.enumerated() where word != 0 {
                var rest = word
                while rest != 0 {
                    let start = rest.trailingZeroBitCount
                    let length = (~(rest >> UInt64(start))).trailingZeroBitCount
                    append(
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

    private func append(_ range: BlockRange, to result: inout [BlockRange]) {
        if let last = result.last, last.end == range.start {
            result[result.count - 1].count += range.count
        } else {
            result.append(range)
        }
    }
}
