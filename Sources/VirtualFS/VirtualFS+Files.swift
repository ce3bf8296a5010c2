import BlockCore
import Pool
import SystemIO
import Volume

package struct DirectoryListing: Sendable {
    package struct Entry: Sendable, Hashable {
        package var name: [UInt8]
        package var inode: UInt64
        package var kind: NodeRecord.Kind
    }
    package var entries: [Entry]
}

package struct OpenerInfo: Sendable, Hashable {
    package var pid: Int32
    package var command: String
    package var summary: String { "process \(pid)\(command.isEmpty ? "" : " (\(command))")" }
}

extension VirtualFS {
    // MARK: Opening

    package func open(
        _ inode: UInt64, access: OpenFile.Access, truncates: Bool = false, clientPID: Int32 = 0
    ) throws(FSError) -> OpenFile {
        if InodeNumber.isFixed(inode) || InodeNumber.snapshotParts(inode) != nil {
            guard access == .read, !truncates else { throw FSError(.readOnly) }
            return register(
                OpenFile(
                    inode: inode, backing: try snapshotBacking(inode), access: access,
                    clientPID: clientPID, fileSystem: self))
        }
        if options.isReadOnly, access != .read || truncates { throw FSError(.readOnly) }
        let node = try liveNode(inode)
        guard node.kind != .directory else { throw FSError(.isDirectory) }
        guard let id = node.imageID else { throw FSError(.invalid) }
        let image = try volumed { () throws(VolumeError) in try volume.image(id) }
        let file = register(
            OpenFile(
                inode: inode, backing: .image(image), access: access, clientPID: clientPID,
                fileSystem: self))
        if truncates, image.sizeBytes > 0 {
            do throws(VolumeError) { try image.resize(to: 0) } catch {
                closed(file)
                throw FSError(error)
            }
        }
        return file
    }

    func register(_ file: OpenFile) -> OpenFile {
        lock.withLock { openFiles[file.inode, default: [:]][ObjectIdentifier(file)] = file }
        return file
    }

    func closed(_ file: OpenFile) {
        let orphan = lock.withLock { () -> NodeRecord? in
            openFiles[file.inode]?[ObjectIdentifier(file)] = nil
            guard openFiles[file.inode]?.isEmpty ?? true else { return nil }
            openFiles[file.inode] = nil
            guard let node = tree[NodeID(rawValue: file.inode)], node.parentID == nil,
                node.id != .root
            else { return nil }
            return node
        }
        guard let orphan else { return }
        // A failure leaves the orphan for the next open to collect.
        try? change { (tree) throws(FSError) in
            tree.remove(orphan.id)
            return ((), [.remove(orphan.id)])
        }
        try? deleteImage(of: orphan)
    }

    /// Who has a file open for writing.
    package func openWriters(of inode: UInt64) -> [OpenerInfo] {
        let pids = lock.withLock {
            Set((openFiles[inode] ?? [:]).values.filter(\.isWritable).map(\.clientPID))
        }
        let disk = volume.store.disk
        return pids.sorted().map { pid in
            // The name is a comfort; the number is what counts.
            let bytes = (try? disk.readSmall("/proc/\(pid)/comm", limit: 64)) ?? []
            return OpenerInfo(
                pid: pid, command: String(decoding: bytes.filter { $0 != 10 }, as: UTF8.self))
        }
    }

    package func list(_ inode: UInt64) throws(FSError) -> DirectoryListing {
        if InodeNumber.isFixed(inode) || InodeNumber.snapshotParts(inode) != nil {
            return try listSnapshots(inode)
        }
        let node = try liveNode(inode)
        guard node.kind == .directory else { throw FSError(.notDirectory) }
        var entries = lock.withLock { tree.entries(of: node.id) }.map {
            DirectoryListing.Entry(name: $0.name, inode: $0.id.rawValue, kind: $0.kind)
        }
        if node.id == .root, options.isSnapdirVisible {
            entries.append(
                .init(
                    name: Self.snapshotsName, inode: InodeNumber.snapshotsFolder, kind: .directory))
            entries.append(
                .init(name: Self.controlName, inode: InodeNumber.controlFolder, kind: .directory))
        }
        return DirectoryListing(entries: entries)
    }

    // MARK: Attributes

    package func setAttributes(
        _ inode: UInt64, _ changes: AttributeChanges
    ) throws(FSError) -> Attributes {
        guard !options.isReadOnly else { throw FSError(.readOnly) }
        let node = try liveNode(inode)
        if let size = changes.sizeBytes {
            guard node.kind != .directory else { throw FSError(.isDirectory) }
            guard let id = node.imageID else { throw FSError(.invalid) }
            try volumed { () throws(VolumeError) in
                let image = try volume.image(id)
                if size != image.sizeBytes { try image.resize(to: size) }
            }
        }
        let now = self.now
        let updated = try change {
            (tree) throws(FSError) -> (NodeRecord, [NameJournal.Change]) in
            guard var node = tree[NodeID(rawValue: inode)] else { throw FSError(.stale) }
            var isChanged = false
            if let mode = changes.mode { (node.mode, isChanged) = (mode & 0o7777, true) }
            if let uid = changes.uid { (node.uid, isChanged) = (uid, true) }
            if let gid = changes.gid { (node.gid, isChanged) = (gid, true) }
            if let time = changes.accessNs { (node.accessNs, isChanged) = (time, true) }
            if let time = changes.modifyNs {
                (node.modifyNs, isChanged) = (time, true)
                if let id = node.imageID, let image = try? volume.image(id) {
                    image.setModified(ns: time)
                }
            }
            guard isChanged else { return (node, []) }
            node.changeNs = now
            tree.put(node)
            return (node, [.put(node)])
        }
        return liveAttributes(updated)
    }

    // MARK: Extended attributes

    private static let userPrefix = "user."

    package func extendedAttribute(_ inode: UInt64, _ name: String) throws(FSError) -> [UInt8] {
        guard name.hasPrefix(Self.userPrefix) else { throw FSError(.notSupported) }
        guard let value = try attributesMap(inode)[name] else { throw FSError(.noAttribute) }
        return value
    }

    package func extendedAttributes(_ inode: UInt64) throws(FSError) -> [String] {
        try attributesMap(inode).keys.sorted()
    }

    private func attributesMap(_ inode: UInt64) throws(FSError) -> [String: [UInt8]] {
        if InodeNumber.isFixed(inode) { return [:] }
        if InodeNumber.snapshotParts(inode) != nil { return try snapshotNode(inode).node.xattrs }
        return try liveNode(inode).xattrs
    }

    package func setExtendedAttribute(
        _ inode: UInt64, _ name: String, _ value: [UInt8], mustCreate: Bool, mustReplace: Bool
    ) throws(FSError) {
        guard name.hasPrefix(Self.userPrefix) else { throw FSError(.notSupported) }
        guard name.utf8.count <= 255 else { throw FSError(.range) }
        guard value.count <= 65536 else { throw FSError(.tooLarge) }
        _ = try liveNode(inode)
        try updateAttributes(inode) { (map) throws(FSError) in
            if mustCreate, map[name] != nil { throw FSError(.exists) }
            if mustReplace, map[name] == nil { throw FSError(.noAttribute) }
            map[name] = value
        }
    }

    package func removeExtendedAttribute(_ inode: UInt64, _ name: String) throws(FSError) {
        guard name.hasPrefix(Self.userPrefix) else { throw FSError(.notSupported) }
        _ = try liveNode(inode)
        try updateAttributes(inode) { (map) throws(FSError) in
            guard map.removeValue(forKey: name) != nil else { throw FSError(.noAttribute) }
        }
    }

    private func updateAttributes(
        _ inode: UInt64, _ body: (inout [String: [UInt8]]) throws(FSError) -> Void
    ) throws(FSError) {
        let now = self.now
        try change { (tree) throws(FSError) -> (Void, [NameJournal.Change]) in
            guard var node = tree[NodeID(rawValue: inode)] else { throw FSError(.stale) }
            try body(&node.xattrs)
            node.changeNs = now
            tree.put(node)
            return ((), [.put(node)])
        }
    }

    // MARK: Statistics

    /// The store's figures, less the reserve.
    package func statistics() throws(FSError) -> FileSystemStatus {
        do throws(SystemError) {
            return try volume.store.disk.fileSystemStatus(volume.store.path)
        } catch { throw FSError(.io, error.description) }
    }
}
