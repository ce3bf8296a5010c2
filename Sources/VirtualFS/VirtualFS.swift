// Names, inodes, handles and snapshot folders of a mounted (or just opened) pool. Knows no FUSE.
//
// Locks: `lock` guards the tree and the tables of open files; it is never held across a sync, a
// wait or a call that takes the volume's structure lock. A change of names runs inside
// `Volume.withNameChange`, so that a snapshot's cut has the whole change or nothing of it.

import BlockCore
import Pool
import SystemIO
import Volume

package final class VirtualFS: @unchecked Sendable {  // tables are under `lock`
    package struct Options: Sendable {
        package var isSnapdirVisible = false
        package var isReadOnly = false
        /// What `.doppel/status.json` holds.
        package var status: @Sendable () -> [UInt8] = { Array("{}\n".utf8) }
        package init() {}
    }

    package let volume: Volume
    package let options: Options
    let journal: NameJournal
    let lock = Lock()
    var tree: NameTree
    private var nextNode: NodeID
    /// Open files by inode; how a deletion knows that it must wait for the last close.
    var openFiles: [UInt64: [ObjectIdentifier: OpenFile]] = [:]
    /// Ticket of the last change of names that touches a node and may not be durable.
    private var tickets: [NodeID: UInt64] = [:]
    var snapshotTrees: [Int64: SnapshotTree] = [:]

    package init(volume: Volume, options: Options = Options()) throws(FSError) {
        self.volume = volume
        self.options = options
        let (records, next): ([NodeRecord], NodeID)
        do {
            (records, next) = try volume.store.catalog.read {
                (try $0.nodes(), try $0.nextNodeID())
            }
        } catch { throw FSError(.io, "\(error)") }
        tree = NameTree(records)
        nextNode = next
        journal = NameJournal(catalog: volume.store.catalog)
        journal.start()
        try collectOrphans()
    }

    /// Files without a name (open when the power went), and images without a file.
    private func collectOrphans() throws(FSError) {
        let orphans = tree.nodes.values.filter { $0.parentID == nil && $0.id != .root }
        if !orphans.isEmpty {
            for orphan in orphans { tree.remove(orphan.id) }
            journal.queue(orphans.map { .remove($0.id) }, at: volume.sequence)
            try journal.waitDurable()
        }
        let named = Set(tree.nodes.values.compactMap(\.imageID))
        for id in volume.imageIDs where !named.contains(id) {
            try volumed { () throws(VolumeError) in try volume.deleteImage(id) }
        }
    }

    // MARK: Changing names

    /// Runs a change of the tree at its place in the sequence and queues what it did.
    /// - Parameter body: changes the tree under the lock and returns what the catalog must learn.
    func change<T>(
        _ body: (inout NameTree) throws(FSError) -> (T, [NameJournal.Change])
    ) throws(FSError) -> T {
        guard !options.isReadOnly else { throw FSError(.readOnly) }
        return try volume.withNameChange { (sequence) throws(FSError) in
            try lock.withLock { () throws(FSError) in
                let (result, changes) = try body(&tree)
                let ticket = journal.queue(changes, at: sequence)
                for case .put(let node) in changes {
                    tickets[node.id] = ticket
                    if let parent = node.parentID { tickets[parent] = ticket }
                }
                return result
            }
        }
    }

    func newNodeID() -> NodeID {
        defer { nextNode = NodeID(rawValue: nextNode.rawValue + 1) }
        return nextNode
    }

    /// Returns when the last change of this node's name is durable; at once for nearly every call.
    package func waitDurable(inode: UInt64) throws(FSError) {
        let ticket = lock.withLock { tickets[NodeID(rawValue: inode)] }
        guard let ticket else { return }
        try journal.waitDurable(ticket)
        lock.withLock {
            if tickets[NodeID(rawValue: inode)] == ticket {
                tickets[NodeID(rawValue: inode)] = nil
            }
        }
    }

    package func syncDirectory(_ inode: UInt64) throws(FSError) { try journal.waitDurable() }

    /// Makes every change of names so far durable.
    package func flushNames() throws(FSError) {
        commitTimes()
        try journal.waitDurable()
    }

    /// Times of writes are kept in memory and reach the catalog here: at a sync of all, at close.
    private func commitTimes() {
        volume.withNameChange { (sequence) in
            lock.withLock {
                var changes: [NameJournal.Change] = []
                for node in tree.nodes.values {
                    guard let id = node.imageID, let image = try? volume.image(id),
                        image.modifiedNs > node.modifyNs
                    else { continue }
                    var updated = node
                    updated.modifyNs = image.modifiedNs
                    updated.changeNs = max(node.changeNs, image.modifiedNs)
                    tree.put(updated)
                    changes.append(.put(updated))
                }
                if !changes.isEmpty { journal.queue(changes, at: sequence) }
            }
        }
    }

    /// Makes all names durable and stops; the volume is closed by its owner.
    package func close() throws(FSError) {
        commitTimes()
        try journal.stop()
    }

    // MARK: Helpers

    static func checkName(_ name: [UInt8]) throws(FSError) {
        if name.count > 255 { throw FSError(.nameTooLong) }
        if name.isEmpty || name.contains(0) || name.contains(0x2f) { throw FSError(.invalid) }
    }

    static let snapshotsName = Array(".snapshots".utf8)
    static let controlName = Array(".doppel".utf8)

    func isReserved(_ parent: UInt64, _ name: [UInt8]) -> Bool {
        parent == NodeID.root.rawValue && (name == Self.snapshotsName || name == Self.controlName)
    }

    /// The live node of an inode.
    /// - Throws: `.readOnly` for what belongs to a snapshot or a dot folder.
    func liveNode(_ inode: UInt64) throws(FSError) -> NodeRecord {
        if InodeNumber.snapshotParts(inode) != nil || InodeNumber.isFixed(inode) {
            throw FSError(.readOnly, "snapshots are read-only: copy files out, or `doppel restore`")
        }
        guard let node = lock.withLock({ tree[NodeID(rawValue: inode)] }) else {
            throw FSError(.stale)
        }
        return node
    }

    func liveAttributes(_ node: NodeRecord) -> Attributes {
        let links: UInt32 =
            node.kind == .directory
            ? 2 + UInt32(lock.withLock { tree.subdirectoryCount(node.id) })
            : (node.parentID == nil ? 0 : 1)
        var attributes = Attributes(node, inode: node.id.rawValue, linkCount: links)
        if let id = node.imageID, let image = try? volume.image(id) {
            attributes.sizeBytes = image.sizeBytes
            attributes.allocatedBytes = image.allocatedBytes
            if image.modifiedNs > attributes.modifyNs {
                attributes.modifyNs = image.modifiedNs
                attributes.changeNs = max(attributes.changeNs, image.modifiedNs)
            }
        }
        return attributes
    }

    var now: Int64 { volume.store.disk.now() }
}
