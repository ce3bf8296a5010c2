import BlockCore
import Pool

/// The names of a pool as a value: a copy is the tree at that moment, for the price of a reference.
struct NameTree: Sendable {
    private struct Folder {
        var names: [[UInt8]: NodeID] = [:]
        /// Counted along, for a folder's link count is asked for with each `stat` of it.
        var subfolderCount = 0
    }

    private(set) var nodes: [NodeID: NodeRecord] = [:]
    private var folders: [NodeID: Folder] = [:]

    init(_ records: [NodeRecord]) { for record in records { put(record) } }

    subscript(id: NodeID) -> NodeRecord? { nodes[id] }

    func child(_ parent: NodeID, _ name: [UInt8]) -> NodeRecord? {
        folders[parent]?.names[name].flatMap { nodes[$0] }
    }
    func entries(of parent: NodeID) -> [NodeRecord] {
        (folders[parent]?.names ?? [:]).values.compactMap { nodes[$0] }.sorted {
            $0.name.lexicographicallyPrecedes($1.name)
        }
    }
    func isEmpty(_ parent: NodeID) -> Bool { folders[parent]?.names.isEmpty ?? true }
    func subdirectoryCount(_ parent: NodeID) -> Int { folders[parent]?.subfolderCount ?? 0 }

    /// Inserts or replaces a node, moving it where its record says.
    mutating func put(_ node: NodeRecord) {
        let old = nodes.updateValue(node, forKey: node.id)
        if let old {
            if old.parentID == node.parentID, old.name == node.name { return }
            unlink(old)
        }
        if let parent = node.parentID {
            folders[parent, default: Folder()].names[node.name] = node.id
            if node.kind == .directory { folders[parent]?.subfolderCount += 1 }
        }
    }

    mutating func remove(_ id: NodeID) {
        guard let node = nodes.removeValue(forKey: id) else { return }
        unlink(node)
        folders[id] = nil
    }

    private mutating func unlink(_ node: NodeRecord) {
        guard let parent = node.parentID, folders[parent]?.names[node.name] == node.id else {
            return
        }
        folders[parent]?.names[node.name] = nil
        if node.kind == .directory { folders[parent]?.subfolderCount -= 1 }
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

    /// The folders that lead to a node, the root first, without the node.
    func ancestors(of id: NodeID) -> [NodeRecord] {
        var result: [NodeRecord] = []
        var next = nodes[id]?.parentID
        while let node = next.flatMap({ nodes[$0] }) {
            result.append(node)
            next = node.parentID
        }
        return result.reversed()
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
