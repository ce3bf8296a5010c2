import BlockCore
import Replication
import TestSupport
import Testing

@Suite struct RecordBufferTests {
    /// Whatever lies next to what, the records hold just the content that was read.
    @Test(arguments: Seeds.run(50))
    func recordsOfBlocksHoldTheirContent(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        let buffer = RecordBuffer(capacityBytes: 4096)
        for round in 0..<5 {
            if random.chance(50) { buffer.clear() }
            let range = BlockRange(
                start: UInt64(random.below(1000)), count: UInt64(1 + random.below(40)))
            let stamps = range.blocks.map { _ in random.chance(50) ? 0 : random.next() | 1 }
            let left = random.chance(30) ? random.below(stamps.count) : 0
            let before = records(in: buffer).count
            buffer.append(
                blocks: range, of: ImageID(rawValue: 7), sizeBytes: 1 << 30,
                at: SequenceNumber(rawValue: UInt64(round + 1))
            ) { bytes in
                let words = bytes.bindMemory(to: UInt64.self)
                for (block, stamp) in stamps.enumerated() {
                    // Only the last word tells that the block is not all zeros.
                    words[block * 512 + 511] = stamp
                    for word in 0..<511 { words[block * 512 + word] = 0 }
                }
                return bytes.count - left * 4096
            }
            var shown: [UInt64] = []
            var next = range.start
            for (record, content) in records(in: buffer).dropFirst(before) {
                #expect(record.range.start == next, "seed \(seed)")
                next = record.range.end
                // Zeros are a range, and no content.
                #expect(record.kind == .zero || !content.contains(0), "seed \(seed)")
                shown +=
                    record.kind == .zero
                    ? [UInt64](repeating: 0, count: Int(record.range.count)) : content
            }
            let expected = stamps.enumerated().map { $0 < stamps.count - left ? $1 : 0 }
            #expect(next == range.end && shown == expected, "seed \(seed)")
        }
    }

    private func records(in buffer: RecordBuffer) -> [(StreamRecord, [UInt64])] {
        var result: [(StreamRecord, [UInt64])] = []
        guard !buffer.isEmpty else { return [] }
        buffer.batch.forEach { record, payload in
            let words = payload.bindMemory(to: UInt64.self)
            result.append((record, stride(from: 511, to: words.count, by: 512).map { words[$0] }))
        }
        return result
    }
}

extension BlockRange {
    fileprivate var blocks: Range<UInt64> { start..<end }
}
