import BlockCore
import SystemIO

/// One run of adopting, from wherever the last one stopped; see Adoption.swift for the steps.
struct AdoptionRun {
    let folder: String
    let stage: String
    let change: FolderChange
    /// Further rows of the catalog.
    let also: (CatalogTransaction) throws -> Void
    let disk = LinuxDisk()

    /// Makes the stage and locks it.
    func takeStage() throws(PoolError) -> DiskLock {
        try change("make \(stage)") { () throws(SystemError) in
            if try disk.status(stage) == nil { try disk.createDirectory(stage, mode: 0o700) }
        }
        do throws(SystemError) {
            if let lock = try disk.tryLock(stage + "/lock") { return lock }
        } catch { throw PoolError(error) }
        throw PoolError(.inUse, "\(folder) is being adopted by another process")
    }

    var hasPlan: Bool { ((try? disk.status(stage + "/plan.json")) ?? nil) != nil }

    func carryOut(_ plan: AdoptionPlan) throws(PoolError) {
        try writePlan(plan)
        if try exists(stage + "/images") {
            try moveFiles(plan)
            try refuseWriters(plan)
            try removeLinksAndFolders(plan)
            try change("move images into place") { () throws(SystemError) in
                try disk.rename(stage + "/images", to: folder + "/images", noReplace: true)
                try disk.syncDirectory(folder)
                try disk.syncDirectory(stage)
            }
        }
        try change("make the catalog") { () throws(SystemError) in }
        try PoolStore.lay(path: folder, disk: disk) { tx in
            try enter(plan, tx)
            try also(tx)
        }
        try change("remove \(stage)") { () throws(SystemError) in }
        Adoption.discardStage(folder, Adoption.stageName, disk)
    }

    // MARK: 1 The plan

    private func writePlan(_ plan: AdoptionPlan) throws(PoolError) {
        guard try !exists(stage + "/plan.json") else { return }
        let bytes = try Adoption.encode(plan)
        try change("make \(stage)/images") { () throws(SystemError) in
            if try disk.status(stage + "/images") == nil {
                try disk.createDirectory(stage + "/images", mode: 0o700)
            }
            try disk.syncDirectory(stage)
            try disk.syncDirectory(folder)
        }
        try change("write the plan") { () throws(SystemError) in
            try disk.writeDurably(stage + "/plan.json", contents: bytes)
        }
    }

    // MARK: 2 The files

    private func moveFiles(_ plan: AdoptionPlan) throws(PoolError) {
        try change("close the folder to others") { () throws(SystemError) in
            try disk.setMode(folder, 0o700)
        }
        var left: [String] = []
        for item in plan.files {
            let directory = "\(stage)/images/\(item.imageID!)"
            let data = "\(directory)/\(item.layerID!).data"
            let source = folder + "/" + item.path
            try change("make \(directory)") { () throws(SystemError) in
                if try disk.status(directory) == nil {
                    try disk.createDirectory(directory, mode: 0o700)
                }
            }
            guard try moveFile(item, from: source, to: data) else { continue }
            left.append(parentPath(source))
            try addCompanions(item, directory: directory)
        }
        for item in plan.files {
            try sync("\(stage)/images/\(item.imageID!)")
        }
        try sync(stage + "/images")
        for source in left where try exists(source) { try sync(source) }
    }

    /// - Returns: whether the file is in the stage now; false when somebody deleted it meanwhile.
    private func moveFile(
        _ item: AdoptionPlan.Item, from source: String, to data: String
    ) throws(PoolError) -> Bool {
        if try !exists(data) {
            // Only what still is the file that was looked at (A4).
            let status: FileStatus?
            do throws(SystemError) { status = try disk.status(source) } catch {
                throw PoolError(error)
            }
            guard let status, status.kind == .file else { return false }
            try change("move \(item.path)") { () throws(SystemError) in
                try disk.rename(source, to: data, noReplace: true)
            }
        }
        // The plan has its mode; in the pool the owner must be able to open it.
        try change("open \(item.path) to the pool's owner") { () throws(SystemError) in
            try disk.setMode(data, 0o600)
        }
        return true
    }

    private func addCompanions(
        _ item: AdoptionPlan.Item, directory: String
    ) throws(PoolError) {
        try change("make the activity log of \(item.path)") { () throws(SystemError) in
            if try disk.status(directory + "/activity") == nil {
                _ = try ActivityLog.create(disk: disk, path: directory + "/activity.new")
                try disk.rename(
                    directory + "/activity.new", to: directory + "/activity", noReplace: false)
            }
            let text = "name: \(item.path)\nsize: \(item.sizeBytes) bytes\n"
            try disk.writeDurably(directory + "/image.txt", contents: Array(text.utf8))
        }
    }

    /// Under its old name nobody can open a file any more, so this is the last word on who has: a
    /// program that was quick enough is waited for, not written around.
    private func refuseWriters(_ plan: AdoptionPlan) throws(PoolError) {
        var files: [FileIdentity: String] = [:]
        for item in plan.files {
            let data = "\(stage)/images/\(item.imageID!)/\(item.layerID!).data"
            guard let status = (try? disk.status(data)) ?? nil else { continue }
            files[FileIdentity(device: status.device, inode: status.inode)] = item.path
        }
        let users = FileUsers.writers(of: files, disk: disk)
        guard users.isEmpty else {
            throw PoolError(
                .refused,
                "adopting \(folder) cannot go on:\n  " + users.joined(separator: "\n  ")
                    + "\nend that, and run the same command again")
        }
    }

    // MARK: 3 Links and folders

    private func removeLinksAndFolders(_ plan: AdoptionPlan) throws(PoolError) {
        // The plan lists a folder before what is in it.
        for item in plan.items.reversed() where item.imageID == nil {
            let path = folder + "/" + item.path
            let status: FileStatus?
            do throws(SystemError) { status = try disk.status(path) } catch {
                throw PoolError(error)
            }
            guard let status else { continue }
            if item.isDirectory, status.kind == .directory {
                try removeFolder(item.path)
            } else if !item.isDirectory, status.kind == .symlink {
                try change("remove the link \(item.path)") { () throws(SystemError) in
                    try disk.removeFile(path)
                }
            }
        }
    }

    private func removeFolder(_ inside: String) throws(PoolError) {
        do throws(PoolError) {
            try change("remove the folder \(inside)") { () throws(SystemError) in
                try disk.removeDirectory(folder + "/" + inside)
            }
        } catch {
            let left = (try? disk.list(folder + "/" + inside)) ?? []
            guard let first = left.first else { throw error }
            throw PoolError(
                .refused,
                "'\(inside)/\(first.name)' appeared while \(folder) was being adopted: move it out "
                    + "of the folder, and run the same command again")
        }
    }

    // MARK: 5 The catalog

    private func enter(_ plan: AdoptionPlan, _ tx: CatalogTransaction) throws {
        try tx.setSetting("adopted.mode", String(plan.root.mode))
        try tx.upsertNode(plan.root.record(parent: nil, name: []))
        // By bytes: to String, two names that differ in their accents' encoding are one.
        var folders: [[UInt8]: NodeID] = [[]: .root]
        for item in plan.items {
            let node = NodeID(rawValue: item.nodeID)
            let path = Array(item.path.utf8)
            if item.isDirectory { folders[path] = node }
            let isThere = try item.imageID == nil || insertImage(item, tx)
            let name = path.split(separator: UInt8(ascii: "/")).last.map { Array($0) } ?? []
            guard isThere, let parent = folders[Array(path.dropLast(name.count + 1))] else {
                continue
            }
            try tx.upsertNode(item.record(parent: parent, name: name))
        }
    }

    /// - Returns: false for a file that somebody deleted before it was moved; its ids stay unused.
    private func insertImage(_ item: AdoptionPlan.Item, _ tx: CatalogTransaction) throws -> Bool {
        let image = ImageID(rawValue: item.imageID ?? 0)
        try tx.insertImage(image)
        let layer = try tx.insertLayer(LayerRecord(imageID: image, parentID: nil))
        guard layer.rawValue == item.layerID else {
            throw CatalogError(message: "the new catalog's ids are not the plan's", cause: "")
        }
        let data = "\(folder)/images/\(image.rawValue)/\(layer.rawValue).data"
        guard try disk.status(data) != nil else {
            try tx.deleteLayer(layer)
            try tx.deleteImage(image)
            return false
        }
        try tx.setHead(image, layer)
        return true
    }

    // MARK: Small things

    private func exists(_ path: String) throws(PoolError) -> Bool {
        do throws(SystemError) { return try disk.status(path) != nil } catch {
            throw PoolError(error)
        }
    }
    private func sync(_ directory: String) throws(PoolError) {
        do throws(SystemError) { try disk.syncDirectory(directory) } catch {
            throw PoolError(error)
        }
    }
}

extension AdoptionPlan.Item {
    var isDirectory: Bool { kind == NodeRecord.Kind.directory.rawValue }
    var isSymlink: Bool { kind == NodeRecord.Kind.symlink.rawValue }

    func record(parent: NodeID?, name: [UInt8]) -> NodeRecord {
        NodeRecord(
            id: NodeID(rawValue: nodeID), parentID: parent, name: name,
            kind: NodeRecord.Kind(rawValue: kind) ?? .file, mode: mode, uid: uid, gid: gid,
            accessNs: accessNs, modifyNs: modifyNs, changeNs: changeNs,
            symlinkTarget: symlinkTarget.map { Array($0.utf8) },
            imageID: imageID.map { ImageID(rawValue: $0) }, xattrs: xattrs)
    }
}
