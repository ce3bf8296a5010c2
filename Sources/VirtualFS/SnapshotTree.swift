import BlockCore
import Pool
import Volume

/// The names of one snapshot, as they were at its cut.
struct SnapshotTree: Sendable {
    let record: SnapshotRecord
    let nodes: [NodeID: SnapshotNode]
    private let names: NameTree
    /// All but the root. Ids jump with each promotion, and would not fit beside the snapshot's; names of a
    /// snapshot never change, and so their order does not.
    private let order: [NodeID]

    init(record: SnapshotRecord, nodes: [SnapshotNode]) {
        self.record = record
        order = nodes.map(\.node.id).filter { $0 != .root }.sorted()
        self.nodes = Dictionary(uniqueKeysWithValues: nodes.map { ($0.node.id, $0) })
        names = NameTree(nodes.map(\.node))
    }

    /// Counts from the root's; the same at each mount.
    func number(of id: NodeID) -> UInt64 {
        var (low, high) = (0, order.count)
        while low < high {
            let middle = (low + high) / 2
            if order[middle] < id { low = middle + 1 } else { high = middle }
        }
        return id == .root ? InodeNumber.rootNumber : InodeNumber.rootNumber + 1 + UInt64(low)
    }
    func id(_ number: UInt64) -> NodeID? {
        if number == InodeNumber.rootNumber { return .root }
        let index = Int(number) - Int(InodeNumber.rootNumber) - 1
        return order.indices.contains(index) ? order[index] : nil
    }
    func inode(of id: NodeID) -> UInt64 {
        InodeNumber.inSnapshot(record.id.rawValue, number(of: id))
    }

    func child(_ parent: NodeID, _ name: [UInt8]) -> SnapshotNode? {
        names.child(parent, name).flatMap { nodes[$0.id] }
    }
    func entries(of parent: NodeID) -> [NodeRecord] { names.entries(of: parent) }
    func resolve(_ path: String) -> SnapshotNode? {
        names.resolve(path).flatMap { nodes[$0.id] }
    }
    func subdirectoryCount(_ id: NodeID) -> Int { names.subdirectoryCount(id) }
    func path(of id: NodeID) -> String { names.path(of: id) }
    func parent(of id: NodeID) -> NodeID? { names[id]?.parentID }
}

extension VirtualFS {
    // MARK: Finding

    func snapshotTree(_ record: SnapshotRecord) throws(FSError) -> SnapshotTree {
        if let tree = lock.withLock({ snapshotTrees[record.id.rawValue] }) { return tree }
        return try readSnapshotTree(record)
    }

    /// Names never change, layers do: a merge gives the content of one to another.
    func readSnapshotTree(_ record: SnapshotRecord) throws(FSError) -> SnapshotTree {
        do {
            let nodes = try volume.store.catalog.read { try $0.snapshotNodes(record.id) }
            let tree = SnapshotTree(record: record, nodes: nodes)
            lock.withLock {
                if !doomedSnapshots.contains(record.id.rawValue) {
                    snapshotTrees[record.id.rawValue] = tree
                }
            }
            return tree
        } catch { throw FSError(.io, "\(error)") }
    }

    /// Runs `body` with a file's layer. Ids of layers are not used twice: where `body` fails because
    /// a merge took the layer away meanwhile, the catalog knows the one that has its content now.
    func withLayer<T>(
        of id: NodeID, in tree: SnapshotTree,
        _ body: (LayerID, SnapshotNode) throws(VolumeError) -> T
    ) throws(FSError) -> T {
        var node = tree.nodes[id]
        while true {
            guard let known = node else { throw FSError(.stale) }
            guard let layer = known.layerID else {
                // An image that was damaged at the cut has no content in the snapshot.
                throw FSError(known.node.kind == .file ? .damaged : .invalid)
            }
            do throws(VolumeError) { return try body(layer, known) } catch {
                node = try readSnapshotTree(tree.record).nodes[id]
                if let node, node.layerID == layer { throw FSError(error) }
            }
        }
    }

    private func snapshots() throws(FSError) -> [SnapshotRecord] {
        try volumed { () throws(VolumeError) in try volume.snapshots() }
    }

    private func snapshotTree(id: Int64) throws(FSError) -> SnapshotTree {
        if let tree = lock.withLock({ snapshotTrees[id] }) { return tree }
        guard let record = try snapshots().first(where: { $0.id.rawValue == id }) else {
            throw FSError(.stale)
        }
        return try snapshotTree(record)
    }

    func snapshotNode(_ inode: UInt64) throws(FSError) -> SnapshotNode {
        guard let parts = InodeNumber.snapshotParts(inode) else { throw FSError(.stale) }
        let tree = try snapshotTree(id: parts.snapshot)
        guard let node = tree.id(parts.number).flatMap({ tree.nodes[$0] }) else {
            throw FSError(.stale)
        }
        return node
    }

    func lookupInSnapshots(parent: UInt64, name: [UInt8]) throws(FSError) -> Attributes {
        switch parent {
        case InodeNumber.controlFolder:
            guard name == Array("status.json".utf8) else { throw FSError(.notFound) }
            return try snapshotAttributes(of: InodeNumber.statusFile)
        case InodeNumber.snapshotsFolder:
            let wanted = String(decoding: name, as: UTF8.self)
            guard let record = try snapshots().first(where: { $0.name == wanted }) else {
                throw FSError(.notFound)
            }
            return try snapshotAttributes(
                of: InodeNumber.inSnapshot(record.id.rawValue, InodeNumber.rootNumber))
        default:
            guard let parts = InodeNumber.snapshotParts(parent) else {
                throw FSError(.notDirectory)
            }
            let tree = try snapshotTree(id: parts.snapshot)
            guard let child = tree.id(parts.number).flatMap({ tree.child($0, name) }) else {
                throw FSError(.notFound)
            }
            return attributes(of: child, in: tree)
        }
    }

    func snapshotAttributes(of inode: UInt64) throws(FSError) -> Attributes {
        if let parts = InodeNumber.snapshotParts(inode) {
            let tree = try snapshotTree(id: parts.snapshot)
            guard let node = tree.id(parts.number).flatMap({ tree.nodes[$0] }) else {
                throw FSError(.stale)
            }
            return attributes(of: node, in: tree)
        }
        let root = try liveNode(NodeID.root.rawValue)
        let isFolder = inode != InodeNumber.statusFile
        var attributes = Attributes(root, inode: inode, linkCount: isFolder ? 2 : 1)
        attributes.kind = isFolder ? .directory : .file
        attributes.mode = isFolder ? 0o555 : 0o444
        if !isFolder {
            attributes.sizeBytes = UInt64(options.status().count)
            attributes.modifyNs = now
        }
        return attributes
    }

    private func attributes(of node: SnapshotNode, in tree: SnapshotTree) -> Attributes {
        let id = node.node.id
        var attributes = Attributes(
            node.node, inode: tree.inode(of: id),
            linkCount: node.node.kind == .directory ? UInt32(2 + tree.subdirectoryCount(id)) : 1)
        // Read-only, whoever asks: a copy made with its mode kept is writable only by intent.
        attributes.mode &= ~0o222
        attributes.isImmutable = true
        if node.node.kind == .file {
            attributes.sizeBytes = node.sizeBytes
            attributes.allocatedBytes = (try? view(of: id, in: tree).allocatedBytes()) ?? 0
        }
        return attributes
    }

    func parentInSnapshots(of inode: UInt64) -> UInt64 {
        guard let parts = InodeNumber.snapshotParts(inode) else {
            return inode == InodeNumber.statusFile
                ? InodeNumber.controlFolder : NodeID.root.rawValue
        }
        guard let tree = try? snapshotTree(id: parts.snapshot),
            let parent = tree.id(parts.number).flatMap({ tree.parent(of: $0) })
        else { return InodeNumber.snapshotsFolder }
        return tree.inode(of: parent)
    }

    func snapshotSymlink(_ inode: UInt64) throws(FSError) -> [UInt8] {
        guard let target = try snapshotNode(inode).node.symlinkTarget else {
            throw FSError(.invalid)
        }
        return target
    }

    func snapshotBacking(_ inode: UInt64) throws(FSError) -> OpenFile.Backing {
        if inode == InodeNumber.statusFile { return .bytes(options.status()) }
        guard let parts = InodeNumber.snapshotParts(inode) else { throw FSError(.isDirectory) }
        let tree = try snapshotTree(id: parts.snapshot)
        guard let id = tree.id(parts.number) else { throw FSError(.stale) }
        if tree.nodes[id]?.node.kind == .directory { throw FSError(.isDirectory) }
        return .view(try view(of: id, in: tree))
    }

    private func view(of id: NodeID, in tree: SnapshotTree) throws(FSError) -> LayerView {
        try withLayer(of: id, in: tree) { (layer, node) throws(VolumeError) in
            try volume.openView(layer, sizeBytes: node.sizeBytes)
        }
    }

    func listSnapshots(_ inode: UInt64) throws(FSError) -> DirectoryListing {
        switch inode {
        case InodeNumber.controlFolder:
            return DirectoryListing(entries: [
                .init(name: Array("status.json".utf8), inode: InodeNumber.statusFile, kind: .file)
            ])
        case InodeNumber.snapshotsFolder:
            return DirectoryListing(
                entries: try snapshots().map {
                    .init(
                        name: Array($0.name.utf8),
                        inode: InodeNumber.inSnapshot($0.id.rawValue, InodeNumber.rootNumber),
                        kind: .directory)
                })
        default:
            guard let parts = InodeNumber.snapshotParts(inode) else { throw FSError(.notDirectory) }
            let tree = try snapshotTree(id: parts.snapshot)
            guard let id = tree.id(parts.number), tree.nodes[id]?.node.kind == .directory else {
                throw FSError(.notDirectory)
            }
            return DirectoryListing(
                entries: tree.entries(of: id).map {
                    .init(name: $0.name, inode: tree.inode(of: $0.id), kind: $0.kind)
                })
        }
    }
}
