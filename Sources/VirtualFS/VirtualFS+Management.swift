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
        /// Why the image cannot be used as it should; nil where it can.
        package var problem: String?
        package var isDamaged = false
    }

    /// The path of an image, for messages.
    package func path(of image: ImageID) -> String? {
        lock.withLock {
            tree.nodes.values.first { $0.imageID == image }.map { tree.path(of: $0.id) }
        }
    }

    package func listAll() -> [ListEntry] {
        let (nodes, paths) = lock.withLock {
            (tree.nodes, tree.nodes.mapValues { tree.path(of: $0.id) })
        }
        return nodes.values.filter { $0.parentID != nil }.map { node in
            let attributes = liveAttributes(node)
            var entry = ListEntry(
                path: paths[node.id] ?? "", inode: node.id.rawValue, kind: node.kind,
                sizeBytes: attributes.sizeBytes, allocatedBytes: attributes.allocatedBytes,
                modifyNs: attributes.modifyNs)
            if let id = node.imageID {
                if let damaged = volume.damagedImage(id) {
                    (entry.problem, entry.isDamaged) = (damaged.error.message, true)
                } else {
                    entry.problem = (try? volume.image(id))?.latchedFailure?.message
                }
            }
            return entry
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
            throw FSError(
                .notFound,
                "there is no folder '\(parts.joined(separator: "/"))' in the pool; mkdir in the mounted "
                    + "pool makes one")
        }
        return (folder.id.rawValue, Array(last.utf8))
    }

    /// - Throws: `.busy`, naming the process, when somebody has the image open for writing.
    private func refuseWriters(
        _ node: NodeRecord, _ verb: String, hint: String = ", or use --force"
    ) throws(FSError) {
        let writers = openWriters(of: node.id.rawValue)
        guard let first = writers.first else { return }
        let name = lock.withLock { tree.path(of: node.id) }
        throw FSError(
            .busy,
            "cannot \(verb) '\(name)': \(first.summary) has it open for writing. Stop it first"
                + hint)
    }

    /// Runs `body` while nobody has the file open for writing, and nobody can open it so.
    private func withoutWriters<T>(
        _ node: NodeRecord, _ verb: String, hint: String = ", or use --force",
        _ body: () throws(FSError) -> T
    ) throws(FSError) -> T {
        let isFree = try lock.withLock { () throws(FSError) in
            if openFiles[node.id.rawValue]?.hasWriters ?? false { return false }
            guard busyFiles.insert(node.id).inserted else {
                throw FSError(.busy, "'\(tree.path(of: node.id))' is being changed already")
            }
            return true
        }
        guard isFree else {
            try refuseWriters(node, verb, hint: hint)
            throw FSError(.busy, "the image was just closed; try again")
        }
        defer { lock.withLock { _ = busyFiles.remove(node.id) } }
        return try body()
    }

    // MARK: Images

    /// Creates an image of zeros and opens it for whoever fills it.
    package func create(path: String, sizeBytes: UInt64) throws(FSError) -> OpenFile {
        let (parent, name) = try split(path)
        let owner = try attributes(of: parent)
        let ownPID = ProcessControl.processID
        let (_, file): (Attributes, OpenFile)
        do throws(FSError) {
            (_, file) = try createFile(
                parent: parent, name: name, mode: 0o644, uid: owner.uid, gid: owner.gid,
                isExclusive: true, clientPID: ownPID)
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
            let id = (try? file.image())?.id
            file.close()
            try? removeFile(parent: parent, name: name)
            // Its number means nothing to anybody: it was never more than a try.
            let number = id.map { "image \($0.rawValue):" } ?? "image:"
            throw FSError(
                error.code, error.message.replacing(number, with: "cannot create '\(path)':"))
        }
        return file
    }

    package func resize(path: String, sizeBytes: UInt64) throws(FSError) {
        try requireWritable()
        let (node, id) = try resolveImage(path)
        let image = try volumed { () throws(VolumeError) in try volume.image(id) }
        let resize = { () throws(FSError) in
            try volumed { () throws(VolumeError) in
                try image.resize(to: sizeBytes)
                try image.flush()
            }
        }
        if sizeBytes < image.sizeBytes {
            try withoutWriters(node, "shrink", hint: "", resize)
        } else {
            try resize()
        }
        commitTime(of: node.id.rawValue)
        try journal.waitDurable()
        volume.store.describe(image: id, name: path, sizeBytes: sizeBytes)
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
        if let (_, id) = try? resolveImage(newPath), let image = try? volume.image(id) {
            volume.store.describe(image: id, name: newPath, sizeBytes: image.sizeBytes)
        }
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

    func automaticName(_ prefix: String, _ node: NodeRecord? = nil) -> String {
        let base = node.map { "-" + String(decoding: $0.name, as: UTF8.self) } ?? ""
        let rest = "-\(CivilTime(now).compact)-\(volume.sequence.rawValue)"
        // A snapshot's name is a folder's: 255 bytes.
        var start = prefix + base
        while start.utf8.count + rest.utf8.count > 255 { start.removeLast() }
        return start + rest
    }

    /// - Parameter name: nil for one made of the time.
    package func createSnapshot(
        name: String?, origin: String = "user"
    ) throws(FSError) -> SnapshotRecord {
        if let name { return try cut(name: name, origin: origin) }
        let base = Self.defaultSnapshotName(now)
        var attempt = 1
        while true {
            do throws(FSError) {
                return try cut(name: attempt == 1 ? base : "\(base)-\(attempt)", origin: origin)
            } catch {
                guard error.code == .exists else { throw error }
                attempt += 1
            }
        }
    }

    private func cut(name: String, origin: String) throws(FSError) -> SnapshotRecord {
        try requireWritable()
        try journal.check(isFreeing: false)
        if name.utf8.contains(0) { throw FSError(.invalid, "a snapshot's name has no zero byte") }
        return try volumed { () throws(VolumeError) in
            try volume.createSnapshot(name: name, origin: origin, names: captureNames)
        }
    }

    /// The names at a moment when nobody changes them.
    ///
    /// Under the cut lock: a reference to the tree and the times of what is being written; unfolded
    /// after.
    package func captureNames() -> @Sendable () -> [NodeRecord] {
        let (frozen, times) = lock.withLock {
            (tree, lazyTimes.compactMap { id in tree[id].map { (id, imageTime($0)) } })
        }
        return { [journal] in
            // Nobody may be told names that the pool could still lose in a crash. A failure here
            // fails the snapshot too: it needs the same catalog.
            try? journal.waitDurable()
            var nodes = frozen.nodes
            for case (let id, let ns?) in times where ns > nodes[id]!.modifyNs {
                nodes[id]!.modifyNs = ns
                nodes[id]!.changeNs = max(nodes[id]!.changeNs, ns)
            }
            // Names that lost their folder (open orphans) belong to no snapshot.
            return nodes.values.filter { $0.parentID != nil || $0.id == .root }
        }
    }

    package func deleteSnapshot(_ name: String) throws(FSError) {
        try requireWritable()
        let record = try volumed { () throws(VolumeError) in try volume.snapshot(named: name) }
        let id = record.id.rawValue
        try lock.withLock { () throws(FSError) in
            let isUsed = openFiles.keys.contains { InodeNumber.snapshotParts($0)?.snapshot == id }
            if isUsed {
                throw FSError(.busy, "files of snapshot '\(name)' are open; close them first")
            }
            // From here on nothing of it can be opened: its layers may be merged away.
            doomedSnapshots.insert(id)
            snapshotTrees[id] = nil
        }
        defer { lock.withLock { _ = doomedSnapshots.remove(id) } }
        // On a full disk the catalog needs room to take the deletion.
        try withReserve { () throws(FSError) in
            try volumed { () throws(VolumeError) in try volume.deleteSnapshot(name: name) }
        }
    }

    /// An image of a snapshot, with the layer that has its content now.
    package func snapshotFile(
        _ path: String, in snapshot: String
    ) throws(FSError) -> SnapshotNode {
        try source(path, in: snapshot).node
    }

    private func source(
        _ path: String, in snapshot: String
    ) throws(FSError) -> (tree: SnapshotTree, node: SnapshotNode) {
        let record = try volumed { () throws(VolumeError) in try volume.snapshot(named: snapshot) }
        let tree = try readSnapshotTree(record)
        guard let node = tree.resolve(path), node.layerID != nil else {
            throw FSError(.notFound, "snapshot '\(snapshot)' has no image '\(path)'")
        }
        return (tree, node)
    }

    /// Gives an image the content it had in a snapshot.
    /// - Returns: the name of the snapshot that keeps what was replaced; nil where the image had
    ///   been deleted, and is back.
    package func restore(
        path: String, snapshot: String, force: Bool
    ) throws(FSError) -> String? {
        try requireWritable()
        guard lock.withLock({ tree.resolve(path) }) != nil else {
            try clone(path: path, snapshot: snapshot, to: path)
            return nil
        }
        let (node, id) = try resolveImage(path)
        let source = try source(path, in: snapshot)
        if force { return try restore(node, id, from: source) }
        return try withoutWriters(node, "restore") { () throws(FSError) in
            try restore(node, id, from: source)
        }
    }

    private func restore(
        _ node: NodeRecord, _ id: ImageID, from source: (tree: SnapshotTree, node: SnapshotNode)
    ) throws(FSError) -> String {
        let keepAs = automaticName("before-restore", node)
        commitTime(of: node.id.rawValue)
        try journal.waitDurable()
        // A snapshot of this one image: its folders and itself.
        let kept = lock.withLock { tree.ancestors(of: node.id) + [tree[node.id] ?? node] }
        try withLayer(of: source.node.node.id, in: source.tree) {
            (layer, source) throws(VolumeError) in
            try volume.restore(
                image: id, to: layer, sizeBytes: source.sizeBytes, keepAs: keepAs, nodes: kept)
        }
        commitTime(of: node.id.rawValue)
        return keepAs
    }

    /// A new image with the content of a snapshot's, or of a live image's state now.
    package func clone(
        path: String, snapshot: String?, to newPath: String
    ) throws(FSError) {
        try requireWritable()
        let (parent, name) = try split(newPath)
        if lock.withLock({ tree.child(NodeID(rawValue: parent), name) }) != nil {
            throw FSError(.exists, "there is a '\(newPath)' already")
        }
        if let snapshot {
            return try clone(try source(path, in: snapshot), parent, name, newPath)
        }
        let (node, _) = try resolveImage(path)
        let made = try createSnapshot(name: automaticName("clone-of", node), origin: "clone")
        let result = Result { () throws(FSError) in
            try clone(try source(path, in: made.name), parent, name, newPath)
        }
        try deleteSnapshot(made.name)
        try result.get()
    }

    private func clone(
        _ source: (tree: SnapshotTree, node: SnapshotNode), _ parent: UInt64, _ name: [UInt8],
        _ newPath: String
    ) throws(FSError) {
        let image = try withLayer(of: source.node.node.id, in: source.tree) {
            (layer, source) throws(VolumeError) in
            try volume.clone(layer: layer, sizeBytes: source.sizeBytes)
        }
        do throws(FSError) {
            _ = try insert(parent: parent, name: name) { id, now in
                var node = source.node.node
                node.id = id
                node.parentID = NodeID(rawValue: parent)
                node.name = name
                node.imageID = image.id
                node.changeNs = now
                return node
            }
        } catch {
            try? volume.deleteImage(image.id)
            throw error
        }
        try journal.waitDurable()
        volume.store.describe(image: image.id, name: newPath, sizeBytes: source.node.sizeBytes)
    }
}
