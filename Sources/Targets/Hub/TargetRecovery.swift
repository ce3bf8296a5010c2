// How much may be lost with this machine (`rpo`): looked at with each tick of the keeper.

import BlockCore
import Pool
import Replication

extension TargetRecord {
    package var recoveryGoal: RecoveryGoal? {
        guard rpoMs != nil || rpoBytes != nil else { return nil }
        return RecoveryGoal(
            ageMs: rpoMs, bytes: rpoBytes.map(UInt64.init), reaction: onRPO.reaction)
    }
    /// It keeps changes from beginning while it is behind, also after the pool was opened anew.
    var stopsWhenBehind: Bool { recoveryGoal?.reaction == .stop }
}

extension TargetRecord.OnRPO {
    var reaction: RecoveryReaction {
        switch self {
        case .alarm: .alarm
        case .throttle: .throttle
        case .stop: .stop
        }
    }
}

extension TargetHub {
    func beginRecoveryPoint(of target: AttachedTarget) {
        let record = target.record
        setRecoveryPoint(
            of: target,
            record.recoveryGoal.map { RecoveryPoint(goal: $0, isArmed: record.isArmed) })
    }

    /// Nobody is let go of for it before the next look.
    func changeRecoveryPoint(of target: AttachedTarget) {
        if let goal = target.record.recoveryGoal, target.changeGoal(goal) { return }
        beginRecoveryPoint(of: target)
    }

    /// Nobody is held, or slowed, for the target any more.
    func endRecoveryPoint(of target: AttachedTarget) { setRecoveryPoint(of: target, nil) }

    private func setRecoveryPoint(of target: AttachedTarget, _ point: RecoveryPoint?) {
        let id = target.record.id
        target.setRecoveryPoint(point) { pace in
            volume.gate.setPace(pace, for: id, nowNs: disk.monotonic())
        }
    }

    func watchRecoveryPoint(of target: AttachedTarget, nowNs: Int64) {
        let id = target.record.id
        guard target.recoveryPoint != nil, let driver = target.driver,
            let standing = stream.standing(id)
        else { return }
        let session = driver.snapshot
        let figures = target.figures
        let sight = RecoveryPoint.Sight(
            ageMs: lagMs(behind: max(standing.durable, session.levelThrough)),
            bytes: standing.lagBytes + standing.dirtyBlocks * Geometry.blockSizeBytes,
            sentBytes: figures.sentBytes + figures.stagedBytes,
            isShipping: session.state == .streaming || session.state == .resyncing,
            isInStep: session.isInStep(nowNs: nowNs))
        let seen = target.look(sight, nowNs: nowNs) { pace in
            volume.gate.setPace(pace, for: id, nowNs: nowNs)
        }
        if seen.wantsRun, session.state == .scheduled { driver.wantFlush(stream.lastSequence) }
        switch seen.change {
        case .passed:
            let seconds = "\(sight.ageMs / 1000).\(sight.ageMs % 1000 / 100) s"
            tell(
                id, kind: "rpo-passed",
                message: "\(seconds) and \(sight.bytes) bytes are at risk, more than was asked for"
                    + (target.record.onRPO == .stop ? "; changes are held" : ""))
        case .kept: tell(id, kind: "rpo-kept", message: "no more is at risk than was asked for")
        case nil: break
        }
    }
}
