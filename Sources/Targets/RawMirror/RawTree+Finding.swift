// Which file is what, when a raw mirror is opened: by the inodes and the places that `RawFolderNames` names.
//
// After a crash what stands at one of its places, and is the very file, is taken for it, also where a later
// change is not on the disk: the next staging brings names in order. Whatever else lies about in the folder is
// somebody else's. In a mirror that was copied, inodes say nothing: places alone do, and its content is
// compared with the primary's.

import BlockCore
import Pool
import Replication
import SystemIO

extension RawTree {
    /// What the entries say, gathered.
    private struct Known {
        var nodes: [NodeID: NodeRecord] = [:]
        var removed: Set<NodeID> = []
        var nodesAt: [Place: [NodeID]] = [:]
        var fileInodes: [ImageID: Set<UInt64>] = [:]
        var files: [ImageID: RawFolderNames.File] = [:]
        var gone: Set<ImageID> = []
        var inodes: [NodeID: Set<UInt64>] = [:]

        init(_ entries: [RawFolderNames.Entry]) {
            for entry in entries {
                for (id, file) in entry.images {
                    fileInodes[id, default: []].insert(file.inode)
                    files[id] = file
                }
                gone.formUnion(entry.gone)
                for (id, inode) in entry.places { inodes[id, default: []].insert(inode) }
                for change in entry.names { enter(change) }
            }
        }

        private mutating func enter(_ change: NameChange) {
            switch change {
            case .remove(let id): removed.insert(id)
            case .put(let node):
                removed.remove(node.id)
                nodes[node.id] = node
                guard let parent = node.parentID,
                    let name = String(validating: node.name, as: UTF8.self)
                else { return }
                // The last that was to stand there first.
                nodesAt[Place(parent: parent, name: name), default: []].insert(node.id, at: 0)
            }
        }
    }

    /// - Parameter isCopy: inodes are not those that were written down.
    struct Found {
        /// Every image that is to be there is.
        var isWhole = true
        /// … and everything is as it was when it was last written down.
        var isUntouched: Bool
    }

    /// - Parameter tidies: what is left over in `unnamed/`, and second names, go.
    func find(
        _ entries: [RawFolderNames.Entry], isCopy: Bool, tidies: Bool = true
    ) throws(TargetError) -> Found {
        self.tidies = tidies
        let known = Known(entries)
        nodes = known.nodes
        if let root = known.nodes[.root] { nodes[.root] = root }
        for node in known.nodes.values { if let image = node.imageID { nodeOf[image] = node.id } }
        var isUntouched = !isCopy
        try TargetError.system { () throws(SystemError) in
            try walk(.root, known, isCopy, &isUntouched)
            try walkUnnamed(known, isCopy, &isUntouched)
        }
        // What is neither there nor to be there is over.
        for id in nodes.keys where known.removed.contains(id) && placed[id] == nil {
            guard inodes[id] == nil else { continue }
            if let image = nodes[id]?.imageID, nodeOf[image] == id { nodeOf[image] = nil }
            nodes[id] = nil
        }
        let missing = known.files.keys.filter { !known.gone.contains($0) && images[$0] == nil }
        for (id, node) in nodes where node.kind != .file && id != .root && inodes[id] == nil {
            isUntouched = false
        }
        return Found(
            isWhole: missing.isEmpty, isUntouched: isUntouched && missing.isEmpty)
    }

    private func walk(
        _ folder: NodeID, _ known: Known, _ isCopy: Bool, _ isUntouched: inout Bool
    ) throws(SystemError) {
        let path = path(of: folder)
        for entry in try disk.list(path) {
            if folder == .root, entry.name == RawFolderState.folderName { continue }
            let place = Place(parent: folder, name: entry.name)
            guard let candidates = known.nodesAt[place],
                let status = try disk.status(path + "/" + entry.name)
            else { continue }
            guard
                let id = candidates.first(where: { isNode($0, status, known, isCopy) })
            else {
                isUntouched = false
                try removeSecondName(place, status, candidates)
                continue
            }
            setPlace(id, place)
            note(id, status, known, &isUntouched)
            if status.kind == .directory { try walk(id, known, isCopy, &isUntouched) }
        }
    }

    /// After power loss a file may have the name that it had, too: of a file that was found already one goes.
    private func removeSecondName(
        _ place: Place, _ status: FileStatus, _ candidates: [NodeID]
    ) throws(SystemError) {
        let isSecond = candidates.contains {
            nodes[$0]?.imageID.flatMap { images[$0]?.inode } == status.inode
        }
        guard isSecond, status.kind == .file, tidies else { return }
        try disk.removeFile(path(of: place.parent) + "/" + place.name)
        noteChanged(place.parent)
    }

    /// Whether this is the node, and was not found elsewhere.
    private func isNode(
        _ id: NodeID, _ status: FileStatus, _ known: Known, _ isCopy: Bool
    ) -> Bool {
        guard let node = known.nodes[id], placed[id] == nil else { return false }
        switch (node.kind, status.kind) {
        case (.file, .file):
            guard let image = node.imageID, images[image] == nil else { return false }
            return isCopy || known.fileInodes[image]?.contains(status.inode) ?? false
        case (.directory, .directory), (.symlink, .symlink):
            return isCopy || known.inodes[id]?.contains(status.inode) ?? false
        default: return false
        }
    }

    private func note(
        _ id: NodeID, _ status: FileStatus, _ known: Known, _ isUntouched: inout Bool
    ) {
        guard let image = known.nodes[id]?.imageID else {
            inodes[id] = status.inode
            return
        }
        note(image, status, known, &isUntouched)
    }

    private func note(
        _ image: ImageID, _ status: FileStatus, _ known: Known, _ isUntouched: inout Bool
    ) {
        let file = RawFolderNames.File(
            inode: status.inode, sizeBytes: status.sizeBytes, modifyNs: status.modifyNs)
        if known.files[image] != file { isUntouched = false }
        images[image] = file
    }

    /// Parked files, and what was on its way; the rest in there is left over.
    private func walkUnnamed(
        _ known: Known, _ isCopy: Bool, _ isUntouched: inout Bool
    ) throws(SystemError) {
        for entry in try disk.list(unnamedPath) {
            let path = unnamedPath + "/" + entry.name
            guard let status = try disk.status(path) else { continue }
            if entry.name.hasPrefix("n"), let number = UInt64(entry.name.dropFirst()) {
                let id = NodeID(rawValue: number)
                if let node = known.nodes[id], node.kind != .file, inodes[id] == nil,
                    isCopy || known.inodes[id]?.contains(status.inode) ?? false
                {
                    inodes[id] = status.inode
                    isUntouched = false
                    if status.kind == .directory { try walk(id, known, isCopy, &isUntouched) }
                    continue
                }
            } else if let number = Int64(entry.name), status.kind == .file {
                let id = ImageID(rawValue: number)
                if images[id] == nil,
                    isCopy || known.fileInodes[id]?.contains(status.inode) ?? false
                {
                    note(id, status, known, &isUntouched)
                    continue
                }
            }
            guard tidies else { continue }
            // What is in a folder that is left over is nobody's but who put it there.
            if status.kind == .directory {
                try? disk.removeDirectory(path)
            } else {
                try disk.removeFile(path)
            }
        }
    }
}
