// A mounted pool as a process:
//
//   starting ──ready──► serving ──umount, SIGTERM, `doppel unmount`──► draining ──► ended
//
// Draining makes everything durable and marks the pool clean; the owner's text says so, and the
// next mount waits for it. Whatever kills the process before leaves a pool that opens by itself.

import FuseFrontend
import Logging
import Pool
import SystemIO
import Targets
import VirtualFS

package struct MountRequest: Sendable {
    package var poolPath: String
    package var mountPoint: String
    package var mount: MountOptions
    package var session: PoolSession.Options

    package init(
        poolPath: String, mountPoint: String, mount: MountOptions, session: PoolSession.Options
    ) {
        self.poolPath = poolPath
        self.mountPoint = mountPoint
        self.mount = mount
        self.session = session
    }
}

package enum MountDaemon {
    /// Serves the mount until it is gone. Call on the process's first thread, before others start.
    /// - Parameters:
    ///   - whenWaiting: called each second while the pool waits for something before it is served, with
    ///     what that is where it is news; false: nobody waits for the mount any more.
    ///   - whenReady: called once the mount answers, with what the person should know all the same.
    package static func run(
        _ request: MountRequest,
        whenWaiting: @escaping @Sendable (_ news: String?) -> Bool = { _ in true },
        whenReady: @escaping @Sendable (_ warning: String?) -> Void
    ) throws {
        let stopper = Stopper()
        // Signals first: every thread that starts later inherits the mask.
        _ = ProcessControl.handleTermination { _ in stopper.stop() }
        ProcessPolicy.raiseFileLimit()
        if !ProcessPolicy.becomeIOFlusher() {
            Logger(label: "doppel.daemon").notice(
                "the kernel does not let this process be an I/O flusher (needs CAP_SYS_RESOURCE)")
        }
        try prepare(request)
        var options = request.session
        options.mountPoint = request.mountPoint
        options.isReadOnly = options.isReadOnly || request.mount.isReadOnly
        options.cachesWrites = request.mount.cache == .writeback
        options.recoveryListener = RecoveryListener(
            tell: whenWaiting, isCancelled: { stopper.isStopping })
        let session = try PoolSession(path: request.poolPath, options: options)
        do {
            try serve(request, session, stopper, whenReady)
        } catch {
            try? session.close()
            throw error
        }
        ProcessControl.notifyServiceManager("STOPPING=1")
        try session.close()
    }

    /// A daemon that was killed is gone a moment after its mount point died: while nobody holds the
    /// pool, a mount that is still there is about to go.
    private static func prepare(_ request: MountRequest) throws {
        let disk = LinuxDisk()
        let startNs = disk.monotonic()
        while true {
            do throws(MountError) {
                return try MountSession.prepare(mountPoint: request.mountPoint)
            } catch {
                let isHeld = try disk.tryLock(request.poolPath + "/lock") == nil
                let waitedMs = (disk.monotonic() - startNs) / 1_000_000
                guard error.kind == .alreadyMounted, waitedMs < (isHeld ? 5000 : 10_000),
                    PoolLocation.mounts().contains(where: { $0.source == request.poolPath })
                else { return try mounting { () throws(MountError) in throw error } }
                Pause.microseconds(10_000)
            }
        }
    }

    private static func serve(
        _ request: MountRequest, _ session: PoolSession, _ stopper: Stopper,
        _ whenReady: @escaping @Sendable (String?) -> Void
    ) throws {
        let mount = try mounting { () throws(MountError) in
            let mount = try MountSession(
                fileSystem: session.fileSystem, poolPath: request.poolPath,
                mountPoint: request.mountPoint, options: request.mount)
            try mount.mount()
            return mount
        }
        let socket: ControlServer
        do {
            let disk = LinuxDisk()
            let directory = try RuntimePaths.directory(disk: disk)
            let path = RuntimePaths.socket(of: session.store.identity.id, in: directory)
            socket = try RuntimePaths.withSweptSockets(in: directory, disk: disk) {
                () throws(SystemError) in
                try ControlServer(path: path) { answer($0, $1, session, mount) }
            }
            let mounted = PoolLocation.mounts().map(\.source) + [request.poolPath]
            RuntimePaths.sweepLogs(in: directory, disk: disk, mounted: mounted)
            session.store.updateOwner {
                $0.socketPath = path
                $0.mountPoint = mount.mountPoint
            }
        } catch {
            mount.abort()
            throw error
        }
        stopper.attach(mount)
        defer { socket.close() }
        try mounting { () throws(MountError) in
            try mount.run {
                whenReady(session.warning)
                ProcessControl.notifyServiceManager("READY=1")
            }
        }
        session.mirrorMounts.end()
        session.store.markDraining()
        session.jobs.close()
    }

    private static func mounting<T>(_ body: () throws(MountError) -> T) throws -> T {
        do throws(MountError) { return try body() } catch {
            let kind: ExitKind =
                switch error.kind {
                case .busy, .alreadyMounted: .inUse
                case .badOption, .badMountPoint: .usage
                default: .failed
                }
            throw ControlFailure(kind, error.description)
        }
    }

    private static func answer(
        _ request: ControlRequest, _ listener: @escaping Job.Listener, _ session: PoolSession,
        _ mount: MountSession
    ) -> ControlReply {
        if request.execute == .unmount { return unmount(request, session, mount) }
        if request.execute == .mirrorMount { return showMirror(request, session) }
        // What the kernel has cached of an image belongs to the state that is cut.
        if [.snapshotCreate, .snapshotDiff, .clone, .restore].contains(request.execute) {
            do throws(MountError) { try mount.syncThroughMount() } catch {
                return ControlReply(
                    error: ControlFailure(.failed, error.description), id: request.id)
            }
        }
        let reply = session.execute(request, listener: listener)
        if let path = request.arguments?.path, reply.error == nil {
            invalidate(request.execute, path, session, mount)
        }
        return reply
    }

    private static func unmount(
        _ request: ControlRequest, _ session: PoolSession, _ main: MountSession
    ) -> ControlReply {
        // Without a mount point it is the pool's own.
        let place = request.arguments?.mountPoint
        let mount = place.flatMap { session.mirrorMounts.mount(at: $0) } ?? main
        do throws(MountError) {
            try mount.unmount(force: request.arguments?.force ?? false)
            return ControlReply(result: ControlResult(), id: request.id)
        } catch {
            return ControlReply(
                error: ControlFailure(error.kind == .busy ? .inUse : .failed, error.description),
                id: request.id)
        }
    }

    private static func showMirror(
        _ request: ControlRequest, _ session: PoolSession
    ) -> ControlReply {
        let arguments = request.arguments ?? ControlArguments()
        do {
            guard let address = arguments.path, let place = arguments.mountPoint else {
                throw ControlFailure(.usage, "'path' and 'mountPoint' are missing")
            }
            guard let mirror = session.replication?.mirror(at: address) else {
                throw ControlFailure.mirrorNotOpen(address)
            }
            let view: MirrorView
            do {
                view = try arguments.atNs.map { try mirror.view(atNs: $0) } ?? mirror.newestView()
            } catch { throw mirror.isOpen ? error : ControlFailure.mirrorNotOpen(address) }
            var options = MountOptions.defaults(forUser: ProcessControl.userID)
            for word in (arguments.names ?? []).flatMap(MountOptions.split) {
                guard options.accept(word) else {
                    throw ControlFailure(.usage, "'\(word)' is no option of a mirror's mount")
                }
            }
            try session.mirrorMounts.show(view, of: address, at: place, options)
            return ControlReply(result: ControlResult(), id: request.id)
        } catch {
            return ControlReply(error: PoolSession.failure(error), id: request.id)
        }
    }

    /// Tells the kernel what changed behind its back.
    private static func invalidate(
        _ command: ControlCommand, _ path: String, _ session: PoolSession, _ mount: MountSession
    ) {
        switch command {
        case .resize, .restore:
            if let node = try? session.fileSystem.resolve(path) {
                mount.notifyInvalidate(inode: node.id.rawValue)
            }
        case .delete, .rename, .create:
            let parts = path.split(separator: "/")
            let folder = parts.dropLast().joined(separator: "/")
            let parent = folder.isEmpty ? 1 : (try? session.fileSystem.resolve(folder))?.id.rawValue
            if let parent, let name = parts.last {
                mount.notifyEntry(parent: parent, name: Array(name.utf8))
            }
        default: break
        }
    }
}

/// A signal may come before there is a mount to stop.
private final class Stopper: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private var mount: MountSession?
    private var isAsked = false

    var isStopping: Bool { lock.withLock { isAsked } }

    func attach(_ mount: MountSession) {
        let asked = lock.withLock { () -> Bool in
            self.mount = mount
            return isAsked
        }
        if asked { mount.requestStop() }
    }
    func stop() {
        let mount = lock.withLock { () -> MountSession? in
            isAsked = true
            return self.mount
        }
        mount?.requestStop()
    }
}
