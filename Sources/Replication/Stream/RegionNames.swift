import BlockCore

/// Regions of images, in which something changed.
struct RegionNames: Sendable {
    /// The numbers of the regions, kept as if they were blocks.
    private var regions: [ImageID: BlockSet] = [:]

    init() {}
    init(_ blocks: [ImageID: BlockSet]) { insert(blocks) }

    mutating func insert(_ range: BlockRange, of image: ImageID) {
        guard !range.isEmpty else { return }
        let first = range.start / Geometry.blocksPerRegion
        let last = (range.end - 1) / Geometry.blocksPerRegion
        regions[image, default: BlockSet()].insert(
            BlockRange(start: first, count: last - first + 1))
    }

    mutating func insert(_ blocks: BlockSet, of image: ImageID) {
        blocks.forEachRegion { region, _ in
            regions[image, default: BlockSet()].insert(BlockRange(start: region, count: 1))
        }
    }

    mutating func insert(_ blocks: [ImageID: BlockSet]) {
        for (image, set) in blocks { insert(set, of: image) }
    }

    mutating func forget(_ image: ImageID) { regions[image] = nil }

    /// What of `blocks` is in these regions.
    func of(_ blocks: [ImageID: BlockSet]) -> [ImageID: BlockSet] {
        var result: [ImageID: BlockSet] = [:]
        for (image, names) in regions {
            guard let set = blocks[image] else { continue }
            var part = BlockSet()
            for range in names.ranges {
                for region in range.start..<range.end {
                    guard let words = set.words(inRegion: region) else { continue }
                    part.insert(region: region, words: words)
                }
            }
            if !part.isEmpty { result[image] = part }
        }
        return result
    }
}
