// Mounts of mirrors that this daemon is writing to: each shows one moment, which does not move under
// its readers. They are served here, for only the mirror's owner knows what of it may be read.
//
// A view holds its moment's layers in the mirror. When the mirror is let go of (its target failed, was
// paused or removed, the daemon ends), the mount goes first, also under its readers: what they would
// read might no longer be that moment.

import FuseFrontend
import Logging
import Pool
import SystemIO
import Targets
import VirtualFS

/// Requests come from several threads. Unchecked, for the compiler knows nothing of `lock`, under which `mounts`, the one
/// `var`, is read and changed.
final class MirrorMounts: @unchecked Sendable {
    private struct Shown {
        var address: String
        var mount: MountSession
        var thread: WorkerThread
    }

    private let lock = Lock()
    private var mounts: [String: Shown] = [:]
    private let log = Logger(label: "doppel.mirrors")

    /// Returns when the mount is ready.
    func show(
        _ view: MirrorView, of address: String, at mountPoint: String, _ options: MountOptions
    ) throws {
        var options = options
        options.isReadOnly = true
        let mount: MountSession
        do {
            try MountSession.prepare(mountPoint: mountPoint)
            let fileSystem = try VirtualFS(volume: view.volume, fixed: view.fixedTree)
            mount = try MountSession(
                fileSystem: fileSystem, poolPath: address, mountPoint: mountPoint, options: options)
            try mount.mount()
        } catch {
            view.release()
            throw error
        }
        let ready = Readiness()
        let thread = WorkerThread.start("doppel-mirror-mount") { [self] in
            do throws(MountError) { try mount.run { ready.set() } } catch {
                log.error("\(mountPoint): \(error)")
            }
            ready.set()
            _ = lock.withLock { mounts.removeValue(forKey: mountPoint) }
            view.release()
        }
        lock.withLock { mounts[mountPoint] = Shown(address: address, mount: mount, thread: thread) }
        ready.wait()
    }

    /// - Returns: nil when nothing of ours is mounted there.
    func mount(at mountPoint: String) -> MountSession? {
        lock.withLock { mounts[mountPoint]?.mount }
    }

    /// Takes away what shows this mirror, or everything, and returns when nothing is read any more.
    func end(of address: String? = nil) {
        let ending = lock.withLock {
            mounts.values.filter { address == nil || $0.address == address }
        }
        for shown in ending { shown.mount.abort() }
        for shown in ending { shown.thread.join() }
    }
}

/// One thread sets it, others wait for it. Unchecked, for the compiler knows nothing of `lock`, under which `isSet`, the
/// one `var`, is read and changed.
private final class Readiness: @unchecked Sendable {
    private let lock = Lock()
    private let changed = Condition()
    private var isSet = false

    func set() {
        lock.withLock {
            isSet = true
            changed.broadcast()
        }
    }
    func wait() { lock.withLock { while !isSet { changed.wait(lock) } } }
}
