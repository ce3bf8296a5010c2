// `doppel check`: says what is wrong with a pool, to whom, and what can be done; changes nothing.
//
// The catalog is looked at in a copy: SQLite, which would replay and then remove its log, changes
// nothing in the pool either. (PoolRepair.swift puts right what can be put right.)

import BlockCore
import Foundation
import SystemIO

package enum PoolCheck {
    /// - Parameters: done and to do, in blocks. Returns false to end the check.
    package typealias Progress = (_ doneBlocks: UInt64, _ totalBlocks: UInt64) -> Bool

    /// Checks a pool that nobody has open, and holds it meanwhile.
    package static func run(
        path: String, disk: Disk, repairs: Bool = false, owner: PoolOwner = .current(),
        progress: Progress = { _, _ in true }
    ) throws(PoolError) -> CheckReport {
        var report = CheckReport(pool: path, isMounted: false)
        if let text = Adoption.interruption(path, disk: disk) {
            report.findings = [interrupted(text, disk: disk, path: path)]
            return report
        }
        let lock = try PoolStore.takeLock(path: path, disk: disk, drainTimeoutMs: 30_000)
        try? disk.writeDurably(path + "/owner", contents: owner.bytes)
        defer {
            try? disk.removeFile(path + "/owner")
            lock.release()
        }
        return try withoutActuallyEscaping(progress) { (progress) throws(PoolError) in
            let examined = try examine(path, disk, &report, progress)
            guard repairs else {
                report.findings = examined.map(\.finding)
                return report
            }
            if examined.contains(where: { $0.action != nil }) { try refuseMirror(path, disk) }
            return try repair(path, disk, examined, progress)
        }
    }

    /// A mirror is a copy up to some moment, or it is none: with something missing, or under another
    /// name, it would pass for what it is not, and its primary would go on with it.
    private static func refuseMirror(_ path: String, _ disk: Disk) throws(PoolError) {
        let scratch = try Scratch(disk)
        defer { scratch.remove() }
        let copy = try CatalogCopy(path, disk, scratch)
        let hasJournal = ((try? disk.list(path + "/journal")) ?? []).isEmpty == false
        guard
            copy.rows?.isMirror ?? false || copy.incomplete.contains("replica") && hasJournal
        else { return }
        throw PoolError(
            .refused,
            "\(path) is a mirror, and is not repaired but copied anew: `doppel target remove` and, with "
                + "another directory or once this one is set aside, `doppel target add`. Where its "
                + "primary is lost, `doppel promote \(path)` first; then it is a pool and can be "
                + "repaired")
    }

    private static func repair(
        _ path: String, _ disk: Disk, _ found: [Diagnosis], _ progress: @escaping Progress
    ) throws(PoolError) -> CheckReport {
        var done = PoolRepair(path: path, disk: disk)
        // A rebuilt catalog is there first: the names in it are what other repairs change.
        var found = found
        if found.contains(where: { if case .rebuildCatalog? = $0.action { true } else { false } }) {
            let scratch = try Scratch(disk)
            defer { scratch.remove() }
            let copy = try CatalogCopy(path, disk, scratch)
            try done.replaceCatalog(with: copy)
            var ignored = CheckReport(pool: path, isMounted: false)
            found = try examine(path, disk, &ignored, { _, _ in true })
        }
        try done.carryOut(found)
        var report = CheckReport(pool: path, isMounted: false)
        report.findings = try examine(path, disk, &report, progress).map(\.finding)
        report.repaired = done.log
        return report
    }

    private static func examine(
        _ path: String, _ disk: Disk, _ report: inout CheckReport, _ progress: @escaping Progress
    ) throws(PoolError) -> [Diagnosis] {
        report.layersChecked = 0
        let scratch = try Scratch(disk)
        defer { scratch.remove() }
        let copy = try CatalogCopy(path, disk, scratch)
        var found: [Diagnosis] = []
        if let finding = copy.finding { found.append(finding) }
        guard let rows = copy.rows else { return found }
        found += RowCheck(rows: rows).run()
        let layers = LayerCheck(
            disk: disk, path: path, rows: rows, isLive: false, progress: progress)
        found += layers.run(&report)
        return found
    }

    /// Checks what can be checked of a pool in use: the catalog, and the layers that no longer
    /// change. What a merge or a deletion changes meanwhile is no finding.
    package static func live(
        _ store: PoolStore, progress: Progress = { _, _ in true }
    ) throws -> CheckReport {
        var report = CheckReport(pool: store.path, isMounted: true)
        let rows = try store.catalog.read { try PoolRows($0) }
        var found: [Diagnosis] = []
        let problems = store.catalog.integrityProblems()
        if !problems.isEmpty {
            found.append(CatalogCopy.diagnosis(problems, path: store.path, repair: nil))
        }
        var live = rows
        live.isClean = false  // it is open: that is no finding
        found += RowCheck(rows: live).run().filter {
            ![.unclean, .pendingCut].contains($0.finding.kind)
        }
        withoutActuallyEscaping(progress) { progress in
            let layers = LayerCheck(
                disk: store.disk, path: store.path, rows: live, isLive: true, progress: progress)
            found += layers.run(&report)
        }
        let now = try store.catalog.read { try PoolRows($0) }
        let merging = now.mergingLayers
        report.findings = found.filter { each in
            guard let layer = each.layer else { return true }
            return now.layers[layer.id] == layer && !merging.contains(layer.id)
        }.map {
            var finding = $0.finding
            finding.repair = nil
            return finding
        }
        return report
    }

    /// The finding for an adopt or eject that was not finished.
    private static func interrupted(_ text: String, disk: Disk, path: String) -> Finding {
        Finding(
            kind: .interrupted, severity: .degraded, subject: path, file: nil, problem: text,
            meaning: "until then it is no pool; nothing is lost", repair: nil)
    }

    /// Whether check can say something of this folder: a pool, or what is left of one.
    package static func isCheckable(_ path: String, disk: Disk) -> Bool {
        if PoolStore.isPool(path, disk: disk) || Adoption.interruption(path, disk: disk) != nil {
            return true
        }
        func has(_ name: String) -> Bool { ((try? disk.status(path + "/" + name)) ?? nil) != nil }
        return has("images") && has("quarantine") && has("README")
    }
}

/// A folder for copies, outside the pool.
final class Scratch {
    let path: String
    private let disk: Disk

    init(_ disk: Disk) throws(PoolError) {
        self.disk = disk
        path = FileManager.default.temporaryDirectory.path + "/doppel-check-\(PoolStore.randomID())"
        do throws(SystemError) { try disk.createDirectory(path, mode: 0o700) } catch {
            throw PoolError(error)
        }
    }

    func remove() {
        for entry in (try? disk.list(path)) ?? [] { try? disk.removeFile(path + "/" + entry.name) }
        try? disk.removeDirectory(path)
    }
}

/// The catalog's rows out of a copy; where that is damaged, out of what can be saved of it.
struct CatalogCopy {
    private(set) var rows: PoolRows?
    private(set) var finding: Diagnosis?
    /// A new catalog with everything that could be saved; nil where the old one is sound.
    private(set) var salvagedPath: String?
    /// Tables of which rows are lost.
    private(set) var incomplete: [String] = []

    init(_ path: String, _ disk: Disk, _ scratch: Scratch) throws(PoolError) {
        let copy = scratch.path + "/catalog.sqlite"
        guard PoolStore.isPool(path, disk: disk) else {
            finding = Self.diagnosis(["it is missing"], path: path, repair: nil)
            return
        }
        try Self.copy(path, disk, to: copy)
        var problems: [String]
        do {
            let catalog = try Catalog.open(at: copy)
            defer { catalog.close() }
            problems = catalog.integrityProblems()
            if problems.isEmpty {
                rows = try catalog.read { try PoolRows($0) }
                return
            }
        } catch { problems = ["\(error)"] }
        let salvaged = scratch.path + "/salvaged.sqlite"
        // SQLite may have changed the copy while it tried.
        try Self.copy(path, disk, to: copy)
        let lost = CatalogSalvage.rebuild(
            from: copy, to: salvaged, atLeast: Self.highestIDs(path, disk))
        if let lost, let catalog = try? Catalog.open(at: salvaged) {
            defer { catalog.close() }
            incomplete = lost
            rows = try? catalog.read { try PoolRows($0) }
            if rows != nil { salvagedPath = salvaged }
            finding = Self.diagnosis(
                problems, path: path,
                repair: "writes a new catalog with every row that can be read"
                    + (lost.isEmpty
                        ? ": all of them"
                        : "; rows of \(lost.joined(separator: ", ")) are lost, and what that means "
                            + "is listed below")
                    + ". The old one goes to quarantine/")
            finding?.action = .rebuildCatalog
        } else {
            finding = Self.diagnosis(problems, path: path, repair: nil)
        }
    }

    static func diagnosis(_ problems: [String], path: String, repair: String?) -> Diagnosis {
        Diagnosis(
            finding: Finding(
                kind: .catalog, severity: .damaged, subject: "the pool",
                file: path + "/catalog.sqlite", problem: problems.joined(separator: "; "),
                meaning: repair == nil
                    ? "without it names and snapshots are not known. The blocks are there: an image "
                        + "that never had a snapshot is the one raw file images/ID/LAYER.data, and "
                        + "image.txt beside it has its name"
                    : "names, snapshots and the order of layers stand in it", repair: repair))
    }

    private static func copy(_ path: String, _ disk: Disk, to target: String) throws(PoolError) {
        do throws(SystemError) {
            for suffix in ["", "-wal", "-shm", "-journal"] {
                if try disk.status(target + suffix) != nil { try disk.removeFile(target + suffix) }
            }
            for suffix in ["", "-wal"] {
                let from = path + "/catalog.sqlite" + suffix
                guard try disk.status(from) != nil else { continue }
                try disk.copyFile(from, to: target + suffix)
            }
        } catch { throw PoolError(error) }
    }

    private static func highestIDs(_ path: String, _ disk: Disk) -> (image: Int64, layer: Int64) {
        var (image, layer): (Int64, Int64) = (0, 0)
        for folder in (try? disk.list(path + "/images")) ?? [] {
            image = max(image, Int64(folder.name) ?? 0)
            for file in (try? disk.list("\(path)/images/\(folder.name)")) ?? [] {
                layer = max(layer, Int64(file.name.prefix { $0 != "." }) ?? 0)
            }
        }
        return (image, layer)
    }
}

extension Disk {
    /// A small file's whole content, durably.
    func copyFile(_ from: String, to target: String) throws(SystemError) {
        let source = try open(from, [])
        defer { source.close() }
        let copy = try open(target, [.readWrite, .create, .truncate])
        defer { copy.close() }
        let length = try source.status().sizeBytes
        if length > 0 { _ = try copy.copyRange(from: source, at: 0, to: 0, length: length) }
        try copy.sync()
    }
}
