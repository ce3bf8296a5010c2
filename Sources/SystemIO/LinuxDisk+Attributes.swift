import CLinux
import Glibc

// What only adopting, ejecting and copying need: ownership, links and extended attributes of the
// running system's files.
extension LinuxDisk {
    public func readSymlink(_ path: String) throws(SystemError) -> String {
        var bytes = [CChar](repeating: 0, count: 4097)
        let got = clx_readlink(path, &bytes, 4096)
        try checked(Int32(got), "read symlink", path)
        return String(decoding: bytes.prefix(Int(got)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    public func setOwner(_ path: String, uid: UInt32, gid: UInt32) throws(SystemError) {
        try checked(clx_lchown(path, uid, gid), "set owner of", path)
    }
    public func setMode(_ path: String, _ mode: UInt32) throws(SystemError) {
        try checked(clx_chmod(path, mode), "set mode of", path)
    }
    public func setTimes(_ path: String, accessNs: Int64, modifyNs: Int64) throws(SystemError) {
        try checked(clx_utimens(path, accessNs, modifyNs), "set times of", path)
    }

    /// The `user.` attributes; none on a file system that has none.
    public func userAttributes(_ path: String) throws(SystemError) -> [String: [UInt8]] {
        var names = [CChar](repeating: 0, count: 65536)
        let length = clx_list_xattr(path, &names, names.count)
        if length == Int64(-EOPNOTSUPP) || length == Int64(-EPERM) { return [:] }
        try checked(Int32(length), "list attributes of", path)
        var result: [String: [UInt8]] = [:]
        for part in names.prefix(Int(length)).split(separator: 0) {
            let name = String(decoding: part.map { UInt8(bitPattern: $0) }, as: UTF8.self)
            guard name.hasPrefix("user.") else { continue }
            var value = [UInt8](repeating: 0, count: 65536)
            let got = clx_get_xattr(path, name, &value, value.count)
            if got >= 0 { result[name] = Array(value.prefix(Int(got))) }
        }
        return result
    }

    public func setAttribute(
        _ path: String, _ name: String, _ value: [UInt8]
    ) throws(SystemError) {
        try checked(clx_set_xattr(path, name, value, value.count), "set attribute of", path)
    }
}

extension LinuxDisk {
    /// One that is not there is no error.
    public func removeAttribute(_ path: String, _ name: String) throws(SystemError) {
        let result = clx_remove_xattr(path, name)
        if result != -ENODATA { try checked(result, "remove attribute of", path) }
    }
}

public struct FileIdentity: Hashable, Sendable {
    public var device: UInt64
    public var inode: UInt64
    public init(device: UInt64, inode: UInt64) {
        self.device = device
        self.inode = inode
    }
}

/// Who has files open, as /proc tells; of other users' processes only root is told.
public enum OpenFiles {
    public struct Writer: Sendable, Hashable {
        public var path: String
        public var pid: Int32
        public var command: String
    }

    public static func writers(of files: [FileIdentity: String]) -> [Writer] {
        let disk = LinuxDisk()
        var found: [Writer] = []
        for entry in (try? disk.list("/proc")) ?? [] {
            guard let pid = Int32(entry.name) else { continue }
            for fd in (try? disk.list("/proc/\(pid)/fd")) ?? [] {
                var status = stat()
                guard stat("/proc/\(pid)/fd/\(fd.name)", &status) == 0,
                    let path = files[
                        FileIdentity(device: UInt64(status.st_dev), inode: UInt64(status.st_ino))],
                    isWritable(disk, pid, fd.name)
                else { continue }
                let name = (try? disk.readSmall("/proc/\(pid)/comm", limit: 64)) ?? []
                found.append(
                    Writer(
                        path: path, pid: pid,
                        command: String(decoding: name.filter { $0 != 10 }, as: UTF8.self)))
            }
        }
        return found
    }

    private static func isWritable(_ disk: Disk, _ pid: Int32, _ fd: String) -> Bool {
        guard let bytes = try? disk.readSmall("/proc/\(pid)/fdinfo/\(fd)", limit: 4096) else {
            return false
        }
        for line in String(decoding: bytes, as: UTF8.self).split(separator: "\n")
        where line.hasPrefix("flags:") {
            let flags = Int32(line.dropFirst(6).filter(\.isNumber), radix: 8) ?? 0
            return flags & O_ACCMODE != O_RDONLY
        }
        return false
    }
}
