// What runs behind: settling activity logs, checksums of sealed layers, merges.

import BlockCore
import Pool
import SystemIO

extension Volume {
    /// One bounded piece of work.
    /// - Returns: false when nothing is left to do.
    func runBackgroundStep() -> Bool {
        if let id = background.takeSettling() {
            if let image = try? image(id) {
                do throws(VolumeError) { try settle(image, all: false) } catch {
                    log.error("settling image \(id.rawValue): \(error)")
                }
            }
            return true
        }
        do throws(VolumeError) {
            if try mergeStep() { return true }
            return try coverNextLayer()
        } catch {
            // What could not be done is tried again when something wakes the thread: a deletion,
            // a snapshot, the next open.
            log.error("background work stopped: \(error)")
            return false
        }
    }

    // MARK: Checksums

    /// Sealed layers whose blocks have no checksums yet; for status (G7).
    package func uncoveredLayers() throws(VolumeError) -> [LayerRecord] {
        try read { try $0.layers() }.filter { row in
            guard row.isSealed else { return false }
            if let layer = layer(row.id) { return layer.coveringSums == nil }
            let path = store.sumsPath(image: row.imageID, layer: row.id)
            return ((try? disk.status(path)) ?? nil) == nil
        }
    }

    /// Hashes one sealed layer that nobody is merging.
    /// - Parameter progress: told of each piece, in blocks; false leaves the layer as it was.
    package func coverNextLayer(
        progress: (_ doneBlocks: UInt64, _ totalBlocks: UInt64) -> Bool = { _, _ in true }
    ) throws(VolumeError) -> Bool {
        let rows = try read { try $0.layers() }
        let merging = try mergeCandidates(rows)
        let hiding = try headPairs(rows).map(\.pair)
        let busy = Set((merging + hiding).flatMap { [$0.lower.id, $0.upper.id] })
        for row in rows where row.isSealed && !busy.contains(row.id) {
            let opened = try structure.withLock { () throws(VolumeError) in
                try openedLayer(row, rows: try read { try $0.layers() })
            }
            guard let layer = opened, layer.isSealed, layer.coveringSums == nil else { continue }
            let ranges = try contents(of: row, layer: layer).data.ranges
            let total = ranges.reduce(0) { $0 + $1.count }
            var asked: UInt64 = 0
            let sums = try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
                try SumsFile.build(
                    disk: disk, path: store.sumsPath(image: row.imageID, layer: row.id),
                    layer: row.id, data: layer.data, covering: ranges,
                    shouldStop: {
                        // Asked once a piece of at most 256 blocks.
                        defer { asked += 256 }
                        return background.shouldStop || !progress(min(asked, total), total)
                    })
            }
            guard let sums else { return false }
            // A merge may have begun meanwhile, or the layer may be gone: then the sums go too.
            try structure.withLock { () throws(VolumeError) in
                if self.layer(row.id) === layer, layer.isSealed {
                    layer.setSums(sums)
                } else {
                    try? disk.removeFile(store.sumsPath(image: row.imageID, layer: row.id))
                }
            }
            return true
        }
        return false
    }

    /// What a layer itself holds: from its map, or for a root from the file's own data.
    func contents(of row: LayerRecord, layer: Layer) throws(VolumeError) -> LayerContents {
        try VolumeError.wrapping(row.imageID) { () throws(LayerError) in
            if row.parentID == nil { return try LayerContents.ofRoot(layer.data) }
            return try LayerContents.read(
                disk: disk, path: store.mapPath(image: row.imageID, layer: row.id), layer: row.id)
        }
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
        } catch { report.damaged.append("image \(row.imageID.rawValue): \(error)") }
    }
}

extension Volume {
    /// How many blocks may differ between two sealed layers.
    package func changedBlocks(from a: LayerID, to b: LayerID) throws(VolumeError) -> UInt64 {
        let rows = Dictionary(
            uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
        return try differingBlocks(a, b, rows: rows).count
    }

    /// Blocks that may differ between what two layers show: those that either side holds above the
    /// nearest layer they share.
    func differingBlocks(
        _ a: LayerID, _ b: LayerID, rows: [LayerID: LayerRecord]
    ) throws(VolumeError) -> BlockSet {
        func path(_ top: LayerID) -> [LayerRecord] {
            var result: [LayerRecord] = []
            var next: LayerID? = top
            while let id = next, let row = rows[id] {
                result.append(row)
                next = row.parentID
            }
            return result
        }
        let (left, right) = (path(a), path(b))
        let shared = Set(left.map(\.id)).intersection(right.map(\.id))
        var changed = BlockSet()
        for row in left + right where !shared.contains(row.id) {
            guard let layer = layer(row.id) else { continue }
            let contents = try contents(of: row, layer: layer)
            changed.formUnion(contents.data)
            changed.formUnion(contents.zero)
        }
        return changed
    }
}
