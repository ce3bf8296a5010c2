// Planned failover: a mirror becomes the primary, and its primary a mirror of it. Nothing is lost, and at no
// moment are there two primaries, whoever crashes when.
//
//        this pool                               the mirror            crash: the next open of this pool
//   1    changes are held, not failed                                  a primary
//   2                                            has everything        a primary; what this disk lost the
//                                                                      mirror has, which is not called stale
//   3    note: handing over to it, generation g                        asks the mirror: it did not begin g, so
//                                                                      the note goes, and this one is
//   4                                            primary, in g         asks the mirror: it did, so this one
//                                                                      becomes its mirror; where that is a
//                                                                      mirror by now, a person says whose
//   5    fenced: who was held hears EROFS                              the same
//   6    all of it durable here, too                                   the same
//   7    a mirror                                                      a mirror
//
// Between 3 and 7 this pool takes no change before it was told how the handover ended: where the mirror cannot
// be asked, it does not open but for reading.
//
// A mirror on another machine is asked to become a primary by its server, and what it answers may not arrive. So
// whoever asks how it ended is told that, and from then on the request counts no more if it was not carried out yet
// (`ServedPools.callOff`): one that stalled on the line never makes a second primary.

import BlockCore
import Foundation
import Pool
import Replication
import SystemIO
import Targets
import VirtualFS
import Volume

package struct FailoverInfo: Codable, Sendable, Hashable {
    package var from: String
    package var to: String
    package var generation: UInt64
    /// Everything up to here is in both.
    package var sequence: UInt64
    /// How long changes were held.
    package var pauseMs: Int64
}

/// For who follows a handover step by step.
package enum HandoverStep: String, Sendable, CaseIterable {
    case held, drained, noted, promoted, fenced, settled, demoted
}

extension PoolSession {
    /// - Parameter didReach: called after each step.
    package func failOver(
        to address: String, timeoutMs: Int64?, didReach: (HandoverStep) -> Void = { _ in }
    ) throws -> FailoverInfo {
        guard let replication else {
            throw ControlFailure(.failed, "\(store.path) is not a primary that can be changed")
        }
        try replication.requireNoSuccessor()
        if let reason = volume.fenceReason { throw ControlFailure(.failed, reason) }
        let info = try replication.handOver(
            to: address, timeoutMs: timeoutMs ?? 30_000, didReach: didReach)
        // From here on the mirror is the primary: what fails is made good by the next open.
        try fileSystem.settleNames()
        try volume.flushAll()
        try replication.secure()
        didReach(.settled)
        try Handover.becomeMirror(store, of: address, at: volume.sequence, isSettled: true)
        didReach(.demoted)
        return info
    }
}

extension PoolReplication {
    /// Steps 1 to 5.
    fileprivate func handOver(
        to address: String, timeoutMs: Int64, didReach: (HandoverStep) -> Void
    ) throws -> FailoverInfo {
        try changing.withLock {
            try requireNoSuccessor()
            guard let hub, let target = hub.all.first(where: { $0.record.address == address }),
                let poolID = target.record.poolID
            else { throw ControlFailure(.failed, "\(address) is no target of this pool") }
            guard !TargetAddress(address).isRaw else {
                throw ControlFailure(
                    .usage,
                    "a raw mirror is not handed over to: unmount the pool, and `doppel promote \(address)` "
                        + "makes a pool of it, with nothing lost")
            }
            if let place = RemoteAddress(address) {
                try RemotePool.requireAdmin(place, limitMs: timeoutMs)
            }
            // Most of it is done while everybody goes on.
            guard isInStep(target, hub, timeoutMs: timeoutMs) else {
                throw ControlFailure(
                    .degraded,
                    "\(address) is not in step: nothing was changed. `doppel status` says why; "
                        + "`doppel promote --force` takes it over as it is")
            }
            let disk = LinuxDisk()
            let startNs = disk.monotonic()
            let note = HandoverRecord(
                poolID: poolID, address: address, generationID: PoolStore.randomID())
            let generation = try volume.holdingChanges {
                didReach(.held)
                let sequence = volume.sequence
                guard hub.wait(for: [target.record.id], timeoutMs: timeoutMs).isEmpty else {
                    throw ControlFailure(
                        .degraded, "\(address) did not take the rest in time: nothing was changed")
                }
                didReach(.drained)
                return (try take(note, target, hub, sequence, timeoutMs, didReach), sequence)
            }
            return FailoverInfo(
                from: store.path, to: address, generation: generation.0.number,
                sequence: generation.1.rawValue,
                pauseMs: (disk.monotonic() - startNs) / 1_000_000)
        }
    }

    /// A pool that was just opened has to connect first, also where nothing is missing.
    private func isInStep(
        _ target: AttachedTarget, _ hub: TargetHub, timeoutMs: Int64
    ) -> Bool {
        let disk = LinuxDisk()
        let deadlineNs = disk.monotonic() + timeoutMs * 1_000_000
        while true {
            let leftMs = max((deadlineNs - disk.monotonic()) / 1_000_000, 0)
            let isLevel = hub.wait(for: [target.record.id], timeoutMs: leftMs).isEmpty
            if isLevel, hub.isInStep(target) { return true }
            guard leftMs > 0, target.driver != nil else { return false }
            Pause.microseconds(5000)
        }
    }

    private func take(
        _ note: HandoverRecord, _ target: AttachedTarget, _ hub: TargetHub,
        _ sequence: SequenceNumber, _ timeoutMs: Int64, _ didReach: (HandoverStep) -> Void
    ) throws -> Generation {
        try hub.release(target.record.id)
        noteSuccessor(note.address)
        do {
            try store.catalog.write { try $0.setHandover(note) }
            didReach(.noted)
            let generation = try Handover.promote(
                note, from: store, at: sequence, limitMs: timeoutMs)
            didReach(.promoted)
            volume.fence(Handover.reason(store.path, note.address))
            didReach(.fenced)
            return generation
        } catch {
            // Whoever waits to change something is held until it is known, as long as that may take.
            switch Handover.outcome(note, patienceMs: timeoutMs) {
            case .notTaken:
                noteSuccessor(nil)
                try store.catalog.write { try $0.setHandover(nil) }
                hub.takeBack(target.record.id)
            case .taken(let generation):
                // The answer alone was lost.
                volume.fence(Handover.reason(store.path, note.address))
                return generation
            case .unknown:
                let reason = Handover.unknownReason(store.path, note.address)
                volume.fence(reason)
                throw ControlFailure(.failed, reason)
            }
            throw error
        }
    }

    /// What targets lack is written down.
    fileprivate func secure() throws { try hub?.secure(upTo: volume.sequence) }
}

enum Handover {
    static func reason(_ path: String, _ address: String) -> String {
        "\(path) is read-only: it was handed over to \(address), which is the primary now. Unmount this "
            + "one; it follows the other"
    }

    static func unknownReason(_ path: String, _ address: String) -> String {
        "\(path) is read-only: it was being handed over to \(address), which does not say whether it took "
            + "over. Unmount this one, and mount it again when the other can be reached; if that is lost, "
            + "`doppel target resolve \(path) \(address) --keep here`"
    }

    static func promote(
        _ note: HandoverRecord, from store: PoolStore, at sequence: SequenceNumber, limitMs: Int64
    ) throws -> Generation {
        if let place = RemoteAddress(note.address) {
            return try RemotePool.promote(
                place, note, from: store.identity.id, at: sequence, limitMs: limitMs)
        }
        return try promote(
            note, from: store.identity.id, primaryAddress: store.path, at: sequence)
    }

    /// Of a mirror on this machine.
    /// - Parameters:
    ///   - primaryPoolID: of the pool that gives up its role.
    ///   - primaryAddress: nil: where the primary said that it is.
    ///   - note: its address is a folder.
    static func promote(
        _ note: HandoverRecord, from primaryPoolID: String, primaryAddress: String?,
        at sequence: SequenceNumber
    ) throws -> Generation {
        let mirrorStore = try PoolStore.open(path: note.address, disk: LinuxDisk())
        let mirror: RecoveredMirror
        do { mirror = try RecoveredMirror(store: mirrorStore, runsInBackground: false) } catch {
            try? mirrorStore.close(clean: false, lastSequence: .zero)
            throw error
        }
        defer { mirror.close() }
        guard mirrorStore.identity.id == note.poolID, mirror.checkpoint >= sequence,
            mirror.record.staging == nil, mirror.record.primaryPoolID == primaryPoolID
        else {
            throw ControlFailure(
                .failed,
                "\(note.address) does not hold what was handed over: nothing was changed")
        }
        return try mirror.promote(
            NewGeneration(
                cause: .planned, id: note.generationID, primaryAddress: primaryAddress))
    }

    // MARK: After a crash

    enum Outcome: Equatable {
        case taken(Generation)
        case notTaken, unknown
    }

    /// How a handover ended whose process is gone, or that was not answered.
    /// - Parameter patienceMs: how long to go on asking a server that does not answer; nil: it is asked once.
    static func outcome(_ note: HandoverRecord, patienceMs: Int64? = nil) -> Outcome {
        let disk = LinuxDisk()
        if let place = RemoteAddress(note.address) {
            let deadlineNs = disk.monotonic() + (patienceMs ?? 0) * 1_000_000
            while true {
                let leftMs = max((deadlineNs - disk.monotonic()) / 1_000_000, 200)
                let outcome = RemotePool.outcome(
                    place, note, limitMs: patienceMs == nil ? RemotePool.answerMs : leftMs)
                if outcome != .unknown || disk.monotonic() >= deadlineNs { return outcome }
                Pause.microseconds(200_000)
            }
        }
        // Who holds it has just opened it, perhaps, and has not yet mended what a crash left of its role.
        for attempt in 0..<10 {
            guard let sight = PoolSight.look(at: note.address, disk: disk),
                sight.poolID == note.poolID
            else { return .unknown }
            if !sight.isInUse || attempt == 9 { return sight.outcome(of: note.generationID) }
            Pause.microseconds(100_000)
        }
        return .unknown
    }

    /// Before a pool is opened for changes: how did the handover end that was under way?
    /// - Parameter isToFollow: it is opened to become a mirror, of whomever a person named.
    static func settle(_ store: PoolStore, isToFollow: Bool = false) throws {
        guard let note = try store.catalog.read({ try $0.handover() }) else { return }
        switch outcome(note) {
        case .notTaken:
            try store.catalog.write { tx in
                try tx.setHandover(nil)
                try tx.addEvent(
                    EventRecord(
                        atNs: store.disk.now(), kind: "handover-undone", subject: note.address,
                        message: "a handover was cut off before the mirror took over: this pool is "
                            + "the primary"))
            }
        case .taken:
            if isToFollow, try RemotePool.look(at: note.address)?.isReplica ?? false { return }
            _ = try successor(of: store, at: note.address)
            let (sequence, isSettled) = try writeDown(store)
            try becomeMirror(store, of: note.address, at: sequence, isSettled: isSettled)
        case .unknown:
            throw ControlFailure(
                .failed,
                "\(store.path) was being handed over to \(note.address) when it was last in use, and "
                    + "that cannot be asked now whether it took over. Make it reachable; or, if it is "
                    + "lost, `doppel target resolve \(store.path) \(note.address) --keep here`")
        }
    }

    /// What a crash left open goes into the dirty file of the mirror that took over.
    private static func writeDown(
        _ store: PoolStore
    ) throws -> (sequence: SequenceNumber, isSettled: Bool) {
        let volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        do {
            let replication = try PoolReplication(
                volume: volume, runs: false, mounts: MirrorMounts(), allowsAsyncOnly: false)
            let isKnown = replication.close()
            try volume.close()
            return (volume.sequence, isKnown)
        } catch {
            volume.abandon()
            throw error
        }
    }

    static func becomeMirror(
        _ store: PoolStore, of address: String, at sequence: SequenceNumber, isSettled: Bool
    ) throws {
        try Demotion.run(
            store, to: try successor(of: store, at: address), at: address, sequence: sequence,
            isSettled: isSettled)
    }

    /// Who took over may have handed over since, or been replaced: a mirror is nobody's primary.
    private static func successor(of store: PoolStore, at address: String) throws -> PoolSight {
        guard let sight = try RemotePool.look(at: address) else {
            throw ControlFailure(.failed, "\(address) cannot be looked into")
        }
        guard sight.isReplica else { return sight }
        let next = try store.catalog.read { try $0.targets() }
            .first { $0.poolID != nil && $0.poolID == sight.primaryPoolID }
        throw ControlFailure(
            .failed,
            "\(store.path) was handed over to \(address), which took over, and is a mirror itself by now: "
                + "this pool takes no changes any more. `doppel demote \(store.path) --to "
                + "\(next?.address ?? "ADDRESS")` makes it follow the pool that is the primary now")
    }
}
