import CFuse
import Glibc
import VirtualFS
import Volume

/// One request of the kernel, and the forms of its answer.
// Unchecked: libfuse keeps the request until it is answered, which any thread may do, once.
struct Request: @unchecked Sendable {
    let raw: fuse_req_t

    @inline(__always)
    init(_ raw: fuse_req_t?) { self.raw = raw.unsafelyUnwrapped }

    var server: FuseServer {
        Unmanaged<FuseServer>.fromOpaque(fuse_req_userdata(raw)).takeUnretainedValue()
    }
    var fileSystem: VirtualFS { server.fileSystem }
    var caller: fuse_ctx { fuse_req_ctx(raw).pointee }

    /// The process behind a request to open for writing, for messages that say who is in the way.
    /// The kernel gives the thread, which ps(1) does not know and which may end before its process.
    func callingProcess(_ openFlags: Int32) -> Int32 {
        let thread = caller.pid
        guard openFlags & O_ACCMODE != O_RDONLY, thread > 0 else { return thread }
        guard let file = fopen("/proc/\(thread)/status", "re") else { return thread }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        while fgets(&line, Int32(line.count), file) != nil {
            guard strncmp(line, "Tgid:", 5) == 0 else { continue }
            return line.withUnsafeBufferPointer { Int32(strtol($0.baseAddress! + 5, nil, 10)) }
        }
        return thread
    }

    func succeed() { fuse_reply_err(raw, 0) }
    func fail(_ errno: Int32) { fuse_reply_err(raw, errno) }
    func fail(_ error: FSError) {
        server.note(error)
        fuse_reply_err(raw, ErrnoTable.number(for: error.code))
    }

    /// Runs `body`, which replies; what it throws becomes the reply.
    @inline(__always)
    func answer(_ body: (VirtualFS) throws(FSError) -> Void) {
        do throws(FSError) { try body(fileSystem) } catch { fail(error) }
    }

    /// As `answer`, for what has nothing to tell but that it worked.
    @inline(__always)
    func acknowledge(_ body: (VirtualFS) throws(FSError) -> Void) {
        answer { (fileSystem) throws(FSError) in
            try body(fileSystem)
            succeed()
        }
    }

    // From another thread, perhaps after this one has long served others: libfuse keeps the request
    // until its reply.

    var replyDone: PendingReply {
        PendingReply(context: UInt(bitPattern: raw)) { context, _, errno in
            fuse_reply_err(fuse_req_t(bitPattern: context).unsafelyUnwrapped, errno)
        }
    }

    func replyWritten(_ count: Int) -> PendingReply {
        PendingReply(context: UInt(bitPattern: raw), value: UInt(count)) { context, count, errno in
            let raw = fuse_req_t(bitPattern: context).unsafelyUnwrapped
            if errno == 0 { fuse_reply_write(raw, Int(count)) } else { fuse_reply_err(raw, errno) }
        }
    }

    func reply(entry attributes: Attributes) {
        var entry = Self.entry(attributes, timeout: server.timeout(for: attributes))
        fuse_reply_entry(raw, &entry)
    }

    func reply(attributes: Attributes) {
        var status = attributes.status
        fuse_reply_attr(raw, &status, server.timeout(for: attributes))
    }

    func reply(bytes: [UInt8]) {
        bytes.withUnsafeBytes {
            _ = fuse_reply_buf(raw, $0.baseAddress?.assumingMemoryBound(to: CChar.self), $0.count)
        }
    }

    /// For values whose length may be asked first: with `size` 0 the length is the answer.
    func reply(value: [UInt8], size: Int) {
        if size == 0 {
            fuse_reply_xattr(raw, value.count)
        } else if value.count > size {
            fail(ERANGE)
        } else {
            reply(bytes: value)
        }
    }

    static func entry(_ attributes: Attributes, timeout: Double) -> fuse_entry_param {
        var entry = fuse_entry_param()
        entry.ino = attributes.inode
        entry.attr = attributes.status
        entry.attr_timeout = timeout
        entry.entry_timeout = timeout
        return entry
    }
}

extension Attributes {
    var status: stat {
        var status = stat()
        status.st_ino = .init(inode)
        status.st_mode = mode & 0o7777 | kind.modeBits
        status.st_nlink = .init(linkCount)
        status.st_uid = uid
        status.st_gid = gid
        status.st_size = .init(sizeBytes)
        // In units of 512 bytes whatever the block size is: stat(2).
        status.st_blocks = .init((allocatedBytes + 511) / 512)
        status.st_blksize = 4096
        status.st_atim = timespec(nanoseconds: accessNs)
        status.st_mtim = timespec(nanoseconds: modifyNs)
        status.st_ctim = timespec(nanoseconds: changeNs)
        return status
    }
}

extension Attributes.Kind {
    var modeBits: UInt32 {
        switch self {
        case .file: S_IFREG
        case .directory: S_IFDIR
        case .symlink: S_IFLNK
        }
    }
}

extension timespec {
    init(nanoseconds: Int64) {
        var (seconds, rest) = nanoseconds.quotientAndRemainder(dividingBy: 1_000_000_000)
        // Before 1970 the nanoseconds still count forward.
        if rest < 0 {
            seconds -= 1
            rest += 1_000_000_000
        }
        self.init(tv_sec: Int(seconds), tv_nsec: Int(rest))
    }

    /// Times beyond the year 2262 are kept as the last one that fits.
    var nanoseconds: Int64 {
        let (product, overflowed) = Int64(tv_sec).multipliedReportingOverflow(by: 1_000_000_000)
        if overflowed { return tv_sec < 0 ? .min : .max }
        let (sum, overflowedToo) = product.addingReportingOverflow(Int64(tv_nsec))
        return overflowedToo ? .max : sum
    }

    static var now: timespec {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return time
    }
}

/// The bytes of a name; what they mean is no business of a file system.
func nameBytes(_ name: UnsafePointer<CChar>?) -> [UInt8] {
    guard let name else { return [] }
    let count = strlen(name)
    return name.withMemoryRebound(to: UInt8.self, capacity: count) {
        Array(UnsafeBufferPointer(start: $0, count: count))
    }
}
