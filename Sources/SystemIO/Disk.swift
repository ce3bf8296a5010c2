import CLinux
import Glibc

public struct OpenOptions: OptionSet, Sendable {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let readWrite = OpenOptions(rawValue: Int32(CLX_OPEN_READWRITE))
    public static let create = OpenOptions(rawValue: Int32(CLX_OPEN_CREATE))
    public static let exclusive = OpenOptions(rawValue: Int32(CLX_OPEN_EXCLUSIVE))
    public static let truncate = OpenOptions(rawValue: Int32(CLX_OPEN_TRUNCATE))
}

public struct DirectoryEntry: Sendable, Hashable {
    public var name: String
    public var kind: FileStatus.Kind
    public init(name: String, kind: FileStatus.Kind) {
        self.name = name
        self.kind = kind
    }
}

public struct FileSystemStatus: Sendable, Hashable {
    public var totalBytes: UInt64
    public var freeBytes: UInt64
    public var availableBytes: UInt64
    public var totalFiles: UInt64
    public var freeFiles: UInt64

    public init(
        totalBytes: UInt64, freeBytes: UInt64, availableBytes: UInt64, totalFiles: UInt64,
        freeFiles: UInt64
    ) {
        self.totalBytes = totalBytes
        self.freeBytes = freeBytes
        self.availableBytes = availableBytes
        self.totalFiles = totalFiles
        self.freeFiles = freeFiles
    }
}

/// Held while the object lives; the kernel lets go of it when its process dies, however it dies.
open class DiskLock: @unchecked Sendable {  // immutable; subclasses guard what they add
    public init() {}
    open func release() {}
}

/// The file system that a store lies on, with the clock beside it. See ``DiskFile`` for why a class.
open class Disk: @unchecked Sendable {  // no state of its own
    public init() {}

    open func open(
        _ path: String, _ options: OpenOptions, mode: UInt32 = 0o600
    ) throws(SystemError) -> DiskFile { unsupported() }
    open func createDirectory(
        _ path: String, mode: UInt32 = 0o700
    ) throws(SystemError) { unsupported() }
    open func makeSymlink(_ path: String, target: String) throws(SystemError) { unsupported() }
    open func removeFile(_ path: String) throws(SystemError) { unsupported() }
    open func removeDirectory(_ path: String) throws(SystemError) { unsupported() }
    open func rename(
        _ from: String, to: String, noReplace: Bool = false
    ) throws(SystemError) { unsupported() }
    /// Makes the entries of a directory durable.
    open func syncDirectory(_ path: String) throws(SystemError) { unsupported() }
    open func list(_ path: String) throws(SystemError) -> [DirectoryEntry] { unsupported() }
    /// Of the path itself, not of what a symlink names; nil where nothing is.
    open func status(_ path: String) throws(SystemError) -> FileStatus? { unsupported() }
    open func fileSystemStatus(_ path: String) throws(SystemError) -> FileSystemStatus {
        unsupported()
    }
    /// Takes the whole-file lock of `path`, which is created when missing; nil when another holds it.
    open func tryLock(_ path: String) throws(SystemError) -> DiskLock? { unsupported() }
    /// Nanoseconds since 1970.
    open func now() -> Int64 { unsupported() }
    /// Nanoseconds of a clock that never goes back.
    open func monotonic() -> Int64 { unsupported() }
    /// Another one each time the machine starts: what was written before and not synced may be lost. nil
    /// where that is not known.
    open func bootID() -> String? { nil }

    private func unsupported(_ name: String = #function) -> Never {
        fatalError("\(type(of: self)) must override \(name)")  // a subclass forgot it: a bug
    }
}

extension Disk {
    /// Replaces or creates a small file so that after a crash either the old or the new is there.
    public func writeDurably(
        _ path: String, contents: [UInt8], mode: UInt32 = 0o600
    ) throws(SystemError) {
        let temporary = path + ".new"
        let file = try open(temporary, [.readWrite, .create, .truncate], mode: mode)
        do throws(SystemError) {
            try contents.withTypedBytes { bytes throws(SystemError) in
                try file.write(bytes, at: 0)
            }
            try file.sync()
        } catch {
            file.close()
            throw error
        }
        file.close()
        try rename(temporary, to: path)
        try syncDirectory(parentPath(path))
    }

    public func readAll(_ path: String) throws(SystemError) -> [UInt8] {
        let file = try open(path, [])
        defer { file.close() }
        let size = Int(try file.status().sizeBytes)
        var bytes = [UInt8](repeating: 0, count: size)
        let got = try bytes.withTypedMutableBytes { buffer throws(SystemError) in
            try file.read(into: buffer, at: 0)
        }
        bytes.removeSubrange(got...)
        return bytes
    }
}

/// The folder that holds `path`.
public func parentPath(_ path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
}

extension Disk {
    /// The first bytes of a file whose size the system does not tell, such as those of /proc.
    public func readSmall(_ path: String, limit: Int) throws(SystemError) -> [UInt8] {
        let file = try open(path, [])
        defer { file.close() }
        var bytes = [UInt8](repeating: 0, count: limit)
        let got = try bytes.withTypedMutableBytes { (raw) throws(SystemError) in
            try file.read(into: raw, at: 0)
        }
        bytes.removeSubrange(got...)
        return bytes
    }
}
