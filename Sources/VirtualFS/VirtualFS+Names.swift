import BlockCore
import Pool
import Volume

extension VirtualFS {
    package enum RenameMode: Sendable { case replace, noReplace, exchange }

    // MARK: Looking

    package func lookup(parent: UInt64, name: [UInt8]) throws(FSError) -> Attributes {
        if name.count > 255 { throw FSError(.nameTooLong) }
        if isReserved(parent, name) {
            return try attributes(
                of: name == Self.snapshotsName
                    ? InodeNumber.snapshotsFolder : InodeNumber.controlFolder)
        }
        if InodeNumber.isReadOnly(parent) {
            return try lookupInSnapshots(parent: parent, name: name)
        }
        let found = try lock.withLock { () throws(FSError) -> NodeRecord? in
            guard let folder = tree[NodeID(rawValue: parent)] else { throw FSError(.stale) }
            guard folder.kind == .directory else { throw FSError(.notDirectory) }
            return tree.child(folder.id, name)
        }
        guard let found else { throw FSError(.notFound) }
        return liveAttributes(found)
    }

    package func attributes(of inode: UInt64) throws(FSError) -> Attributes {
        if InodeNumber.isReadOnly(inode) {
            return try snapshotAttributes(of: inode)
        }
        return liveAttributes(try liveNode(inode))
    }

    /// The parent of a folder; for `..`.
    package func parentInode(of inode: UInt64) -> UInt64 {
        if InodeNumber.isReadOnly(inode) { return parentInSnapshots(of: inode) }
        return lock.withLock {
            tree[NodeID(rawValue: inode)]?.parentID?.rawValue ?? NodeID.root.rawValue
        }
    }

    package func readSymlink(_ inode: UInt64) throws(FSError) -> [UInt8] {
        if InodeNumber.snapshotParts(inode) != nil { return try snapshotSymlink(inode) }
        guard let target = try liveNode(inode).symlinkTarget else { throw FSError(.invalid) }
        return target
    }

    // MARK: Making

    package func makeDirectory(
        parent: UInt64, name: [UInt8], mode: UInt32, uid: UInt32, gid: UInt32
    ) throws(FSError) -> Attributes {
        liveAttributes(
            try insert(parent: parent, name: name) { id, now in
                NodeRecord(
                    id: id, parentID: NodeID(rawValue: parent), name: name, kind: .directory,
                    mode: mode & 0o7777, uid: uid, gid: gid, accessNs: now, modifyNs: now,
                    changeNs: now)
            })
    }

    package func makeSymlink(
        parent: UInt64, name: [UInt8], target: [UInt8], uid: UInt32, gid: UInt32
    ) throws(FSError) -> Attributes {
        guard target.count <= 4095 else { throw FSError(.nameTooLong) }
        return liveAttributes(
            try insert(parent: parent, name: name) { id, now in
                NodeRecord(
                    id: id, parentID: NodeID(rawValue: parent), name: name, kind: .symlink,
                    mode: 0o777, uid: uid, gid: gid, accessNs: now, modifyNs: now, changeNs: now,
                    symlinkTarget: target)
            })
    }

    /// Creates the file, or opens the one that is there unless `isExclusive`.
    package func createFile(
        parent: UInt64, name: [UInt8], mode: UInt32, uid: UInt32, gid: UInt32,
        access: OpenFile.Access = .readWrite, isExclusive: Bool = false, truncates: Bool = false,
        clientPID: Int32 = 0
    ) throws(FSError) -> (Attributes, OpenFile) {
        while true {
            if let existing = lock.withLock({ tree.child(NodeID(rawValue: parent), name) }) {
                if isExclusive { throw FSError(.exists) }
                do throws(FSError) {
                    let file = try open(
                        existing.id.rawValue, access: access, truncates: truncates,
                        clientPID: clientPID)
                    return (liveAttributes(existing), file)
                } catch {
                    // Deleted a moment ago: then it is to be created.
                    if error.code == .stale { continue }
                    throw error
                }
            }
            do throws(FSError) {
                let (node, file) = try createNew(
                    parent: parent, name: name, mode: mode, uid: uid, gid: gid, access: access,
                    clientPID: clientPID)
                return (liveAttributes(node), file)
            } catch {
                // Somebody else made it a moment ago: then it is to be opened. A dot folder is not.
                if error.code == .exists, !isExclusive, !isReserved(parent, name) { continue }
                throw error
            }
        }
    }

    private func createNew(
        parent: UInt64, name: [UInt8], mode: UInt32, uid: UInt32, gid: UInt32,
        access: OpenFile.Access, clientPID: Int32
    ) throws(FSError) -> (NodeRecord, OpenFile) {
        try checkParent(parent, name)
        try journal.check(isFreeing: false)
        // The image first: a name whose image is missing would be damage, an image without a name
        // is collected at the next open.
        let image = try volumed { () throws(VolumeError) in try volume.createImage() }
        do throws(FSError) {
            return try insert(parent: parent, name: name) { id, now in
                NodeRecord(
                    id: id, parentID: NodeID(rawValue: parent), name: name, kind: .file,
                    mode: mode & 0o7777, uid: uid, gid: gid, accessNs: now, modifyNs: now,
                    changeNs: now, imageID: image.id)
            } then: { node in
                // Under the same lock: nobody can delete it before it counts as open.
                register(node.id.rawValue, .image(image), access, clientPID)
            }
        } catch {
            try? volume.deleteImage(image.id)
            throw error
        }
    }

    private func checkParent(_ parent: UInt64, _ name: [UInt8]) throws(FSError) {
        try Self.checkName(name)
        try requireWritable()
        if isReserved(parent, name) { throw FSError(.exists) }
        let folder = try liveNode(parent)
        guard folder.kind == .directory else { throw FSError(.notDirectory) }
    }

    func insert(
        parent: UInt64, name: [UInt8], _ make: (NodeID, Int64) -> NodeRecord
    ) throws(FSError) -> NodeRecord {
        try insert(parent: parent, name: name, make, then: { _ in }).0
    }

    /// Makes a node in a folder.
    /// - Parameter then: runs under the lock, right after the node is there.
    private func insert<T>(
        parent: UInt64, name: [UInt8], _ make: (NodeID, Int64) -> NodeRecord,
        then: (NodeRecord) -> T
    ) throws(FSError) -> (NodeRecord, T) {
        try checkParent(parent, name)
        let now = self.now
        return try change { (tree) throws(FSError) in
            guard var folder = tree[NodeID(rawValue: parent)] else { throw FSError(.notFound) }
            guard tree.child(folder.id, name) == nil else { throw FSError(.exists) }
            var node = make(newNodeID(), now)
            if folder.mode & Self.setGroupID != 0 {
                node.gid = folder.gid
                if node.kind == .directory { node.mode |= Self.setGroupID }
            }
            folder.modifyNs = now
            folder.changeNs = now
            tree.put(node)
            tree.put(folder)
            return ((node, then(node)), [.put(node), .put(folder)])
        }
    }

    /// On a folder: what is made in it belongs to the folder's group (inode(7)). The kernel leaves
    /// this to the file system.
    private static var setGroupID: UInt32 { 0o2000 }

    // MARK: Removing

    package func removeFile(parent: UInt64, name: [UInt8]) throws(FSError) {
        try refuseReserved(parent, name)
        _ = try liveNode(parent)
        let now = self.now
        let doomed = try change(isFreeing: true) {
            (tree) throws(FSError) -> (NodeRecord?, [NameChange]) in
            guard let node = tree.child(NodeID(rawValue: parent), name) else {
                throw FSError(.notFound)
            }
            if node.kind == .directory { throw FSError(.isDirectory) }
            let (gone, changes) = detach(node, now: now, in: &tree)
            return (gone, changes + touch(NodeID(rawValue: parent), now: now, in: &tree))
        }
        if let doomed { try deleteImage(of: doomed) }
    }

    package func removeDirectory(parent: UInt64, name: [UInt8]) throws(FSError) {
        try refuseReserved(parent, name)
        _ = try liveNode(parent)
        let now = self.now
        try change(isFreeing: true) { (tree) throws(FSError) -> (Void, [NameChange]) in
            guard let node = tree.child(NodeID(rawValue: parent), name) else {
                throw FSError(.notFound)
            }
            guard node.kind == .directory else { throw FSError(.notDirectory) }
            guard tree.isEmpty(node.id) else { throw FSError(.notEmpty) }
            tree.remove(node.id)
            return (
                (), [.remove(node.id)] + touch(NodeID(rawValue: parent), now: now, in: &tree)
            )
        }
    }

    private func refuseReserved(_ parent: UInt64, _ name: [UInt8]) throws(FSError) {
        if isReserved(parent, name) {
            throw FSError(.notPermitted, "snapshots are deleted with `doppel snapshot delete`")
        }
    }

    private func touch(
        _ id: NodeID, now: Int64, in tree: inout NameTree
    ) -> [NameChange] {
        guard var folder = tree[id] else { return [] }
        folder.modifyNs = now
        folder.changeNs = now
        tree.put(folder)
        return [.put(folder)]
    }

    /// Takes a file's name away. While it is open it stays as an orphan.
    /// - Returns: the node when nobody has it open: its image can go once this is durable.
    private func detach(
        _ node: NodeRecord, now: Int64, in tree: inout NameTree
    ) -> (NodeRecord?, [NameChange]) {
        guard openFiles[node.id.rawValue] == nil else {
            var orphan = node
            orphan.parentID = nil
            orphan.changeNs = now
            tree.put(orphan)
            return (nil, [.put(orphan)])
        }
        tree.remove(node.id)
        return (node, [.remove(node.id)])
    }

    /// The name is gone in memory; the data goes only after it is gone durably, for a crash in
    /// between must not leave a name without its data.
    /// - Throws: when the name may come back after a crash. Data that could not be deleted is no
    ///   error: the next open of the pool collects it.
    func deleteImage(of node: NodeRecord) throws(FSError) {
        guard let id = node.imageID else { return }
        do throws(FSError) { try journal.waitDurable() } catch {
            guard error.code == .noSpace else { throw error }
            // The reserve is there for this: what is being deleted makes room again.
            return try withReserve { () throws(FSError) in
                try journal.waitDurable()
                try? volume.deleteImage(id)
            }
        }
        try? volume.deleteImage(id)
    }

    // MARK: Renaming

    package func rename(
        parent: UInt64, name: [UInt8], toParent: UInt64, toName: [UInt8], mode: RenameMode
    ) throws(FSError) {
        try refuseReserved(parent, name)
        try checkParent(toParent, toName)
        _ = try liveNode(parent)
        let now = self.now
        let from = NodeID(rawValue: parent)
        let to = NodeID(rawValue: toParent)
        let doomed = try change { (tree) throws(FSError) -> (NodeRecord?, [NameChange]) in
            guard var node = tree.child(from, name), tree[to]?.kind == .directory else {
                throw FSError(.notFound)
            }
            if node.kind == .directory, tree.isInside(to, node.id) {
                throw FSError(.invalid, "a folder cannot be moved into itself")
            }
            var changes: [NameChange] = []
            var doomed: NodeRecord?
            if var other = tree.child(to, toName) {
                if other.id == node.id { return (nil, []) }
                if mode == .noReplace { throw FSError(.exists) }
                if mode == .exchange {
                    if other.kind == .directory, tree.isInside(from, other.id) {
                        throw FSError(.invalid)
                    }
                    other.parentID = nil
                    tree.put(other)
                    node.parentID = to
                    (node.name, other.name) = (toName, name)
                    other.parentID = from
                    (node.changeNs, other.changeNs) = (now, now)
                    tree.put(node)
                    tree.put(other)
                    changes = [.put(node), .put(other)]
                    changes += touch(from, now: now, in: &tree) + touch(to, now: now, in: &tree)
                    return (nil, changes)
                }
                if other.kind == .directory {
                    guard node.kind == .directory else { throw FSError(.isDirectory) }
                    guard tree.isEmpty(other.id) else { throw FSError(.notEmpty) }
                    tree.remove(other.id)
                    changes.append(.remove(other.id))
                } else {
                    if node.kind == .directory { throw FSError(.notDirectory) }
                    let (gone, detached) = detach(other, now: now, in: &tree)
                    doomed = gone
                    changes += detached
                }
            } else if mode == .exchange {
                throw FSError(.notFound)
            }
            node.parentID = to
            node.name = toName
            node.changeNs = now
            tree.put(node)
            changes.append(.put(node))
            changes += touch(from, now: now, in: &tree)
            if from != to { changes += touch(to, now: now, in: &tree) }
            return (doomed, changes)
        }
        if let doomed { try deleteImage(of: doomed) }
    }
}
