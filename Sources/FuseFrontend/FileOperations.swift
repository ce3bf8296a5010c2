import CFuse
import Glibc
import VirtualFS
import Volume

/// Requests on open files: the way of a write starts here.
enum FileOperations {
    typealias Info = UnsafeMutablePointer<fuse_file_info>

    // MARK: Opening and closing

    static func open(_ request: Request, _ inode: UInt64, _ info: Info) {
        let flags = info.pointee.flags
        guard flags & O_TRUNC != 0 else {
            return request.answer { (fileSystem) throws(FSError) in
                reply(request, try open(request, inode, flags, fileSystem))
            }
        }
        request.fileSystem.whenChangeable(inode) { isGivenUp in
            if isGivenUp { return request.fail(EIO) }
            request.answer { (fileSystem) throws(FSError) in
                let file = try open(request, inode, flags, fileSystem)
                file.finishChange(
                    PendingReply { errno in
                        if errno == 0 { return reply(request, file) }
                        file.close()
                        request.fail(errno)
                    })
            }
        }
    }

    private static func open(
        _ request: Request, _ inode: UInt64, _ flags: Int32, _ fileSystem: VirtualFS
    ) throws(FSError) -> OpenFile {
        try fileSystem.open(
            inode, access: access(flags), truncates: flags & O_TRUNC != 0,
            clientPID: request.callingProcess(flags))
    }

    private static func reply(_ request: Request, _ file: OpenFile) {
        let handle = Unmanaged.passRetained(file)
        let result = cfuse_reply_open(
            request.raw, bits(handle), request.server.openFlags(for: file))
        if result != 0 { giveUp(handle) }
    }

    static func create(
        _ request: Request, _ parent: UInt64, _ name: [UInt8], _ mode: mode_t, _ info: Info
    ) {
        request.answer { (fileSystem) throws(FSError) in
            let flags = info.pointee.flags
            let caller = request.caller
            let (attributes, file) = try fileSystem.createFile(
                parent: parent, name: name, mode: mode, uid: caller.uid, gid: caller.gid,
                access: access(flags), isExclusive: flags & O_EXCL != 0,
                truncates: flags & O_TRUNC != 0, clientPID: request.callingProcess(flags))
            let server = request.server
            var entry = Request.entry(attributes, timeout: server.timeout(for: attributes))
            let handle = Unmanaged.passRetained(file)
            let result = cfuse_reply_create(
                request.raw, &entry, bits(handle), server.openFlags(for: file))
            if result != 0 { giveUp(handle) }
        }
    }

    static func release(_ request: Request, _ info: Info) {
        giveUp(handle(info))
        request.succeed()
    }

    private static func giveUp(_ handle: Unmanaged<OpenFile>) {
        handle.takeUnretainedValue().close()
        handle.release()
    }

    private static func access(_ flags: Int32) -> OpenFile.Access {
        switch flags & O_ACCMODE {
        case O_RDONLY: .read
        case O_WRONLY: .write
        default: .readWrite
        }
    }

    // MARK: Data

    static func read(_ request: Request, _ size: Int, _ offset: off_t, _ info: Info) {
        guard let scratch = cfuse_scratch(max(size, Int(FuseServer.maxWriteBytes))) else {
            return request.fail(ENOMEM)
        }
        handle(info)._withUnsafeGuaranteedRef { file in
            do throws(FSError) {
                let count = try file.read(
                    into: UnsafeMutableRawBufferPointer(start: scratch, count: size),
                    at: UInt64(offset))
                fuse_reply_buf(request.raw, scratch.assumingMemoryBound(to: CChar.self), count)
            } catch { request.fail(error) }
        }
    }

    static func write(
        _ request: Request, _ data: UnsafeRawBufferPointer, _ offset: off_t, _ info: Info
    ) {
        let flags = info.pointee.flags
        handle(info)._withUnsafeGuaranteedRef { file in
            guard !file.mustHold(data.count) else {
                return hold(request, Array(data), offset, file, flags)
            }
            write(request, data, offset, file, flags)
        }
    }

    @inline(__always)
    private static func write(
        _ request: Request, _ data: UnsafeRawBufferPointer, _ offset: off_t, _ file: OpenFile,
        _ flags: Int32
    ) {
        do throws(FSError) {
            // The kernel hands O_SYNC, O_DSYNC and RWF_DSYNC down with each direct write and
            // sends no FSYNC of its own for them. O_SYNC contains O_DSYNC.
            guard flags & O_DSYNC == 0 else {
                try file.write(data, at: UInt64(offset))
                return try file.flush(request.replyWritten(data.count))
            }
            try file.write(data, at: UInt64(offset), request.replyWritten(data.count))
        } catch { request.fail(error) }
    }

    /// The data is the thread's, which serves others meanwhile.
    private static func hold(
        _ request: Request, _ data: [UInt8], _ offset: off_t, _ file: OpenFile, _ flags: Int32
    ) {
        file.hold(bytes: data.count) { isGivenUp in
            if isGivenUp { return request.fail(EIO) }
            data.withUnsafeBytes { write(request, $0, offset, file, flags) }
        }
    }

    static func sync(_ request: Request, _ info: Info) {
        handle(info)._withUnsafeGuaranteedRef { file in
            do throws(FSError) { try file.flush(request.replyDone) } catch { request.fail(error) }
        }
    }

    // MARK: Space

    private static let keepSize: Int32 = 0x01
    private static let punchHole: Int32 = 0x02
    private static let zeroRange: Int32 = 0x10

    static func allocate(
        _ request: Request, _ mode: Int32, _ offset: off_t, _ length: off_t, _ info: Info
    ) {
        guard offset >= 0, length > 0 else { return request.fail(EINVAL) }
        let range = (start: UInt64(offset), count: UInt64(length))
        let file = handle(info).takeUnretainedValue()
        let flags = info.pointee.flags
        guard file.mustHold(0) else { return allocate(request, mode, range, file, flags) }
        file.hold(bytes: 0) { isGivenUp in
            if isGivenUp { return request.fail(EIO) }
            allocate(request, mode, range, file, flags)
        }
    }

    private static func allocate(
        _ request: Request, _ mode: Int32, _ range: (start: UInt64, count: UInt64),
        _ file: OpenFile, _ flags: Int32
    ) {
        request.answer { (_) throws(FSError) in
            let keeps = mode & keepSize != 0
            switch mode & ~keepSize {
            case 0: try file.allocate(at: range.start, length: range.count, keepSize: keeps)
            case punchHole where keeps: try file.trim(at: range.start, length: range.count)
            case zeroRange:
                try file.zero(at: range.start, length: range.count, keepSize: keeps)
            default: throw FSError(.notSupported)
            }
            guard flags & O_DSYNC == 0 else { return try file.flush(request.replyDone) }
            file.finishChange(request.replyDone)
        }
    }

    static func seek(_ request: Request, _ offset: off_t, _ whence: Int32, _ info: Info) {
        guard offset >= 0 else { return request.fail(ENXIO) }
        let file = handle(info).takeUnretainedValue()
        request.answer { (_) throws(FSError) in
            let found: UInt64?
            switch whence {
            case 3: found = try file.seekData(from: UInt64(offset))  // SEEK_DATA
            case 4: found = try file.seekHole(from: UInt64(offset))  // SEEK_HOLE
            default: throw FSError(.invalid)
            }
            guard let found else { throw FSError(.noSuchOffset) }
            fuse_reply_lseek(request.raw, off_t(found))
        }
    }

    // MARK: Handles

    @inline(__always)
    private static func handle(_ info: Info) -> Unmanaged<OpenFile> {
        Unmanaged.fromOpaque(
            UnsafeRawPointer(bitPattern: UInt(info.pointee.fh)).unsafelyUnwrapped)
    }

    private static func bits(_ handle: Unmanaged<OpenFile>) -> UInt64 {
        UInt64(UInt(bitPattern: handle.toOpaque()))
    }
}

extension OpenFile {
    fileprivate func allocate(at offset: UInt64, length: UInt64, keepSize: Bool) throws(FSError) {
        let image = try image()
        do throws(VolumeError) {
            try image.allocate(at: offset, length: length, keepSize: keepSize)
        } catch { throw FSError(error) }
    }

    fileprivate func trim(at offset: UInt64, length: UInt64) throws(FSError) {
        let image = try image()
        do throws(VolumeError) { try image.trim(at: offset, length: length) } catch {
            throw FSError(error)
        }
    }

    fileprivate func zero(at offset: UInt64, length: UInt64, keepSize: Bool) throws(FSError) {
        let image = try image()
        do throws(VolumeError) {
            try image.zero(at: offset, length: length, keepSize: keepSize)
        } catch { throw FSError(error) }
    }
}
