import SystemIO

/// One run of ejecting, from wherever the last one stopped; see Ejection.swift for the steps.
struct EjectionRun {
    let folder: String
    let stage: String
    let change: FolderChange
    let disk = LinuxDisk()

    func carryOut(_ plan: AdoptionPlan) throws(PoolError) {
        try change("take the catalog out") { () throws(SystemError) in
            guard try disk.status(folder + "/catalog.sqlite") != nil else { return }
            // A clean close left no log; what an unclean one left is in the plan already.
            try disk.rename(
                folder + "/catalog.sqlite", to: stage + "/catalog.sqlite", noReplace: false)
            try disk.syncDirectory(stage)
            try disk.syncDirectory(folder)
        }
        if try !exists(stage + "/cleared") { try clear() }
        if try exists(stage + "/images") {
            try putBack(plan)
            try setAttributes(plan)
            try removeImages()
        }
        try change("remove the catalog") { () throws(SystemError) in
            try removeIfThere(stage + "/catalog.sqlite")
            try setAttributes(plan.root, folder)
            try disk.syncDirectory(stage)
            try disk.syncDirectory(folder)
        }
        try change("remove the plan") { () throws(SystemError) in
            try disk.removeFile(stage + "/plan.json")
            try disk.syncDirectory(stage)
        }
        try change("remove \(stage)") { () throws(SystemError) in }
        Adoption.discardStage(folder, Adoption.ejectStageName, disk)
        // Removing the stage changed them once more.
        try? disk.setTimes(folder, accessNs: plan.root.accessNs, modifyNs: plan.root.modifyNs)
    }

    // MARK: 3 The pool's own files

    private func clear() throws(PoolError) {
        try change("take the images out") { () throws(SystemError) in
            guard try disk.status(stage + "/images") == nil else { return }
            try disk.rename(folder + "/images", to: stage + "/images", noReplace: true)
            try disk.syncDirectory(stage)
            try disk.syncDirectory(folder)
        }
        for name in [
            "README", "README.new", "lock", "owner", "owner.new", "reserve", "role", "role.new",
            "promoted", "promoted.new", "catalog.sqlite-wal", "catalog.sqlite-journal",
            "catalog.sqlite-shm",
        ] {
            try change("remove \(name)") { () throws(SystemError) in
                try removeIfThere(folder + "/" + name)
            }
        }
        // What targets lack, and what is left of a promoted mirror's journal.
        for name in ["targets", "journal"] {
            try change("remove \(name)") { () throws(SystemError) in
                try removeFolder(folder + "/" + name)
            }
        }
        try change("remove quarantine") { () throws(SystemError) in
            if try disk.status(folder + "/quarantine") != nil {
                try disk.removeDirectory(folder + "/quarantine")
            }
            try disk.syncDirectory(folder)
        }
        try change("note that the pool's own files are gone") { () throws(SystemError) in
            try disk.writeDurably(stage + "/cleared", contents: [])
        }
    }

    // MARK: 4 The user's files

    private func putBack(_ plan: AdoptionPlan) throws(PoolError) {
        // The plan lists a folder before what is in it.
        for item in plan.items {
            let path = folder + "/" + item.path
            if item.isDirectory {
                try change("make the folder \(item.path)") { () throws(SystemError) in
                    if try disk.status(path) == nil {
                        try disk.createDirectory(path, mode: 0o700)
                    }
                }
            } else if item.isSymlink {
                try change("make the link \(item.path)") { () throws(SystemError) in
                    if try disk.status(path) == nil {
                        try disk.makeSymlink(path, target: item.symlinkTarget ?? "")
                    }
                }
            } else if let image = item.imageID, let layer = item.layerID {
                let data = "\(stage)/images/\(image)/\(layer).data"
                guard try exists(data) else { continue }
                try change("move \(item.path)") { () throws(SystemError) in
                    try disk.rename(data, to: path, noReplace: true)
                }
            }
        }
        for item in plan.items.reversed() where item.isDirectory { try sync(item.path) }
        try sync("")
    }

    /// The deepest first, so that nothing happens in a folder after its times were set.
    private func setAttributes(_ plan: AdoptionPlan) throws(PoolError) {
        for item in plan.items.reversed() {
            let path = folder + "/" + item.path
            guard try exists(path) else { continue }
            try change("set the attributes of \(item.path)") { () throws(SystemError) in
                let file =
                    item.isDirectory || item.isSymlink ? nil : try? disk.open(path, [], mode: 0)
                try setAttributes(item, path)
                try file?.sync()
                file?.close()
            }
        }
        for item in plan.items where item.isDirectory { try? sync(item.path) }
    }

    private func setAttributes(_ item: AdoptionPlan.Item, _ path: String) throws(SystemError) {
        if ProcessControl.isRoot { try disk.setOwner(path, uid: item.uid, gid: item.gid) }
        if !item.isSymlink {
            for (name, value) in item.xattrs { try disk.setAttribute(path, name, value) }
            // The file kept what it had when it was adopted.
            for name in try disk.userAttributes(path).keys where item.xattrs[name] == nil {
                try disk.removeAttribute(path, name)
            }
            try disk.setMode(path, item.mode)
        }
        try disk.setTimes(path, accessNs: item.accessNs, modifyNs: item.modifyNs)
    }

    // MARK: 5 The rest

    private func removeImages() throws(PoolError) {
        for directory in try list(stage + "/images") {
            let path = "\(stage)/images/\(directory)"
            let files = try list(path)
            // Every image's data was moved out: a data file here belongs to none, and it is not
            // ours to throw away.
            if let data = files.first(where: { $0.hasSuffix(".data") }) {
                throw PoolError(
                    .refused,
                    "\(path)/\(data) belongs to no image: move it away, and run the same "
                        + "command again")
            }
            try change("remove \(path)") { () throws(SystemError) in
                for file in files { try disk.removeFile(path + "/" + file) }
                try disk.removeDirectory(path)
            }
        }
        try change("remove \(stage)/images") { () throws(SystemError) in
            try disk.removeDirectory(stage + "/images")
            try disk.syncDirectory(stage)
        }
    }

    /// A folder of the pool's own, with what is in it.
    private func removeFolder(_ path: String) throws(SystemError) {
        guard try disk.status(path) != nil else { return }
        for entry in try disk.list(path) {
            let inside = path + "/" + entry.name
            if entry.kind == .directory {
                try removeFolder(inside)
            } else {
                try disk.removeFile(inside)
            }
        }
        try disk.removeDirectory(path)
    }

    private func removeIfThere(_ path: String) throws(SystemError) {
        if try disk.status(path) != nil { try disk.removeFile(path) }
    }
    private func exists(_ path: String) throws(PoolError) -> Bool {
        do throws(SystemError) { return try disk.status(path) != nil } catch {
            throw PoolError(error)
        }
    }
    private func list(_ path: String) throws(PoolError) -> [String] {
        do throws(SystemError) { return try disk.list(path).map(\.name) } catch {
            throw PoolError(error)
        }
    }
    private func sync(_ inside: String) throws(PoolError) {
        do throws(SystemError) {
            try disk.syncDirectory(inside.isEmpty ? folder : folder + "/" + inside)
        } catch { throw PoolError(error) }
    }
}
