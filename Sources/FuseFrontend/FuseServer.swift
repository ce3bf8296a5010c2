// What every request needs: the file system it goes to and how its answers are to be cached.
//
// Invariants
//   F1 A handle in `fi.fh` is one retained reference, given to the kernel by open, create or
//      opendir and taken back by release or releasedir; nobody else drops it.
//   F2 Every request gets exactly one reply, also when it fails.
//   F3 Read and write allocate nothing: the handle is borrowed, the buffer is the thread's own.

import CFuse
import Glibc
import Logging
import SystemIO
import VirtualFS

/// The userdata of a FUSE session; lives as long as the session.
final class FuseServer: Sendable {
    let fileSystem: VirtualFS
    let cache: CacheMode
    let log: Logger
    let whenReady: @Sendable () -> Void
    private let errorLog = ErrorLog()

    /// Seconds for which the kernel trusts what it was told. It is the only writer but for the
    /// control socket, which invalidates; the figures bound what a forgotten case could cost.
    static let liveTimeout = 5.0
    /// A snapshot never changes; its deletion is told to the kernel.
    static let immutableTimeout = 3600.0
    static let maxWriteBytes: UInt32 = 1 << 20

    init(
        fileSystem: VirtualFS, cache: CacheMode, log: Logger,
        whenReady: @escaping @Sendable () -> Void
    ) {
        self.fileSystem = fileSystem
        self.cache = cache
        self.log = log
        self.whenReady = whenReady
    }

    /// The parameters of the connection, negotiated once.
    func negotiate(_ connection: UnsafeMutablePointer<fuse_conn_info>) {
        let offered = connection.pointee.capable
        connection.pointee.max_write = Self.maxWriteBytes
        // What the kernel may have under way for one mount without a caller waiting in it:
        // asynchronous direct I/O and readahead. The default of 12 starves a deep queue; and what waits
        // for a target counts, so that it must not keep the other images' requests out.
        connection.pointee.max_background = 1024
        connection.pointee.congestion_threshold = 768
        // Changes behind the kernel's back are told to it, so it need not drop its pages whenever
        // a time differs.
        want(connection, UInt32(FUSE_CAP_AUTO_INVAL_DATA), false)
        want(connection, UInt32(FUSE_CAP_EXPLICIT_INVAL_DATA), offered != 0)
        want(connection, UInt32(FUSE_CAP_WRITEBACK_CACHE), cache == .writeback)
        want(connection, UInt32(FUSE_CAP_CACHE_SYMLINKS), false)
        // Splice never happens at this size of requests and makes large reads dearer.
        let splice = FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE
        want(connection, UInt32(splice), false)
    }

    private func want(
        _ connection: UnsafeMutablePointer<fuse_conn_info>, _ flag: UInt32, _ isWanted: Bool
    ) {
        if isWanted {
            connection.pointee.want |= flag & connection.pointee.capable
        } else {
            connection.pointee.want &= ~flag
        }
    }

    /// What the kernel may do with an open file.
    func openFlags(for file: OpenFile) -> UInt32 {
        let direct = UInt32(CFUSE_OPEN_DIRECT_IO)
        let keep = UInt32(CFUSE_OPEN_KEEP_CACHE)
        let noFlush = UInt32(CFUSE_OPEN_NOFLUSH)
        let parallel = UInt32(CFUSE_OPEN_PARALLEL_DIRECT_WRITES)
        switch file.backing {
        case .view: return keep | noFlush
        // Made afresh for each open, so its length is not known before.
        case .bytes: return direct | noFlush
        case .image:
            switch cache {
            case .none: return direct | parallel | noFlush
            case .read: return keep | noFlush
            case .writeback: return keep
            }
        }
    }

    func timeout(for attributes: Attributes) -> Double {
        attributes.isImmutable ? Self.immutableTimeout : Self.liveTimeout
    }

    /// What a failing disk has to say belongs into the log, not only into somebody's errno.
    func note(_ error: FSError) {
        guard error.code == .io, let skipped = errorLog.admit() else { return }
        let more = skipped == 0 ? "" : " (and \(skipped) more since the last such line)"
        log.error("\(error)\(more)")
    }
}

/// Lets one line a second through: a dying disk fails thousands of requests.
private final class ErrorLog: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private var lastSecond: time_t = 0
    private var skipped = 0

    /// - Returns: how many were held back since the last one; nil: hold this one back too.
    func admit() -> Int? {
        lock.withLock {
            let second = time(nil)
            guard second != lastSecond else {
                skipped += 1
                return nil
            }
            defer { skipped = 0 }
            lastSecond = second
            return skipped
        }
    }
}
