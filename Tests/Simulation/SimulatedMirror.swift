import BlockCore
import Pool
import SystemIO
import TestSupport

@testable import Targets

/// One mirror with a machine of its own, and what the model knows of it.
final class SimulatedMirror {
    let pool: SimulatedPool
    let mode: TargetRecord.Mode
    /// As the primary's catalog has it.
    var id = TargetID(rawValue: 0)
    /// While a session has it open.
    var target: MirrorTarget?
    var isAway = false
    var failsSyncs = false
    /// A sync failed, or may have, since it was opened: it stays out until it is opened anew.
    var isLatched = false
    /// What it holds whatever becomes of its machine: answers were given for that.
    var durableFloor: UInt64 = 0
    /// What it holds as long as its machine has power.
    private(set) var liveFloor: UInt64 = 0
    /// How often its machine lost power.
    private(set) var powerLosses = 0
    /// What it showed when it was looked at last, and its disk's changes then.
    var checked: (change: Int, sequence: UInt64) = (-1, 0)

    var path: String { pool.path }
    var floor: UInt64 { max(durableFloor, liveFloor) }

    init(number: Int, mode: TargetRecord.Mode) throws {
        self.mode = mode
        let name = "mirror\(number)"
        pool = try SimulatedPool(path: "/" + name, id: name, disk: SimulatedDisk()) {
            try $0.setReplica(ReplicaRecord(primaryPoolID: "primary"))
        }
    }

    /// An answer was given that it was waited for.
    /// - Parameter powerLosses: when the request came: what it lost while others were waited for was
    ///   never promised.
    func promise(_ sequence: UInt64, isFlush: Bool, powerLosses: Int) {
        switch mode {
        case .async: return
        case .flush, .sync:
            if isFlush { durableFloor = max(durableFloor, sequence) }
        case .semiSync, .adaptive: break
        }
        // A disk whose syncs fail forgets what it was asked to keep.
        guard mode != .flush, powerLosses == self.powerLosses, !failsSyncs, !isLatched else {
            return
        }
        liveFloor = max(liveFloor, sequence)
    }

    func losePower(_ random: inout SeededRandom) {
        liveFloor = 0
        powerLosses += 1
        pool.losePower(&random)
    }

    func failSyncs(below part: String) {
        pool.disk.failSyncs { $0.contains(part) }
        failsSyncs = true
        isLatched = true
        liveFloor = 0
    }

    func endFaults() {
        pool.disk.failSyncs { _ in false }
        pool.disk.limitSpace(toBytes: .max)
        failsSyncs = false
        isAway = false
    }

    /// It may fail to show anything.
    var isIll: Bool {
        pool.disk.isPoweredOff || pool.disk.spaceLeftBytes < 1 << 40 || isLatched
    }
}
