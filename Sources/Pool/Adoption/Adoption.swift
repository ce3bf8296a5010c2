// A folder of raw files becomes a pool, by rename alone; and back.
//
// Adopting, in the order of its durable steps (`.doppel-adopt/` is the stage):
//   1 stage/plan.json        everything there is to know        crash: run adopt again, it goes on
//   2 files → stage/images/<id>/<layer>.data                    crash: as 1, what is moved is moved
//   3 links and empty folders removed (the plan has them)       crash: as 1
//   4 stage/images → images                                     crash: as 1
//   5 the catalog, complete in one transaction                  crash: a pool; adopt removes the stage
//   6 the stage removed
// Before 5 the folder has no complete catalog, so nobody opens it as a pool; after 5 it is one.
//
// Ejecting (`.doppel-eject/` is the stage):
//   1 stage/plan.json                                           crash: still a pool, the plan is stale
//   2 catalog.sqlite → stage/                                   crash: no pool; run eject again
//   3 images → stage/images, the pool's own files removed
//   4 folders, links and files put back, attributes set
//   5 the stage removed

import BlockCore
import Foundation
import SystemIO

package enum Adoption {
    static let stageName = ".doppel-adopt"
    static let ejectStageName = ".doppel-eject"
    /// The stages' own names: never taken for somebody's files.
    static let ownNames: Set<String> = [stageName, ejectStageName]

    /// Looks, and changes nothing.
    package static func plan(_ folder: String) throws(PoolError) -> AdoptionPlan {
        let disk = LinuxDisk()
        if let resumed = try readPlan(folder, stageName, disk) { return resumed }
        guard !PoolStore.isPool(folder, disk: disk) else {
            throw PoolError(.exists, "\(folder) is a pool already")
        }
        var scan = AdoptionScan(disk: disk, folder: folder)
        return try scan.run()
    }

    /// - Returns: what was done, also when a run that was interrupted was finished.
    package static func adopt(_ folder: String) throws(PoolError) -> AdoptionPlan {
        let disk = LinuxDisk()
        let plan = try plan(folder)
        do throws(SystemError) {
            let stage = folder + "/" + stageName
            if try disk.status(stage + "/plan.json") == nil {
                try makeDirectory(stage, disk)
                try disk.setMode(folder, 0o700)
                try disk.syncDirectory(folder)
                try disk.writeDurably(stage + "/plan.json", contents: encode(plan))
            }
            if try disk.status(folder + "/images") == nil || hasStagedImages(stage, disk) {
                try moveIn(plan, folder: folder, stage: stage, disk)
            }
        } catch { throw PoolError(error) }
        try finishAdoption(plan, folder: folder, disk)
        return plan
    }

    private static func hasStagedImages(_ stage: String, _ disk: Disk) -> Bool {
        ((try? disk.status(stage + "/images")) ?? nil) != nil
    }

    private static func moveIn(
        _ plan: AdoptionPlan, folder: String, stage: String, _ disk: LinuxDisk
    ) throws(SystemError) {
        try makeDirectory(stage + "/images", disk)
        var touched: Set<String> = []
        for item in plan.files {
            let directory = "\(stage)/images/\(item.imageID!)"
            try makeDirectory(directory, disk)
            let source = folder + "/" + item.path
            // The stage may have been moved into place over a folder of the same name: only what
            // is still a file under its old name is moved.
            if let status = try disk.status(source), status.kind == .file {
                try disk.rename(source, to: "\(directory)/\(item.layerID!).data", noReplace: true)
            }
            if try disk.status(directory + "/activity") == nil {
                _ = try ActivityLog.create(disk: disk, path: directory + "/activity")
            }
            touched.insert(directory)
            touched.insert(parentPath(source))
        }
        for directory in touched.sorted() { try disk.syncDirectory(directory) }
        try disk.syncDirectory(stage + "/images")
        try disk.syncDirectory(stage)
        for item in plan.items.reversed() where item.imageID == nil {
            let path = folder + "/" + item.path
            guard try disk.status(path) != nil else { continue }
            if item.kind == NodeRecord.Kind.directory.rawValue {
                try disk.removeDirectory(path)
            } else {
                try disk.removeFile(path)
            }
        }
        try disk.rename(stage + "/images", to: folder + "/images", noReplace: true)
        try disk.syncDirectory(folder)
        try disk.syncDirectory(stage)
    }

    private static func finishAdoption(
        _ plan: AdoptionPlan, folder: String, _ disk: LinuxDisk
    ) throws(PoolError) {
        if !(isComplete(folder, disk)) {
            for name in ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-journal"] {
                try? disk.removeFile(folder + "/" + name)
            }
            try PoolStore.lay(path: folder, disk: disk) { tx in try enter(plan, tx) }
        }
        do throws(SystemError) {
            let stage = folder + "/" + stageName
            if try disk.status(stage + "/plan.json") != nil {
                try disk.removeFile(stage + "/plan.json")
            }
            try disk.removeDirectory(stage)
            try disk.syncDirectory(folder)
        } catch { throw PoolError(error) }
    }

    private static func isComplete(_ folder: String, _ disk: Disk) -> Bool {
        guard PoolStore.isPool(folder, disk: disk),
            let catalog = try? Catalog.open(at: folder + "/catalog.sqlite")
        else { return false }
        defer { catalog.close() }
        return (try? catalog.read { try $0.setting("pool.complete") }) == "1"
    }

    private static func enter(_ plan: AdoptionPlan, _ tx: CatalogTransaction) throws {
        try tx.setSetting("adopted.mode", String(plan.root.mode))
        try tx.upsertNode(record(plan.root, parent: nil, name: []))
        var folders: [String: UInt64] = ["": 1]
        for item in plan.items {
            if item.kind == NodeRecord.Kind.directory.rawValue { folders[item.path] = item.nodeID }
            if item.imageID != nil {
                let image = try tx.insertImage()
                let layer = try tx.insertLayer(LayerRecord(imageID: image, parentID: nil))
                guard image.rawValue == item.imageID, layer.rawValue == item.layerID else {
                    throw CatalogError(
                        message: "the new catalog's ids are not the plan's", cause: "")
                }
                try tx.setHead(image, layer)
            }
            let parts = item.path.split(separator: "/")
            let parent = folders[parts.dropLast().joined(separator: "/")] ?? 1
            try tx.upsertNode(
                record(item, parent: NodeID(rawValue: parent), name: Array(parts.last!.utf8)))
        }
    }

    private static func record(
        _ item: AdoptionPlan.Item, parent: NodeID?, name: [UInt8]
    ) -> NodeRecord {
        NodeRecord(
            id: NodeID(rawValue: item.nodeID), parentID: parent, name: name,
            kind: NodeRecord.Kind(rawValue: item.kind) ?? .file, mode: item.mode, uid: item.uid,
            gid: item.gid, accessNs: item.accessNs, modifyNs: item.modifyNs,
            changeNs: item.changeNs, symlinkTarget: item.symlinkTarget.map { Array($0.utf8) },
            imageID: item.imageID.map { ImageID(rawValue: $0) }, xattrs: item.xattrs)
    }

    // MARK: Shared with ejecting

    static func makeDirectory(_ path: String, _ disk: Disk) throws(SystemError) {
        if try disk.status(path) == nil { try disk.createDirectory(path, mode: 0o700) }
    }

    static func encode(_ plan: AdoptionPlan) -> [UInt8] {
        // A value of plain fields: encoding it cannot fail.
        (try? JSONEncoder().encode(plan)).map { [UInt8]($0) } ?? []
    }

    static func readPlan(
        _ folder: String, _ stage: String, _ disk: Disk
    ) throws(PoolError) -> AdoptionPlan? {
        let path = "\(folder)/\(stage)/plan.json"
        do {
            guard try disk.status(path) != nil else { return nil }
            return try JSONDecoder().decode(AdoptionPlan.self, from: Data(try disk.readAll(path)))
        } catch {
            throw PoolError(.damaged, "\(path) cannot be read: \(error)")
        }
    }
}
