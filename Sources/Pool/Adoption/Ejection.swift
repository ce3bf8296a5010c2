// A pool becomes a folder of plain files again, by rename alone.
//
// The durable steps, in order (`.doppel-eject/` is the stage):
//   1 stage/plan.json, while the pool is open: the names, from the catalog
//   2 catalog.sqlite → stage/                    from here on the folder is no pool
//   3 images → stage/images, the pool's own files removed, then stage/cleared
//   4 folders, links and files put back and synced, then their attributes
//   5 what is left of the stage removed, the plan last
//
// Invariants
//   E1 Before 2 the plan binds nobody: opening the pool removes it, and eject looks anew.
//   E2 The pool's own names (README, lock, ...) are removed only before `cleared` is there, and the
//      user's files, which may have the same names, come back only after.
//   E3 The plan goes when everything it names is in place and durable; what a crash leaves of the
//      stage after that holds nobody's data.
//   E4 Every step can be done twice.

import BlockCore
import SystemIO

extension Adoption {
    /// What ejecting would put back, made from the catalog.
    /// - Parameter mayMerge: layers that could be merged into one file are no reason to refuse: for a
    ///   look at what would be done, which merges nothing.
    /// - Throws: ``PoolError`` `.refused` when snapshots or layers would be lost.
    package static func ejectionPlan(
        _ store: PoolStore, mayMerge: Bool = false
    ) throws(PoolError) -> AdoptionPlan {
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
                    guard layer.parentID == nil || mayMerge && !isShared(layer, layers) else {
                        throw PoolError(
                            .refused,
                            "'\(path)' shares blocks with another image; export it with "
                                + "`doppel export`, delete it, and eject again")
                    }
                    // A clone's one layer may lie in the folder of the image that it came from.
                    plan.imageID = layer.imageID.rawValue
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

    /// Whether a layer stands on one that others stand on, too.
    private static func isShared(_ layer: LayerRecord, _ layers: [LayerRecord]) -> Bool {
        let children = Dictionary(grouping: layers.filter { $0.parentID != nil }) { $0.parentID! }
        let byID = Dictionary(uniqueKeysWithValues: layers.map { ($0.id, $0) })
        var next = layer.parentID
        while let id = next {
            if children[id]?.count != 1 { return true }
            next = byID[id]?.parentID
        }
        return false
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

    /// Writes the plan; the pool is closed after this and before ``eject(_:beforeChange:)``.
    package static func prepareEjection(
        _ folder: String, _ plan: AdoptionPlan
    ) throws(PoolError) {
        let disk = LinuxDisk()
        if let first = ((try? disk.list(folder + "/quarantine")) ?? []).first {
            throw PoolError(
                .refused,
                "\(folder)/quarantine holds \(first.name), which ejecting would lose: "
                    + "move it away")
        }
        discardStage(folder, ejectStageName, disk)  // an older run's (E1)
        let bytes = try encode(plan)
        do throws(SystemError) {
            let stage = "\(folder)/\(ejectStageName)"
            if try disk.status(stage) == nil { try disk.createDirectory(stage, mode: 0o700) }
            try disk.writeDurably(stage + "/plan.json", contents: bytes)
            try disk.syncDirectory(folder)
        } catch { throw PoolError(error) }
    }

    /// An image whose layers were merged has a map until the pool is closed.
    private static func requirePlainFiles(
        _ folder: String, _ plan: AdoptionPlan, _ disk: Disk
    ) throws(PoolError) {
        for item in plan.files {
            guard let image = item.imageID, let layer = item.layerID else { continue }
            let map = "\(folder)/images/\(image)/\(layer).map"
            do throws(SystemError) {
                guard try disk.status(map) != nil else { continue }
            } catch { throw PoolError(error) }
            throw PoolError(
                .refused,
                "'\(item.path)' is not a plain file yet (\(map) is there): see `doppel check "
                    + "\(folder)`, then eject again")
        }
    }

    /// Turns the closed pool back into plain files, or finishes a run that was interrupted.
    /// - Throws: ``PoolError`` `.inUse` when somebody opened the pool after it was prepared.
    package static func eject(
        _ folder: String, beforeChange: BeforeChange = { _ throws(PoolError) in }
    ) throws(PoolError) -> AdoptionPlan {
        let disk = LinuxDisk()
        let stage = "\(folder)/\(ejectStageName)"
        guard ((try? disk.status(stage + "/plan.json")) ?? nil) != nil else {
            throw PoolError(.notAPool, "nothing was prepared for ejecting in \(folder)")
        }
        var locks: [DiskLock] = []
        defer { for lock in locks { lock.release() } }
        // As long as there is a catalog, `lock` in the folder is the pool's, and later perhaps
        // somebody's file.
        var paths = [stage + "/lock"]
        if PoolStore.isPool(folder, disk: disk) { paths.append(folder + "/lock") }
        for path in paths {
            do throws(SystemError) {
                if let lock = try disk.tryLock(path) { locks.append(lock) }
            } catch { throw PoolError(error) }
        }
        guard locks.count == paths.count else {
            let owner = PoolStore.readOwner(path: folder, disk: disk)
            throw PoolError(
                .inUse, "the pool \(folder) is in use" + (owner.map { " by \($0.summary)" } ?? ""),
                owner: owner)
        }
        // Read under the lock: opening the pool meanwhile has removed it (E1).
        guard let plan = try readPlan(folder, ejectStageName, disk) else {
            throw PoolError(.refused, "\(folder) was used meanwhile: run `doppel eject` again")
        }
        if PoolStore.isPool(folder, disk: disk) { try requirePlainFiles(folder, plan, disk) }
        try withoutBeforeChange(beforeChange) { (change) throws(PoolError) in
            try EjectionRun(folder: folder, stage: stage, change: change).carryOut(plan)
        }
        return plan
    }
}
