// How the targets stand, in the control socket's words.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import VirtualFS

extension PoolReplication {
    func status() -> [TargetInfo] {
        (hub?.status() ?? []).map { status in
            var info = TargetInfo(status)
            info.images = images(of: status)
            info.reachFromNs = lock.withLock { mirrors[status.record.id] }?.lastReachNs
            info.fill(raw(status.record))
            info.fill(lock.withLock { lines[status.record.id] }?.figures, status.record)
            return info
        }
    }

    /// What the folder of a raw mirror says. Its disk may hang: where a session has it open, it says what it
    /// said last.
    private func raw(_ record: TargetRecord) -> RawFolderState? {
        guard case .raw(let path) = TargetAddress(record.address) else { return nil }
        if runs { return lock.withLock { rawMirrors[record.id] }?.lastKnown }
        return (try? RawFolderState.read(of: path, disk: LinuxDisk())) ?? nil
    }

    private func images(of status: TargetStatus) -> [TargetImageInfo] {
        let fileSystem = lock.withLock { self.fileSystem }
        return status.images.sorted { $0.key < $1.key }.compactMap { id, policy in
            guard let path = fileSystem?.path(of: id) else { return nil }
            return TargetImageInfo(
                path: path, mode: policy.mode.rawValue, onTimeout: policy.onTimeout.rawValue)
        }
    }
}

extension TargetInfo {
    mutating func fill(_ raw: RawFolderState?) {
        if TargetAddress(address).remote != nil { kind = "remote" }
        guard TargetAddress(address).isRaw else { return }
        kind = "raw"
        content = raw.map { $0.isWhole ? "clean" : "torn" }
        tornSinceNs = raw?.sinceNs
    }

    mutating func fill(_ line: LineCompression.Figures?, _ record: TargetRecord) {
        guard TargetAddress(address).remote != nil else { return }
        compress = record.compress.rawValue
        isCompressing = line?.isCompressing ?? false
        lineRawBytes = line?.rawBytes ?? 0
        lineSentBytes = line?.sentBytes ?? 0
    }

    init(_ status: TargetStatus) {
        self.init(
            id: status.record.id.rawValue, address: status.record.address,
            mode: status.record.mode.rawValue, timeoutMs: status.record.timeoutMs)
        modeInForce = status.modeInForce.rawValue
        if status.record.mode == .adaptive {
            latencyBudgetUs =
                status.record.latencyBudgetUs ?? TargetRecord.defaultLatencyBudgetUs
        }
        onTimeout = status.record.onTimeout.rawValue
        stoppedSinceNs = status.stoppedSinceNs
        state =
            status.isSplitBrain
            ? "split-brain" : status.state?.rawValue ?? (status.isLevel ? "level" : "idle")
        isInStep = status.isInStep
        intervalMs = status.record.intervalMs
        nextRunNs = status.nextRunNs
        rpoMs = status.record.rpoMs
        rpoBytes = status.record.rpoBytes
        if status.record.recoveryGoal != nil { onRPO = status.record.onRPO.rawValue }
        rpoPassedSinceNs = status.rpoPassedSinceNs
        if case .slowed(let bytes)? = status.recovery?.pace { slowedToBytesPerSecond = bytes }
        staleSinceNs = status.isInStep || status.isLevel ? nil : status.sinceNs
        reason = status.isInStep || status.isLevel ? nil : status.reason
        durableSequence = status.durable.rawValue
        lagBytes = status.lagBytes
        lagMs = status.lagMs
        checkpointNs = status.checkpointNs
        dirtyBytes = status.dirtyBytes
        suspectBytes = status.suspectBytes
        atRiskBytes = status.atRiskBytes
        comparedBytes = status.figures.comparedBlocks * Geometry.blockSizeBytes
        resyncedBytes = status.figures.stagedBytes
        rateBytesPerSecond = status.bytesPerSecond
        rateLimitBytesPerSecond = status.record.rateBytesPerSecond.map(UInt64.init)
        resyncDoneBytes = status.resyncDoneBytes
        resyncTotalBytes = status.resyncTotalBytes
        etaMs = status.etaMs
    }
}
