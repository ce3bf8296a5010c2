// What a resync reads and stages at once.

import BlockCore

/// Blocks of one image that are read and staged together.
package struct BlockChunk: Sendable, Hashable {
    package var image: ImageID
    /// Ascending, and none next to another.
    package var ranges: [BlockRange]

    package init(image: ImageID, ranges: [BlockRange]) {
        self.image = image
        self.ranges = ranges
    }

    package var blockCount: UInt64 { ranges.reduce(0) { $0 + $1.count } }
    package var blocks: BlockSet { BlockSet(ranges) }

    /// The same blocks in about equal parts.
    package func split(into parts: Int) -> [BlockChunk] {
        let limit = max((blockCount + UInt64(max(parts, 1)) - 1) / UInt64(max(parts, 1)), 1)
        var result: [BlockChunk] = []
        var room: UInt64 = 0
        for range in ranges {
            var rest = range
            while !rest.isEmpty {
                if room == 0 {
                    result.append(BlockChunk(image: image, ranges: []))
                    room = limit
                }
                let part = BlockRange(start: rest.start, count: min(rest.count, room))
                result[result.count - 1].ranges.append(part)
                room -= part.count
                rest = BlockRange(start: part.end, count: rest.end - part.end)
            }
        }
        return result
    }
}

extension TargetSession.Resync {
    /// The next blocks to read, and those after them.
    mutating func nextChunks(limit: UInt64) -> (now: BlockChunk, ahead: BlockChunk?)? {
        while position < order.count {
            let (image, region) = order[position]
            if remaining[image]?.nextRun(inRegion: region) != nil { break }
            position += 1
        }
        var place = (index: position, block: UInt64(0))
        guard let now = chunk(from: &place, limit) else { return nil }
        return (now, chunk(from: &place, limit))
    }

    private func chunk(
        from place: inout (index: Int, block: UInt64), _ limit: UInt64
    ) -> BlockChunk? {
        var chunk: BlockChunk?
        var room = limit
        while place.index < order.count, room > 0 {
            let (image, region) = order[place.index]
            if let chunk, chunk.image != image { break }
            guard let run = remaining[image]?.nextRun(inRegion: region, from: place.block) else {
                place = (place.index + 1, 0)
                continue
            }
            let taken = BlockRange(start: run.start, count: min(run.count, room))
            append(taken, to: &chunk, of: image)
            room -= taken.count
            place.block = taken.end
        }
        return chunk
    }

    private func append(_ range: BlockRange, to chunk: inout BlockChunk?, of image: ImageID) {
        guard let last = chunk?.ranges.last else {
            chunk = BlockChunk(image: image, ranges: [range])
            return
        }
        if last.end == range.start {
            chunk!.ranges[chunk!.ranges.count - 1].count += range.count
        } else {
            chunk!.ranges.append(range)
        }
    }
}
