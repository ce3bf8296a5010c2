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
        if InodeNumber.isReadOnly(inode) {
            guard access == .read, !truncates else { throw FSError(.readOnly) }
            let backing = try snapshotBacking(inode)
            return try lock.withLock { () throws(FSError) in
                if let id = InodeNumber.snapshotParts(inode)?.snapshot, doomedSnapshots.contains(id)
                {
                    throw FSError(.stale)
                }
                return register(inode, backing, access, clientPID)
            }
        }
        if access != .read || truncates { try requireWritable() }
        let node = try liveNode(inode)
        guard node.kind != .directory else { throw FSError(.isDirectory) }
        guard let id = node.imageID else { throw FSError(.invalid) }
        if let fixed {
            let view = try fixed.view(of: node.id)
            return lock.withLock { register(inode, .view(view), access, clientPID) }
        }
        let image = try volumed { () throws(VolumeError) in try volume.image(id) }
        let file = try lock.withLock { () throws(FSError) in
            // It may have been deleted since; once it is registered, a deletion waits for its close.
            guard tree[node.id] != nil else { throw FSError(.stale) }
            if access != .read || truncates, busyFiles.contains(node.id) { throw FSError(.busy) }
            return register(inode, .image(image), access, clientPID)
        }
        if truncates, image.sizeBytes > 0 {
            do throws(VolumeError) { try image.resize(to: 0) } catch {
                closed(file)
                throw FSError(error)
            }
        }
        return file
    }

    /// Makes an open file known. The caller holds the lock.
    func register(
        _ inode: UInt64, _ backing: OpenFile.Backing, _ access: OpenFile.Access, _ clientPID: Int32
    ) -> OpenFile {
        let shared = openFiles[inode] ?? OpenInode(ticket: ticket(of: inode))
        let file = OpenFile(
            inode: inode, backing: backing, access: access, clientPID: clientPID, shared: shared,
            fileSystem: self)
        shared.files[ObjectIdentifier(file)] = file
        openFiles[inode] = shared
        if file.isWritable {
            lazyTimes.insert(NodeID(rawValue: inode))
            journal.startTicking()
        }
        return file
    }

    func closed(_ file: OpenFile) {
        let (wasLast, wasLastWriter) = lock.withLock { () -> (Bool, Bool) in
            guard let shared = openFiles[file.inode],
                shared.files.removeValue(forKey: ObjectIdentifier(file)) != nil
            else { return (false, false) }
            if shared.files.isEmpty { openFiles[file.inode] = nil }
            return (shared.files.isEmpty, file.isWritable && !shared.hasWriters)
        }
        if wasLastWriter { commitTime(of: file.inode) }
        if wasLast, !InodeNumber.isReadOnly(file.inode) { collectOrphan(file.inode) }
    }

    /// Deletes a file that has no name and that nobody has open. A failure leaves it for the next
    /// open of the pool to collect.
    private func collectOrphan(_ inode: UInt64) {
        let isOrphan = { (node: NodeRecord?) in
            node.map { $0.parentID == nil && $0.id != .root } ?? false
        }
        guard lock.withLock({ isOrphan(tree[NodeID(rawValue: inode)]) }) else { return }
        let doomed = try? change(isFreeing: true) {
            (tree) throws(FSError) -> (NodeRecord?, [NameChange]) in
            // It may have been opened again, through /proc.
            guard let node = tree[NodeID(rawValue: inode)], isOrphan(node), openFiles[inode] == nil
            else { return (nil, []) }
            tree.remove(node.id)
            return (node, [.remove(node.id)])
        }
        if let doomed = doomed ?? nil { try? deleteImage(of: doomed) }
    }

    /// Who has a file open for writing.
    package func openWriters(of inode: UInt64) -> [OpenerInfo] {
        let pids = lock.withLock {
            Set((openFiles[inode]?.files ?? [:]).values.filter(\.isWritable).map(\.clientPID))
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
        if InodeNumber.isReadOnly(inode) {
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
        try requireWritable()
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
            (tree) throws(FSError) -> (NodeRecord, [NameChange]) in
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
            if changes.sizeBytes != nil, let time = imageTime(node), time > node.modifyNs {
                (node.modifyNs, isChanged) = (time, true)
            }
            guard isChanged else { return (node, []) }
            node.changeNs = now
            tree.put(node)
            return (node, [.put(node)])
        }
        return liveAttributes(updated)
    }

    /// Runs `body` now, or later, when a change of the image may begin.
    package func whenChangeable(
        _ inode: UInt64, _ body: @escaping @Sendable (_ isGivenUp: Bool) -> Void
    ) {
        let id = lock.withLock { tree[NodeID(rawValue: inode)]?.imageID }
        guard let image = id.flatMap({ try? volume.image($0) }), image.mustHold(0) else {
            return body(false)
        }
        held.hold(image, bytes: 0, body)
    }

    /// As ``setAttributes(_:_:)``.
    /// - Parameter reply: makes the reply, which is sent when the targets that a write waits for have a
    ///   new size; not when this throws.
    package func setAttributes(
        _ inode: UInt64, _ changes: AttributeChanges, _ reply: (Attributes) -> PendingReply
    ) throws(FSError) {
        let attributes = try setAttributes(inode, changes)
        let pending = reply(attributes)
        guard changes.sizeBytes != nil,
            let image = lock.withLock({ tree[NodeID(rawValue: inode)]?.imageID })
        else { return pending.send(pending.context, pending.value, 0) }
        volume.gate.finishWrite(volume.sequence, of: image, pending)
    }

    // MARK: Extended attributes

    private static let userPrefix = "user."
    /// Of one file, all together: they are kept in memory and committed as one row.
    private static let maxAttributeBytes = 256 << 10

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
            let total = map.reduce(0) { $0 + $1.key.utf8.count + $1.value.count }
            if total > Self.maxAttributeBytes { throw FSError(.noSpace) }
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
        try change { (tree) throws(FSError) -> (Void, [NameChange]) in
            guard var node = tree[NodeID(rawValue: inode)] else { throw FSError(.stale) }
            try body(&node.xattrs)  // of a copy: what it throws changes nothing
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
