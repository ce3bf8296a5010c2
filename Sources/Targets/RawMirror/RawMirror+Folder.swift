// A raw mirror's folder without its primary: how it is laid out, what is in it, and how copies of images become one.

import BlockCore
import Pool
import Replication
import SystemIO

/// What a raw mirror has, by its files alone.
package struct RawContents: Sendable {
    package var state: RawFolderState
    /// Its files and folders, and the ids that its primary knows them by.
    package var ids: AdoptionIDs
    /// Its files are what its primary was at the checkpoint.
    package var isWhole: Bool
}

/// A name of the primary, for what a folder has of it.
package struct SeedItem: Sendable {
    package var path: String
    package var node: NodeRecord
    package var sizeBytes: UInt64
    package init(path: String, node: NodeRecord, sizeBytes: UInt64) {
        self.path = path
        self.node = node
        self.sizeBytes = sizeBytes
    }
}

extension RawMirror {
    /// Lays out a new mirror in a new or empty folder, bound to its primary.
    /// - Returns: its UUID.
    /// - Throws: `.absent` where something else is.
    package static func create(
        path: String, primaryPoolID: String, disk: Disk
    ) throws(TargetError) -> String {
        try TargetError.system { () throws(SystemError) in
            if try disk.status(path) == nil {
                try disk.createDirectory(path, mode: 0o755)
                try disk.syncDirectory(parentPath(path))
            }
        }
        let isThere = RawFolderState.isThere(path, disk: disk)
        let others = try TargetError.system { () throws(SystemError) in try disk.list(path) }
            .filter { $0.name != "lost+found" && $0.name != RawFolderState.folderName }
        guard !isThere, others.isEmpty else {
            throw TargetError(
                .absent,
                "\(path) is not empty (\(others.first?.name ?? "a raw mirror") is in it): a raw mirror "
                    + "needs a new or empty folder; `--seed` takes copies of the images that are there"
            )
        }
        return try TargetError.system { () throws(SystemError) in
            try RawFolderState.lay(path, primaryPoolID: primaryPoolID, disk: disk)
        }.id
    }

    /// Changes nothing.
    /// - Returns: nil where there is no raw mirror.
    package static func look(
        at path: String, disk: Disk
    ) throws(TargetError) -> RawContents? {
        let state: RawFolderState?
        do throws(PoolError) { state = try RawFolderState.read(of: path, disk: disk) } catch {
            throw TargetError(error)
        }
        guard let state else { return nil }
        let tree = RawTree(path: path, disk: disk)
        let (bytes, inode) = try TargetError.system { () throws(SystemError) in
            (
                try disk.readAll(RawFolderNames.path(of: path)),
                try disk.status(RawFolderState.folder(of: path))?.inode
            )
        }
        let found = try tree.find(
            RawFolderNames.decode(bytes).entries, isCopy: inode != state.folderInode, tidies: false)
        var known: [String: AdoptionIDs.Pair] = [:]
        for id in tree.placed.keys {
            guard let node = tree.nodes[id] else { continue }
            known[String(tree.path(of: id).dropFirst(path.count + 1))] = AdoptionIDs.Pair(
                node: id, image: node.imageID)
        }
        return RawContents(
            state: state, ids: AdoptionIDs(known), isWhole: state.isWhole && found.isUntouched)
    }

    /// Makes a raw mirror of a folder with copies of images. What is in them is compared when the primary
    /// connects.
    /// - Parameter items: every name of the primary.
    /// - Returns: the mirror's UUID, and how many images it has something of.
    /// - Throws: `.absent` with everything that stands where an image is to be, and is none of its size.
    package static func seed(
        path: String, primaryPoolID: String, items: [SeedItem], disk: LinuxDisk
    ) throws(TargetError) -> (id: String, images: Int) {
        var entry = RawFolderNames.Entry()
        var reasons: [String] = []
        try TargetError.system { () throws(SystemError) in
            for item in items {
                if item.node.id == .root {
                    entry.names.append(.put(item.node))
                    continue
                }
                guard let status = try disk.status(path + "/" + item.path) else { continue }
                if let reason = try mismatch(item, status, path, disk) {
                    reasons.append(reason)
                    continue
                }
                entry.names.append(.put(item.node))
                if let image = item.node.imageID {
                    entry.images[image] = RawFolderNames.File(
                        inode: status.inode, sizeBytes: status.sizeBytes,
                        modifyNs: status.modifyNs)
                } else {
                    entry.places[item.node.id] = status.inode
                }
            }
        }
        guard reasons.isEmpty else {
            throw TargetError(
                .absent,
                "\(path) cannot be a raw mirror as it is; move these away, or rename them:\n  "
                    + reasons.joined(separator: "\n  "))
        }
        let id = try TargetError.system { () throws(SystemError) in
            var state = try RawFolderState.lay(path, primaryPoolID: primaryPoolID, disk: disk)
            try RawFolderNames.write(entry, to: RawFolderNames.path(of: path), disk: disk)
            state.content = .torn
            state.sinceNs = disk.now()
            // It has something, and nobody knows of when.
            state.incarnationID = "seed"
            try state.write(to: path, disk: disk)
            return state.id
        }
        return (id, entry.images.count)
    }

    private static func mismatch(
        _ item: SeedItem, _ status: FileStatus, _ path: String, _ disk: LinuxDisk
    ) throws(SystemError) -> String? {
        switch (item.node.kind, status.kind) {
        case (.directory, .directory): return nil
        case (.file, .file):
            guard status.sizeBytes != item.sizeBytes else { return nil }
            return "\(item.path) has \(status.sizeBytes) bytes, the image \(item.sizeBytes)"
        case (.symlink, .symlink):
            let target = try disk.readSymlink(path + "/" + item.path)
            return Array(target.utf8) == item.node.symlinkTarget
                ? nil : "\(item.path) points elsewhere"
        default: return "\(item.path) is of another kind"
        }
    }
}
