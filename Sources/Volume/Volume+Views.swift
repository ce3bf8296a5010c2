// Views of sealed layers that are open, or were lately: what a merge has to leave as it is.
//
// A view finds blocks in any layer of its chain. A merge of L and U leads every chain that has both from
// one to the other; one that has L without U would see L change. So a merge waits while such a view is
// open: of a snapshot that was deleted since.

import BlockCore
import Pool
import SystemIO

/// A view, and the layer under which the next to open finds it; nil once no snapshot shows that.
struct OpenView {
    var layerID: LayerID?
    var view: LayerView
}

extension Volume {
    /// Views kept beyond those in use, so that opening a file twice costs nothing.
    private static var idleViewLimit: Int { 64 }

    /// A sealed layer that a snapshot shows, as a read-only image. Views of one layer share their index.
    package func openView(_ id: LayerID, sizeBytes: UInt64) throws(VolumeError) -> LayerView {
        if let view = cachedView(id) { return view }
        return try structure.withLock { () throws(VolumeError) in
            try openViewLocked(id, sizeBytes: sizeBytes)
        }
    }

    /// The caller holds the structure lock.
    func openViewLocked(_ id: LayerID, sizeBytes: UInt64) throws(VolumeError) -> LayerView {
        if let view = cachedView(id) { return view }
        try requireShown(id)
        let rows = Dictionary(
            uniqueKeysWithValues: try read { try $0.layers() }.map { ($0.id, $0) })
        let (chain, _, _) = try buildChain(to: id, rows: rows)
        let view = LayerView(sizeBytes: sizeBytes, chain: chain)
        withViews { views in
            if views.count >= Self.idleViewLimit { Self.removeIdle(&views) { _ in true } }
            views.append(OpenView(layerID: id, view: view))
        }
        return view
    }

    /// What no snapshot shows may be in the middle of a merge. The caller holds the structure lock.
    func requireShown(_ id: LayerID) throws(VolumeError) {
        guard try read({ try $0.isReferencedBySnapshots(id) }) else {
            throw VolumeError(.notFound, "no snapshot shows layer \(id.rawValue) any more")
        }
    }

    private func cachedView(_ id: LayerID) -> LayerView? {
        withViews { views in views.first { $0.layerID == id }?.view }
    }

    var allViews: [LayerView] { withViews { views in views.map(\.view) } }

    /// The layer's content is another's from now on (a merge down), or nobody's (nil).
    func moveViews(of id: LayerID, to other: LayerID?) {
        withViews { views in
            for index in views.indices where views[index].layerID == id {
                views[index].layerID = other
            }
            Self.removeIdle(&views) { $0.layerID == nil }
        }
    }

    /// Whether somebody reads `lower` through a view that has not `upper`; who does not read is let go.
    func isPinned(_ lower: Layer, below upper: Layer) -> Bool {
        func pins(_ view: LayerView) -> Bool {
            view.chain.slot(of: lower) != nil && view.chain.slot(of: upper) == nil
        }
        return withViews { views in
            Self.removeIdle(&views) { pins($0.view) }
            return views.contains { pins($0.view) }
        }
    }

    /// Under the table's lock nobody gets hold of a view that nobody has.
    private static func removeIdle(
        _ views: inout [OpenView], where isMeant: (OpenView) -> Bool
    ) {
        var kept: [OpenView] = []
        kept.reserveCapacity(views.count)
        while var last = views.popLast() {
            if isMeant(last), isKnownUniquelyReferenced(&last.view) { continue }
            kept.append(last)
        }
        views = kept.reversed()
    }
}
