import CFuse
import Glibc
import VirtualFS
import Volume

/// Requests about attributes, extended attributes and the file system's figures.
enum AttributeOperations {
    static func get(_ request: Request, _ inode: UInt64) {
        request.answer { (fileSystem) throws(FSError) in
            request.reply(attributes: try fileSystem.attributes(of: inode))
        }
    }

    static func set(_ request: Request, _ inode: UInt64, _ status: stat, _ fields: Int32) {
        request.answer { (fileSystem) throws(FSError) in
            var changes = AttributeChanges()
            if fields & FUSE_SET_ATTR_MODE != 0 { changes.mode = status.st_mode & 0o7777 }
            if fields & FUSE_SET_ATTR_UID != 0 { changes.uid = status.st_uid }
            if fields & FUSE_SET_ATTR_GID != 0 { changes.gid = status.st_gid }
            if fields & FUSE_SET_ATTR_SIZE != 0 {
                guard status.st_size >= 0 else { throw FSError(.invalid) }
                changes.sizeBytes = UInt64(status.st_size)
            }
            let now = timespec.now
            if fields & FUSE_SET_ATTR_ATIME_NOW != 0 {
                changes.accessNs = now.nanoseconds
            } else if fields & FUSE_SET_ATTR_ATIME != 0 {
                changes.accessNs = status.st_atim.nanoseconds
            }
            if fields & FUSE_SET_ATTR_MTIME_NOW != 0 {
                changes.modifyNs = now.nanoseconds
            } else if fields & FUSE_SET_ATTR_MTIME != 0 {
                changes.modifyNs = status.st_mtim.nanoseconds
            }
            if changes.uid != nil || changes.gid != nil, changes.mode == nil {
                changes.mode = try modeWithoutPrivileges(fileSystem, inode)
            }
            guard changes.sizeBytes != nil else {
                return request.reply(attributes: try fileSystem.setAttributes(inode, changes))
            }
            let asked = changes
            fileSystem.whenChangeable(inode) { isGivenUp in
                if isGivenUp { return request.fail(EIO) }
                resize(request, inode, asked)
            }
        }
    }

    private static func resize(_ request: Request, _ inode: UInt64, _ changes: AttributeChanges) {
        request.answer { (fileSystem) throws(FSError) in
            try fileSystem.setAttributes(inode, changes) { attributes in
                PendingReply { errno in
                    if errno == 0 {
                        request.reply(attributes: attributes)
                    } else {
                        request.fail(errno)
                    }
                }
            }
        }
    }

    /// A new owner does not inherit set-user-ID and set-group-ID: chown(2). The kernel leaves
    /// this to us (FUSE_HANDLE_KILLPRIV), which spares it a request before each cached write.
    private static func modeWithoutPrivileges(
        _ fileSystem: VirtualFS, _ inode: UInt64
    ) throws(FSError) -> UInt32? {
        let attributes = try fileSystem.attributes(of: inode)
        guard attributes.kind == .file else { return nil }
        var mode = attributes.mode & ~S_ISUID
        // Without group execution the bit means mandatory locking, not a privilege.
        if mode & S_IXGRP != 0 { mode &= ~S_ISGID }
        return mode == attributes.mode ? nil : mode
    }

    static func statistics(_ request: Request) {
        request.answer { (fileSystem) throws(FSError) in
            let figures = try fileSystem.statistics()
            var out = statvfs()
            out.f_bsize = 4096
            out.f_frsize = 4096
            out.f_blocks = .init(figures.totalBytes / 4096)
            out.f_bfree = .init(figures.freeBytes / 4096)
            out.f_bavail = .init(figures.availableBytes / 4096)
            out.f_files = .init(figures.totalFiles)
            out.f_ffree = .init(figures.freeFiles)
            out.f_favail = .init(figures.freeFiles)
            out.f_namemax = 255
            fuse_reply_statfs(request.raw, &out)
        }
    }

    // MARK: Extended attributes

    static func getExtended(
        _ request: Request, _ inode: UInt64, _ name: UnsafePointer<CChar>?, _ size: Int
    ) {
        request.answer { (fileSystem) throws(FSError) in
            let value = try fileSystem.extendedAttribute(inode, try text(name))
            request.reply(value: value, size: size)
        }
    }

    static func setExtended(
        _ request: Request, _ inode: UInt64, _ name: UnsafePointer<CChar>?,
        _ value: UnsafeRawBufferPointer, _ flags: Int32
    ) {
        request.acknowledge { (fileSystem) throws(FSError) in
            try fileSystem.setExtendedAttribute(
                inode, try text(name), Array(value), mustCreate: flags & 1 != 0,  // XATTR_CREATE
                mustReplace: flags & 2 != 0)  // XATTR_REPLACE
        }
    }

    static func listExtended(_ request: Request, _ inode: UInt64, _ size: Int) {
        request.answer { (fileSystem) throws(FSError) in
            var names: [UInt8] = []
            for name in try fileSystem.extendedAttributes(inode) {
                names += name.utf8
                names.append(0)
            }
            request.reply(value: names, size: size)
        }
    }

    static func removeExtended(
        _ request: Request, _ inode: UInt64, _ name: UnsafePointer<CChar>?
    ) {
        request.acknowledge { (fileSystem) throws(FSError) in
            try fileSystem.removeExtendedAttribute(inode, try text(name))
        }
    }

    /// - Throws: `.invalid` for a name that is no text: two of them could become the same key.
    private static func text(_ name: UnsafePointer<CChar>?) throws(FSError) -> String {
        guard let name, let text = String(validatingCString: name) else { throw FSError(.invalid) }
        return text
    }
}
