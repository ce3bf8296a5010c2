import BlockCore
import Pool
import SystemIO
import Volume

/// A state of a pool that never changes while it is shown: what a mount of a mirror shows, which goes
/// on being written to.
package final class FixedTree: @unchecked Sendable {  // `views` is under `lock`
    private let nodes: [NodeID: SnapshotNode]
    private let open: @Sendable (SnapshotNode) throws(FSError) -> LayerView?
    private let lock = Lock()
    private var views: [NodeID: LayerView] = [:]

    /// - Parameter open: the content of a file; called once for each.
    package init(
        _ nodes: [SnapshotNode],
        open: @escaping @Sendable (SnapshotNode) throws(FSError) -> LayerView?
    ) {
        self.nodes = Dictionary(nodes.map { ($0.node.id, $0) }, uniquingKeysWith: { a, _ in a })
        self.open = open
    }

    /// Whose content is that of layers alone.
    var layered: [SnapshotNode]? {
        nodes.values.allSatisfy { $0.node.imageID == nil || $0.layerID != nil }
            ? Array(nodes.values) : nil
    }
    var records: [NodeRecord] { nodes.values.map(\.node) }

    func view(of id: NodeID) throws(FSError) -> LayerView {
        if let view = lock.withLock({ views[id] }) { return view }
        guard let node = nodes[id] else { throw FSError(.stale) }
        guard let view = try open(node) else { throw FSError(.invalid) }
        return lock.withLock {
            if let other = views[id] { return other }
            views[id] = view
            return view
        }
    }

    /// What only the content knows.
    func complete(_ attributes: inout Attributes, _ id: NodeID) {
        attributes.isImmutable = true
        guard let node = nodes[id], node.node.kind == .file else { return }
        attributes.sizeBytes = node.sizeBytes
        attributes.allocatedBytes = (try? view(of: id).allocatedBytes()) ?? 0
    }
}
