// A copy of a pool in another place, from a mirror of it: a mirror itself, as its primary would have made it.
//
//   new or empty ──► unfinished: a pool that nobody can open but to go on with it ──► a mirror
//
// - C3  Its catalog says that it is unfinished from the moment that it is a pool (P4) until all of it is there, verified
//       and durable. Everybody who opens pools asks for that (`PoolStore.open`).
// - C4  What is durable of it counts at the next try, whatever the source shows by then (C2).

import BlockCore
import Pool
import Replication
import SystemIO
import Targets

package enum PoolClone {
    /// - Parameters:
    ///   - source: `doppel://HOST:PORT/POOL`, or the directory of a mirror.
    ///   - path: a new or empty directory, or one where this was begun.
    package static func perform(
        source: String, to path: String, timeoutMs: Int64,
        progress: @escaping (_ doneBytes: UInt64, _ totalBytes: UInt64) -> Void
    ) throws -> CloneInfo {
        try requireRoom(path, LinuxDisk())
        let opened = try open(source, timeoutMs: timeoutMs)
        defer { opened.close() }
        return try perform(opened, called: source, to: path, progress: progress)
    }

    static func perform(
        _ opened: any CloneSource, called source: String, to path: String,
        progress: @escaping (_ doneBytes: UInt64, _ totalBytes: UInt64) -> Void = { _, _ in }
    ) throws -> CloneInfo {
        let disk = LinuxDisk()
        let startNs = disk.monotonic()
        let info = opened.info
        try begin(path, of: source, info, disk)
        let held = HeldStore()
        let target = target(path, info, disk, held)
        defer { target.disconnect() }
        do throws(TargetError) {
            let report = try target.connect(info.hello)
            guard report.diverged == nil else {
                throw TargetError(
                    .absent,
                    "what was copied before is no part of what \(source) shows now: copy it into another "
                        + "directory")
            }
            let run = CloneRun(opened, target, progress: progress)
            try run.run(report)
            let shape = try target.shape()
            try finish(held)
            return CloneInfo(
                path: path, source: source, pool: held.store?.identity.id ?? "",
                primaryPool: info.primaryPool, generation: info.generation.number,
                sequence: info.sequence.rawValue, shownNs: info.shownNs,
                images: shape.images.count, snapshots: info.legs.compactMap(\.snapshot?.name),
                wasResumed: report.checkpoint > .zero || report.staging != nil,
                copiedBytes: run.copiedBytes, verifiedBytes: run.verifiedBytes,
                elapsedMs: (disk.monotonic() - startNs) / 1_000_000)
        } catch {
            var words = "\(source) is not copied to its end: \(error.message)"
            words +=
                error.kind == .noSpace
                ? ". Make room at \(path), then start the same again: it goes on from there"
                : ". What is there is kept: the same again goes on from there"
            throw ControlFailure(error.kind == .damaged ? .damaged : .failed, words)
        }
    }

    private static func open(_ source: String, timeoutMs: Int64) throws -> any CloneSource {
        if let place = try RemotePool.address(source) {
            do { return try RemoteCloneSource(place, timeoutMs: timeoutMs) } catch {
                guard let error = error as? TargetError else { throw error }
                throw ControlFailure(.failed, "\(source): \(error.message)")
            }
        }
        return try LocalCloneSource(try PoolLocation.find(source).poolPath)
    }

    // MARK: The place

    /// Before anybody is asked for anything.
    private static func requireRoom(_ path: String, _ disk: LinuxDisk) throws {
        guard PoolStore.isPool(path, disk: disk) else { return }
        var unfinished: String?
        guard
            let sight = PoolSight.look(
                at: path, disk: disk, { unfinished = try $0.unfinishedCopy() })
        else { throw ControlFailure(.failed, "\(path) is a pool that cannot be looked into") }
        if sight.isInUse { throw ControlFailure(.inUse, "the pool \(path) is in use") }
        guard unfinished == nil else { return }
        throw ControlFailure(
            .failed, "\(path) is a pool already: a copy needs a new or empty directory")
    }

    private static func begin(
        _ path: String, of source: String, _ info: CloneSourceInfo, _ disk: LinuxDisk
    ) throws {
        guard PoolStore.isPool(path, disk: disk) else {
            return try PoolStore.initialize(path: path, disk: disk) { tx in
                try tx.setReplica(ReplicaRecord(primaryPoolID: info.primaryPool))
                try tx.setHistory(GenerationHistory())
                // C3
                try tx.setUnfinishedCopy(of: source)
            }
        }
        guard let sight = PoolSight.look(at: path, disk: disk),
            sight.primaryPoolID == info.primaryPool
        else {
            throw ControlFailure(
                .failed,
                "\(path) is an unfinished copy of another pool than \(source) has; it may be removed"
            )
        }
    }

    /// The store of the copy, while it is open: set while the target connects, and read after that returned.
    /// Unchecked, for the target opens it from a @Sendable closure, though on the thread that reads it later.
    private final class HeldStore: @unchecked Sendable {
        var store: PoolStore?
    }

    private static func target(
        _ path: String, _ info: CloneSourceInfo, _ disk: LinuxDisk, _ held: HeldStore
    ) -> MirrorTarget {
        MirrorTarget(
            path: path, primaryPoolID: info.primaryPool, poolID: nil, disk: disk,
            options: MirrorOptions(), look: { PoolSight.look(at: path, disk: disk) }
        ) { () throws(PoolError) in
            let store = try PoolStore.open(path: path, disk: disk, goesOn: true)
            held.store = store
            return store
        }
    }

    /// All of it is there, and durable.
    private static func finish(_ held: HeldStore) throws(TargetError) {
        guard let store = held.store else { throw TargetError(.io, "it is not open") }
        do { try store.catalog.write { try $0.setUnfinishedCopy(of: nil) } } catch {
            throw TargetError(
                (error as? CatalogError)?.isNoSpace ?? false ? .noSpace : .io,
                "the catalog of \(store.path) took no change: \(error)")
        }
    }
}
