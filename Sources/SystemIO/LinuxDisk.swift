import CLinux
import Glibc

/// The running system.
public final class LinuxDisk: Disk, @unchecked Sendable {  // no state
    public override init() {}

    public override func open(
        _ path: String, _ options: OpenOptions, mode: UInt32
    ) throws(SystemError) -> DiskFile {
        let fd = clx_open(path, options.rawValue, mode)
        try checked(fd, "open", path)
        return LinuxFile(path: path, fd: fd)
    }

    public override func createDirectory(_ path: String, mode: UInt32) throws(SystemError) {
        try checked(clx_mkdir(path, mode), "create directory", path)
    }
    public override func makeSymlink(_ path: String, target: String) throws(SystemError) {
        try checked(clx_symlink(target, path), "make symlink", path)
    }
    public override func removeFile(_ path: String) throws(SystemError) {
        try checked(clx_unlink(path), "remove", path)
    }
    public override func removeDirectory(_ path: String) throws(SystemError) {
        try checked(clx_rmdir(path), "remove directory", path)
    }
    public override func rename(
        _ from: String, to: String, noReplace: Bool
    ) throws(SystemError) {
        try checked(clx_rename(from, to, noReplace), "rename to \(to):", from)
    }

    public override func syncDirectory(_ path: String) throws(SystemError) {
        let fd = clx_open(path, Int32(CLX_OPEN_DIRECTORY), 0)
        try checked(fd, "open directory", path)
        defer { _ = clx_close(fd) }
        try checked(clx_fsync(fd), "fsync directory", path)
    }

    public override func list(_ path: String) throws(SystemError) -> [DirectoryEntry] {
        final class Sink { var entries: [DirectoryEntry] = [] }
        let sink = Sink()
        let result = clx_list(
            path,
            { context, name, type in
                let sink = Unmanaged<Sink>.fromOpaque(context!).takeUnretainedValue()
                let kind: FileStatus.Kind =
                    switch Int(type) {
                    case Int(DT_REG): .file
                    case Int(DT_DIR): .directory
                    case Int(DT_LNK): .symlink
                    default: .other
                    }
                sink.entries.append(DirectoryEntry(name: String(cString: name!), kind: kind))
                return true
            }, Unmanaged.passUnretained(sink).toOpaque())
        try checked(result, "list", path)
        return withExtendedLifetime(sink) { sink.entries }
    }

    public override func status(_ path: String) throws(SystemError) -> FileStatus? {
        var out = clx_status()
        let result = clx_lstat(path, &out)
        if result == -ENOENT { return nil }
        try checked(result, "stat", path)
        return FileStatus(out)
    }

    public override func fileSystemStatus(_ path: String) throws(SystemError) -> FileSystemStatus {
        var out = clx_fsstatus()
        try checked(clx_statfs(path, &out), "statfs", path)
        return FileSystemStatus(
            totalBytes: out.total_bytes, freeBytes: out.free_bytes,
            availableBytes: out.available_bytes, totalFiles: out.total_files,
            freeFiles: out.free_files)
    }

    public override func tryLock(_ path: String) throws(SystemError) -> DiskLock? {
        let flags = Int32(CLX_OPEN_READWRITE | CLX_OPEN_CREATE)
        let fd = clx_open(path, flags, 0o600)
        try checked(fd, "open", path)
        let result = clx_try_lock(fd)
        if result < 0 {
            _ = clx_close(fd)
            if result == -EAGAIN { return nil }
            throw SystemError(operation: "lock", path: path, errno: -result)
        }
        return LinuxLock(fd: fd)
    }

    /// Keeps a directory to one who asks; nothing is left in it.
    /// - Returns: nil while somebody else has it.
    public func tryLockDirectory(_ path: String) throws(SystemError) -> DiskLock? {
        let fd = clx_open(path, Int32(CLX_OPEN_READ | CLX_OPEN_DIRECTORY), 0)
        try checked(fd, "open", path)
        let result = clx_try_lock_directory(fd)
        if result < 0 {
            _ = clx_close(fd)
            if result == -EAGAIN { return nil }
            throw SystemError(operation: "lock", path: path, errno: -result)
        }
        return LinuxLock(fd: fd, isDirectory: true)
    }

    /// Processes that have locked this directory; those that the kernel does not name are left out.
    public func lockHolders(ofDirectory path: String) -> [Int32] {
        guard let inode = (try? status(path))?.inode,
            let bytes = try? readSmall("/proc/locks", limit: 1 << 20)
        else { return [] }
        // 1: FLOCK  ADVISORY  WRITE 4321 08:01:131077 0 EOF
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ")
            guard words.count == 8, words[1] == "FLOCK",
                words[5].split(separator: ":").last == Substring(String(inode)),
                let process = Int32(words[4]), process > 0
            else { return nil }
            return process
        }
    }

    public override func now() -> Int64 { clx_realtime_ns() }
    public override func monotonic() -> Int64 { clx_monotonic_ns() }
    public override func bootID() -> String? {
        let bytes = (try? readSmall("/proc/sys/kernel/random/boot_id", limit: 64)) ?? []
        let text = String(decoding: bytes.prefix { $0 > 0x20 }, as: UTF8.self)
        return text.isEmpty ? nil : text
    }
}

/// An open-file-description lock, of a directory flock's: it belongs to the descriptor, so it is gone with the process.
final class LinuxLock: DiskLock, @unchecked Sendable {  // `fd` is guarded by `released`
    private let fd: Int32
    private let isDirectory: Bool
    private let released = Lock()
    private var isReleased = false

    init(fd: Int32, isDirectory: Bool = false) {
        self.fd = fd
        self.isDirectory = isDirectory
    }
    deinit { release() }

    override func release() {
        released.withLock {
            if isReleased { return }
            isReleased = true
            // Unlocked before it is closed: a process being started right now has a copy of the
            // descriptor until its exec, and would hold the lock that long.
            _ = isDirectory ? clx_unlock_directory(fd) : clx_unlock(fd)
            _ = clx_close(fd)
        }
    }
}
