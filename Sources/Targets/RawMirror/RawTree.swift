// The files and folders of a raw mirror: which there are, where they stand, and where they are to stand.
//
//   unnamed/<image>, unnamed/n<node>  ── place ──►  the name it has in the pool
//                                     ◄── park ──
//
// Everything is made in `unnamed/` and gets its name by a rename that replaces nothing: what is there already
// under that name is somebody else's, and stays. Folders and symlinks go there only on their way.
// `RawFolderNames` says durably which inode is what before it leaves (F1).

import BlockCore
import Pool
import Replication
import SystemIO

final class RawTree {
    struct Place: Hashable {
        var parent: NodeID
        var name: String
    }

    let path: String
    let disk: Disk
    var nodes: [NodeID: NodeRecord] = [:]
    /// Every image that has a file.
    var images: [ImageID: RawFolderNames.File] = [:]
    var nodeOf: [ImageID: NodeID] = [:]
    /// Inodes of folders and symlinks that are there.
    var inodes: [NodeID: UInt64] = [:]
    /// What has a name; the rest is parked.
    private(set) var placed: [NodeID: Place] = [:]
    private var occupants: [Place: NodeID] = [:]
    /// Their entries changed since they were last synced.
    private var unsyncedFolders: Set<NodeID> = []
    private var isUnnamedUnsynced = false
    /// While it looks for what is what.
    var tidies = true

    init(path: String, disk: Disk) {
        self.path = path
        self.disk = disk
    }

    func setPlace(_ id: NodeID, _ place: Place?) {
        if let old = placed[id], occupants[old] == id { occupants[old] = nil }
        placed[id] = place
        if let place { occupants[place] = id }
    }

    // MARK: Where things are

    var unnamedPath: String { RawFolderState.folder(of: path) + "/unnamed" }

    func path(of id: NodeID) -> String {
        if id == .root { return path }
        if let place = placed[id] { return path(of: place.parent) + "/" + place.name }
        if let image = nodes[id]?.imageID { return parkedPath(of: image) }
        return unnamedPath + "/n\(id.rawValue)"
    }

    func path(of image: ImageID) -> String {
        guard let node = nodeOf[image], placed[node] != nil else { return parkedPath(of: image) }
        return path(of: node)
    }

    private func parkedPath(of image: ImageID) -> String { unnamedPath + "/\(image.rawValue)" }

    private func isThere(_ id: NodeID) -> Bool {
        guard let node = nodes[id] else { return inodes[id] != nil }
        return node.kind == .file
            ? node.imageID.map { images[$0] != nil } ?? false : inodes[id] != nil
    }

    /// Where a node is to stand; nil: nowhere.
    private func wanted(_ id: NodeID) throws(TargetError) -> Place? {
        guard id != .root, let node = nodes[id], let parent = node.parentID, isThere(id) else {
            return nil
        }
        guard let name = String(validating: node.name, as: UTF8.self) else {
            let shown = String(decoding: node.name, as: UTF8.self)
            throw TargetError(
                .io,
                "'\(shown)' in the pool has a name that is not UTF-8, which a raw mirror cannot have: "
                    + "rename it there")
        }
        guard !name.isEmpty, !name.contains("/"), name != ".", name != ".." else {
            throw TargetError(.damaged, "'\(name)' is no name")
        }
        guard parent != .root || name != RawFolderState.folderName else {
            throw TargetError(
                .io, "'\(name)' is a name that a raw mirror uses itself: rename it in the pool")
        }
        return Place(parent: parent, name: name)
    }

    private func depth(_ id: NodeID, _ parent: (NodeID) -> NodeID?) -> Int {
        var (depth, next) = (0, parent(id))
        while let each = next, depth <= nodes.count + placed.count {
            depth += 1
            next = parent(each)
        }
        return depth
    }

    // MARK: Making

    /// Makes what the changes will need, in `unnamed/`; nothing of it has a name yet.
    /// - Returns: what has to be durable before ``arrange(_:)`` gives it one.
    func prepare(
        _ changes: [NameChange], creating new: [ImageID], deleting gone: [ImageID]
    ) throws(TargetError) -> RawFolderNames.Entry {
        var entry = RawFolderNames.Entry(names: changes)
        for id in new where images[id] == nil && entry.images[id] == nil {
            entry.images[id] = RawFolderNames.File(inode: try makeFile(id))
        }
        for case .put(let node) in changes
        where node.kind != .file && node.id != .root && inodes[node.id] == nil {
            guard entry.places[node.id] == nil else { continue }
            entry.places[node.id] = try make(node)
        }
        entry.gone = Set(gone)
        images.merge(entry.images) { $1 }
        inodes.merge(entry.places) { $1 }
        return entry
    }

    private func makeFile(_ id: ImageID) throws(TargetError) -> UInt64 {
        try TargetError.system { () throws(SystemError) in
            isUnnamedUnsynced = true
            let path = parkedPath(of: id)
            let file = try disk.open(path, [.readWrite, .create, .truncate], mode: 0o600)
            defer { file.close() }
            return try file.status().inode
        }
    }

    private func make(_ node: NodeRecord) throws(TargetError) -> UInt64 {
        let path = unnamedPath + "/n\(node.id.rawValue)"
        return try TargetError.system { () throws(SystemError) in
            isUnnamedUnsynced = true
            // A try before may have left it.
            if try disk.status(path)?.kind != .directory || node.kind != .directory {
                try remove(path)
                if node.kind == .directory {
                    try disk.createDirectory(path, mode: 0o700)
                } else {
                    try disk.makeSymlink(
                        path, target: String(decoding: node.symlinkTarget ?? [], as: UTF8.self))
                }
            }
            return try disk.status(path)?.inode ?? 0
        }
    }

    func remove(_ path: String) throws(SystemError) {
        guard let status = try disk.status(path) else { return }
        if status.kind == .directory {
            try disk.removeDirectory(path)
        } else {
            try disk.removeFile(path)
        }
    }

    // MARK: Arranging

    /// Brings names in order. What it was asked for before, and did not come to its end, may be repeated.
    func arrange(_ changes: [NameChange]) throws(TargetError) {
        var former: [NodeID: NodeRecord] = [:]
        var seen: Set<NodeID> = []
        let changed = changes.map { enter($0, &former) }.filter { seen.insert($0).inserted }
        var leaving: [NodeID] = []
        var moving: [NodeID: Place] = [:]
        for id in changed {
            let place = try wanted(id)
            guard placed[id] != place else { continue }
            if let place { moving[id] = place } else { leaving.append(id) }
        }
        try park(leaving, former)
        // Of several, one may stand where another is to go.
        let standing = moving.keys.filter { placed[$0] != nil }
        if standing.count > 1 { for id in standing.sorted() { try park(id) } }
        try removeFolders(leaving, former)
        let order = moving.sorted {
            let a = depth($0.key) { self.nodes[$0]?.parentID }
            let b = depth($1.key) { self.nodes[$0]?.parentID }
            return a != b ? a < b : $0.key < $1.key
        }
        for (id, place) in order { try move(id, to: place) }
        for id in changed { applyAttributes(id, former[id]) }
        for id in leaving where nodes[id] == nil { inodes[id] = nil }
    }

    /// - Returns: the node that it is about.
    private func enter(
        _ change: NameChange, _ former: inout [NodeID: NodeRecord]
    ) -> NodeID {
        let id: NodeID
        switch change {
        case .put(let node):
            id = node.id
            if former[id] == nil { former[id] = nodes[id] }
            nodes[id] = node
            if let image = node.imageID { nodeOf[image] = id }
        case .remove(let removed):
            id = removed
            if former[id] == nil { former[id] = nodes[id] }
            // It keeps its place until it is taken out of it.
            nodes[id] = nil
        }
        return id
    }

    /// Files that lose their name are kept until their image is deleted; symlinks are gone with it.
    private func park(
        _ leaving: [NodeID], _ former: [NodeID: NodeRecord]
    ) throws(TargetError) {
        for id in leaving {
            let node = nodes[id] ?? former[id]
            switch node?.kind {
            case .file:
                guard let image = node?.imageID else { continue }
                if let place = placed[id] {
                    try rename(
                        path(of: place.parent) + "/" + place.name, parkedPath(of: image),
                        from: place.parent)
                    setPlace(id, nil)
                }
                if nodes[id] == nil, nodeOf[image] == id { nodeOf[image] = nil }
            case .symlink:
                guard let place = placed[id] else { continue }
                let path = path(of: place.parent) + "/" + place.name
                try TargetError.system { () throws(SystemError) in try disk.removeFile(path) }
                unsyncedFolders.insert(place.parent)
                setPlace(id, nil)
            default: continue
            }
        }
    }

    private func park(_ id: NodeID) throws(TargetError) {
        guard let place = placed[id] else { return }
        let from = path(of: id)
        setPlace(id, nil)
        do throws(TargetError) { try rename(from, path(of: id), from: place.parent) } catch {
            setPlace(id, place)
            throw error
        }
    }

    private func rename(
        _ from: String, _ to: String, from folder: NodeID
    ) throws(TargetError) {
        try TargetError.system { () throws(SystemError) in try disk.rename(from, to: to) }
        unsyncedFolders.insert(folder)
        isUnnamedUnsynced = true
    }

    private func removeFolders(
        _ leaving: [NodeID], _ former: [NodeID: NodeRecord]
    ) throws(TargetError) {
        let folders = leaving.filter { (nodes[$0] ?? former[$0])?.kind == .directory }
        let deepestFirst = folders.sorted {
            depth($0) { self.placed[$0]?.parent } > depth($1) { self.placed[$0]?.parent }
        }
        for id in deepestFirst {
            guard let place = placed[id] else { continue }
            let path = path(of: id)
            do throws(SystemError) { try disk.removeDirectory(path) } catch {
                guard let other = ((try? disk.list(path)) ?? []).first else {
                    throw TargetError(.io, error.description, errno: error.errno)
                }
                throw TargetError(
                    .io,
                    "\(path) is to go, and holds \(other.name), which is not Doppel's: move it away",
                    errno: error.errno)
            }
            unsyncedFolders.insert(place.parent)
            unsyncedFolders.remove(id)
            setPlace(id, nil)
            inodes[id] = nil
        }
    }

    private func move(_ id: NodeID, to place: Place) throws(TargetError) {
        guard place.parent == .root || inodes[place.parent] != nil else {
            throw TargetError(.damaged, "'\(place.name)' is in a folder that is not there")
        }
        // What is repeated after a crash may meet what came later.
        if let other = occupants[place], other != id { try park(other) }
        let from = path(of: id)
        let to = path(of: place.parent) + "/" + place.name
        do throws(SystemError) { try renameReplacingNothing(from, to) } catch {
            if error.isExisting {
                throw TargetError(
                    .io, "\(to) is in the way, and is not Doppel's: move it away",
                    errno: error.errno)
            }
            throw TargetError(
                error.isNoSpace ? .noSpace : .io,
                "'\(place.name)' cannot be had in \(path(of: place.parent)): \(error)",
                errno: error.errno)
        }
        if let old = placed[id] {
            unsyncedFolders.insert(old.parent)
        } else {
            isUnnamedUnsynced = true
        }
        unsyncedFolders.insert(place.parent)
        if nodes[id]?.kind == .directory { unsyncedFolders.insert(id) }
        setPlace(id, place)
    }

    /// Some file systems cannot be asked to replace nothing.
    private func renameReplacingNothing(_ from: String, _ to: String) throws(SystemError) {
        do throws(SystemError) { try disk.rename(from, to: to, noReplace: true) } catch {
            guard error.isInvalid else { throw error }
            guard try disk.status(to) == nil else {
                throw SystemError(operation: "rename to", path: to, errno: SystemError.existing)
            }
            try disk.rename(from, to: to)
        }
    }

    /// Gives an image its name, if it has one.
    func placeIfNamed(_ image: ImageID) throws(TargetError) {
        guard let node = nodeOf[image], placed[node] == nil, let place = try wanted(node) else {
            return
        }
        try move(node, to: place)
        applyAttributes(node, nil)
    }

    /// Removes an image's file.
    func delete(_ image: ImageID) throws(TargetError) {
        guard images[image] != nil else { return }
        let path = path(of: image)
        try TargetError.system { () throws(SystemError) in try disk.removeFile(path) }
        if let node = nodeOf[image] {
            if let place = placed[node] { unsyncedFolders.insert(place.parent) }
            setPlace(node, nil)
        }
        isUnnamedUnsynced = true
        nodeOf[image] = nil
        images[image] = nil
    }

    // MARK: Durability

    func noteChanged(_ folder: NodeID) { unsyncedFolders.insert(folder) }

    /// Names are durable on return.
    func sync() throws(TargetError) {
        try TargetError.synced { () throws(SystemError) in
            for id in unsyncedFolders.sorted() where id == .root || inodes[id] != nil {
                try disk.syncDirectory(path(of: id))
            }
            if isUnnamedUnsynced { try disk.syncDirectory(unnamedPath) }
        }
        unsyncedFolders = []
        isUnnamedUnsynced = false
    }

    /// All there is, as `RawFolderNames` has it.
    func entry() throws(TargetError) -> RawFolderNames.Entry {
        var entry = RawFolderNames.Entry(
            names: nodes.values.sorted { $0.id < $1.id }.map { .put($0) })
        entry.places = inodes
        for (id, file) in images {
            let path = path(of: id)
            let status = try TargetError.system { () throws(SystemError) in
                try disk.status(path)
            }
            guard let status, status.inode == file.inode else { throw replaced(path) }
            entry.images[id] = RawFolderNames.File(
                inode: file.inode, sizeBytes: status.sizeBytes, modifyNs: status.modifyNs)
        }
        images = entry.images
        return entry
    }

    /// A file that was deleted underfoot takes and syncs everything, for nobody.
    func requireInPlace(_ image: ImageID) throws(TargetError) {
        let path = path(of: image)
        let status = try TargetError.system { () throws(SystemError) in try disk.status(path) }
        guard let status, status.inode == images[image]?.inode else { throw replaced(path) }
    }

    func replaced(_ path: String) -> TargetError {
        TargetError(
            .absent,
            "\(path) was removed or replaced by somebody else: it is not the file that Doppel wrote"
        )
    }

    // MARK: Attributes

    /// As far as the file system has them, and its owner may read and write on: no content is lost where it
    /// has not.
    private func applyAttributes(_ id: NodeID, _ former: NodeRecord?) {
        guard let node = nodes[id], id == .root || placed[id] != nil, let disk = disk as? LinuxDisk,
            node.kind != .symlink,
            former.map({
                $0.mode != node.mode || $0.uid != node.uid || $0.gid != node.gid
                    || $0.xattrs != node.xattrs
            }) ?? true
        else { return }
        let path = path(of: id)
        if ProcessControl.isRoot { try? disk.setOwner(path, uid: node.uid, gid: node.gid) }
        guard id != .root else { return }
        try? disk.setMode(path, node.mode | (node.kind == .directory ? 0o700 : 0o600))
        for (name, value) in node.xattrs { try? disk.setAttribute(path, name, value) }
        for name in former?.xattrs.keys ?? [:].keys where node.xattrs[name] == nil {
            try? disk.removeAttribute(path, name)
        }
    }
}
