import CFuse
import Glibc
import VirtualFS

/// Requests that look up or change names.
enum NameOperations {
    static func lookup(_ request: Request, _ parent: UInt64, _ name: [UInt8]) {
        // A name that is missing is not remembered by the kernel: a snapshot or an import may
        // bring it at any moment.
        request.answer { (fileSystem) throws(FSError) in
            request.reply(entry: try fileSystem.lookup(parent: parent, name: name))
        }
    }

    static func makeDirectory(
        _ request: Request, _ parent: UInt64, _ name: [UInt8], _ mode: mode_t
    ) {
        request.answer { (fileSystem) throws(FSError) in
            let caller = request.caller
            request.reply(
                entry: try fileSystem.makeDirectory(
                    parent: parent, name: name, mode: mode, uid: caller.uid, gid: caller.gid))
        }
    }

    static func makeNode(_ request: Request, _ parent: UInt64, _ name: [UInt8], _ mode: mode_t) {
        // A disk image is a regular file; mknod(2) names this errno for what a file system lacks.
        guard mode & S_IFMT == S_IFREG || mode & S_IFMT == 0 else { return request.fail(EPERM) }
        request.answer { (fileSystem) throws(FSError) in
            let caller = request.caller
            let (attributes, file) = try fileSystem.createFile(
                parent: parent, name: name, mode: mode, uid: caller.uid, gid: caller.gid,
                isExclusive: true, clientPID: caller.pid)
            file.close()
            request.reply(entry: attributes)
        }
    }

    static func makeSymlink(
        _ request: Request, _ parent: UInt64, _ name: [UInt8], target: [UInt8]
    ) {
        request.answer { (fileSystem) throws(FSError) in
            let caller = request.caller
            request.reply(
                entry: try fileSystem.makeSymlink(
                    parent: parent, name: name, target: target, uid: caller.uid, gid: caller.gid))
        }
    }

    static func readLink(_ request: Request, _ inode: UInt64) {
        request.answer { (fileSystem) throws(FSError) in
            let target = try fileSystem.readSymlink(inode)
            (target + [0]).withUnsafeBytes {
                _ = fuse_reply_readlink(
                    request.raw, $0.baseAddress?.assumingMemoryBound(to: CChar.self))
            }
        }
    }

    static func rename(
        _ request: Request, _ parent: UInt64, _ name: [UInt8], _ newParent: UInt64,
        _ newName: [UInt8], _ flags: UInt32
    ) {
        let mode: VirtualFS.RenameMode
        switch flags {
        case 0: mode = .replace
        case 1: mode = .noReplace  // RENAME_NOREPLACE
        case 2: mode = .exchange  // RENAME_EXCHANGE
        default: return request.fail(EINVAL)
        }
        request.acknowledge { (fileSystem) throws(FSError) in
            try fileSystem.rename(
                parent: parent, name: name, toParent: newParent, toName: newName, mode: mode)
        }
    }
}
