// Files against rows: every layer's data, map and checksums, every image's activity log, and what
// lies in the images' folders that no row knows.

import BlockCore
import SystemIO

struct LayerCheck {
    let disk: Disk
    let path: String
    let rows: PoolRows
    /// The pool is in use: its heads change, and so do their maps and activity logs.
    let isLive: Bool
    /// Told of blocks done and blocks to do; false ends the check.
    let progress: (UInt64, UInt64) -> Bool

    private func file(_ row: LayerRecord, _ suffix: String) -> String {
        "\(path)/images/\(row.imageID.rawValue)/\(row.id.rawValue).\(suffix)"
    }

    func run(_ report: inout CheckReport) -> [Diagnosis] {
        var found: [Diagnosis] = []
        let needed = rows.needed
        let order = rows.layers.values.sorted { $0.id.rawValue < $1.id.rawValue }
        var sums: [(LayerRecord, SumsFile)] = []
        for row in order where needed.contains(row.id) {
            if isLive && (!row.isSealed || rows.mergingLayers.contains(row.id)) { continue }
            report.layersChecked += 1
            let data = checkData(row, &found)
            if let data { checkMap(row, data, &found) }
            if row.isSealed, let file = checkSums(row, &found) { sums.append((row, file)) }
        }
        if !isLive {
            checkActivity(&found)
            checkStrays(&found)
        }
        verifyBlocks(sums, &report, &found)
        return found
    }

    // MARK: Data and map

    private func checkData(_ row: LayerRecord, _ found: inout [Diagnosis]) -> FileStatus? {
        let data = file(row, "data")
        do throws(SystemError) {
            if let status = try disk.status(data) { return status }
        } catch {
            found.append(unreadable(row, data, error))
            return nil
        }
        // Files of a cut that never was: the row goes at the next open.
        found.append(
            diagnosis(
                row, .dataMissing, .damaged, data, "the file is missing",
                "every block that it held is lost; what lies below it is older and is not shown in "
                    + "its place: EIO. \(wayOut(row))"))
        return nil
    }

    private func checkMap(
        _ row: LayerRecord, _ data: FileStatus, _ found: inout [Diagnosis]
    ) {
        let map = file(row, "map")
        let bytes: [UInt8]
        do throws(SystemError) {
            guard try disk.status(map) != nil else {
                if row.parentID != nil { found.append(missingMap(row, data, map)) }
                return
            }
            bytes = try disk.readAll(map)
        } catch {
            found.append(unreadable(row, map, error))
            return
        }
        let salvage = MapSalvage(bytes, layer: row.id)
        let isSealed = row.isSealed && !rows.mergingLayers.contains(row.id)
        if salvage.isUnknownVersion {
            found.append(
                diagnosis(
                    row, .mapDamaged, .damaged, map,
                    "it has a version that this Doppel does not know",
                    "use the newer Doppel that wrote it"))
        } else if !salvage.isSound(isSealed: isSealed, isSettled: rows.isClean) {
            found.append(damagedMap(row, salvage, isSealed: isSealed, data, map))
        } else if let short = shortData(row, salvage, data) {
            found.append(short)
        }
    }

    private func damagedMap(
        _ row: LayerRecord, _ salvage: MapSalvage, isSealed: Bool, _ data: FileStatus, _ map: String
    ) -> Diagnosis {
        let isComplete = salvage.isComplete(isSealed: isSealed, isSettled: rows.isClean)
        let (contents, uncertain, lost) = plan(row, salvage, isComplete: isComplete, data)
        let commit = lastCommit(row, salvage, contents, data)
        if isComplete, lost.isEmpty {
            return diagnosis(
                row, .mapDamaged, .damaged, map,
                salvage.isHeaderSound
                    ? "bytes that are no commit follow the seal" : "its header does not verify",
                "every commit of it verifies: nothing is lost",
                repair: "writes the map anew with all \(salvage.commits.count) commits; the old "
                    + "one goes to quarantine/",
                action: .rebuildMap(row, contents, commit, isLossy: false))
        }
        let missing = salvage.missingCommits
        return diagnosis(
            row, .mapDamaged, .damaged, map,
            "\(salvage.commits.count) commits verify, "
                + (missing > 0
                    ? "\(missing) that were durable do not" : "what follows them does not"),
            "which blocks the lost commits wrote is not known: EIO until it is repaired. "
                + Self.describe(uncertain, lost),
            repair: repairText(row),
            action: .rebuildMap(row, contents, commit, isLossy: true))
    }

    private func missingMap(
        _ row: LayerRecord, _ data: FileStatus, _ map: String
    ) -> Diagnosis {
        let empty = MapSalvage([], layer: row.id)
        let (contents, uncertain, lost) = plan(row, empty, isComplete: false, data)
        return diagnosis(
            row, .mapMissing, .damaged, map, "the file is missing",
            "without it nobody knows what the layer holds: EIO until it is repaired. "
                + Self.describe(uncertain, lost),
            repair: repairText(row),
            action: .rebuildMap(
                row, contents, lastCommit(row, empty, contents, data), isLossy: true))
    }

    /// The data file ends before blocks that the map names.
    private func shortData(
        _ row: LayerRecord, _ salvage: MapSalvage, _ data: FileStatus
    ) -> Diagnosis? {
        let (contents, _, lost) = plan(row, salvage, isComplete: true, data)
        guard !lost.isEmpty else { return nil }
        return diagnosis(
            row, .dataShort, .damaged, file(row, "data"),
            "it ends at byte \(data.sizeBytes), before blocks that the map names",
            "these blocks are lost: \(Self.describe(lost)); EIO until it is repaired",
            repair: repairText(row),
            action: .rebuildMap(
                row, contents, lastCommit(row, salvage, contents, data), isLossy: true))
    }

    private func repairText(_ row: LayerRecord) -> String {
        "writes the map anew with all that verifies and what the data file holds beyond, and adds "
            + "'-salvaged' to the names that show it, because what the lost commits said is missing; "
            + "the old map goes to quarantine/"
    }

    /// What a new map says: what verifies; where commits are missing also every block that the data
    /// file has and no commit names, for the likeliest reason is that a lost one did; without the
    /// blocks that the file no longer has.
    private func plan(
        _ row: LayerRecord, _ salvage: MapSalvage, isComplete: Bool, _ data: FileStatus
    ) -> (contents: LayerContents, uncertain: BlockSet, lost: BlockSet) {
        var contents = salvage.contents
        var uncertain = BlockSet()
        if !isComplete, let file = try? disk.open(file(row, "data"), []) {
            if let stored = try? LayerContents.ofRoot(file) {
                uncertain = stored.data
                uncertain.subtract(contents.data)
                uncertain.subtract(contents.zero)
            }
            file.close()
            contents.data.formUnion(uncertain)
        }
        var lost = BlockSet()
        let whole = (data.sizeBytes + Geometry.blockSizeBytes - 1) >> Geometry.blockShift
        for range in contents.data.ranges where range.end > whole {
            let start = max(range.start, whole)
            lost.insert(BlockRange(start: start, count: range.end - start))
        }
        if !lost.isEmpty, data.sizeBytes & 4095 != 0, contents.data.contains(whole - 1) {
            // Cut inside a block that is not the last: its end is lost as well.
            lost.insert(BlockRange(start: whole - 1, count: 1))
        }
        contents.data.subtract(lost)
        return (contents, uncertain, lost)
    }

    private func lastCommit(
        _ row: LayerRecord, _ salvage: MapSalvage, _ contents: LayerContents, _ data: FileStatus
    ) -> MapCommit {
        let last = salvage.commits.last?.commit
        let highest = max(salvage.durableEpoch, last?.epoch ?? 0)
        var size = row.isSealed ? row.sizeBytes : last?.imageSizeBytes ?? 0
        if !row.isSealed, highest > (last?.epoch ?? 0) || last == nil {
            // The size that was committed last is lost: at least what is there must be inside.
            let parent = row.parentID.flatMap { rows.layers[$0]?.sizeBytes } ?? 0
            size = max(size, min(data.sizeBytes, (contents.data.ranges.last?.end ?? 0) << 12))
            if last == nil { size = max(size, parent) }
        }
        return MapCommit(
            epoch: 1, sequence: max(last?.sequence ?? .zero, row.sealedSequence),
            imageSizeBytes: size, isSealed: row.isSealed)
    }

    private func wayOut(_ row: LayerRecord) -> String {
        "Take the image from a snapshot that is not concerned (doppel restore --as) or from a "
            + "backup, then delete it"
    }

    static func describe(_ set: BlockSet) -> String {
        let ranges = set.ranges
        let parts = ranges.prefix(8).map {
            $0.count == 1 ? "\($0.start)" : "\($0.start) to \($0.end - 1)"
        }
        return "blocks " + parts.joined(separator: ", ")
            + (ranges.count > 8 ? " and \(ranges.count - 8) more ranges" : "")
            + " (\(set.count) blocks of 4 KiB)"
    }

    private static func describe(_ uncertain: BlockSet, _ lost: BlockSet) -> String {
        var parts: [String] = []
        if !uncertain.isEmpty {
            parts.append(
                "The data file has \(describe(uncertain)) that no commit names: most likely those")
        }
        if !lost.isEmpty { parts.append("Lost for good: \(describe(lost))") }
        return parts.joined(separator: ". ")
    }

    // MARK: Checksums

    private func checkSums(_ row: LayerRecord, _ found: inout [Diagnosis]) -> SumsFile? {
        let path = file(row, "sums")
        do throws(LayerError) {
            return try SumsFile.open(disk: disk, path: path, layer: row.id, readOnly: true)
        } catch {
            found.append(damagedSums(row, path, error.description))
            return nil
        }
    }

    private func damagedSums(
        _ row: LayerRecord, _ path: String, _ problem: String
    ) -> Diagnosis {
        diagnosis(
            row, .sumsDamaged, .degraded, path, problem,
            "blocks of the layer are not protected against rot; a page that does not verify makes "
                + "its blocks unreadable",
            repair: "moves it to quarantine/; the checksums are made anew from the blocks as they "
                + "are now when the pool is mounted",
            action: .quarantine(path))
    }

    private func verifyBlocks(
        _ all: [(LayerRecord, SumsFile)], _ report: inout CheckReport, _ found: inout [Diagnosis]
    ) {
        let total = all.reduce(UInt64(0)) {
            $0 + (((try? disk.status(file($1.0, "data"))) ?? nil)?.allocatedBytes ?? 0) / 4096
        }
        defer { for (_, sums) in all { sums.file.close() } }
        for (row, sums) in all {
            guard let data = try? disk.open(file(row, "data"), []) else { continue }
            defer { data.close() }
            var bad = BlockSet()
            var known: Visible?  // found out at the first block that is not as it was sealed
            do throws(LayerError) {
                let isWhole = try sums.verifyAll(of: data) { block, isGood in
                    report.blocksRead += 1
                    if isGood {
                        report.blocksVerified += 1
                    } else {
                        let visible = known ?? visible(row)
                        known = visible
                        if visible.contains(block) {
                            bad.insert(BlockRange(start: block, count: 1))
                        }
                    }
                    return report.blocksRead & 255 != 0 || progress(report.blocksRead, total)
                }
                if !isWhole { return }
            } catch {
                if case .system(let error) = error {
                    found.append(unreadable(row, data.path, error))
                } else {
                    found.append(damagedSums(row, sums.file.path, error.description))
                }
            }
            if !bad.isEmpty {
                found.append(
                    diagnosis(
                        row, .block, .damaged, data.path,
                        "\(Self.describe(bad)) do not have the checksum they were sealed with",
                        "whoever reads them gets EIO, never wrong data; a write of the whole block "
                            + "in the image replaces it there. Nothing else is concerned"))
            }
        }
    }

    /// Which blocks of a layer somebody can see. A merge leaves those that nobody sees as they happen
    /// to be: what moved away, and what the one layer on top hides.
    private struct Visible {
        /// nil: all of them. A base without a map has every block that is covered.
        var own: LayerContents?
        var above: LayerContents?

        func contains(_ block: UInt64) -> Bool {
            if let own, !own.data.contains(block) { return false }
            guard let above else { return true }
            return !above.data.contains(block) && !above.zero.contains(block)
        }
    }

    private func visible(_ row: LayerRecord) -> Visible {
        let children = rows.layers.values.filter { $0.parentID == row.id }
        let isTop =
            rows.images.contains { !$0.isDeleted && $0.headLayerID == row.id }
            || rows.snapshotNodes.values.contains { $0.contains { $0.layerID == row.id } }
        return Visible(
            own: contents(row),
            above: isTop || children.count != 1 ? nil : contents(children[0]))
    }

    private func contents(_ row: LayerRecord) -> LayerContents? {
        try? LayerContents.read(disk: disk, path: file(row, "map"), layer: row.id)
    }

    // MARK: The rest of an image's folder

    private func checkActivity(_ found: inout [Diagnosis]) {
        for image in rows.images where !image.isDeleted && image.headLayerID != nil {
            let path = "\(path)/images/\(image.id.rawValue)/activity"
            let bytes = try? disk.readAll(path)
            if let bytes, ActivityLog.parse(bytes) != nil { continue }
            found.append(
                Diagnosis(
                    finding: Finding(
                        kind: bytes == nil ? .activityMissing : .activityDamaged,
                        severity: .degraded, subject: rows.name(of: image.id), file: path,
                        problem: bytes == nil
                            ? "the file is missing" : "its header does not verify",
                        meaning:
                            "which regions were written last is not known; the next open takes "
                            + "all of them for written, nothing is lost",
                        repair: bytes == nil
                            ? nil : "moves it to quarantine/; the next open makes a new one"),
                    action: bytes == nil ? nil : .quarantine(path)))
        }
    }

    private func checkStrays(_ found: inout [Diagnosis]) {
        for folder in (try? disk.list(path + "/images")) ?? [] {
            let inside = "\(path)/images/\(folder.name)"
            for entry in (try? disk.list(inside)) ?? [] {
                let name = entry.name
                if name == "activity" || name == "image.txt" || name.hasSuffix(".new") { continue }
                if let dot = name.firstIndex(of: "."), let id = Int64(name[..<dot]),
                    ["data", "map", "sums"].contains(name[name.index(after: dot)...]),
                    let row = rows.layers[LayerID(rawValue: id)],
                    row.imageID.rawValue == Int64(folder.name)
                {
                    continue
                }
                found.append(
                    Diagnosis(
                        finding: Finding(
                            kind: .stray, severity: .note,
                            subject: Int64(folder.name).map { rows.name(of: ImageID(rawValue: $0)) }
                                ?? "the pool", file: "\(inside)/\(name)",
                            problem: "no row of the catalog knows this file",
                            meaning:
                                "nothing reads it; a crash may have left it, and then the next "
                                + "open removes it", repair: "moves it to quarantine/"),
                        action: .quarantine("\(inside)/\(name)")))
            }
        }
    }

    // MARK: Making findings

    private func unreadable(_ row: LayerRecord, _ path: String, _ error: SystemError) -> Diagnosis {
        diagnosis(
            row, .unreadable, .damaged, path, error.description,
            "the disk below does not give it back: see dmesg and SMART, copy the pool to another "
                + "disk, and check it there")
    }

    private func diagnosis(
        _ row: LayerRecord, _ kind: Finding.Kind, _ severity: Finding.Severity, _ file: String,
        _ problem: String, _ meaning: String, repair: String? = nil,
        action: Diagnosis.Action? = nil
    ) -> Diagnosis {
        Diagnosis(
            finding: Finding(
                kind: kind, severity: severity, subject: rows.users(of: row.id), file: file,
                problem: problem, meaning: meaning, repair: isLive ? nil : repair),
            action: action, layer: row)
    }
}
