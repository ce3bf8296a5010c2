import CFuse
import Glibc
import SystemIO

/// The store behind libfuse. Nothing is cached by the kernel: what it held would not be forgotten.
final class LossyFileSystem: @unchecked Sendable {  // `store` is under `lock`
    static let control: UInt64 = 1 << 40
    static let controlName = Array(".lossy".utf8)
    private let lock = Lock()
    private let changed = Condition()
    private var store = LossyStore()

    func with<T>(_ body: (inout LossyStore) throws(Errno) -> T) throws(Errno) -> T {
        defer { changed.broadcast() }
        return try lock.withLock { () throws(Errno) in try body(&store) }
    }

    /// Returns when the disk does not hang. Only reading, writing and syncing do: names are the kernel's
    /// to remember, and commands have to come through.
    func waitForDisk(_ inode: UInt64) {
        guard inode != Self.control else { return }
        lock.withLock { while store.hangs { changed.wait(lock) } }
    }

    /// The same, before a sync.
    func waitForSync(_ inode: UInt64) {
        guard inode != Self.control else { return }
        lock.withLock {
            store.meetSync()
            while store.hangs { changed.wait(lock) }
        }
    }

    /// As a slow disk has it.
    func waitForWrite(_ inode: UInt64) {
        waitForDisk(inode)
        guard inode != Self.control else { return }
        let writeMs = lock.withLock { store.writeMs }
        if writeMs > 0 { usleep(writeMs * 1000) }
    }

    static func of(_ request: fuse_req_t) -> LossyFileSystem {
        Unmanaged<LossyFileSystem>.fromOpaque(fuse_req_userdata(request)).takeUnretainedValue()
    }
}

private func answer(
    _ request: fuse_req_t?, _ body: (fuse_req_t, inout LossyStore) throws(Errno) -> Void
) {
    let request = request!
    do throws(Errno) {
        try LossyFileSystem.of(request).with { (store) throws(Errno) in try body(request, &store) }
    } catch { fuse_reply_err(request, error.number) }
}

private func bytes(_ name: UnsafePointer<CChar>?) -> [UInt8] {
    Array(UnsafeRawBufferPointer(start: name, count: strlen(name!)))
}

extension LossyStore {
    fileprivate func status(_ inode: UInt64) throws(Errno) -> stat {
        var status = stat()
        status.st_ino = .init(inode)
        status.st_nlink = 1
        status.st_blksize = 4096
        if inode == LossyFileSystem.control {
            status.st_mode = S_IFREG | 0o600
            return status
        }
        let node = try node(inode)
        switch node.kind {
        case .file: status.st_mode = S_IFREG
        case .folder: status.st_mode = S_IFDIR
        case .link: status.st_mode = S_IFLNK
        }
        status.st_mode |= node.mode & 0o7777
        (status.st_uid, status.st_gid) = (node.uid, node.gid)
        status.st_atim = node.accessed
        status.st_mtim = node.modified
        status.st_ctim = node.changed
        status.st_size = contents[inode]?.size ?? node.target.count
        status.st_blocks = (contents[inode]?.pages.count ?? 0) * 8
        return status
    }

    fileprivate func entry(_ inode: UInt64) throws(Errno) -> fuse_entry_param {
        var entry = fuse_entry_param()
        entry.ino = inode
        entry.attr = try status(inode)
        return entry
    }
}

private func waitForDisk(_ request: fuse_req_t?, _ inode: UInt64) {
    LossyFileSystem.of(request!).waitForDisk(inode)
}
private func waitForSync(_ request: fuse_req_t?, _ inode: UInt64) {
    LossyFileSystem.of(request!).waitForSync(inode)
}

enum LossyOperations {
    static func make() -> fuse_lowlevel_ops {
        var table = fuse_lowlevel_ops()
        table.`init` = { _, connection in
            connection!.pointee.max_write = 1 << 20
            connection!.pointee.want &= ~UInt32(FUSE_CAP_AUTO_INVAL_DATA)
        }
        table.forget = { request, _, _ in fuse_reply_none(request) }
        table.forget_multi = { request, _, _ in fuse_reply_none(request) }
        addNames(to: &table)
        addFiles(to: &table)
        return table
    }

    private static func addNames(to table: inout fuse_lowlevel_ops) {
        table.lookup = { request, parent, name in
            let name = bytes(name)
            answer(request) { (request, store) throws(Errno) in
                let isControl = parent == LossyStore.root && name == LossyFileSystem.controlName
                let inode =
                    isControl ? LossyFileSystem.control : try store.child(parent, name)
                var entry = try store.entry(inode)
                fuse_reply_entry(request, &entry)
            }
        }
        table.getattr = { request, inode, _ in
            answer(request) { (request, store) throws(Errno) in
                var status = try store.status(inode)
                fuse_reply_attr(request, &status, 0)
            }
        }
        table.setattr = { request, inode, status, fields, _ in
            let wanted = status!.pointee
            answer(request) { (request, store) throws(Errno) in
                if inode != LossyFileSystem.control {
                    try store.requirePower()
                    if fields & FUSE_SET_ATTR_SIZE != 0 {
                        store.contents[inode]?.resize(to: wanted.st_size)
                        store.touch(inode)
                    }
                    let others = fields & ~FUSE_SET_ATTR_SIZE
                    if others != 0 {
                        try store.change(inode) { LossyOperations.apply(wanted, others, to: &$0) }
                    }
                }
                var status = try store.status(inode)
                fuse_reply_attr(request, &status, 0)
            }
        }
        table.mkdir = { request, parent, name, mode in
            LossyOperations.insert(
                request, parent, bytes(name), LossyNode(kind: .folder, mode: mode))
        }
        table.symlink = { request, target, parent, name in
            var node = LossyNode(kind: .link, mode: 0o777)
            node.target = bytes(target)
            LossyOperations.insert(request, parent, bytes(name), node)
        }
        table.readlink = { request, inode in
            answer(request) { (request, store) throws(Errno) in
                let target = try store.node(inode).target.map { CChar(bitPattern: $0) } + [0]
                fuse_reply_readlink(request, target)
            }
        }
        table.unlink = { request, parent, name in
            let name = bytes(name)
            answer(request) { (request, store) throws(Errno) in
                try store.remove(parent, name, isFolder: false)
                fuse_reply_err(request, 0)
            }
        }
        table.rmdir = { request, parent, name in
            let name = bytes(name)
            answer(request) { (request, store) throws(Errno) in
                try store.remove(parent, name, isFolder: true)
                fuse_reply_err(request, 0)
            }
        }
        table.rename = { request, parent, name, newParent, newName, flags in
            let (name, newName) = (bytes(name), bytes(newName))
            answer(request) { (request, store) throws(Errno) in
                try store.rename(parent, name, newParent, newName, flags: flags)
                fuse_reply_err(request, 0)
            }
        }
        table.readdir = { request, inode, size, offset, _ in
            answer(request) { (request, store) throws(Errno) in
                let entries = try store.node(inode).entries.sorted { $0.value < $1.value }
                var buffer = [CChar](repeating: 0, count: size)
                var used = 0
                // An entry's offset is its inode, so that removals in between skip nothing.
                for (name, child) in entries where child > UInt64(offset) {
                    var status = try store.status(child)
                    let added = buffer.withUnsafeMutableBufferPointer { room in
                        fuse_add_direntry(
                            request, room.baseAddress! + used, size - used,
                            name.map { CChar(bitPattern: $0) } + [0], &status, off_t(child))
                    }
                    if added > size - used { break }
                    used += added
                }
                fuse_reply_buf(request, buffer, used)
            }
        }
        table.fsyncdir = { request, inode, _, _ in
            waitForSync(request, inode)
            answer(request) { (request, store) throws(Errno) in
                try store.sync(inode)
                fuse_reply_err(request, 0)
            }
        }
        table.statfs = { request, _ in
            answer(request) { (request, store) throws(Errno) in
                var out = statvfs()
                (out.f_bsize, out.f_frsize, out.f_namemax) = (4096, 4096, 255)
                out.f_blocks = .init(store.limitBytes / 4096)
                out.f_bfree = .init(max(store.limitBytes - store.usedBytes, 0) / 4096)
                out.f_bavail = out.f_bfree
                fuse_reply_statfs(request, &out)
            }
        }
    }

    fileprivate static func insert(
        _ request: fuse_req_t?, _ parent: UInt64, _ name: [UInt8], _ node: LossyNode
    ) {
        answer(request) { (request, store) throws(Errno) in
            var node = node
            (node.uid, node.gid) = (
                fuse_req_ctx(request).pointee.uid, fuse_req_ctx(request).pointee.gid
            )
            let inode = try store.insert(parent, name, node)
            var entry = try store.entry(inode)
            fuse_reply_entry(request, &entry)
        }
    }

    fileprivate static func apply(_ wanted: stat, _ fields: Int32, to node: inout LossyNode) {
        if fields & FUSE_SET_ATTR_MODE != 0 { node.mode = wanted.st_mode & 0o7777 }
        if fields & FUSE_SET_ATTR_UID != 0 { node.uid = wanted.st_uid }
        if fields & FUSE_SET_ATTR_GID != 0 { node.gid = wanted.st_gid }
        if fields & FUSE_SET_ATTR_ATIME != 0 { node.accessed = wanted.st_atim }
        if fields & FUSE_SET_ATTR_MTIME != 0 { node.modified = wanted.st_mtim }
        if fields & FUSE_SET_ATTR_ATIME_NOW != 0 { node.accessed = LossyStore.now }
        if fields & FUSE_SET_ATTR_MTIME_NOW != 0 { node.modified = LossyStore.now }
        node.changed = LossyStore.now
    }

    // MARK: Files

    private static func addFiles(to table: inout fuse_lowlevel_ops) {
        table.create = { request, parent, name, mode, info in
            let name = bytes(name)
            answer(request) { (request, store) throws(Errno) in
                var node = LossyNode(kind: .file, mode: mode)
                let caller = fuse_req_ctx(request).pointee
                (node.uid, node.gid) = (caller.uid, caller.gid)
                let inode = try store.insert(parent, name, node)
                store.opened(inode)
                var entry = try store.entry(inode)
                cfuse_reply_create(request, &entry, inode, UInt32(CFUSE_OPEN_DIRECT_IO))
            }
        }
        table.open = { request, inode, info in
            let flags = info!.pointee.flags
            answer(request) { (request, store) throws(Errno) in
                if inode != LossyFileSystem.control {
                    guard store.contents[inode] != nil else { throw Errno(ESTALE) }
                    if flags & O_TRUNC != 0, !store.isOff { store.contents[inode]!.resize(to: 0) }
                    store.opened(inode)
                }
                cfuse_reply_open(request, inode, UInt32(CFUSE_OPEN_DIRECT_IO))
            }
        }
        table.release = { request, inode, _ in
            answer(request) { (request, store) throws(Errno) in
                if inode != LossyFileSystem.control { store.closed(inode) }
                fuse_reply_err(request, 0)
            }
        }
        table.flush = { request, _, _ in fuse_reply_err(request, 0) }
        table.read = { request, inode, size, offset, _ in
            waitForDisk(request, inode)
            answer(request) { (request, store) throws(Errno) in
                let data =
                    inode == LossyFileSystem.control
                    ? Array(store.standing.utf8.dropFirst(Int(offset)))
                    : store.contents[inode]?.read(size, at: offset) ?? []
                data.withUnsafeBytes {
                    _ = fuse_reply_buf(
                        request, $0.baseAddress?.assumingMemoryBound(to: CChar.self), $0.count)
                }
            }
        }
        table.write = { request, inode, data, size, offset, info in
            let flags = info!.pointee.flags
            let bytes = UnsafeRawBufferPointer(start: data, count: size)
            LossyFileSystem.of(request!).waitForWrite(inode)
            answer(request) { (request, store) throws(Errno) in
                if inode == LossyFileSystem.control {
                    try store.obey(String(decoding: bytes, as: UTF8.self))
                } else {
                    try store.write(bytes, to: inode, at: offset)
                    if flags & O_DSYNC != 0 { try store.sync(inode) }
                }
                fuse_reply_write(request, size)
            }
        }
        table.fsync = { request, inode, _, _ in
            waitForSync(request, inode)
            answer(request) { (request, store) throws(Errno) in
                if inode != LossyFileSystem.control { try store.sync(inode) }
                fuse_reply_err(request, 0)
            }
        }
        table.fallocate = { request, inode, mode, offset, length, _ in
            waitForDisk(request, inode)
            answer(request) { (request, store) throws(Errno) in
                try store.requirePower()
                guard store.contents[inode] != nil else { throw Errno(ESTALE) }
                let (keeps, end) = (mode & 1 != 0, offset + length)
                switch mode & ~1 {
                case 0: try store.checkSpace(length)
                case 2 where keeps, 16: store.contents[inode]!.zero(from: offset, to: end)
                default: throw Errno(EOPNOTSUPP)
                }
                if !keeps, end > store.contents[inode]!.size {
                    store.contents[inode]!.resize(to: end)
                }
                fuse_reply_err(request, 0)
            }
        }
        table.lseek = { request, inode, offset, whence, _ in
            answer(request) { (request, store) throws(Errno) in
                guard whence == 3 || whence == 4 else { throw Errno(EINVAL) }
                guard
                    let found = store.contents[inode]?.seek(data: whence == 3, from: offset)
                else { throw Errno(ENXIO) }
                fuse_reply_lseek(request, found)
            }
        }
    }
}
