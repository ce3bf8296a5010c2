// Names, inodes, handles and snapshot folders of a mounted (or just opened) pool. Knows no FUSE.
//
// Locks, in the order they are taken:
//   the volume's cut lock   by `change`: a snapshot's cut has the whole change or nothing of it
//   lock                    the tree and the tables of open files; never held across a sync, a wait
//                           or a call that takes the volume's structure lock
//   the journal's lock      leaf
// Reads, writes and flushes of an open file take none of them.

import BlockCore
import Pool
import Synchronization
import SystemIO
import Volume

package final class VirtualFS: @unchecked Sendable {  // tables are under `lock`
    package struct Options: Sendable {
        package var isSnapdirVisible = false
        package var isReadOnly = false
        /// What `.doppel/status.json` holds.
        package var status: @Sendable () -> [UInt8] = { Array("{}\n".utf8) }
        /// How long a change of names may wait for company before it is committed.
        package var commitDelayMs: Int64 = 1000
        /// How long a modification time may stay in memory alone.
        package var timesDelayMs: Int64 = 5000
        package init() {}
    }

    package let volume: Volume
    package let options: Options
    let journal: NameJournal
    let lock = Lock()
    var tree: NameTree
    private var nextNode: NodeID
    /// Open files by inode; how a deletion knows that it must wait for the last close.
    var openFiles: [UInt64: OpenInode] = [:]
    /// Ticket of the last change of names that touches a node and may not be durable.
    private var tickets: [NodeID: UInt64] = [:]
    /// Files whose modification time may be newer than the tree knows.
    var lazyTimes: Set<NodeID> = []
    /// Images whose `image.txt` may not say what the tree says.
    private var undescribed: Set<NodeID> = []
    private var described: [NodeID: String] = [:]
    /// Files that are being restored or shrunk: not to be opened for writing now.
    var busyFiles: Set<NodeID> = []
    var snapshotTrees: [Int64: SnapshotTree] = [:]
    /// Snapshots that are being deleted: nothing of them can be opened any more.
    var doomedSnapshots: Set<Int64> = []

    package let held = HeldChanges()

    /// What is shown instead of the pool's own names and images.
    let fixed: FixedTree?

    /// - Parameter fixed: a state that never changes, shown read-only.
    package init(
        volume: Volume, options: Options = Options(), fixed: FixedTree? = nil
    ) throws(FSError) {
        var options = options
        if fixed != nil { options.isReadOnly = true }
        self.volume = volume
        self.options = options
        self.fixed = fixed
        let store = volume.store
        let (records, next): ([NodeRecord], NodeID)
        do {
            (records, next) = try store.catalog.read {
                (try fixed?.records ?? $0.nodes(), try $0.nextNodeID())
            }
        } catch { throw FSError(.io, "\(error)") }
        tree = NameTree(records)
        nextNode = next
        journal = NameJournal(
            catalog: store.catalog, disk: store.disk, delayMs: options.commitDelayMs,
            tickMs: options.timesDelayMs)
        journal.start { [weak self] in self?.keepHouse() ?? false }
        do throws(FSError) {
            try collectOrphans()
            try collectHelperSnapshots()
        } catch {
            journal.abandon()
            throw error
        }
        if !store.wasUnclean && !options.isReadOnly { takeTimesFromCatalog() }
    }

    /// After a clean end the catalog has the times. The files below may say otherwise: that of a
    /// head is as new as the snapshot that began it.
    private func takeTimesFromCatalog() {
        volume.withNameChange { _ in
            for node in tree.nodes.values {
                guard let id = node.imageID, let image = try? volume.image(id),
                    image.modifiedNs != node.modifyNs
                else { continue }
                image.setModified(ns: node.modifyNs)
            }
        }
    }

    deinit { journal.abandon() }

    /// Files without a name (open when the power went), and images without a file.
    private func collectOrphans() throws(FSError) {
        let orphans = tree.nodes.values.filter { $0.parentID == nil && $0.id != .root }
        for orphan in orphans { tree.remove(orphan.id) }
        // A read-only open changes nothing: they are left to the next one.
        guard !options.isReadOnly else { return }
        let changes = orphans.map { NameChange.remove($0.id) }
        if !changes.isEmpty {
            volume.withNameChange { _ = journal.queue(changes, at: $0.take(changes)) }
        }
        try journal.waitDurable()
        let named = Set(tree.nodes.values.compactMap(\.imageID))
        for id in volume.imageIDs where !named.contains(id) {
            try volumed { () throws(VolumeError) in try volume.deleteImage(id) }
        }
    }

    /// What a clone or a diff takes for itself and deletes when it is done; a crash left it.
    private func collectHelperSnapshots() throws(FSError) {
        guard !options.isReadOnly else { return }
        let left = try volumed { () throws(VolumeError) in try volume.snapshots() }
        for record in left where record.isHelper { try deleteSnapshot(record.name) }
    }

    // MARK: Changing names

    /// Runs a change of the tree at its place in the sequence and queues what it did.
    /// - Parameters:
    ///   - isFreeing: gives space back, so it is done on a full store too.
    ///   - body: changes the tree under the lock and returns what the catalog must learn. It throws
    ///     before its first change or not at all, and reaches the tree through its argument alone.
    func change<T>(
        isFreeing: Bool = false,
        _ body: (inout NameTree) throws(FSError) -> (T, [NameChange])
    ) throws(FSError) -> T {
        try requireWritable()
        try journal.check(isFreeing: isFreeing)
        return try volume.withNameChange { (place) throws(FSError) in
            // It may have waited until the pool was handed over.
            try requireUnfenced()
            return try lock.withLock { () throws(FSError) in
                let (result, changes) = try body(&tree)
                if !changes.isEmpty {
                    note(changes, ticket: journal.queue(changes, at: place.take(changes)))
                }
                return result
            }
        }
    }

    private func note(_ changes: [NameChange], ticket: UInt64) {
        for change in changes {
            switch change {
            case .put(let node):
                undescribed.insert(node.id)
                journal.startTicking()
                tickets[node.id] = ticket
                openFiles[node.id.rawValue]?.ticket.store(ticket, ordering: .releasing)
            case .remove(let id):
                tickets[id] = nil
                undescribed.remove(id)
                described[id] = nil
            }
        }
    }

    func newNodeID() -> NodeID {
        defer { nextNode = NodeID(rawValue: nextNode.rawValue + 1) }
        return nextNode
    }

    /// - Throws: `.readOnly` where the pool is open for reading only, or was fenced.
    func requireWritable() throws(FSError) {
        try requireUnfenced()
        if options.isReadOnly { throw FSError(.readOnly, "the pool is open read-only") }
    }

    func requireUnfenced() throws(FSError) {
        if let reason = volume.fenceReason { throw FSError(.readOnly, reason) }
    }

    /// The ticket of a node's last change. The caller holds the lock.
    func ticket(of inode: UInt64) -> UInt64 { tickets[NodeID(rawValue: inode)] ?? 0 }

    /// Returns when the last change of this node's name is durable; at once for nearly every call.
    package func waitDurable(inode: UInt64) throws(FSError) {
        try journal.waitDurable(lock.withLock { ticket(of: inode) })
    }

    /// Returns when every change of names is durable here, also in a pool that takes no more.
    package func settleNames() throws(FSError) { try journal.waitDurable() }

    package func syncDirectory(_ inode: UInt64) throws(FSError) {
        try requireUnfenced()
        try journal.waitDurable()
    }

    /// - Parameter reply: as with ``OpenFile/flush(_:)``.
    package func syncDirectory(_ inode: UInt64, _ reply: PendingReply) throws(FSError) {
        let sequence = volume.gate.begin(volume.sequence)
        try syncDirectory(inode)
        volume.gate.finish(sequence, reply)
    }

    /// Makes every change of names so far durable.
    package func flushNames() throws(FSError) {
        _ = commitLazyTimes()
        try journal.waitDurable()
    }

    /// Makes all names durable and stops; the volume is closed by its owner.
    package func close() throws(FSError) {
        _ = commitLazyTimes()
        try journal.stop()
        describeImages()
    }

    // MARK: For people without Doppel

    /// Writes `image.txt` of what changed its name or its size since the last call.
    private func describeImages() {
        guard !options.isReadOnly else { return }
        let changed = lock.withLock { () -> [(NodeID, ImageID, String)] in
            defer { undescribed = [] }
            let folders = undescribed.filter { tree[$0]?.kind == .directory }
            var ids = undescribed
            if !folders.isEmpty {
                // With a folder everything beneath it has another path.
                ids.formUnion(
                    tree.nodes.keys.filter { id in
                        folders.contains { tree.isInside(id, $0) }
                    })
            }
            return ids.compactMap { id in
                tree[id]?.imageID.map { (id, $0, tree.path(of: id)) }
            }
        }
        for (id, imageID, path) in changed {
            guard let image = try? volume.image(imageID) else { continue }
            let text = "\(path)\n\(image.sizeBytes)"
            if lock.withLock({ described[id] == text }) { continue }
            volume.store.describe(image: imageID, name: path, sizeBytes: image.sizeBytes)
            lock.withLock { described[id] = text }
        }
    }

    // MARK: Times of writes

    /// A write moves its image's time in memory; here the times reach the tree and the catalog: every
    /// few seconds while files are open for writing, at their close, at a sync of all.
    /// - Returns: whether there are files whose time may still move.
    func commitLazyTimes() -> Bool {
        guard !options.isReadOnly else { return false }
        return volume.withNameChange { (place) in
            // One that was replaced, or handed over, changes nothing any more.
            guard volume.fenceReason == nil else { return false }
            return lock.withLock {
                let changes = adoptTimes(of: lazyTimes)
                if !changes.isEmpty {
                    note(changes, ticket: journal.queue(changes, at: place.take(changes)))
                }
                lazyTimes = lazyTimes.filter { openFiles[$0.rawValue]?.hasWriters ?? false }
                return !lazyTimes.isEmpty
            }
        }
    }

    /// The same for one file that nobody writes any more, or whose size was changed without a handle.
    func commitTime(of inode: UInt64) {
        guard !options.isReadOnly else { return }
        volume.withNameChange { (place) in
            guard volume.fenceReason == nil else { return }
            lock.withLock {
                let changes = adoptTimes(of: [NodeID(rawValue: inode)])
                guard !changes.isEmpty else { return }
                note(changes, ticket: journal.queue(changes, at: place.take(changes)))
            }
        }
    }

    /// Takes the images' times over into the tree. The caller holds the lock.
    private func adoptTimes(of ids: Set<NodeID>) -> [NameChange] {
        ids.compactMap { id in
            guard var node = tree[id], let ns = imageTime(node), ns > node.modifyNs else {
                return nil
            }
            node.modifyNs = ns
            node.changeNs = max(node.changeNs, ns)
            tree.put(node)
            return .put(node)
        }
    }

    func imageTime(_ node: NodeRecord) -> Int64? {
        node.imageID.flatMap { try? volume.image($0) }?.modifiedNs
    }

    /// What the committer does every few seconds while there is something to do.
    /// - Returns: whether there still is.
    private func keepHouse() -> Bool {
        volume.store.payReserve()
        let isOwing = volume.store.owesReserve
        let isOpen = commitLazyTimes()
        describeImages()
        return isOpen || isOwing
    }

    // MARK: The way out of a full store

    /// Runs something that gives space back with the reserve's space at its disposal.
    func withReserve<T>(_ body: () throws(FSError) -> T) throws(FSError) -> T {
        // What is freed by a file that is still being closed comes a moment later.
        defer { if volume.store.owesReserve { journal.startTicking() } }
        return try volume.store.withReserve(body)
    }

    // MARK: Helpers

    static func checkName(_ name: [UInt8]) throws(FSError) {
        if name.count > 255 { throw FSError(.nameTooLong) }
        if name.isEmpty || name.contains(0) || name.contains(0x2f) || name == [0x2e]
            || name == [0x2e, 0x2e]
        {
            throw FSError(.invalid)
        }
    }

    static let snapshotsName = Array(".snapshots".utf8)
    static let controlName = Array(".doppel".utf8)

    func isReserved(_ parent: UInt64, _ name: [UInt8]) -> Bool {
        parent == NodeID.root.rawValue && (name == Self.snapshotsName || name == Self.controlName)
    }

    /// The live node of an inode.
    /// - Throws: `.readOnly` for what belongs to a snapshot or a dot folder.
    func liveNode(_ inode: UInt64) throws(FSError) -> NodeRecord {
        if InodeNumber.isReadOnly(inode) {
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
        if let fixed {
            fixed.complete(&attributes, node.id)
            return attributes
        }
        if let id = node.imageID, let damaged = volume.damagedImage(id) {
            attributes.sizeBytes = damaged.sizeBytes
        } else if let id = node.imageID, let image = try? volume.image(id) {
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
