import CLinux
import Glibc

/// A file of the running system, by descriptor.
public final class LinuxFile: DiskFile, @unchecked Sendable {  // `fd` changes only in close()
    private let fd: Int32

    init(path: String, fd: Int32) {
        self.fd = fd
        super.init(path: path)
    }

    deinit { _ = clx_close(fd) }

    private func failure(_ operation: String, _ result: Int64) -> SystemError {
        SystemError(operation: operation, path: path, errno: Int32(-result))
    }

    public override func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(SystemError) -> Int {
        var done = 0
        while done < buffer.count {
            let got = clx_pread(
                fd, buffer.baseAddress! + done, buffer.count - done, offset + UInt64(done))
            if got < 0 { throw failure("read", got) }
            if got == 0 { break }
            done += Int(got)
        }
        return done
    }

    public override func write(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(SystemError) {
        var done = 0
        while done < buffer.count {
            let put = clx_pwrite(
                fd, buffer.baseAddress! + done, buffer.count - done, offset + UInt64(done))
            if put < 0 { throw failure("write", put) }
            if put == 0 { throw failure("write", Int64(-EIO)) }
            done += Int(put)
        }
    }

    public override func write(
        pieces: [UnsafeRawBufferPointer], at offset: UInt64
    ) throws(SystemError) {
        let parts = pieces.prefix(Int(CLX_MAX_PIECES)).map {
            clx_piece(base: $0.baseAddress, length: $0.count)
        }
        let put = clx_pwritev(fd, parts, Int32(parts.count), offset)
        if put < 0 { throw failure("write", put) }
        // What one call left, or does not take, goes piece by piece.
        var done = Int(put)
        var position = offset
        for piece in pieces {
            let skipped = min(done, piece.count)
            done -= skipped
            if skipped < piece.count {
                try write(
                    UnsafeRawBufferPointer(rebasing: piece[skipped...]),
                    at: position + UInt64(skipped))
            }
            position += UInt64(piece.count)
        }
    }

    public override func syncData() throws(SystemError) {
        try checked(clx_fdatasync(fd), "fdatasync", path)
    }
    public override func startWriteback(at offset: UInt64, length: UInt64) {
        _ = clx_start_writeback(fd, offset, length)
    }
    public override func dropCache(at offset: UInt64, length: UInt64) {
        _ = clx_drop_cache(fd, offset, length)
    }
    public override func sync() throws(SystemError) { try checked(clx_fsync(fd), "fsync", path) }
    public override func truncate(to sizeBytes: UInt64) throws(SystemError) {
        try checked(clx_ftruncate(fd, sizeBytes), "truncate", path)
    }
    public override func punchHole(at offset: UInt64, length: UInt64) throws(SystemError) {
        try checked(clx_punch_hole(fd, offset, length), "punch hole in", path)
    }

    public override func zeroRange(at offset: UInt64, length: UInt64) throws(SystemError) {
        let result = clx_zero_range(fd, offset, length)
        if result == -EOPNOTSUPP {
            // tmpfs has no zero range: a hole reads the same, and allocating it again keeps the
            // promise that a later write finds its space.
            try punchHole(at: offset, length: length)
            try allocate(at: offset, length: length, keepSize: true)
            return
        }
        try checked(result, "zero range in", path)
    }

    public override func allocate(
        at offset: UInt64, length: UInt64, keepSize: Bool
    ) throws(SystemError) {
        try checked(clx_allocate(fd, offset, length, keepSize), "allocate", path)
    }

    public override func seekData(from offset: UInt64) throws(SystemError) -> UInt64? {
        let result = clx_seek_data(fd, offset)
        if result == Int64(-ENXIO) { return nil }
        if result < 0 { throw failure("seek data in", result) }
        return UInt64(result)
    }

    public override func seekHole(from offset: UInt64) throws(SystemError) -> UInt64? {
        let result = clx_seek_hole(fd, offset)
        if result == Int64(-ENXIO) { return nil }
        if result < 0 { throw failure("seek hole in", result) }
        return UInt64(result)
    }

    public override func status() throws(SystemError) -> FileStatus {
        var out = clx_status()
        try checked(clx_fstat(fd, &out), "stat", path)
        return FileStatus(out)
    }

    public override func setTimes(accessNs: Int64, modifyNs: Int64) throws(SystemError) {
        try checked(clx_futimens(fd, accessNs, modifyNs), "set times of", path)
    }

    public override func copyRange(
        from source: DiskFile, at sourceOffset: UInt64, to offset: UInt64, length: UInt64
    ) throws(SystemError) -> UInt64 {
        guard let source = source as? LinuxFile else {
            return try copyThroughMemory(
                from: source, at: sourceOffset, to: offset, length: length)
        }
        if length > 0, clx_clone_range(fd, offset, source.fd, sourceOffset, length) == 0 {
            return length
        }
        var done: UInt64 = 0
        while done < length {
            let got = clx_copy_range(
                fd, offset + done, source.fd, sourceOffset + done, length - done)
            if got == 0 { return done }
            if got < 0 {
                let refusals = [EXDEV, EINVAL, EOPNOTSUPP, ENOSYS, EPERM, EBADF].map { Int64(-$0) }
                guard refusals.contains(got) else { throw failure("copy to", got) }
                return done
                    + (try copyThroughMemory(
                        from: source, at: sourceOffset + done, to: offset + done,
                        length: length - done))
            }
            done += UInt64(got)
        }
        return done
    }
}
