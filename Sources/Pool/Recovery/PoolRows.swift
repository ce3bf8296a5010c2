import BlockCore

/// The catalog's rows as values, with what a check asks of them.
struct PoolRows: Sendable {
    var isClean = false
    var isMirror = false
    var images: [ImageRecord] = []
    var layers: [LayerID: LayerRecord] = [:]
    var snapshots: [SnapshotRecord] = []
    var snapshotNodes: [SnapshotID: [SnapshotNode]] = [:]
    var nodes: [NodeID: NodeRecord] = [:]
    var merges: [MergeRecord] = []
    var lastLayer: Int64 = 0
    var lastImage: Int64 = 0

    init(_ tx: CatalogTransaction) throws {
        isClean = try tx.poolState().cleanlyClosed
        isMirror = try tx.replica()?.role == .replica
        images = try tx.images()
        for row in try tx.layers() { layers[row.id] = row }
        snapshots = try tx.snapshots()
        for snapshot in snapshots {
            snapshotNodes[snapshot.id] = try tx.snapshotNodes(snapshot.id)
        }
        for node in try tx.nodes() { nodes[node.id] = node }
        merges = try tx.merges()
        lastLayer = try tx.lastLayerID().rawValue
        lastImage = try tx.lastImageID().rawValue
    }

    var mergingLayers: Set<LayerID> { Set(merges.flatMap { [$0.layerID, $0.intoLayerID] }) }

    /// The layers from `top` down, and whether the chain is whole: no row missing, no circle.
    func chain(from top: LayerID) -> (path: [LayerID], isWhole: Bool) {
        var path: [LayerID] = []
        var seen: Set<LayerID> = []
        var next: LayerID? = top
        while let id = next {
            guard seen.insert(id).inserted, let row = layers[id] else { return (path, false) }
            path.append(id)
            next = row.parentID
        }
        return (path, true)
    }

    func path(of id: NodeID) -> String { Self.path(of: id, in: nodes) }

    static func path(of id: NodeID, in nodes: [NodeID: NodeRecord]) -> String {
        var parts: [String] = []
        var next = nodes[id]
        while let node = next, node.id != .root, parts.count < 4096 {
            parts.append(String(decoding: node.name, as: UTF8.self))
            next = node.parentID.flatMap { nodes[$0] }
        }
        return parts.reversed().joined(separator: "/")
    }

    func name(of image: ImageID) -> String {
        let node = nodes.values.first { $0.imageID == image }
        return node.map { "image '\(path(of: $0.id))'" }
            ?? "image \(image.rawValue) (without a name)"
    }

    /// The images and snapshots that read a layer, by name.
    func users(of layer: LayerID) -> String {
        var parts: [String] = []
        for image in images where !image.isDeleted {
            if let head = image.headLayerID, chain(from: head).path.contains(layer) {
                parts.append(name(of: image.id))
            }
        }
        for snapshot in snapshots {
            let nodes = snapshotNodes[snapshot.id] ?? []
            let byID = Dictionary(nodes.map { ($0.node.id, $0.node) }) { first, _ in first }
            for node in nodes {
                if let top = node.layerID, chain(from: top).path.contains(layer) {
                    let path = Self.path(of: node.node.id, in: byID)
                    parts.append("'\(path)' in snapshot '\(snapshot.name)'")
                }
            }
        }
        return parts.isEmpty
            ? "layer \(layer.rawValue), which nothing needs" : parts.joined(separator: ", ")
    }

    /// Layers that some image or snapshot needs.
    var needed: Set<LayerID> {
        var needed: Set<LayerID> = []
        let tops =
            images.filter { !$0.isDeleted }.compactMap(\.headLayerID)
            + snapshotNodes.values.flatMap { $0.compactMap(\.layerID) }
        for top in tops { needed.formUnion(chain(from: top).path) }
        return needed
    }
}
