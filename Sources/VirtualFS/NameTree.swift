import BlockCore
import Pool

/// The names of a pool as a value: a copy is the tree at that moment, for the price of a reference.
struct NameTree: Sendable {
    private(set) var nodes: [NodeID: NodeRecord] = [:]
    private var children: [NodeID: [[UInt8]: NodeID]] = [:]

    init(_ records: [NodeRecord]) { for record in records { put(record) } }

    subscript(id: NodeID) -> NodeRecord? { nodes[id] }

    func child(_ parent: NodeID, _ name: [UInt8]) -> NodeRecord? {
        children[parent]?[name].flatMap { nodes[$0] }
    }
    func entries(of parent: NodeID) -> [NodeRecord] {
        (children[parent] ?? [:]).values.compactMap { nodes[$0] }.sorted {
            $0.name.lexicographicallyPrecedes($1.name)
        }
    }
    func isEmpty(_ parent: NodeID) -> Bool { children[parent]?.isEmpty ?? true }
    func subdirectoryCount(_ parent: NodeID) -> Int {
        (children[parent] ?? [:]).values.count { nodes[$0]?.kind == .directory }
    }

    /// Inserts or replaces a node, moving it where its record says.
    mutating func put(_ node: NodeRecord) {
        if let old = nodes[node.id], let parent = old.parentID,
            parent != node.parentID || old.name != node.name,
            children[parent]?[old.name] == node.id
        {
            children[parent]?[old.name] = nil
        }
        nodes[node.id] = node
        if let parent = node.parentID { children[parent, default: [:]][node.name] = node.id }
    }

    mutating func remove(_ id: NodeID) {
        guard let node = nodes.removeValue(forKey: id) else { return }
        if let parent = node.parentID, children[parent]?[node.name] == id {
            children[parent]?[node.name] = nil
        }
        children[id] = nil
    }

    /// Whether `id` is `ancestor` or lies beneath it.
    func isInside(_ id: NodeID, _ ancestor: NodeID) -> Bool {
        var next: NodeID? = id
        while let node = next {
            if node == ancestor { return true }
            next = nodes[node]?.parentID
        }
        return false
    }

    func path(of id: NodeID) -> String {
        var parts: [String] = []
        var next = nodes[id]
        while let node = next, node.id != .root {
            parts.append(String(decoding: node.name, as: UTF8.self))
            next = node.parentID.flatMap { nodes[$0] }
        }
        return parts.reversed().joined(separator: "/")
    }

    /// - Parameter path: `a/b.img`, with or without a slash before it.
    func resolve(_ path: String) -> NodeRecord? {
        var node = nodes[.root]
        for part in path.split(separator: "/") {
            guard let parent = node else { return nil }
            node = child(parent.id, Array(part.utf8))
        }
        return node
    }
}
