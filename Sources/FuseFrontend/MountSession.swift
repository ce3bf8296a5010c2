// The life of one mount.
//
//   idle ──mount()──► mounted ──run()──► serving ──unmount seen by the loop──► ended
//
// Invariants
//   M1 `session` is freed only after the loop has ended, under the write side of `life`; whoever
//      notifies the kernel holds the read side.
//   M2 Only the mount this session made is ever unmounted: its device number is looked up first.
//   M3 The way out is a real unmount. While somebody uses the mount it is served on; only
//      `unmount(force:)` and `abort()` break that, and both are asked for by a person.

import CFuse
import Glibc
import Logging
import SystemIO
import VirtualFS

package final class MountSession: @unchecked Sendable {  // fields are under `life` or `state`
    package let mountPoint: String
    package let poolPath: String
    package let options: MountOptions
    private let fileSystem: VirtualFS
    private let log = Logger(label: "doppel.mount")
    private let life = ReadWriteLock()
    private var session: OpaquePointer?
    private var server: FuseServer?
    private let state = Lock()
    private var device: String?
    private var hasEnded = false
    private var isStopping = false
    private var readyAction: (@Sendable () -> Void)?

    /// - Parameters:
    ///   - poolPath: shown as the source in mount tables.
    ///   - mountPoint: an existing folder; a dead FUSE mount on it is cleared.
    package init(
        fileSystem: VirtualFS, poolPath: String, mountPoint: String, options: MountOptions
    ) throws(MountError) {
        self.fileSystem = fileSystem
        self.poolPath = poolPath
        self.mountPoint = try MountPoint.canonical(mountPoint)
        self.options = options
    }

    // MARK: Beginning

    /// Clears a dead mount point away and refuses a live one: to be called before a pool is
    /// opened, so that nothing is recovered in vain.
    package static func prepare(mountPoint: String) throws(MountError) {
        try MountPoint.prepare(try MountPoint.canonical(mountPoint))
    }

    /// Makes the mount. From here on requests of programs wait for ``run(whenReady:)``.
    package func mount() throws(MountError) {
        try MountPoint.prepare(mountPoint)
        _ = LibraryLog.shared.drain()
        let server = FuseServer(
            fileSystem: fileSystem, cache: options.cache, log: log,
            whenReady: { [weak self] in self?.becameReady() })
        let session = try newSession(server)
        guard fuse_session_mount(session, mountPoint) == 0 else {
            let reason = LibraryLog.shared.drain()
            fuse_session_destroy(session)
            throw refusal(reason)
        }
        let result = cfuse_negotiate(session)
        if result != 0 {
            fuse_session_unmount(session)
            fuse_session_destroy(session)
            throw MountError(
                .failed, path: mountPoint, errno: -result,
                "libfuse does not let flags be negotiated")
        }
        state.withLock { device = MountTable.top(at: mountPoint)?.device }
        life.withWrite {
            self.session = session
            self.server = server
        }
    }

    private func newSession(_ server: FuseServer) throws(MountError) -> OpaquePointer {
        var words: [UnsafeMutablePointer<CChar>?] =
            options.arguments(poolPath: poolPath).map { strdup($0) }
        defer { for word in words { free(word) } }
        let count = Int32(words.count)
        words.append(nil)
        let session = words.withUnsafeMutableBufferPointer { buffer -> OpaquePointer? in
            var arguments = fuse_args(argc: count, argv: buffer.baseAddress, allocated: 0)
            defer { fuse_opt_free_args(&arguments) }
            var table = OperationTable.make()
            return fuse_session_new(
                &arguments, &table, MemoryLayout<fuse_lowlevel_ops>.size,
                Unmanaged.passUnretained(server).toOpaque())
        }
        guard let session else {
            throw MountError(.badOption, path: mountPoint, LibraryLog.shared.drain())
        }
        return session
    }

    private func refusal(_ reason: String) -> MountError {
        let text = reason.isEmpty ? "the mount was refused" : reason
        let isDenied = reason.lowercased().contains("permission")
        if reason.contains("/dev/fuse") || reason.contains("device not found") {
            return MountError(
                isDenied ? .notPermitted : .failed, path: mountPoint,
                text + (isDenied ? "" : "; is the fuse module loaded?"))
        }
        // fusermount3 says why on our standard error, where libfuse does not hear it.
        if geteuid() != 0, options.allowsOtherUsers {
            return MountError(
                .notPermitted, path: mountPoint,
                text + "; allow_other needs the line `user_allow_other` in /etc/fuse.conf")
        }
        return MountError(isDenied ? .notPermitted : .failed, path: mountPoint, text)
    }

    private func becameReady() {
        let action = state.withLock { () -> (@Sendable () -> Void)? in
            defer { readyAction = nil }
            return readyAction
        }
        action?()
    }

    // MARK: Serving

    /// Serves until the mount is gone; the caller's thread waits.
    /// - Parameter whenReady: called once, from a thread of the session, when the kernel and the
    ///   session have agreed on how they talk.
    /// - Throws: ``MountError`` when the loop ended for another reason than an unmount.
    package func run(whenReady: @escaping @Sendable () -> Void = {}) throws(MountError) {
        guard let session = life.withRead({ self.session }) else {
            throw MountError(.failed, path: mountPoint, "is not mounted")
        }
        state.withLock { readyAction = whenReady }
        let result = cfuse_loop(session, options.maxThreads, options.idleThreads)
        // A loop that broke leaves its mount behind as a dead one.
        if result != 0, isMounted { fuse_session_unmount(session) }
        // Requests that wait for a target are the session's: they go first.
        fileSystem.held.abandon()
        fileSystem.volume.gate.abandon()
        life.withWrite {
            self.session = nil
            fuse_session_destroy(session)
            server = nil
        }
        state.withLock { hasEnded = true }
        if result < 0 {
            throw MountError(.failed, path: mountPoint, errno: -result, "serving the mount failed")
        }
    }

    /// Whether the name is still there. Open files may be served on after a forced unmount.
    package var isMounted: Bool {
        guard let device = state.withLock({ device }) else { return false }
        return MountTable.read().contains { $0.device == device && $0.isFuse }
    }

    /// Whether this kernel lets images opened for direct I/O be mapped shared (6.6 or later);
    /// nil until the session runs.
    package static var allowsDirectMapping: Bool? {
        switch cfuse_direct_mmap() {
        case 0: false
        case 1: true
        default: nil
        }
    }

    // MARK: Ending

    /// Takes the mount away; ``run(whenReady:)`` then returns.
    /// - Parameter force: lets go of the name at once; open files are served until they are
    ///   closed.
    /// - Throws: ``MountError`` `.busy` when something in it is in use.
    package func unmount(force: Bool = false) throws(MountError) {
        guard let path = place() else { return }
        do throws(MountError) { try MountPoint.unmount(path, lazily: force) } catch {
            // It may have gone while we asked.
            if isMounted { throw error }
        }
    }

    /// Where our mount is now: it may have been moved. Nil when it is gone or covered by another.
    private func place() -> String? {
        guard let device = state.withLock({ device }) else { return nil }
        let places = MountTable.read()
        let ours = places.filter { $0.device == device && $0.isFuse }
        let visible = ours.filter { our in places.last { $0.path == our.path } == our }
        return (visible.first { $0.path == mountPoint } ?? visible.first)?.path
    }

    /// Ends the mount as soon as nobody uses it, and returns at once. For SIGTERM, from an
    /// ordinary thread. Asking again changes nothing.
    package func requestStop() {
        let isFirst = state.withLock { () -> Bool in
            defer { isStopping = true }
            return !isStopping
        }
        guard isFirst else { return }
        _ = WorkerThread.start("unmount") { [self] in
            var saidBusy = false
            while !state.withLock({ hasEnded }) && isMounted {
                do throws(MountError) { try unmount() } catch {
                    if !saidBusy { log.notice("waiting to unmount: \(error)") }
                    saidBusy = true
                    Pause.microseconds(100_000)
                }
            }
        }
    }

    package var isStopRequested: Bool { state.withLock { isStopping } }

    /// Cuts the connection: programs with open files get ECONNABORTED and ``run(whenReady:)``
    /// returns. For the case that somebody keeps a forcibly unmounted file open for ever.
    package func abort() {
        guard let device = state.withLock({ device }), !state.withLock({ hasEnded }) else { return }
        let minor = device.drop { $0 != ":" }.dropFirst()
        let file = open("/sys/fs/fuse/connections/\(minor)/abort", O_WRONLY | O_CLOEXEC)
        if file >= 0 {
            _ = write(file, "1", 1)
            close(file)
        } else if let path = place() {
            // Where fusectl is not mounted, the flag does the same for root.
            _ = cfuse_umount(path, Int32(CFUSE_UMOUNT_FORCE | CFUSE_UMOUNT_NOFOLLOW))
        }
        if let path = place() { try? MountPoint.unmount(path, lazily: true) }
    }

    // MARK: Telling the kernel

    // Each is for threads that are not working on a request of this mount: the kernel may hold
    // the inode's lock until that request is answered.

    /// Drops the cached attributes and pages of a file whose content changed behind the kernel.
    package func notifyInvalidate(inode: UInt64) {
        withSession { fuse_lowlevel_notify_inval_inode($0, inode, 0, 0) }
    }

    /// Forgets what a name stood for; the next look asks us.
    package func notifyEntry(parent: UInt64, name: [UInt8]) {
        withSession { session in
            withCName(name) { fuse_lowlevel_notify_inval_entry(session, parent, $0, name.count) }
        }
    }

    /// A name is gone, and watchers (inotify) are told.
    package func notifyDelete(parent: UInt64, name: [UInt8], inode: UInt64) {
        withSession { session in
            withCName(name) {
                let result = fuse_lowlevel_notify_delete(session, parent, inode, $0, name.count)
                // A folder that somebody stands in, or names below it that the kernel remembers.
                guard result != 0, result != -ENOENT else { return result }
                return fuse_lowlevel_notify_inval_entry(session, parent, $0, name.count)
            }
        }
    }

    /// Writes back what the kernel holds of this mount's images, before a snapshot's cut. Not
    /// from a thread that works on a request.
    package func syncThroughMount() throws(MountError) {
        guard options.cache != .none || Self.allowsDirectMapping == true, let path = place() else {
            return
        }
        let folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard folder >= 0 else {
            throw MountError(.failed, path: path, errno: errno, "cannot be synced")
        }
        defer { close(folder) }
        let result = cfuse_syncfs(folder)
        if result != 0 {
            throw MountError(.failed, path: path, errno: -result, "cannot be synced")
        }
    }

    private func withSession(_ body: (OpaquePointer) -> Int32) {
        life.withRead {
            // ENOENT: the kernel did not know it, so there is nothing to forget.
            guard let session else { return }
            let result = body(session)
            if result != 0, result != -ENOENT {
                log.debug("a change could not be told to the kernel: errno \(-result)")
            }
        }
    }

    private func withCName(_ name: [UInt8], _ body: (UnsafePointer<CChar>) -> Int32) -> Int32 {
        (name + [0]).withUnsafeBytes {
            body($0.baseAddress!.assumingMemoryBound(to: CChar.self))
        }
    }
}
