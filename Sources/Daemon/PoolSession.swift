// A pool opened for use, mounted or not: the store, its volume and its names, and the one place
// that carries out a control request.

import BlockCore
import Foundation
import Logging
import Pool
import SystemIO
import VirtualFS
import Volume

package final class PoolSession: Sendable {
    package struct Options: Sendable {
        package var isReadOnly = false
        package var isSnapdirVisible = false
        /// Percent of the store's size, or bytes, kept free for the way out of a full disk.
        package var reserve: Reserve = .percent(1)
        package var drainTimeoutMs: Int64 = 30_000
        package var mountPoint: String?
        package var socketPath: String?
        /// The kernel keeps writes back.
        package var cachesWrites = false
        /// A target to add, or to change, with the mount.
        package var mirror: TargetSpecification?
        /// Connects to targets, although the pool is not mounted; or does not, although it is: then what
        /// they lack is kept track of.
        package var connectsTargets: Bool?
        /// The moment that a mirror is shown at; nil for its newest.
        package var atNs: Int64?
        /// A handover that was cut off is about to be decided by a person.
        package var keepsRole = false
        /// It is about to become a mirror, of whomever a person named.
        package var isToFollow = false
        /// After a crash of the machine.
        package var recovery = RecoveryPolicy.attempt
        package var recoveryListener = RecoveryListener()
        /// Nothing is to be changed: before the targets were asked for what a crash took, it is opened for
        /// reading.
        package var onlyLooks = false
        /// Opened for somebody on another machine who only asks: what a mirror keeps for looking back is given up for
        /// nothing, and no reserve is made.
        package var keepsHistory = false
        package init() {}
    }
    package enum Reserve: Sendable, Hashable {
        case percent(Double), bytes(UInt64)
        /// What one percent may come to: deletions need megabytes, not a share of a large disk.
        static let percentCapBytes: UInt64 = 1 << 30
    }

    package let store: PoolStore
    package let volume: Volume
    package let fileSystem: VirtualFS
    package let options: Options
    package let jobs = JobTable(disk: LinuxDisk())
    /// nil where nothing can be replicated: opened for reading, or itself a mirror.
    let replication: PoolReplication?
    let mirrorMounts = MirrorMounts()
    /// The pool is a mirror, and this is what is shown of it.
    let mirror: ShownMirror?
    /// What the person who mounts should know.
    package let warning: String?

    /// Opens the pool, mending what a crash left.
    /// - Throws: ``ControlFailure`` with the exit code of its kind.
    package init(path: String, options given: Options = Options()) throws {
        var options = given
        let status = StatusSource()
        var owner = PoolOwner.current()
        owner.mountPoint = options.mountPoint
        owner.socketPath = options.socketPath
        do {
            store = try Self.openStore(
                path: path, owner: owner, drainTimeoutMs: options.drainTimeoutMs)
        } catch { throw Self.failure(error) }
        do {
            if options.onlyLooks, try store.catalog.read({ try $0.lostPower() }) != nil {
                options.isReadOnly = true
            }
            self.options = options
            if !options.isReadOnly, !options.keepsRole {
                try Handover.settle(store, isToFollow: options.isToFollow)
                try PoolRecovery.run(store, options)
            }
            let parts = try Self.open(store, options, status, mirrorMounts)
            (volume, fileSystem, replication, mirror) = parts
            let (sessions, target) = (parts.replication, options.mirror)
            do { warning = try target.flatMap { try sessions?.ensure($0) } } catch {
                _ = sessions?.close()
                parts.volume.abandon()
                throw error
            }
        } catch {
            try? store.close(clean: false, lastSequence: .zero)
            throw Self.failure(error)
        }
        status.set { [weak self] in self?.status() }
        // Nobody elsewhere has space taken by asking.
        if !options.keepsHistory { makeReserve() }
    }

    private typealias Parts = (
        volume: Volume, fileSystem: VirtualFS, replication: PoolReplication?, mirror: ShownMirror?
    )

    private static func open(
        _ store: PoolStore, _ options: Options, _ status: StatusSource, _ mounts: MirrorMounts
    ) throws -> Parts {
        var fsOptions = VirtualFS.Options()
        fsOptions.isReadOnly = options.isReadOnly
        fsOptions.isSnapdirVisible = options.isSnapdirVisible
        fsOptions.status = { status.bytes() }
        if let mirror = try ShownMirror.open(store, options) {
            let fileSystem = try VirtualFS(
                volume: mirror.recovered.volume, options: fsOptions, fixed: mirror.view.fixedTree)
            return (mirror.recovered.volume, fileSystem, nil, mirror)
        }
        let volume = try Volume(
            store: store,
            options: VolumeOptions(
                runsInBackground: options.mountPoint != nil, isReadOnly: options.isReadOnly))
        do { return try open(volume, options, fsOptions, mounts) } catch {
            // Its work behind must not outlive the store, which is closed next.
            volume.abandon()
            throw error
        }
    }

    private static func open(
        _ volume: Volume, _ options: Options, _ fsOptions: VirtualFS.Options,
        _ mounts: MirrorMounts
    ) throws -> Parts {
        // Attached before the first change: what the file system does first is one.
        let replication =
            options.isReadOnly
            ? nil
            : try PoolReplication(
                volume: volume, runs: options.connectsTargets ?? (options.mountPoint != nil),
                mounts: mounts, allowsAsyncOnly: options.cachesWrites)
        let fileSystem = try VirtualFS(volume: volume, options: fsOptions)
        replication?.start(fileSystem)
        return (volume, fileSystem, replication, nil)
    }

    /// An owner says that it drains a moment after the kernel took its mount away, and takes its text
    /// away a moment before the lock: both are waited for like the draining itself.
    private static func openStore(
        path: String, owner: PoolOwner, drainTimeoutMs: Int64
    ) throws(PoolError) -> PoolStore {
        let disk = LinuxDisk()
        let startNs = disk.monotonic()
        while true {
            let waitedMs = (disk.monotonic() - startNs) / 1_000_000
            do throws(PoolError) {
                return try PoolStore.open(
                    path: path, disk: disk, owner: owner,
                    drainTimeoutMs: max(drainTimeoutMs - waitedMs, 0))
            } catch {
                guard error.kind == .inUse, waitedMs < drainTimeoutMs else { throw error }
                if let other = error.owner {
                    guard other.waitsFor == nil, let mountPoint = other.mountPoint,
                        !PoolLocation.mounts().contains(where: { $0.mountPoint == mountPoint })
                    else { throw error }
                } else if waitedMs > 1000 {
                    throw error
                }
                Pause.microseconds(20_000)
            }
        }
    }

    private func makeReserve() {
        let total = (try? fileSystem.statistics())?.totalBytes ?? 0
        switch options.reserve {
        case .percent(let percent):
            let bytes = min(UInt64(Double(total) * percent / 100), Reserve.percentCapBytes)
            store.makeReserve(lengthBytes: bytes)
        case .bytes(let bytes): store.makeReserve(lengthBytes: bytes)
        }
    }

    /// Makes everything durable and lets go of the pool.
    package func close() throws {
        store.markDraining()
        var failure: (any Error)?
        do { try fileSystem.close() } catch { failure = error }
        if let mirror {
            mirror.close()
            if let failure { throw Self.failure(failure) }
            return
        }
        // Before the volume settles: what a target lacks is written down by then.
        let isKnown = replication?.close() ?? true
        do { try volume.close() } catch { failure = failure ?? error }
        do {
            // Reading only settles nothing that a crash before it left.
            let isSettled = !(options.isReadOnly && store.wasUnclean)
            try store.close(
                clean: failure == nil && isSettled && isKnown, lastSequence: volume.sequence)
        } catch { failure = failure ?? error }
        if let failure { throw Self.failure(failure) }
    }

    // MARK: Requests

    /// - Parameter listener: hears how long work goes on; false says that nobody waits any more.
    package func execute(
        _ request: ControlRequest, listener: @escaping Job.Listener = { _ in true }
    ) -> ControlReply {
        do {
            return ControlReply(result: try perform(request, listener), id: request.id)
        } catch {
            var failure = Self.failure(error)
            failure.message = named(failure.message)
            return ControlReply(error: failure, id: request.id)
        }
    }

    private func perform(
        _ request: ControlRequest, _ listener: @escaping Job.Listener
    ) throws -> ControlResult {
        let arguments = request.arguments ?? ControlArguments()
        var result = ControlResult()
        func need<T>(_ value: T?, _ name: String) throws -> T {
            guard let value else { throw ControlFailure(.usage, "'\(name)' is missing") }
            return value
        }
        let force = arguments.force ?? false
        switch request.execute {
        case .status:
            result.status = status()
        case .list:
            result.images = fileSystem.listAll().map {
                ImageInfo(
                    path: $0.path, kind: "\($0.kind)", sizeBytes: $0.sizeBytes,
                    allocatedBytes: $0.allocatedBytes, modifiedNs: $0.modifyNs,
                    state: $0.isDamaged ? "damaged" : $0.problem == nil ? "ok" : "latched")
            }
        case .create:
            try fileSystem.create(
                path: try need(arguments.path, "path"),
                sizeBytes: try need(arguments.sizeBytes, "sizeBytes")
            ).close()
        case .resize:
            try fileSystem.resize(
                path: try need(arguments.path, "path"),
                sizeBytes: try need(arguments.sizeBytes, "sizeBytes"))
        case .rename:
            try fileSystem.rename(
                path: try need(arguments.path, "path"),
                to: try need(arguments.newPath, "newPath"))
        case .delete:
            try fileSystem.remove(path: try need(arguments.path, "path"), force: force)
        case .snapshotCreate:
            result.snapshot = Self.info(try fileSystem.createSnapshot(name: arguments.name))
        case .snapshotList:
            result.snapshots = try volume.snapshots().map(Self.info)
        case .snapshotDelete:
            for name in try need(arguments.names, "names") { try fileSystem.deleteSnapshot(name) }
        case .snapshotDiff:
            result.diff = try fileSystem.diff(
                try need(arguments.snapshot, "snapshot"), arguments.otherSnapshot
            )
            .map { DiffInfo(path: $0.path, change: $0.change, changedBytes: $0.changedBytes) }
        case .restore:
            let path = try need(arguments.path, "path")
            let snapshot = try need(arguments.snapshot, "snapshot")
            if let newPath = arguments.newPath {
                try fileSystem.clone(path: path, snapshot: snapshot, to: newPath)
            } else {
                result.text = try fileSystem.restore(path: path, snapshot: snapshot, force: force)
            }
        case .clone:
            try fileSystem.clone(
                path: try need(arguments.path, "path"), snapshot: arguments.snapshot,
                to: try need(arguments.newPath, "newPath"))
        case .scrub:
            result.scrub = try jobs.run("scrub", listener, scrub)
        case .merge:
            try jobs.run("merge", listener, merge)
        case .check:
            result.check = try jobs.run("check", listener, check)
        case .events:
            result.events = try store.catalog.read { tx in
                if let after = arguments.after { return try tx.events(after: after) }
                return try tx.events(limit: arguments.limit ?? 100)
            }.map {
                EventInfo(
                    id: $0.id, atNs: $0.atNs, kind: $0.kind, subject: $0.subject,
                    message: $0.message)
            }
        case .jobList: result.jobs = jobs.list
        case .jobCancel: try jobs.cancel(try need(arguments.job, "job"))
        case .targetAdd, .targetSet, .targetList, .targetPause, .targetResume, .targetRemove, .wait:
            guard let replication else { throw notReplicated }
            try replication.perform(request, &result)
        case .targetResolve:
            result.text = try resolve(try need(arguments.target, "target").address)
        case .failover:
            let target = try need(arguments.target, "target").address
            result.failover = try failOver(to: target, timeoutMs: arguments.timeoutMs)
        case .unmount, .mirrorMount:
            throw ControlFailure(.usage, "the pool is not mounted")
        case .promote, .sight, .handoverOutcome:
            throw ControlFailure(.usage, "that is asked of a server, not of an open pool")
        case .copyOpen:
            throw ControlFailure(
                .failed,
                "\(store.path) is no mirror: `doppel target add` makes a copy of it, and keeps it in step"
            )
        }
        return result
    }

    private var notReplicated: ControlFailure {
        guard let mirror else {
            return ControlFailure(.failed, "the pool is mounted read-only: nothing is replicated")
        }
        let primary = mirror.recovered.record.primaryAddress
        var failure = ControlFailure(
            .failed,
            "this is a mirror: targets are its primary's\(primary.map { ", \($0)" } ?? ""), or `doppel "
                + "promote`")
        failure.primary = primary
        return failure
    }

    static func info(_ record: SnapshotRecord) -> SnapshotInfo {
        SnapshotInfo(
            name: record.name, createdNs: record.createdNs, sequence: record.sequence.rawValue,
            origin: record.origin)
    }
}

/// Breaks the circle between the file system, which serves the status, and the session, which knows.
private final class StatusSource: @unchecked Sendable {  // `make` is under `lock`
    private let lock = Lock()
    private var make: (@Sendable () -> StatusInfo?)?
    func set(_ make: @escaping @Sendable () -> StatusInfo?) { lock.withLock { self.make = make } }
    func bytes() -> [UInt8] {
        let make = lock.withLock { self.make }
        guard let info = make?() else { return Array("{}\n".utf8) }
        return JSONLine.encode(info, pretty: true) + [0x0a]
    }
}
