import CFuse
import Glibc
import SystemIO
import VirtualFS

/// An open folder. The listing is taken when reading starts at the beginning, so that rewinddir(3)
/// shows what has changed and a slow reader still sees one consistent list.
private final class DirectoryHandle: @unchecked Sendable {  // `listing` is under `lock`
    let inode: UInt64
    private let lock = Lock()
    private var listing: DirectoryListing?

    init(inode: UInt64) { self.inode = inode }

    func entries(
        _ fileSystem: VirtualFS, fromStart: Bool
    ) throws(FSError) -> [DirectoryListing.Entry] {
        if !fromStart, let known = lock.withLock({ listing }) { return known.entries }
        let fresh = try fileSystem.list(inode)
        lock.withLock { listing = fresh }
        return fresh.entries
    }
}

/// Requests on folders.
enum DirectoryOperations {
    typealias Info = UnsafeMutablePointer<fuse_file_info>

    static func open(_ request: Request, _ inode: UInt64, _ info: Info) {
        request.answer { (fileSystem) throws(FSError) in
            let attributes = try fileSystem.attributes(of: inode)
            guard attributes.kind == .directory else { throw FSError(.notDirectory) }
            let handle = Unmanaged.passRetained(DirectoryHandle(inode: inode))
            info.pointee.fh = UInt64(UInt(bitPattern: handle.toOpaque()))
            if fuse_reply_open(request.raw, info) != 0 { handle.release() }
        }
    }

    static func release(_ request: Request, _ info: Info) {
        handle(info).release()
        request.succeed()
    }

    static func read(_ request: Request, _ size: Int, _ offset: off_t, _ info: Info) {
        fill(request, size, offset, info) { entry, name, room, next in
            var status = stat()
            status.st_ino = .init(entry.inode)
            status.st_mode = entry.kind.modeBits
            return fuse_add_direntry(request.raw, room.baseAddress, room.count, name, &status, next)
        }
    }

    static func readPlus(_ request: Request, _ size: Int, _ offset: off_t, _ info: Info) {
        let (server, fileSystem) = (request.server, request.fileSystem)
        fill(request, size, offset, info) { entry, name, room, next in
            var parameters = fuse_entry_param()
            // Gone since the listing: the name alone, which a lookup then corrects. The dot
            // entries are not looked up either: the kernel knows them.
            parameters.attr.st_ino = .init(entry.inode)
            parameters.attr.st_mode = entry.kind.modeBits
            if !entry.isDot, let attributes = try? fileSystem.attributes(of: entry.inode) {
                parameters = Request.entry(attributes, timeout: server.timeout(for: attributes))
            }
            return fuse_add_direntry_plus(
                request.raw, room.baseAddress, room.count, name, &parameters, next)
        }
    }

    /// Fills one reply with entries as long as they fit.
    /// - Parameter add: writes one entry, or nothing when it returns more than there is room for.
    private static func fill(
        _ request: Request, _ size: Int, _ offset: off_t, _ info: Info,
        _ add: (
            Item, UnsafePointer<CChar>, UnsafeMutableBufferPointer<CChar>, off_t
        ) -> Int
    ) {
        request.answer { (fileSystem) throws(FSError) in
            guard let scratch = cfuse_scratch(max(size, Int(FuseServer.maxWriteBytes))) else {
                return request.fail(ENOMEM)
            }
            let directory = handle(info).takeUnretainedValue()
            let entries = try directory.entries(fileSystem, fromStart: offset == 0)
            let buffer = UnsafeMutableBufferPointer(
                start: scratch.assumingMemoryBound(to: CChar.self), count: size)
            var (used, index) = (0, Int(offset))
            while index < entries.count + 2 {
                let entry =
                    switch index {
                    case 0: Item(dots: 1, inode: directory.inode)
                    case 1: Item(dots: 2, inode: fileSystem.parentInode(of: directory.inode))
                    default: Item(entries[index - 2])
                    }
                let room = UnsafeMutableBufferPointer(rebasing: buffer[used...])
                let length = (entry.name + [0]).withUnsafeBytes {
                    add(
                        entry, $0.baseAddress!.assumingMemoryBound(to: CChar.self), room,
                        off_t(index + 1))
                }
                if length > room.count { break }
                used += length
                index += 1
            }
            fuse_reply_buf(request.raw, buffer.baseAddress, used)
        }
    }

    private static func handle(_ info: Info) -> Unmanaged<DirectoryHandle> {
        Unmanaged.fromOpaque(
            UnsafeRawPointer(bitPattern: UInt(info.pointee.fh)).unsafelyUnwrapped)
    }
}

/// One line of a folder as the kernel wants it; the first two are the dots.
private struct Item {
    var name: [UInt8]
    var inode: UInt64
    var kind: Attributes.Kind
    var isDot: Bool

    init(dots: Int, inode: UInt64) {
        name = Array(repeating: 0x2e, count: dots)
        self.inode = inode
        kind = .directory
        isDot = true
    }

    init(_ entry: DirectoryListing.Entry) {
        name = entry.name
        inode = entry.inode
        kind = entry.kind
        isDot = false
    }
}
