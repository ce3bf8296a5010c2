// The verbs of the command line that work on names: the same for a mounted pool and an unmounted one.

import BlockCore
import Pool
import SystemIO
import Volume

extension VirtualFS {
    package struct ListEntry: Sendable, Hashable {
        package var path: String
        package var inode: UInt64
        package var kind: NodeRecord.Kind
        package var sizeBytes: UInt64
        package var allocatedBytes: UInt64
        package var modifyNs: Int64
    }

    package func listAll() -> [ListEntry] {
        let (nodes, paths) = lock.withLock {
            (tree.nodes, tree.nodes.mapValues { tree.path(of: $0.id) })
        }
        return nodes.values.filter { $0.parentID != nil }.map { node in
            let attributes = liveAttributes(node)
            return ListEntry(
                path: paths[node.id] ?? "", inode: node.id.rawValue, kind: node.kind,
                sizeBytes: attributes.sizeBytes, allocatedBytes: attributes.allocatedBytes,
                modifyNs: attributes.modifyNs)
        }.sorted { $0.path < $1.path }
    }

    package func resolve(_ path: String) throws(FSError) -> NodeRecord {
        guard let node = lock.withLock({ tree.resolve(path) }), node.id != .root else {
            throw FSError(
                .notFound, "there is no '\(path)' in the pool; `doppel list` shows what is")
        }
        return node
    }

    private func resolveImage(_ path: String) throws(FSError) -> (NodeRecord, ImageID) {
        let node = try resolve(path)
        guard let image = node.imageID else {
            throw FSError(.isDirectory, "'\(path)' is not an image")
        }
        return (node, image)
    }

    /// The folder and last name of a path whose folder must exist.
    private func split(_ path: String) throws(FSError) -> (parent: UInt64, name: [UInt8]) {
        var parts = path.split(separator: "/").map(String.init)
        guard let last = parts.popLast() else { throw FSError(.invalid, "'\(path)' names nothing") }
        guard let folder = lock.withLock({ tree.resolve(parts.joined(separator: "/")) }) else {
            throw FSError(.notFound, "there is no folder '\(parts.joined(separator: "/"))'")
        }
        return (folder.id.rawValue, Array(last.utf8))
    }

    /// - Throws: `.busy`, naming the process, when somebody has the image open for writing.
    private func refuseWriters(_ node: NodeRecord, _ verb: String) throws(FSError) {
        let writers = openWriters(of: node.id.rawValue)
        guard let first = writers.first else { return }
        let name = lock.withLock { tree.path(of: node.id) }
        throw FSError(
            .busy,
            "cannot \(verb) '\(name)': \(first.summary) has it open for writing. Stop it first, "
                + "or use --force")
    }

    // MARK: Images

    /// Creates an image of zeros and opens it for whoever fills it.
    package func create(path: String, sizeBytes: UInt64) throws(FSError) -> OpenFile {
        let (parent, name) = try split(path)
        let owner = try attributes(of: parent)
        let (_, file): (Attributes, OpenFile)
        do throws(FSError) {
            (_, file) = try createFile(
                parent: parent, name: name, mode: 0o644, uid: owner.uid, gid: owner.gid,
                isExclusive: true)
        } catch {
            if error.code == .exists { throw FSError(.exists, "there is a '\(path)' already") }
            throw error
        }
        do throws(FSError) {
            let image = try file.image()
            try volumed { () throws(VolumeError) in try image.resize(to: sizeBytes) }
            try file.flush()
            volume.store.describe(image: image.id, name: path, sizeBytes: sizeBytes)
        } catch {
            file.close()
            try? removeFile(parent: parent, name: name)
            throw error
        }
        return file
    }

    package func resize(path: String, sizeBytes: UInt64) throws(FSError) {
        let (node, id) = try resolveImage(path)
        let image = try volumed { () throws(VolumeError) in try volume.image(id) }
        if sizeBytes < image.sizeBytes { try refuseWriters(node, "shrink") }
        try volumed { () throws(VolumeError) in
            try image.resize(to: sizeBytes)
            try image.flush()
        }
    }

    package func rename(path: String, to newPath: String) throws(FSError) {
        let (parent, name) = try split(path)
        _ = try resolve(path)
        let (toParent, toName) = try split(newPath)
        do throws(FSError) {
            try rename(
                parent: parent, name: name, toParent: toParent, toName: toName, mode: .noReplace)
        } catch {
            if error.code == .exists { throw FSError(.exists, "there is a '\(newPath)' already") }
            throw error
        }
        try journal.waitDurable()
    }

    package func remove(path: String, force: Bool) throws(FSError) {
        let node = try resolve(path)
        if !force { try refuseWriters(node, "delete") }
        let (parent, name) = try split(path)
        if node.kind == .directory {
            try removeDirectory(parent: parent, name: name)
        } else {
            if force, !openWriters(of: node.id.rawValue).isEmpty {
                _ = try createSnapshot(name: automaticName("before-delete", node), origin: "force")
            }
            try removeFile(parent: parent, name: name)
        }
        try journal.waitDurable()
    }

    // MARK: Snapshots

    package static func defaultSnapshotName(_ nowNs: Int64) -> String {
        CivilTime(nowNs).compact
    }

    private func automaticName(_ prefix: String, _ node: NodeRecord) -> String {
        let base = String(decoding: node.name, as: UTF8.self)
        return "\(prefix)-\(base)-\(CivilTime(now).compact)-\(volume.sequence.rawValue)"
    }

    package func createSnapshot(
        name: String?, origin: String = "user"
    ) throws(FSError) -> SnapshotRecord {
        guard !options.isReadOnly else { throw FSError(.readOnly) }
        return try volumed { () throws(VolumeError) in
            try volume.createSnapshot(
                name: name ?? Self.defaultSnapshotName(now), origin: origin
            ) {
                // Under the cut lock: a reference to the tree, unfolded after.
                let frozen = lock.withLock { tree }
                return {
                    // Names that lost their folder (open orphans) belong to no snapshot.
                    frozen.nodes.values.filter { $0.parentID != nil || $0.id == .root }
                }
            }
        }
    }

    package func deleteSnapshot(_ name: String) throws(FSError) {
        let record = try volumed { () throws(VolumeError) in try volume.snapshot(named: name) }
        let users = lock.withLock {
            openFiles.keys.filter {
                InodeNumber.snapshotParts($0)?.snapshot == record.id.rawValue
            }
        }
        guard users.isEmpty else {
            throw FSError(.busy, "files of snapshot '\(name)' are open; close them first")
        }
        lock.withLock { snapshotTrees[record.id.rawValue] = nil }
        // On a full disk the catalog needs room to take the deletion.
        let reserve = volume.store.reserveBytes
        if reserve > 0 { volume.store.releaseReserve() }
        defer { if reserve > 0 { volume.store.makeReserve(lengthBytes: reserve) } }
        try volumed { () throws(VolumeError) in try volume.deleteSnapshot(name: name) }
    }

    package func snapshotFile(
        _ path: String, in snapshot: String
    ) throws(FSError) -> SnapshotNode {
        let record = try volumed { () throws(VolumeError) in try volume.snapshot(named: snapshot) }
        guard let node = try snapshotTree(record).resolve(path), node.layerID != nil else {
            throw FSError(.notFound, "snapshot '\(snapshot)' has no image '\(path)'")
        }
        return node
    }

    /// - Returns: the name of the snapshot that keeps what was replaced.
    package func restore(path: String, snapshot: String, force: Bool) throws(FSError) -> String {
        let (node, id) = try resolveImage(path)
        let source = try snapshotFile(path, in: snapshot)
        if !force { try refuseWriters(node, "restore") }
        let keepAs = automaticName("before-restore", node)
        try journal.waitDurable()
        var record = node
        record.modifyNs = max(node.modifyNs, (try? volume.image(id))?.modifiedNs ?? 0)
        // A snapshot of this one image: it stands in the folder's root.
        record.parentID = .root
        let root = try liveNode(NodeID.root.rawValue)
        let kept = [root, record]
        try volumed { () throws(VolumeError) in
            try volume.restore(
                image: id, to: source.layerID!, sizeBytes: source.sizeBytes, keepAs: keepAs,
                nodes: kept)
        }
        return keepAs
    }

    /// A new image with the content of a snapshot's, or of a live image's state now.
    package func clone(
        path: String, snapshot: String?, to newPath: String
    ) throws(FSError) {
        let (parent, name) = try split(newPath)
        if lock.withLock({ tree.child(NodeID(rawValue: parent), name) }) != nil {
            throw FSError(.exists, "there is a '\(newPath)' already")
        }
        var source: SnapshotNode
        var temporary: String?
        if let snapshot {
            source = try snapshotFile(path, in: snapshot)
        } else {
            let (node, _) = try resolveImage(path)
            let made = try createSnapshot(
                name: automaticName("clone-of", node), origin: "clone")
            temporary = made.name
            source = try snapshotFile(path, in: made.name)
        }
        let image = try volumed { () throws(VolumeError) in
            try volume.clone(layer: source.layerID!, sizeBytes: source.sizeBytes)
        }
        _ = try insert(parent: parent, name: name) { id, now in
            var node = source.node
            node.id = id
            node.parentID = NodeID(rawValue: parent)
            node.name = name
            node.imageID = image.id
            node.changeNs = now
            return node
        }
        try journal.waitDurable()
        volume.store.describe(image: image.id, name: newPath, sizeBytes: source.sizeBytes)
        if let temporary { try deleteSnapshot(temporary) }
    }
}
