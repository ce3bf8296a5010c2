// `doppel check --repair`, on a pool that nobody has open.
//
// Invariants
//   R1 Nothing is destroyed: what is replaced is copied to quarantine/ first, durably; what is taken
//      out of use is moved there. An event tells of each.
//   R2 A name gets "-salvaged" in a durable transaction before the map that it shows loses its
//      damage: content with something missing is never under the old name.
//   R3 A new map, or a new catalog, is complete and synced under another name and then renamed: a
//      crash leaves the old one, and the next run does the same again.

import BlockCore
import SystemIO

struct PoolRepair {
    static let suffix = "-salvaged"

    let path: String
    let disk: Disk
    private(set) var log: [String] = []
    private var events: [EventRecord] = []

    init(path: String, disk: Disk) {
        self.path = path
        self.disk = disk
    }

    private mutating func note(_ subject: String, _ text: String) {
        log.append("\(subject): \(text)")
        events.append(
            EventRecord(atNs: disk.now(), kind: "repair", subject: subject, message: text))
    }

    private func quarantinePath(_ file: String) -> String {
        let name = file.split(separator: "/").suffix(2).joined(separator: "-")
        return "\(path)/quarantine/\(disk.now())-\(name)"
    }

    private func makeQuarantine() throws(SystemError) {
        if try disk.status(path + "/quarantine") == nil {
            try disk.createDirectory(path + "/quarantine", mode: 0o700)
            try disk.syncDirectory(path)
        }
    }

    // MARK: The catalog

    mutating func replaceCatalog(with copy: CatalogCopy) throws(PoolError) {
        guard let salvaged = copy.salvagedPath else { return }
        let catalog = path + "/catalog.sqlite"
        do throws(SystemError) {
            try makeQuarantine()
            let kept = quarantinePath(catalog)
            for suffix in ["", "-wal"] where try disk.status(catalog + suffix) != nil {
                try disk.copyFile(catalog + suffix, to: kept + suffix)
            }
            try disk.syncDirectory(path + "/quarantine")
            try forgetWhatTargetsHave()
            try disk.copyFile(salvaged, to: catalog + ".new")
            // A log that is still there would be played into the new catalog.
            for suffix in ["-wal", "-journal", "-shm"]
            where try disk.status(catalog + suffix) != nil {
                try disk.removeFile(catalog + suffix)
            }
            try disk.syncDirectory(path)
            try disk.rename(catalog + ".new", to: catalog)
            try disk.syncDirectory(path)
            note("the catalog", "written anew from what could be read; the old one is \(kept)")
        } catch { throw PoolError(error) }
    }

    /// Rows that are lost are changes that no dirty set has: without its file a target is compared as a
    /// whole.
    private func forgetWhatTargetsHave() throws(SystemError) {
        let targets = path + "/targets"
        guard try disk.status(targets) != nil else { return }
        for entry in try disk.list(targets) {
            let folder = targets + "/" + entry.name
            guard try disk.status(folder + "/dirty") != nil else { continue }
            try disk.removeFile(folder + "/dirty")
            try disk.syncDirectory(folder)
        }
    }

    // MARK: Everything else

    mutating func carryOut(_ found: [Diagnosis]) throws(PoolError) {
        guard log.isEmpty == false || found.contains(where: { $0.action != nil }) else { return }
        do throws(SystemError) { try makeQuarantine() } catch { throw PoolError(error) }
        let catalog: Catalog
        do { catalog = try Catalog.open(at: path + "/catalog.sqlite") } catch {
            throw PoolError(.damaged, "the catalog of \(path) does not open: \(error)")
        }
        defer { catalog.close() }
        do {
            try catalog.write { tx in try changeRows(found, tx) }
            try flushEvents(catalog)
            for each in found { try changeFiles(each) }
            try flushEvents(catalog)
        } catch let error as PoolError { throw error } catch let error as SystemError {
            throw PoolError(error)
        } catch { throw PoolError(.io, "the repair of \(path) stopped: \(error)") }
    }

    private mutating func flushEvents(_ catalog: Catalog) throws {
        let all = events
        guard !all.isEmpty else { return }
        try catalog.write { tx in for event in all { try tx.addEvent(event) } }
        events = []
    }

    private mutating func changeRows(_ found: [Diagnosis], _ tx: CatalogTransaction) throws {
        for each in found {
            switch each.action {
            case .rebuildMap(let row, _, _, isLossy: true): try rename(showing: row.id, tx)
            case .nameImage(let image): try name(image, tx)
            case .moveToRoot(let id):
                guard var node = try tx.nodes().first(where: { $0.id == id }) else { continue }
                node.name = try free(RowCheck.lostName(node), among: tx.nodes(), in: .root)
                node.parentID = .root
                try tx.upsertNode(node)
                note(each.finding.subject, "is in the pool's root as '\(text(node.name))'")
            case .clearSnapshotLayer(let snapshot, let node):
                try tx.clearLayer(ofNode: node, in: snapshot)
                note(each.finding.subject, "the lost layer was taken out of its row")
            default: break
            }
        }
    }

    /// R2: every name that shows this layer.
    private mutating func rename(showing layer: LayerID, _ tx: CatalogTransaction) throws {
        let rows = try PoolRows(tx)
        let images = Set(
            rows.images.filter { image in
                image.headLayerID.map { rows.chain(from: $0).path.contains(layer) } ?? false
            }.map(\.id))
        for var node in try tx.nodes() where node.imageID.map(images.contains) ?? false {
            guard let parent = node.parentID, !isSalvaged(node) else { continue }
            let old = rows.path(of: node.id)
            node.name = try free(
                text(node.name) + Self.suffix, among: tx.nodes(), in: parent, limit: node.name)
            try tx.upsertNode(node)
            note("image '\(old)'", "is '\(text(node.name))' now: something of it is missing")
        }
        for snapshot in rows.snapshots {
            let nodes = rows.snapshotNodes[snapshot.id] ?? []
            for each in nodes {
                guard let top = each.layerID, rows.chain(from: top).path.contains(layer),
                    let parent = each.node.parentID, !isSalvaged(each.node)
                else { continue }
                let name = free(
                    text(each.node.name) + Self.suffix, among: nodes.map(\.node), in: parent,
                    limit: each.node.name)
                try tx.setName(ofNode: each.node.id, in: snapshot.id, name)
                note(
                    "'\(text(each.node.name))' in snapshot '\(snapshot.name)'",
                    "is '\(text(name))' now: something of it is missing")
            }
        }
    }

    private mutating func name(_ image: ImageID, _ tx: CatalogTransaction) throws {
        let nodes = try tx.nodes()
        guard let root = nodes.first(where: { $0.id == .root }) else { return }
        let now = disk.now()
        let node = NodeRecord(
            id: try tx.nextNodeID(), parentID: .root,
            name: free(RowCheck.lostName(image), among: nodes, in: .root), kind: .file,
            mode: 0o600, uid: root.uid, gid: root.gid, accessNs: now, modifyNs: now, changeNs: now,
            imageID: image)
        try tx.upsertNode(node)
        note("image \(image.rawValue)", "has the name '\(text(node.name))' now")
    }

    private func isSalvaged(_ node: NodeRecord) -> Bool {
        text(node.name).hasSuffix(Self.suffix)
            || text(node.name).split(separator: "-").suffix(2).first == "salvaged"
    }
    private func text(_ name: [UInt8]) -> String { String(decoding: name, as: UTF8.self) }

    /// A name that nothing in the folder has, within the 255 bytes that a name may have.
    private func free(
        _ wanted: String, among nodes: [NodeRecord], in parent: NodeID, limit: [UInt8] = []
    ) -> [UInt8] {
        let taken = Set(nodes.filter { $0.parentID == parent }.map(\.name))
        var start = wanted
        if start.utf8.count > 240 { start = String(text(Array(limit.prefix(200)))) + Self.suffix }
        if !taken.contains(Array(start.utf8)) { return Array(start.utf8) }
        var number = 2
        while taken.contains(Array("\(start)-\(number)".utf8)) { number += 1 }
        return Array("\(start)-\(number)".utf8)
    }

    // MARK: Files

    private mutating func changeFiles(_ each: Diagnosis) throws {
        switch each.action {
        case .quarantine(let file):
            let kept = quarantinePath(file)
            try disk.rename(file, to: kept)
            try disk.syncDirectory(path + "/quarantine")
            try disk.syncDirectory(parentPath(file))
            note(each.finding.subject, "\(file) was moved to \(kept)")
        case .rebuildMap(let row, let contents, let commit, _):
            try rebuildMap(row, contents, commit, each.finding)
        default: break
        }
    }

    private mutating func rebuildMap(
        _ row: LayerRecord, _ contents: LayerContents, _ commit: MapCommit, _ finding: Finding
    ) throws {
        let file = "\(path)/images/\(row.imageID.rawValue)/\(row.id.rawValue).map"
        var told = "its map was written anew"
        if try disk.status(file) != nil {
            let kept = quarantinePath(file)
            try disk.copyFile(file, to: kept)
            try disk.syncDirectory(path + "/quarantine")
            told += "; the old one is \(kept)"
        }
        let map = try LayerMapFile.create(
            disk: disk, path: file + ".new", layer: row.id, image: row.imageID,
            imageSizeBytes: commit.imageSizeBytes, sequence: commit.sequence)
        defer { map.file.close() }
        let extents =
            contents.data.ranges.map { MapExtent(range: $0, state: .data) }
            + contents.zero.ranges.map { MapExtent(range: $0, state: .zero) }
        try map.append(
            extents, imageSizeBytes: commit.imageSizeBytes, sequence: commit.sequence,
            isSealed: row.isSealed)
        try map.file.sync()
        try disk.rename(file + ".new", to: file)
        try disk.syncDirectory(parentPath(file))
        note(finding.subject, "\(told). \(finding.problem). \(finding.meaning)")
    }
}

extension CatalogTransaction {
    func setName(ofNode node: NodeID, in snapshot: SnapshotID, _ name: [UInt8]) throws {
        try db.execute(
            sql: "UPDATE snapshot_nodes SET name = ? WHERE snapshot = ? AND node = ?",
            arguments: [Blob.encode(name), snapshot.rawValue, Int64(node.rawValue)])
    }
    func clearLayer(ofNode node: NodeID, in snapshot: SnapshotID) throws {
        try db.execute(
            sql: "UPDATE snapshot_nodes SET layer = NULL WHERE snapshot = ? AND node = ?",
            arguments: [snapshot.rawValue, Int64(node.rawValue)])
    }
}
