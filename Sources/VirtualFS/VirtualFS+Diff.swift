import BlockCore
import Pool
import Volume

extension VirtualFS {
    package struct DiffEntry: Sendable, Hashable {
        package var path: String
        package var change: String
        package var changedBytes: UInt64
    }

    /// What changed from snapshot `a` to snapshot `b`, or to now: an upper bound by blocks that were
    /// written, which may have been written with what they held.
    package func diff(_ a: String, _ b: String?) throws(FSError) -> [DiffEntry] {
        if b == nil, let fixed { return try diff(a, withFixed: fixed) }
        let temporary =
            b == nil ? try createSnapshot(name: automaticName("diff"), origin: "diff").name : nil
        let result = Result { () throws(FSError) in try diff(a, with: b ?? temporary!) }
        if let temporary { try deleteSnapshot(temporary) }
        return try result.get()
    }

    private func diff(_ a: String, with b: String) throws(FSError) -> [DiffEntry] {
        while true {
            let (from, to) = (try files(of: a), try files(of: b))
            do throws(FSError) { return try compare(from, to) } catch {
                // A merge may have taken a layer away meanwhile: then the trees say so.
                let now = (try files(of: a), try files(of: b))
                let isSame =
                    now.0.mapValues(\.node.layerID) == from.mapValues(\.node.layerID)
                    && now.1.mapValues(\.node.layerID) == to.mapValues(\.node.layerID)
                if isSame { throw error }
            }
        }
    }

    /// What a mirror shows does not change, and its layers stay as long as it is shown.
    private func diff(_ a: String, withFixed fixed: FixedTree) throws(FSError) -> [DiffEntry] {
        guard let nodes = fixed.layered else {
            throw FSError(
                .readOnly,
                "what is shown is put together from a journal: mount it and compare files")
        }
        let tree = NameTree(nodes.map(\.node))
        var shown: [NodeID: (path: String, node: SnapshotNode)] = [:]
        for node in nodes where node.node.kind == .file {
            shown[node.node.id] = (tree.path(of: node.node.id), node)
        }
        return try compare(try files(of: a), shown)
    }

    private func files(
        of snapshot: String
    ) throws(FSError) -> [NodeID: (path: String, node: SnapshotNode)] {
        let record = try volumed { () throws(VolumeError) in try volume.snapshot(named: snapshot) }
        let tree = try readSnapshotTree(record)
        var result: [NodeID: (path: String, node: SnapshotNode)] = [:]
        for (id, node) in tree.nodes where node.node.kind == .file {
            result[id] = (tree.path(of: id), node)
        }
        return result
    }

    private func compare(
        _ from: [NodeID: (path: String, node: SnapshotNode)],
        _ to: [NodeID: (path: String, node: SnapshotNode)]
    ) throws(FSError) -> [DiffEntry] {
        var entries: [DiffEntry] = []
        for (id, new) in to {
            guard let old = from[id] else {
                entries.append(
                    DiffEntry(path: new.path, change: "added", changedBytes: new.node.sizeBytes))
                continue
            }
            if old.path != new.path {
                entries.append(
                    DiffEntry(
                        path: "\(old.path) -> \(new.path)", change: "renamed", changedBytes: 0))
            }
            guard let a = old.node.layerID, let b = new.node.layerID else { continue }
            let changed = try volumed { () throws(VolumeError) in
                try volume.changedBlocks(from: a, to: b)
            }
            if changed > 0 || old.node.sizeBytes != new.node.sizeBytes {
                entries.append(
                    DiffEntry(
                        path: new.path,
                        change: old.node.sizeBytes == new.node.sizeBytes ? "changed" : "resized",
                        changedBytes: changed * Geometry.blockSizeBytes))
            }
        }
        for (id, old) in from where to[id] == nil {
            entries.append(
                DiffEntry(path: old.path, change: "removed", changedBytes: old.node.sizeBytes))
        }
        return entries.sorted { $0.path < $1.path }
    }
}
