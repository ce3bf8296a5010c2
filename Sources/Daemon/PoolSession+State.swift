// What a session says of its pool: state, long examinations, and errors with the exit code of their
// kind.

import BlockCore
import FuseFrontend
import Pool
import Replication
import SystemIO
import VirtualFS
import Volume

extension PoolSession {
    package func status() -> StatusInfo {
        let state = try? store.catalog.read { try $0.poolState() }
        let entries = fileSystem.listAll().filter { $0.kind == .file }
        let damaged = entries.filter(\.isDamaged).map { "\($0.path): \($0.problem ?? "")" }
        let latched = entries.filter { !$0.isDamaged && $0.problem != nil }
            .map {
                "\($0.path): a sync failed (\($0.problem ?? "")); see to the disk, then remount"
            }
        var problems = damaged + latched
        if store.catalog.isFailed {
            problems.append("the catalog failed: the pool takes no changes")
        }
        if mirror == nil, let reason = PoolRecovery.problem(of: store) { problems.append(reason) }
        let targets = replication?.status() ?? []
        if let reason = volume.fenceReason { problems.append(reason) }
        for target in targets where !target.isInStep && !["level", "fenced"].contains(target.state)
        {
            problems.append(
                "target \(target.address) is \(target.state): \(target.reason ?? "not yet in step")"
            )
        }
        for target in targets where target.rpoPassedSinceNs != nil {
            problems.append("target \(target.address) lacks more than its rpo allows")
        }
        return StatusInfo(
            pool: store.path, id: store.identity.id,
            state: !damaged.isEmpty ? "damaged" : problems.isEmpty ? "healthy" : "degraded",
            mountPoint: options.mountPoint, ownerPID: ProcessControl.processID,
            generation: mirror?.recovered.record.generation?.number ?? state?.generation.number
                ?? 0, incarnation: state?.incarnation ?? 0,
            sequence: volume.sequence.rawValue, images: entries.count,
            snapshots: (try? volume.snapshots().count) ?? 0,
            sizeBytes: entries.reduce(0) { $0 + $1.sizeBytes },
            storeFreeBytes: (try? fileSystem.statistics())?.availableBytes ?? 0,
            reserveBytes: store.reserveBytes,
            uncoveredLayers: (try? volume.uncoveredLayers().count) ?? 0, latchedImages: latched,
            damagedImages: damaged, pendingMerges: (try? volume.pendingMerges()) ?? 0,
            jobs: jobs.list, problems: problems, replica: replicaInfo, targets: targets,
            waitingRequests: volume.gate.waitingCount + fileSystem.held.count)
    }

    private var replicaInfo: ReplicaInfo {
        guard let mirror else {
            return ReplicaInfo(role: volume.fenceReason == nil ? "primary" : "fenced")
        }
        var info = ReplicaInfo(role: "replica")
        info.primaryPool = mirror.recovered.record.primaryPoolID
        info.checkpointSequence = mirror.view.sequence.rawValue
        info.shownNs = mirror.view.atNs
        info.reachFromNs = (try? mirror.recovered.reachNs()) ?? nil
        info.heardNs = mirror.recovered.record.heardNs
        let peers = (try? store.catalog.read { try $0.peers() }) ?? []
        info.copies = peers.filter { $0.poolID != store.identity.id }.map(CopyInfo.init)
        return info
    }

    // MARK: Long work

    /// Merges what deleted snapshots left, beside the background or, unmounted, in its place.
    /// - Throws: when something is left that could not be merged now.
    func merge(_ job: Job) throws {
        let total = try volume.pendingMergeBytes()
        while try volume.mergeStep() {
            let left = min(try volume.pendingMergeBytes(), total)
            guard job.progress(phase: "merging", doneBytes: total - left, totalBytes: total) else {
                return
            }
        }
        let left = try volume.pendingMerges()
        guard left > 0 else { return }
        throw ControlFailure(
            .degraded,
            "\(left) layers of deleted snapshots could not be merged yet, and keep their space; "
                + "`doppel status \(store.path)` and `doppel events \(store.path)` say more")
    }

    func scrub(_ job: Job) throws -> ScrubInfo {
        let shift = UInt64(Geometry.blockShift)
        while try volume.coverNextLayer(progress: { done, total in
            job.progress(phase: "covering", doneBytes: done << shift, totalBytes: total << shift)
        }) {}
        let report = try volume.scrub { done, total in
            job.progress(phase: "verifying", doneBytes: done << shift, totalBytes: total << shift)
        }
        if !report.damaged.isEmpty { record(report.damaged) }
        return ScrubInfo(
            blocksRead: report.blocksRead, blocksCovered: report.blocksCovered,
            damaged: report.damaged.map(named))
    }

    /// A person knows an image by its path; below this module it has a number.
    func named(_ message: String) -> String {
        message.replacing(/\bimage (\d+)\b/) { match in
            let path = Int64(match.1).flatMap { fileSystem.path(of: ImageID(rawValue: $0)) }
            return path.map { "image '\($0)'" } ?? String(match.0)
        }
    }

    private func record(_ damaged: [String]) {
        let more = damaged.count > 1 ? " and \(damaged.count - 1) more" : ""
        let event = EventRecord(
            atNs: store.disk.now(), kind: "damaged", subject: "scrub", message: damaged[0] + more)
        try? store.catalog.write { try $0.addEvent(event) }
    }

    /// What can be checked while the pool is in use.
    func check(_ job: Job) throws -> CheckReport {
        let shift = UInt64(Geometry.blockShift)
        var report = try PoolCheck.live(store) { done, total in
            job.progress(phase: "verifying", doneBytes: done << shift, totalBytes: total << shift)
        }
        let known = Set(report.findings.compactMap(\.file))
        for entry in fileSystem.listAll() where entry.isDamaged {
            let problem = entry.problem ?? ""
            guard !known.contains(where: problem.contains) else { continue }
            report.findings.append(
                Finding(
                    kind: .unreadable, severity: .damaged, subject: "image '\(entry.path)'",
                    file: nil, problem: problem,
                    meaning: "it was set aside when the pool was opened, and answers EIO; unmount, "
                        + "then `doppel check` says what can be saved", repair: nil))
        }
        return report
    }

    /// Every error of the layers below, with the exit code of its kind.
    package static func failure(_ error: any Error) -> ControlFailure {
        switch error {
        case let failure as ControlFailure: return failure
        case let error as PoolError:
            switch error.kind {
            case .inUse: return ControlFailure(.inUse, error.message)
            case .damaged: return ControlFailure(.damaged, error.message)
            default: return ControlFailure(.failed, error.message)
            }
        case let error as VolumeError:
            switch error.kind {
            case .damaged, .checksum: return ControlFailure(.damaged, error.description)
            case .busy: return ControlFailure(.inUse, error.description)
            case .latched: return ControlFailure(.degraded, error.description)
            case .noSpace: return ControlFailure(.failed, withWayOut(error.description))
            default: return ControlFailure(.failed, error.description)
            }
        case let error as TargetError:
            switch error.kind {
            case .damaged: return ControlFailure(.damaged, error.message)
            default: return ControlFailure(.failed, error.message)
            }
        case let error as MountError:
            switch error.kind {
            case .busy, .alreadyMounted: return ControlFailure(.inUse, error.description)
            case .badOption, .badMountPoint: return ControlFailure(.usage, error.description)
            default: return ControlFailure(.failed, error.description)
            }
        case let error as FSError where error.code == .readOnly && error.message.isEmpty:
            return ControlFailure(.failed, "the pool is mounted read-only: nothing can be changed")
        case let error as FSError:
            switch error.code {
            case .busy: return ControlFailure(.inUse, error.description)
            case .damaged: return ControlFailure(.damaged, error.description)
            case .noSpace: return ControlFailure(.failed, withWayOut(error.description))
            default: return ControlFailure(.failed, error.description)
            }
        default: return ControlFailure(.failed, "\(error)")
        }
    }

    /// Of the pool that a verb was for: a catalog says it by itself, a file of the pool does not.
    private static func withWayOut(_ problem: String) -> String {
        problem.contains(Catalog.fullMessage) ? problem : "\(problem): \(Catalog.fullMessage)"
    }
}
