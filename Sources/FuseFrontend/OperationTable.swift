import CFuse
import Glibc
import VirtualFS

/// libfuse's table of callbacks. Formed in a nonisolated function: callbacks formed on the main
/// actor trap when libfuse calls them from its own threads.
///
/// Not there, on purpose: getlk, setlk and flock, so that the kernel keeps the locks (QEMU's image
/// locking works); access, for modes are the kernel's to check; copy_file_range, which the kernel
/// then does by reading and writing.
enum OperationTable {
    static func make() -> fuse_lowlevel_ops {
        var table = fuse_lowlevel_ops()
        addConnection(to: &table)
        addNames(to: &table)
        addAttributes(to: &table)
        addFiles(to: &table)
        addDirectories(to: &table)
        return table
    }

    private static func addConnection(to table: inout fuse_lowlevel_ops) {
        table.`init` = { userdata, connection in
            guard let userdata, let connection else { return }
            let server = Unmanaged<FuseServer>.fromOpaque(userdata).takeUnretainedValue()
            server.negotiate(connection)
            server.whenReady()
        }
        // Inode numbers are never reused and an open file holds what it needs, so nothing hangs
        // on how often the kernel has looked something up.
        table.forget = { request, _, _ in fuse_reply_none(request) }
        table.forget_multi = { request, _, _ in fuse_reply_none(request) }
        table.statfs = { request, _ in AttributeOperations.statistics(Request(request)) }
    }

    private static func addNames(to table: inout fuse_lowlevel_ops) {
        table.lookup = { request, parent, name in
            NameOperations.lookup(Request(request), parent, nameBytes(name))
        }
        table.mkdir = { request, parent, name, mode in
            NameOperations.makeDirectory(Request(request), parent, nameBytes(name), mode)
        }
        table.mknod = { request, parent, name, mode, _ in
            NameOperations.makeNode(Request(request), parent, nameBytes(name), mode)
        }
        table.symlink = { request, target, parent, name in
            NameOperations.makeSymlink(
                Request(request), parent, nameBytes(name), target: nameBytes(target))
        }
        table.readlink = { request, inode in NameOperations.readLink(Request(request), inode) }
        table.link = { request, _, _, _ in Request(request).fail(EPERM) }
        table.unlink = { request, parent, name in
            let name = nameBytes(name)
            Request(request).acknowledge { (fileSystem) throws(FSError) in
                try fileSystem.removeFile(parent: parent, name: name)
            }
        }
        table.rmdir = { request, parent, name in
            let name = nameBytes(name)
            Request(request).acknowledge { (fileSystem) throws(FSError) in
                try fileSystem.removeDirectory(parent: parent, name: name)
            }
        }
        table.rename = { request, parent, name, newParent, newName, flags in
            NameOperations.rename(
                Request(request), parent, nameBytes(name), newParent, nameBytes(newName), flags)
        }
    }

    private static func addAttributes(to table: inout fuse_lowlevel_ops) {
        table.getattr = { request, inode, _ in
            AttributeOperations.get(Request(request), inode)
        }
        table.setattr = { request, inode, status, fields, _ in
            guard let status else { return Request(request).fail(EINVAL) }
            AttributeOperations.set(Request(request), inode, status.pointee, fields)
        }
        table.getxattr = { request, inode, name, size in
            AttributeOperations.getExtended(Request(request), inode, name, size)
        }
        table.setxattr = { request, inode, name, value, size, flags in
            AttributeOperations.setExtended(
                Request(request), inode, name, UnsafeRawBufferPointer(start: value, count: size),
                flags)
        }
        table.listxattr = { request, inode, size in
            AttributeOperations.listExtended(Request(request), inode, size)
        }
        table.removexattr = { request, inode, name in
            AttributeOperations.removeExtended(Request(request), inode, name)
        }
    }

    private static func addFiles(to table: inout fuse_lowlevel_ops) {
        table.create = { request, parent, name, mode, info in
            FileOperations.create(
                Request(request), parent, nameBytes(name), mode, info.unsafelyUnwrapped)
        }
        table.open = { request, inode, info in
            FileOperations.open(Request(request), inode, info.unsafelyUnwrapped)
        }
        table.read = { request, _, size, offset, info in
            FileOperations.read(Request(request), size, offset, info.unsafelyUnwrapped)
        }
        table.write = { request, _, data, size, offset, info in
            FileOperations.write(
                Request(request), UnsafeRawBufferPointer(start: data, count: size), offset,
                info.unsafelyUnwrapped)
        }
        // Nothing is kept back for close(2) to report: a write's error is the write's own.
        table.flush = { request, _, _ in Request(request).succeed() }
        table.fsync = { request, _, _, info in
            FileOperations.sync(Request(request), info.unsafelyUnwrapped)
        }
        table.release = { request, _, info in
            FileOperations.release(Request(request), info.unsafelyUnwrapped)
        }
        table.fallocate = { request, _, mode, offset, length, info in
            FileOperations.allocate(
                Request(request), mode, offset, length, info.unsafelyUnwrapped)
        }
        table.lseek = { request, _, offset, whence, info in
            FileOperations.seek(Request(request), offset, whence, info.unsafelyUnwrapped)
        }
    }

    private static func addDirectories(to table: inout fuse_lowlevel_ops) {
        table.opendir = { request, inode, info in
            DirectoryOperations.open(Request(request), inode, info.unsafelyUnwrapped)
        }
        table.readdir = { request, _, size, offset, info in
            DirectoryOperations.read(Request(request), size, offset, info.unsafelyUnwrapped)
        }
        table.readdirplus = { request, _, size, offset, info in
            DirectoryOperations.readPlus(Request(request), size, offset, info.unsafelyUnwrapped)
        }
        table.releasedir = { request, _, info in
            DirectoryOperations.release(Request(request), info.unsafelyUnwrapped)
        }
        table.fsyncdir = { request, inode, _, _ in
            let request = Request(request)
            request.answer { (fileSystem) throws(FSError) in
                try fileSystem.syncDirectory(inode, request.replyDone)
            }
        }
    }
}
