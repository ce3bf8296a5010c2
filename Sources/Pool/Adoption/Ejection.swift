import BlockCore
import SystemIO

extension Adoption {
    /// What ejecting would put back, made from the catalog.
    /// - Throws: ``PoolError`` `.refused` when snapshots or layers would be lost.
    package static func ejectionPlan(_ store: PoolStore) throws(PoolError) -> AdoptionPlan {
        do {
            let (nodes, images, layers, snapshots, mode) = try store.catalog.read { tx in
                (
                    try tx.nodes(), try tx.images(), try tx.layers(), try tx.snapshots(),
                    try tx.setting("adopted.mode")
                )
            }
            if let first = snapshots.first {
                throw PoolError(
                    .refused,
                    "the pool has \(snapshots.count) snapshots (\(first.name), ...), which "
                        + "plain files cannot keep. Copy out what you need, then delete them: "
                        + "doppel snapshot delete \(store.path) \(first.name)")
            }
            let heads = Dictionary(
                uniqueKeysWithValues: images.compactMap { image in
                    image.headLayerID.map { (image.id, $0) }
                })
            let byID = Dictionary(uniqueKeysWithValues: layers.map { ($0.id, $0) })
            guard let root = nodes.first(where: { $0.id == .root }) else {
                throw PoolError(.damaged, "the catalog has no root folder: run `doppel check`")
            }
            let tree = Dictionary(uniqueKeysWithValues: nodes.map { ($0.id, $0) })
            let items = try nodes.filter { $0.parentID != nil }.map { node in
                let path = try Self.path(of: node, tree)
                var plan = item(node, path: path)
                if let image = node.imageID {
                    guard let head = heads[image], let layer = byID[head] else {
                        throw PoolError(.damaged, "'\(path)' has no layer: run `doppel check`")
                    }
                    guard layer.parentID == nil else {
                        throw PoolError(
                            .refused,
                            "'\(path)' shares blocks with another image; export it with "
                                + "`doppel export`, delete it, and eject again")
                    }
                    plan.layerID = head.rawValue
                }
                return plan
            }.sorted { $0.path < $1.path }
            var rootItem = item(root, path: "")
            rootItem.mode = mode.flatMap { UInt32($0) } ?? root.mode
            return AdoptionPlan(root: rootItem, items: items)
        } catch let error as PoolError { throw error } catch {
            throw PoolError(.io, "cannot read the catalog: \(error)")
        }
    }

    private static func path(of node: NodeRecord, _ tree: [NodeID: NodeRecord]) throws -> String {
        var parts: [String] = []
        var next: NodeRecord? = node
        while let each = next, each.id != .root {
            parts.append(String(decoding: each.name, as: UTF8.self))
            next = each.parentID.flatMap { tree[$0] }
            if parts.count > 4096 {
                throw PoolError(.damaged, "the folders of the pool form a circle")
            }
        }
        return parts.reversed().joined(separator: "/")
    }

    private static func item(_ node: NodeRecord, path: String) -> AdoptionPlan.Item {
        AdoptionPlan.Item(
            path: path, kind: node.kind.rawValue, mode: node.mode, uid: node.uid, gid: node.gid,
            accessNs: node.accessNs, modifyNs: node.modifyNs, changeNs: node.changeNs,
            sizeBytes: 0,
            symlinkTarget: node.symlinkTarget.map { String(decoding: $0, as: UTF8.self) },
            xattrs: node.xattrs, nodeID: node.id.rawValue, imageID: node.imageID?.rawValue,
            layerID: nil)
    }

    /// Whether an eject was interrupted here after the folder had stopped being a pool.
    package static func isHalfEjected(_ folder: String) -> Bool {
        let disk = LinuxDisk()
        return !PoolStore.isPool(folder, disk: disk)
            && ((try? disk.status("\(folder)/\(ejectStageName)/plan.json")) ?? nil) != nil
    }

    /// Writes the plan; the pool is closed after this and before ``eject``.
    package static func prepareEjection(
        _ folder: String, _ plan: AdoptionPlan
    ) throws(PoolError) {
        let disk = LinuxDisk()
        do throws(SystemError) {
            if try disk.status(folder + "/quarantine") != nil,
                let first = try disk.list(folder + "/quarantine").first
            {
                throw SystemError(
                    operation:
                        "eject, for it holds \(first.name), which would be lost: move it away",
                    path: folder + "/quarantine", errno: 39)
            }
            try makeDirectory("\(folder)/\(ejectStageName)", disk)
            try disk.writeDurably("\(folder)/\(ejectStageName)/plan.json", contents: encode(plan))
            try disk.syncDirectory(folder)
        } catch { throw PoolError(error) }
    }

    /// Turns the closed pool back into plain files, or finishes a run that was interrupted.
    package static func eject(_ folder: String) throws(PoolError) -> AdoptionPlan {
        let disk = LinuxDisk()
        guard let plan = try readPlan(folder, ejectStageName, disk) else {
            throw PoolError(.notAPool, "nothing was prepared for ejecting in \(folder)")
        }
        do throws(SystemError) {
            let stage = "\(folder)/\(ejectStageName)"
            if try disk.status(folder + "/catalog.sqlite") != nil {
                try disk.rename(
                    folder + "/catalog.sqlite", to: stage + "/catalog.sqlite", noReplace: false)
                try disk.syncDirectory(folder)
                try disk.syncDirectory(stage)
            }
            // From here on it is no pool. The first pass moves the pool's own names out of the way
            // of the files that come back; a later pass must not touch those files.
            if try disk.status(stage + "/images") == nil, try disk.status(stage + "/out") == nil {
                for name in ["README", "lock", "owner", "reserve", "catalog.sqlite-wal"]
                where try disk.status(folder + "/" + name) != nil {
                    try disk.removeFile(folder + "/" + name)
                }
                if try disk.status(folder + "/quarantine") != nil {
                    try disk.removeDirectory(folder + "/quarantine")
                }
                try disk.rename(folder + "/images", to: stage + "/images", noReplace: true)
                try disk.syncDirectory(folder)
                try disk.syncDirectory(stage)
            }
            try putBack(plan, folder: folder, stage: stage, disk)
            try removeStage(plan, stage: stage, disk)
            try setAttributes(plan.root, folder, disk)
            try disk.syncDirectory(folder)
        } catch { throw PoolError(error) }
        return plan
    }

    private static func putBack(
        _ plan: AdoptionPlan, folder: String, stage: String, _ disk: LinuxDisk
    ) throws(SystemError) {
        guard try disk.status(stage + "/images") != nil else { return }
        for item in plan.items {
            let path = folder + "/" + item.path
            switch NodeRecord.Kind(rawValue: item.kind) {
            case .directory: try makeDirectory(path, disk)
            case .symlink:
                if try disk.status(path) == nil {
                    try disk.makeSymlink(path, target: item.symlinkTarget ?? "")
                }
            default:
                guard let image = item.imageID, let layer = item.layerID else { continue }
                let source = "\(stage)/images/\(image)/\(layer).data"
                if try disk.status(source) != nil {
                    try disk.rename(source, to: path, noReplace: true)
                }
            }
        }
        // Deepest first, so that a folder's times are set after what happens in it.
        for item in plan.items.reversed() {
            try setAttributes(item, folder + "/" + item.path, disk)
        }
        for item in plan.items where item.kind == NodeRecord.Kind.directory.rawValue {
            try disk.syncDirectory(folder + "/" + item.path)
        }
        try disk.syncDirectory(folder)
    }

    private static func setAttributes(
        _ item: AdoptionPlan.Item, _ path: String, _ disk: LinuxDisk
    ) throws(SystemError) {
        if ProcessControl.isRoot { try disk.setOwner(path, uid: item.uid, gid: item.gid) }
        if item.kind != NodeRecord.Kind.symlink.rawValue {
            try disk.setMode(path, item.mode)
            for (name, value) in item.xattrs { try disk.setAttribute(path, name, value) }
        }
        try disk.setTimes(path, accessNs: item.accessNs, modifyNs: item.modifyNs)
    }

    private static func removeStage(
        _ plan: AdoptionPlan, stage: String, _ disk: LinuxDisk
    ) throws(SystemError) {
        if try disk.status(stage + "/images") != nil {
            for directory in try disk.list(stage + "/images") {
                let path = "\(stage)/images/\(directory.name)"
                for file in try disk.list(path) {
                    // Every image's data was moved out: a data file here belongs to none, and it is
                    // not ours to throw away.
                    if file.name.hasSuffix(".data") {
                        throw SystemError(
                            operation: "eject, for it belongs to no image: move it away",
                            path: path + "/" + file.name, errno: 39)
                    }
                    try disk.removeFile(path + "/" + file.name)
                }
                try disk.removeDirectory(path)
            }
            try disk.removeDirectory(stage + "/images")
        }
        for file in try disk.list(stage) where file.name != "plan.json" {
            try disk.removeFile(stage + "/" + file.name)
        }
        try disk.removeFile(stage + "/plan.json")
        try disk.removeDirectory(stage)
    }
}
