// What a visitor with the right `admin` has done with a pool's role.
//
//   promotion   the session that writes to the mirror ends, and none begins   crash: a mirror
//               what was received is applied; Promotion.swift has the order   crash: as it says there
//               the pool is closed: `doppel mount` can have it                crash: a primary
//
// A primary that connects from then on finds a primary: it is fenced, or it is a split brain (MirrorTarget+Admission).

import BlockCore
import Logging
import Pool
import Replication
import SystemIO
import Targets

extension ServedVisitor {
    private static let log = Logger(label: "doppel.serve")

    // MARK: Looking

    func sight() throws -> ControlResult {
        var result = ControlResult()
        result.sight = try withPool { open in
            SeenPool(sight: try open.rows { try PoolSight($0) }, isInUse: true)
        } alone: {
            try look()
        }
        return result
    }

    /// Of a pool that no session of this server has.
    private func look() throws -> SeenPool {
        guard let sight = PoolSight.look(at: path, disk: LinuxDisk()) else {
            throw ControlFailure(.failed, "\(path) cannot be looked into")
        }
        return SeenPool(sight: sight, isInUse: sight.isInUse)
    }

    /// In a turn, so that a promotion under way is over; what comes after it finds that it was called off.
    func outcome(_ arguments: ControlArguments) throws -> ControlResult {
        guard let id = arguments.generationID else {
            throw ControlFailure(.usage, "'generationID' is missing")
        }
        pools.callOff(id)
        var result = ControlResult()
        result.sight = try withPool { open in
            SeenPool(sight: try open.rows { try PoolSight($0) }, isInUse: true)
        } alone: {
            // Who holds it has just opened it, perhaps, and has not yet mended what a crash left of its role.
            var seen = try look()
            for _ in 0..<9 where seen.isInUse {
                Pause.microseconds(100_000)
                seen = try look()
            }
            // Another process may be about to begin it: nothing was called off there.
            guard !seen.isInUse || seen.sight.began(id) else {
                throw ControlFailure(
                    .inUse, "\(path) is in use there: how that ended can be said when it is free")
            }
            return seen
        }
        try require(result.sight?.sight.poolID, arguments.poolID)
        return result
    }

    private func require(_ found: String?, _ expected: String?) throws {
        guard let expected, found != expected else { return }
        throw ControlFailure(
            .failed,
            "\(path) is pool \(found ?? "?"), and not \(expected): nothing in it was touched")
    }

    // MARK: Promoting

    func promote(_ arguments: ControlArguments) throws -> ControlResult {
        var result = ControlResult()
        if arguments.dryRun ?? false {
            result.promotion = try withPool { open in
                try open.preview()
            } alone: {
                try PoolPromotion.perform(
                    path: path, dryRun: true, force: false, reportsDamage: true
                ) { _ in false }
            }
            return result
        }
        guard let id = arguments.generationID else {
            throw ControlFailure(.usage, "'generationID' is missing")
        }
        try inTurn(endingSession: "the pool is promoted to be a primary") {
            guard !pools.isCalledOff(id) else {
                throw ControlFailure(.failed, "that promotion was called off: it came too late")
            }
            if let poolID = arguments.poolID, let primary = arguments.primaryPoolID,
                let sequence = arguments.sequence
            {
                let note = HandoverRecord(poolID: poolID, address: path, generationID: id)
                _ = try Handover.promote(
                    note, from: primary, primaryAddress: nil,
                    at: SequenceNumber(rawValue: sequence))
            } else {
                let force = arguments.force ?? false
                result.promotion = try PoolPromotion.perform(
                    path: path, dryRun: false, force: arguments.acceptsDamage ?? false,
                    generationID: id
                ) { info in
                    if force { return true }
                    throw ControlFailure(
                        .failed,
                        "\(path) was not promoted, something may be lost (\(info.loss.reason)); force "
                            + "does it all the same")
                }
            }
            result.sight = try look()
        }
        Self.log.notice(
            "\(path) was promoted: generation \(result.sight?.sight.history.current?.number ?? 0)")
        return result
    }

    private func inTurn<T>(endingSession why: String, _ body: () throws -> T) throws -> T {
        while true {
            let served = try pools.find(name)
            let found = try served.replica.inTurn(endingSession: why) {
                served.mirror.endCopies()
                return try body()
            }
            if let found { return found }
            Pause.microseconds(20_000)
        }
    }
}

extension OpenMirror {
    /// What a promotion would come to, while the primary goes on: how much it has that is not here it alone knows.
    fileprivate func preview() throws -> PromotionInfo {
        let record = record
        let shownNs = try names().map { max($0.node.modifyNs, $0.node.changeNs) }.max() ?? 0
        let checkpoint = checkpoint
        guard record.incarnationID != nil else {
            throw ControlFailure(
                .failed,
                "\(store.path) never reached a first checkpoint: there is nothing to promote")
        }
        let reason = "its primary is connected, and goes on"
        return PromotionInfo(
            path: store.path, generation: (record.generation?.number ?? 0) + 1,
            primaryPool: record.primaryPoolID, checkpointSequence: checkpoint.rawValue,
            shownNs: shownNs,
            loss: LossPreview(
                knowledge: .unknown, primary: record.primaryAddress, reason: reason,
                fromNs: shownNs, heardNs: record.heardNs), better: [])
    }
}
