import CLinux
import Glibc

public struct FileStatus: Sendable, Hashable {
    public enum Kind: Sendable { case file, directory, symlink, other }

    public var kind: Kind
    public var sizeBytes: UInt64
    public var allocatedBytes: UInt64
    public var inode: UInt64
    public var device: UInt64
    public var mode: UInt32
    public var uid: UInt32
    public var gid: UInt32
    public var linkCount: UInt32
    public var accessNs: Int64
    public var modifyNs: Int64
    public var changeNs: Int64

    public init(
        kind: Kind = .file, sizeBytes: UInt64 = 0, allocatedBytes: UInt64 = 0, inode: UInt64 = 0,
        device: UInt64 = 0, mode: UInt32 = 0o600, uid: UInt32 = 0, gid: UInt32 = 0,
        linkCount: UInt32 = 1, accessNs: Int64 = 0, modifyNs: Int64 = 0, changeNs: Int64 = 0
    ) {
        self.kind = kind
        self.sizeBytes = sizeBytes
        self.allocatedBytes = allocatedBytes
        self.inode = inode
        self.device = device
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.linkCount = linkCount
        self.accessNs = accessNs
        self.modifyNs = modifyNs
        self.changeNs = changeNs
    }

    init(_ s: clx_status) {
        let kind: Kind =
            switch s.mode & S_IFMT {
            case S_IFREG: .file
            case S_IFDIR: .directory
            case S_IFLNK: .symlink
            default: .other
            }
        self.init(
            kind: kind, sizeBytes: s.size_bytes, allocatedBytes: s.allocated_bytes,
            inode: s.inode, device: s.device, mode: s.mode & 0o7777, uid: s.uid, gid: s.gid,
            linkCount: s.link_count, accessNs: s.atime_ns, modifyNs: s.mtime_ns,
            changeNs: s.ctime_ns)
    }
}

/// One open file of a store.
///
/// An open class and not a protocol: production calls cost one indirect call, and a simulated or
/// faulty disk takes its place without a switch in production code. (`open` needs `public` types.)
open class DiskFile: @unchecked Sendable {  // `path` is constant; subclasses guard what they add
    public let path: String

    public init(path: String) { self.path = path }

    /// Reads up to the buffer's size; short only at the end of the file.
    open func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(SystemError) -> Int { unsupported() }

    /// Writes all of the buffer, or throws; what was written before the error is unknown.
    open func write(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(SystemError) { unsupported() }

    /// Writes the pieces one after another, at most 8, in one call where the system has one.
    open func write(
        pieces: [UnsafeRawBufferPointer], at offset: UInt64
    ) throws(SystemError) {
        var position = offset
        for piece in pieces {
            try write(piece, at: position)
            position += UInt64(piece.count)
        }
    }

    /// fdatasync: data and the size. A failure is final; see `clx_fdatasync`.
    open func syncData() throws(SystemError) { unsupported() }
    /// Lets the disk begin with a range that a later sync will ask for. It promises nothing, and does
    /// nothing where the system has no such call.
    open func startWriteback(at offset: UInt64, length: UInt64) {}
    /// Nobody is going to read the range soon: memory that holds it is free for other things, so far as
    /// it is durable. Changes nothing of what is read.
    open func dropCache(at offset: UInt64, length: UInt64) {}
    /// fsync: data and all metadata.
    open func sync() throws(SystemError) { unsupported() }
    open func truncate(to sizeBytes: UInt64) throws(SystemError) { unsupported() }
    open func punchHole(at offset: UInt64, length: UInt64) throws(SystemError) { unsupported() }
    open func zeroRange(at offset: UInt64, length: UInt64) throws(SystemError) { unsupported() }
    open func allocate(
        at offset: UInt64, length: UInt64, keepSize: Bool
    ) throws(SystemError) { unsupported() }
    /// First byte at or after `offset` that may hold data; nil when there is none.
    open func seekData(from offset: UInt64) throws(SystemError) -> UInt64? { unsupported() }
    /// First byte at or after `offset` that is in a hole (the end of the file counts as one);
    /// nil when `offset` is past the end.
    open func seekHole(from offset: UInt64) throws(SystemError) -> UInt64? { unsupported() }
    open func status() throws(SystemError) -> FileStatus { unsupported() }
    open func setTimes(accessNs: Int64, modifyNs: Int64) throws(SystemError) { unsupported() }

    /// Copies a range from another file of the same disk by the cheapest means there is.
    /// - Returns: bytes copied; less than `length` only at the source's end.
    open func copyRange(
        from source: DiskFile, at sourceOffset: UInt64, to offset: UInt64, length: UInt64
    ) throws(SystemError) -> UInt64 {
        try copyThroughMemory(from: source, at: sourceOffset, to: offset, length: length)
    }

    open func close() {}

    public final func copyThroughMemory(
        from source: DiskFile, at sourceOffset: UInt64, to offset: UInt64, length: UInt64
    ) throws(SystemError) -> UInt64 {
        let chunk = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(min(length, 1 << 20)), alignment: 4096)
        defer { chunk.deallocate() }
        var done: UInt64 = 0
        while done < length {
            let want = Int(min(UInt64(chunk.count), length - done))
            let got = try source.read(
                into: UnsafeMutableRawBufferPointer(rebasing: chunk[0..<want]),
                at: sourceOffset + done)
            if got == 0 { break }
            try write(UnsafeRawBufferPointer(rebasing: chunk[0..<got]), at: offset + done)
            done += UInt64(got)
        }
        return done
    }

    private func unsupported(_ name: String = #function) -> Never {
        fatalError("\(type(of: self)) must override \(name)")  // a subclass forgot it: a bug
    }
}
