import BlockCore
import Pool
import Replication
import SystemIO

/// How a target stands; G4: what is in force, not what was asked for.
package struct TargetStatus: Sendable {
    package var record: TargetRecord
    /// nil while nothing is sent: the pool is not mounted, or is without its targets.
    package var state: TargetSession.State?
    /// It is waited for.
    package var counts: Bool
    package var images: [ImageID: AckPolicy] = [:]
    /// What is waited for, or kept from going on.
    package var modeInForce = ReplicationMode.async
    /// Somebody does not go on without it, and it is away since then.
    package var stoppedSinceNs: Int64?
    /// What was asked for is what is done: waiting for it, or standing still while it is away.
    package var isInForce: Bool {
        counts || stoppedSinceNs != nil && record.onTimeout != .degrade
    }
    package var reason: String?
    package var durable: SequenceNumber
    package var lagBytes: UInt64
    package var lagMs: Int64
    package var dirtyBytes: UInt64
    /// In regions that an unclean end left unknown: to be compared, most of it may be alike.
    package var suspectBytes: UInt64
    package var figures: SessionTally.Figures
    package var bytesPerSecond: UInt64
    /// Of the leg under way.
    package var resyncDoneBytes: UInt64?
    package var resyncTotalBytes: UInt64?

    /// What would be lost with this machine: what is on its way, and what is known to differ.
    package var atRiskBytes: UInt64 { lagBytes + dirtyBytes }
    /// Both this pool and the target went on from the same place, each on its own.
    package var isSplitBrain = false
    package var isInStep = false
    /// How what is at risk stands to what was asked for; nil where nothing was.
    package var recovery: RecoveryPoint?
    /// More is at risk than was asked for, since then.
    package var rpoPassedSinceNs: Int64?
    /// When what changed is shipped next, of one that has a schedule.
    package var nextRunNs: Int64?
    /// Nobody sends anything, and nothing is missing.
    package var isLevel: Bool { state == nil && !lacks }
    /// Something is missing, or may be.
    var lacks: Bool { atRiskBytes + suspectBytes > 0 }
    /// Since when it is not in step.
    package var sinceNs: Int64?
    /// When the pool was what the target holds durably; nil where that was before it was opened.
    package var checkpointNs: Int64?
    package var etaMs: Int64? {
        guard let resyncTotalBytes, let resyncDoneBytes, bytesPerSecond > 0 else { return nil }
        // The legs that follow are part of what differs.
        let left = max(dirtyBytes, resyncTotalBytes - min(resyncDoneBytes, resyncTotalBytes))
        return Int64(left * 1000 / bytesPerSecond)
    }
}

extension TargetHub {
    package func status() -> [TargetStatus] { all.map(status) }

    private func status(_ target: AttachedTarget) -> TargetStatus {
        let record = target.record
        let session = target.driver?.snapshot
        let standing = stream.standing(record.id)
        let durable = standing?.durable ?? .zero
        // Where nothing was changed since its checkpoint it is no way behind.
        let reached = max(durable, session?.levelThrough ?? .zero)
        let nowNs = disk.monotonic()
        var result = TargetStatus(
            record: record, state: session?.state ?? (record.isPaused ? .paused : nil),
            counts: session?.counts ?? false,
            reason: session?.outage?.reason ?? record.stale?.reason, durable: durable,
            lagBytes: standing?.lagBytes ?? 0, lagMs: lagMs(behind: reached),
            dirtyBytes: (standing?.dirtyBlocks ?? 0) * Geometry.blockSizeBytes,
            suspectBytes: (standing?.unknownBlocks ?? 0) * Geometry.blockSizeBytes,
            figures: target.figures,
            bytesPerSecond: target.bytesPerSecond)
        result.isInStep = session?.isInStep(nowNs: nowNs) ?? false
        if let session, session.state == .scheduled {
            result.nextRunNs = disk.now() + max(session.nextRunNs - nowNs, 0)
        }
        result.isSplitBrain = session?.isSplitBrain ?? false
        result.sinceNs =
            record.stale?.sinceNs
            ?? session?.outage.map { disk.now() - (disk.monotonic() - $0.sinceNs) }
        if let runSinceNs = session?.runSinceNs, !result.isInStep, result.sinceNs == nil {
            result.sinceNs = disk.now() - (nowNs - runSinceNs)
            result.reason = "what changed takes longer to ship than the interval"
        }
        if !result.isInStep, result.lacks, let sinceNs = result.sinceNs {
            result.lagMs = max(result.lagMs, (disk.now() - sinceNs) / 1_000_000)
        }
        result.checkpointNs = moment(of: reached)
        result.images = target.policy.images
        if let session, session.isLost, session.policy.hasStandstill {
            let outageNs = session.outage.map { disk.now() - (disk.monotonic() - $0.sinceNs) }
            result.stoppedSinceNs = outageNs ?? disk.now()
        }
        result.recovery = target.recoveryPoint
        result.rpoPassedSinceNs = result.recovery?.passedSinceNs.map { disk.now() - (nowNs - $0) }
        if result.recovery?.pace == .held {
            result.stoppedSinceNs = result.stoppedSinceNs ?? result.rpoPassedSinceNs
        }
        if let resync = session?.resync, result.state == .resyncing {
            let total = resync.totalBlocks
            result.resyncTotalBytes = total * Geometry.blockSizeBytes
            result.resyncDoneBytes =
                (total - min(resync.remainingBlocks, total)) * Geometry.blockSizeBytes
        }
        if result.isInForce { result.modeInForce = session?.policy.all.mode ?? .async }
        return result
    }

    private func moment(of sequence: SequenceNumber) -> Int64? {
        let (now, monotonic) = (disk.now(), disk.monotonic())
        if sequence >= stream.lastSequence { return now }
        return lock.withLock { samples.momentNs(of: sequence) }.map { now - (monotonic - $0) }
    }

    func lagMs(behind durable: SequenceNumber) -> Int64 {
        // What came after the last sample is younger than it.
        guard durable < stream.lastSequence else { return 0 }
        let now = disk.monotonic()
        return lock.withLock { samples.lagMs(behind: durable, nowNs: now) }
    }
}
