// Checksums of sealed layers: made in the background, held against the blocks by scrub (G7).

import BlockCore
import Pool
import SystemIO

/// A layer that is being covered, and the blocks that were not looked at yet.
struct Coverage {
    var layer: Layer
    var rest: [BlockRange]
    let totalBlocks: UInt64

    init(of layer: Layer, _ ranges: [BlockRange]) {
        self.layer = layer
        rest = ranges
        totalBlocks = ranges.reduce(0) { $0 + $1.count }
    }
    var doneBlocks: UInt64 { totalBlocks - rest.reduce(0) { $0 + $1.count } }
}

extension Volume {
    /// Blocks looked at under one hold of the structure lock.
    private static var pieceBlocks: UInt64 { 8 << 10 }

    /// Sealed layers with blocks that have no checksums yet; for status (G7).
    package func uncoveredLayers() throws(VolumeError) -> [LayerRecord] {
        try read { try $0.layers() }.filter { row in
            guard row.isSealed else { return false }
            if let layer = layer(row.id) { return layer.coveringSums?.isComplete != true }
            let path = store.sumsPath(image: row.imageID, layer: row.id)
            let sums = try? SumsFile.open(disk: disk, path: path, layer: row.id, readOnly: true)
            defer { sums?.file.close() }
            return sums?.isComplete != true
        }
    }

    /// Hashes a piece of a sealed layer that nobody is merging. What is covered already keeps its
    /// checksum, whatever the disk says of the block now.
    /// - Parameter progress: told of the layer's blocks that are done; false ends it there.
    /// - Returns: false when nothing is left to cover.
    package func coverNextLayer(
        progress: (_ doneBlocks: UInt64, _ totalBlocks: UInt64) -> Bool = { _, _ in true }
    ) throws(VolumeError) -> Bool {
        try structure.withLock { () throws(VolumeError) in
            let rows = try read { try $0.layers() }
            let merging = Set(
                try mergeCandidates(rows).flatMap { [$0.lower.id, $0.upper.id] })
            for row in rows where row.isSealed && !merging.contains(row.id) {
                guard !stoppedLayers.contains(row.id),
                    let layer = try openedLayer(row, rows: rows), layer.isSealed,
                    layer.coveringSums?.isComplete != true
                else { continue }
                do throws(VolumeError) {
                    if coverage?.layer !== layer {
                        coverage = Coverage(
                            of: layer, try contents(of: row, layer: layer).data.ranges)
                    }
                    return try coverPiece(of: row, layer, progress)
                } catch {
                    guard error.kind == .damaged else { throw error }
                    // Its other layers are covered still.
                    stoppedLayers.insert(row.id)
                    tell("damaged", subject: "image \(row.imageID.rawValue)", error.message)
                }
            }
            return false
        }
    }

    private func coverPiece(
        of row: LayerRecord, _ layer: Layer,
        _ progress: (_ doneBlocks: UInt64, _ totalBlocks: UInt64) -> Bool
    ) throws(VolumeError) -> Bool {
        try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
            let sums: SumsFile
            if let known = layer.coveringSums {
                sums = known
            } else {
                sums = try SumsFile.create(
                    disk: disk, path: store.sumsPath(image: row.imageID, layer: row.id),
                    layer: row.id)
                layer.setSums(sums)
            }
            var left = Self.pieceBlocks
            while left > 0, let first = coverage?.rest.first {
                if background.shouldStop { return false }
                let part = BlockRange(start: first.start, count: min(first.count, left, 256))
                try cover(part, of: layer, sums)
                left -= part.count
                coverage?.rest[0].start += part.count
                coverage?.rest[0].count -= part.count
                if part.count == first.count { coverage?.rest.removeFirst() }
            }
            if let coverage, !progress(coverage.doneBlocks, coverage.totalBlocks) { return false }
            if coverage?.rest.isEmpty == true {
                try sums.setComplete(true)
                coverage = nil
            }
            return true
        }
    }

    private func cover(
        _ range: BlockRange, of layer: Layer, _ sums: SumsFile
    ) throws(LayerError) {
        let hashes = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: Int(range.count))
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(range.lengthBytes), alignment: 4096)
        defer {
            hashes.deallocate()
            buffer.deallocate()
        }
        hashes.initialize(repeating: 0)
        try sums.hashes(of: range, into: hashes)
        guard hashes.contains(0) else { return }
        do throws(SystemError) {
            let got = try layer.data.read(into: buffer, at: range.startByte)
            UnsafeMutableRawBufferPointer(rebasing: buffer[got...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        } catch { throw .system(error) }
        for index in 0..<Int(range.count) where hashes[index] == 0 {
            hashes[index] = SumsFile.hash(
                ofBlock: UnsafeRawBufferPointer(
                    rebasing: buffer[index * 4096..<(index + 1) * 4096]))
        }
        try sums.set(UnsafeBufferPointer(hashes), startingAt: range.start)
    }

    // MARK: Scrub

    package struct ScrubReport: Sendable, Equatable {
        package var blocksRead: UInt64 = 0
        package var blocksCovered: UInt64 = 0
        package var damaged: [String] = []
    }

    /// Reads every block of every sealed layer and holds it against its checksum.
    /// - Parameter progress: told of each piece; false ends it there.
    package func scrub(
        progress: (_ doneBlocks: UInt64, _ totalBlocks: UInt64) -> Bool = { _, _ in true }
    ) throws(VolumeError) -> ScrubReport {
        var report = ScrubReport()
        var work: [(LayerRecord, Layer, [BlockRange])] = []
        for row in try read({ try $0.layers() }) where row.isSealed {
            let opened = try structure.withLock { () throws(VolumeError) in
                try openedLayer(row, rows: try read { try $0.layers() })
            }
            guard let layer = opened else {
                if let error = brokenLayer(row.id) { report.damaged.append(error.description) }
                continue
            }
            work.append((row, layer, try contents(of: row, layer: layer).data.ranges))
        }
        let total = work.reduce(0) { $0 + $1.2.reduce(0) { $0 + $1.count } }
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        for (row, layer, ranges) in work {
            for range in ranges {
                var block = range.start
                while block < range.end {
                    let count = min(range.end - block, 256)
                    scrubPiece(BlockRange(start: block, count: count), row, layer, buffer, &report)
                    block += count
                    if !progress(report.blocksRead, total) { return report }
                }
            }
        }
        return report
    }

    private func scrubPiece(
        _ range: BlockRange, _ row: LayerRecord, _ layer: Layer,
        _ buffer: UnsafeMutableRawBufferPointer, _ report: inout ScrubReport
    ) {
        report.blocksRead += range.count
        let part = UnsafeMutableRawBufferPointer(rebasing: buffer[0..<Int(range.lengthBytes)])
        do throws(LayerError) {
            let got: Int
            do throws(SystemError) {
                got = try layer.data.read(into: part, at: range.startByte)
            } catch { throw .system(error) }
            UnsafeMutableRawBufferPointer(rebasing: part[got...])
                .initializeMemory(as: UInt8.self, repeating: 0)
            if let sums = layer.coveringSums {
                report.blocksCovered += UInt64(
                    try sums.verify(UnsafeRawBufferPointer(part), startingAt: range.start))
            }
        } catch {
            if case .checksumMismatch(_, let block) = error,
                !isStillWrong(block, of: row, layer)
            {
                return
            }
            report.damaged.append("image \(row.imageID.rawValue): \(error)")
        }
    }

    /// A merge may have moved or freed the block since its layer was looked at.
    private func isStillWrong(_ block: UInt64, of row: LayerRecord, _ layer: Layer) -> Bool {
        do throws(VolumeError) {
            return try structure.withLock { () throws(VolumeError) in
                let rows = try read { try $0.layers() }
                guard self.layer(row.id) === layer,
                    let row = rows.first(where: { $0.id == row.id }),
                    try contents(of: row, layer: layer).data.contains(block)
                else { return false }
                for merge in try mergeCandidates(rows) where merge.lower.id == row.id {
                    guard let upper = self.layer(merge.upper.id) else { continue }
                    let above = try contents(of: merge.upper, layer: upper)
                    if above.data.contains(block) || above.zero.contains(block) { return false }
                }
                let bytes = UnsafeMutableRawBufferPointer.allocate(
                    byteCount: 4096, alignment: 4096)
                defer { bytes.deallocate() }
                do throws(LayerError) {
                    try layer.read(into: bytes, at: block << Geometry.blockShift)
                    return false
                } catch { return true }
            }
        } catch { return true }
    }
}
