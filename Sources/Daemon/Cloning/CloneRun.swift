// Makes one pool a copy of what a source shows: leg by leg, as a resync ships them.
//
//   staged ── all blocks of the leg are there ──► compared ── none differs ──► committed; the next leg
//      ▲                                             │
//      └──────────── what differs is read again ◄────┘
//
// - C1  A leg is committed when every block that was staged for it was read back from here and has the hash that the
//       source has.
// - C2  What an earlier try left is taken for what it is only after it was compared: of a leg that was under way, or
//       after something else than what the source has before it, that is all of it.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets

final class CloneRun {
    typealias Blocks = [ImageID: BlockSet]
    static let stagingID: UInt64 = 1
    private static let readBlocks: UInt64 = 256
    private static let readParts = 64
    private static let readBatchBlocks: UInt64 = 1024
    private static let hashBlocks: UInt64 = 4096
    private static let syncBytes: UInt64 = 256 << 20
    private static let mostRounds = 3

    private let source: any CloneSource
    private let target: MirrorTarget
    private let progress: (_ doneBytes: UInt64, _ totalBytes: UInt64) -> Void
    private(set) var copiedBytes: UInt64 = 0
    private(set) var verifiedBytes: UInt64 = 0
    private var doneBytes: UInt64 = 0
    private var totalBytes: UInt64 = 0
    private var unsyncedBytes: UInt64 = 0
    private var batchNumber: UInt64 = 0
    private let records = RecordBuffer(capacityBytes: 5 << 20)

    init(
        _ source: any CloneSource, _ target: MirrorTarget,
        progress: @escaping (_ doneBytes: UInt64, _ totalBytes: UInt64) -> Void
    ) {
        self.source = source
        self.target = target
        self.progress = progress
    }

    /// - Parameter report: of the target, which is connected.
    func run(_ report: ReplicaReport) throws(TargetError) {
        let info = source.info
        guard report.checkpoint <= info.sequence else {
            throw TargetError(
                .absent,
                "what was copied before is newer (operation \(report.checkpoint.rawValue)) than what the "
                    + "source shows now (\(info.sequence.rawValue)): copy it into another directory"
            )
        }
        batchNumber = report.staging?.durableBatch ?? 0
        var before = report.checkpoint
        // The snapshot that what comes next stands on, where the target is at one.
        var base = info.legs.lastIndex { $0.snapshot?.sequence == before && before > .zero }
        var isUnderWay = report.staging != nil
        let left = info.legs.indices.filter { number in
            info.legs[number].snapshot.map { $0.sequence > before } ?? true
        }
        totalBytes = left.reduce(0) { $0 + info.legs[$1].blocks << Geometry.blockShift }
        for number in left {
            let followsBase = number == 0 ? before == .zero : base == number - 1
            try ship(number, knows: followsBase && !isUnderWay)
            isUnderWay = false
            base = number
            before = info.legs[number].snapshot?.sequence ?? info.sequence
        }
        progress(totalBytes, totalBytes)
    }

    /// - Parameter knows: what is here is what the source has before this leg.
    private func ship(_ number: Int, knows: Bool) throws(TargetError) {
        let leg = source.info.legs[number]
        let shape = try source.shape(number)
        let sizes = Dictionary(
            shape.images.map { ($0.id, $0.sizeBytes) }, uniquingKeysWith: { a, _ in a })
        try target.beginStaging(id: Self.stagingID, shape: shape)
        var wrong = clipped(try source.blocks(number), sizes)
        if !knows {
            // C2
            let all = clipped(try everything(upTo: number), sizes)
            totalBytes += (Self.count(all) << Geometry.blockShift)
            totalBytes -= min(totalBytes, leg.blocks << Geometry.blockShift)
            wrong = try differing(all, number, isAgain: true)
        }
        var round = 0
        while !wrong.isEmpty {
            guard round < Self.mostRounds else {
                throw TargetError(
                    .io,
                    "\(Self.count(wrong)) blocks come out otherwise than the source has them, each time that "
                        + "they are written: check this machine's disk and memory")
            }
            try copy(wrong, number, sizes, shape.sequence)
            wrong = try differing(wrong, number, isAgain: round > 0 || !knows)
            round += 1
        }
        try target.commitStaging(
            id: Self.stagingID, at: leg.snapshot?.sequence ?? source.info.sequence,
            snapshot: leg.snapshot)
        batchNumber = 0
        unsyncedBytes = 0
    }

    // MARK: Which blocks

    private static func count(_ blocks: Blocks) -> UInt64 {
        blocks.values.reduce(0) { $0 + $1.count }
    }

    /// What either side may have at this leg.
    private func everything(upTo number: Int) throws(TargetError) -> Blocks {
        var all = try target.allocatedBlocks()
        for each in 0...number { all.formUnion(try source.blocks(each)) }
        return all
    }

    /// Behind an image's end there is nothing.
    private func clipped(_ blocks: Blocks, _ sizes: [ImageID: UInt64]) -> Blocks {
        var result: Blocks = [:]
        for (image, set) in blocks {
            guard let sizeBytes = sizes[image] else { continue }
            let end = Geometry.blockCount(sizeBytes: sizeBytes)
            var inside = set
            for region in set.regionNumbers.reversed() {
                let next = (region + 1) * Geometry.blocksPerRegion
                guard next > end else { break }
                let start = max(end, region * Geometry.blocksPerRegion)
                inside.remove(BlockRange(start: start, count: next - start))
            }
            if !inside.isEmpty { result[image] = inside }
        }
        return result
    }

    /// In the order of images and blocks, in pieces that are asked for together.
    private func batches(
        _ blocks: Blocks, partBlocks: UInt64, batchBlocks: UInt64
    ) -> [[ClonePart]] {
        var (batches, batch, count): ([[ClonePart]], [ClonePart], UInt64) = ([], [], 0)
        for (image, set) in blocks.sorted(by: { $0.key < $1.key }) {
            for range in set.ranges {
                var start = range.start
                while start < range.end {
                    let part = BlockRange(start: start, count: min(partBlocks, range.end - start))
                    start = part.end
                    if batch.count == Self.readParts || count + part.count > batchBlocks {
                        batches.append(batch)
                        (batch, count) = ([], 0)
                    }
                    batch.append(ClonePart(image: image, range: part))
                    count += part.count
                }
            }
        }
        return batch.isEmpty ? batches : batches + [batch]
    }

    // MARK: Moving them

    /// - Parameter isAgain: it was not counted on.
    private func differing(
        _ blocks: Blocks, _ number: Int, isAgain: Bool
    ) throws(TargetError) -> Blocks {
        let source = source
        var result: Blocks = [:]
        let batches = batches(
            blocks, partBlocks: Self.hashBlocks, batchBlocks: 4 * Self.hashBlocks)
        try CloneAhead.run(batches) { (parts) throws(TargetError) in
            try source.hashes(number, parts)
        } use: { (parts, theirs) throws(TargetError) in
            for (part, hashes) in zip(parts, theirs) {
                let ours = try target.blockHashes(of: part.image, in: part.range)
                for index in hashes.indices
                where hashes[index] != ours[index] || hashes[index] == unreadableBlockHash {
                    result[part.image, default: BlockSet()].insert(
                        BlockRange(start: part.range.start + UInt64(index), count: 1))
                }
                verifiedBytes += part.range.lengthBytes
                if isAgain { totalBytes += part.range.lengthBytes / 2 }
                advance(part.range.lengthBytes / 2)
            }
        }
        return result
    }

    private func copy(
        _ blocks: Blocks, _ number: Int, _ sizes: [ImageID: UInt64], _ sequence: SequenceNumber
    ) throws(TargetError) {
        let source = source
        let batches = batches(
            blocks, partBlocks: Self.readBlocks, batchBlocks: Self.readBatchBlocks)
        try CloneAhead.run(batches) { (parts) throws(TargetError) in
            let content = CloneContent(parts)
            try source.read(number, parts, into: content.memory)
            return content
        } use: { (parts, content) throws(TargetError) in
            records.clear()
            var bytes: UInt64 = 0
            for (part, place) in zip(parts, content.memory.places(of: parts)) {
                records.append(
                    blocks: part.range, of: part.image, sizeBytes: sizes[part.image] ?? 0,
                    at: sequence
                ) { buffer in
                    buffer.copyMemory(from: UnsafeRawBufferPointer(place))
                    return buffer.count
                }
                bytes += part.range.lengthBytes
            }
            batchNumber += 1
            try target.stage(records.batch, number: batchNumber)
            copiedBytes += bytes
            unsyncedBytes += bytes
            if unsyncedBytes >= Self.syncBytes {
                try target.syncStaging()
                unsyncedBytes = 0
            }
            advance(bytes / 2)
        }
    }

    private func advance(_ bytes: UInt64) {
        doneBytes += bytes
        progress(min(doneBytes, totalBytes), totalBytes)
    }
}

/// What was read, until it is staged. The thread that fetches fills it before it hands it over, under the lock of
/// ``CloneAhead``, and never touches it again; the one that stages only reads. Unchecked, for a raw pointer is not
/// Sendable, and that hand-over is nothing that the compiler can see.
private final class CloneContent: @unchecked Sendable {
    let memory: UnsafeMutableRawBufferPointer

    init(_ parts: [ClonePart]) {
        memory = .allocate(
            byteCount: parts.reduce(0) { $0 + Int($1.range.lengthBytes) }, alignment: 4096)
    }
    deinit { memory.deallocate() }
}
