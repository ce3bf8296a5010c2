// Rows against rows: what SQLite's own integrity check cannot know.

import BlockCore

struct RowCheck {
    let rows: PoolRows

    func run() -> [Diagnosis] {
        var found: [Diagnosis] = []
        checkState(&found)
        checkImages(&found)
        checkSnapshots(&found)
        checkNames(&found)
        return found
    }

    private func checkState(_ found: inout [Diagnosis]) {
        if !rows.isClean {
            found.append(
                Diagnosis(
                    finding: Finding(
                        kind: .unclean, severity: .note, subject: "the pool", file: nil,
                        problem: "it was not closed cleanly",
                        meaning: "the next open cuts torn tails and settles what was written last; "
                            + "what was flushed is kept", repair: nil)))
        }
        for snapshot in rows.snapshots where snapshot.state == .pending {
            found.append(
                Diagnosis(
                    finding: Finding(
                        kind: .pendingCut, severity: .note, subject: "snapshot '\(snapshot.name)'",
                        file: nil, problem: "its cut was not completed",
                        meaning: "the next open drops it; the images keep all they have",
                        repair: nil)))
        }
        for merge in rows.merges where rows.layers[merge.layerID] != nil {
            found.append(
                Diagnosis(
                    finding: Finding(
                        kind: .merge, severity: .note, subject: rows.users(of: merge.intoLayerID),
                        file: nil,
                        problem: "layer \(merge.layerID.rawValue) is being merged into layer "
                            + "\(merge.intoLayerID.rawValue)",
                        meaning: "a mounted pool goes on with it in the background", repair: nil)))
        }
    }

    private func checkImages(_ found: inout [Diagnosis]) {
        for image in rows.images where !image.isDeleted {
            guard let head = image.headLayerID else { continue }
            let (path, isWhole) = rows.chain(from: head)
            guard !isWhole else { continue }
            let isCircle =
                path.last.flatMap { rows.layers[$0]?.parentID }.map(path.contains) ?? false
            found.append(
                Diagnosis(
                    finding: Finding(
                        kind: isCircle ? .cycle : .row, severity: .damaged,
                        subject: rows.name(of: image.id), file: nil,
                        problem: isCircle
                            ? "its layers form a circle"
                            : "its layer \(path.last.flatMap { rows.layers[$0]?.parentID }?.rawValue ?? head.rawValue) has no row in the catalog",
                        meaning: "its content is not known as a whole: it answers EIO; restore it "
                            + "from a snapshot or a backup under a new name", repair: nil)))
        }
    }

    private func checkSnapshots(_ found: inout [Diagnosis]) {
        for snapshot in rows.snapshots where snapshot.state == .complete {
            for node in rows.snapshotNodes[snapshot.id] ?? [] {
                guard let top = node.layerID, !rows.chain(from: top).isWhole else { continue }
                let name = String(decoding: node.node.name, as: UTF8.self)
                found.append(
                    Diagnosis(
                        finding: Finding(
                            kind: .row, severity: .damaged,
                            subject: "'\(name)' in snapshot '\(snapshot.name)'", file: nil,
                            problem: "it names layer \(top.rawValue), which is lost in part",
                            meaning: "it cannot be read; other files of the snapshot can",
                            repair: rows.layers[top] == nil
                                ? "takes the lost layer out of the snapshot's row: the file stays "
                                    + "listed, and answers EIO" : nil),
                        action: rows.layers[top] == nil
                            ? .clearSnapshotLayer(snapshot.id, node.node.id) : nil))
            }
        }
    }

    private func checkNames(_ found: inout [Diagnosis]) {
        let known = Set(rows.images.map(\.id))
        for node in rows.nodes.values.sorted(by: { $0.id.rawValue < $1.id.rawValue }) {
            guard node.id != .root else { continue }
            let name = String(decoding: node.name, as: UTF8.self)
            if let image = node.imageID, !known.contains(image) {
                found.append(
                    Diagnosis(
                        finding: Finding(
                            kind: .row, severity: .damaged, subject: "image '\(name)'", file: nil,
                            problem: "the catalog has no row of it but its name",
                            meaning: "there is no content to show; delete the name", repair: nil)))
            }
            guard node.parentID != nil, !reachesRoot(node) else { continue }
            found.append(
                Diagnosis(
                    finding: Finding(
                        kind: .name, severity: .damaged, subject: "'\(name)'", file: nil,
                        problem: "the folder that it was in is lost",
                        meaning: "no path leads to it",
                        repair: "puts it into the pool's root as '\(Self.lostName(node))'"),
                    action: .moveToRoot(node.id)))
        }
        guard rows.isClean else { return }
        let named = Set(rows.nodes.values.compactMap(\.imageID))
        for image in rows.images
        where !image.isDeleted && image.headLayerID != nil && !named.contains(image.id) {
            found.append(
                Diagnosis(
                    finding: Finding(
                        kind: .name, severity: .degraded, subject: "image \(image.id.rawValue)",
                        file: nil, problem: "no name refers to it",
                        meaning: "the next mount takes it for a deleted file and frees its space",
                        repair: "gives it the name '\(Self.lostName(image.id))'"),
                    action: .nameImage(image.id)))
        }
    }

    static func lostName(_ image: ImageID) -> String { "lost-image-\(image.rawValue).img" }
    static func lostName(_ node: NodeRecord) -> String {
        "lost-\(node.id.rawValue)-" + String(decoding: node.name, as: UTF8.self)
    }

    /// Its folder's folders, up to the root; a circle or a missing one ends the way.
    private func reachesRoot(_ node: NodeRecord) -> Bool {
        var seen: Set<NodeID> = []
        var next: NodeID? = node.parentID
        while let id = next, id != .root {
            guard seen.insert(id).inserted, let folder = rows.nodes[id], folder.kind == .directory
            else { return false }
            next = folder.parentID
        }
        return next == .root
    }
}
