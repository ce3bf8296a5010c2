// Changing who is the primary, where the pool that is to be one is behind a server.

import BlockCore
import Pool
import Replication
import SystemIO

/// What a pool is to others, as it travels.
package struct SeenPool: Codable, Sendable, Hashable {
    package var sight: PoolSight
    /// Somebody holds it: a mount, or a server whose primary is connected.
    package var isInUse: Bool
}

extension RemotePool {
    /// For what is asked of a server while others are held, or that holds up a mount: its disk may hang.
    static let answerMs: Int64 = 30_000

    /// A pool's role, wherever it is.
    /// - Returns: nil where there is none on this machine, or it cannot be looked into.
    /// - Throws: why one on another machine does not answer.
    static func look(at address: String) throws -> PoolSight? {
        guard let place = RemoteAddress(address) else { return lookHere(address) }
        guard let seen = try perform(ControlRequest(.sight), at: place, limitMs: answerMs).sight
        else { return nil }
        var sight = seen.sight
        sight.isInUse = seen.isInUse
        return sight
    }

    static func lookHere(_ path: String) -> PoolSight? {
        PoolSight.look(at: path, disk: LinuxDisk())
    }

    // MARK: Planned

    /// Before anything is held up for it: may this host have the mirror there promoted at all?
    static func requireAdmin(_ place: RemoteAddress, limitMs: Int64) throws {
        _ = try perform(
            ControlRequest(.promote) { $0.dryRun = true }, at: place, limitMs: limitMs)
    }

    /// - Throws: also where the answer did not arrive: then it may have been done, and ``outcome(_:_:limitMs:)`` says
    ///   so.
    static func promote(
        _ place: RemoteAddress, _ note: HandoverRecord, from primaryPoolID: String,
        at sequence: SequenceNumber, limitMs: Int64
    ) throws -> Generation {
        let request = ControlRequest(.promote) {
            $0.generationID = note.generationID
            $0.poolID = note.poolID
            $0.primaryPoolID = primaryPoolID
            $0.sequence = sequence.rawValue
        }
        let sight = try perform(request, at: place, limitMs: limitMs).sight?.sight
        guard let current = sight?.history.current, current.id == note.generationID else {
            throw ControlFailure(
                .failed, "\(place.text) did not say that it is the primary now")
        }
        return current
    }

    /// How a handover ended. Where it was not carried out by now it never is.
    static func outcome(
        _ place: RemoteAddress, _ note: HandoverRecord, limitMs: Int64
    ) -> Handover.Outcome {
        outcome(place, note.generationID, poolID: note.poolID, limitMs: limitMs)
    }

    /// - Parameter poolID: that the pool there has to be; nil: whichever it is.
    static func outcome(
        _ place: RemoteAddress, _ generationID: String, poolID: String?, limitMs: Int64
    ) -> Handover.Outcome {
        let request = ControlRequest(.handoverOutcome) {
            $0.generationID = generationID
            $0.poolID = poolID
        }
        guard let seen = try? perform(request, at: place, limitMs: limitMs).sight else {
            return .unknown
        }
        return seen.sight.outcome(of: generationID)
    }
}

extension PoolSight {
    /// Of a generation that it alone was asked to begin: it did, whatever it became since.
    func began(_ generationID: String) -> Bool { history.contains(generationID) }

    func outcome(of generationID: String) -> Handover.Outcome {
        let entry = history.entries.first { $0.generation.id == generationID }
        return entry.map { .taken($0.generation) } ?? .notTaken
    }
}

/// A promotion that a person asks for, of a mirror anywhere.
package enum AnyPromotion {
    /// As ``PoolPromotion/perform(path:dryRun:force:reportsDamage:generationID:accept:)``; a mirror behind a server
    /// is promoted by that. There somebody is asked first, so that nothing is held up meanwhile.
    package static func perform(
        _ address: String, dryRun: Bool, force: Bool, accept: (PromotionInfo) throws -> Bool
    ) throws -> PromotionInfo {
        guard let place = try RemotePool.address(address) else {
            return try PoolPromotion.perform(
                path: PoolLocation.find(address).poolPath, dryRun: dryRun, force: force,
                accept: accept)
        }
        let preview = try ask(place) { $0.dryRun = true }
        // What is lost by damage is for the person's own word alone; a session of the primary hides it until it ends.
        if let damage = preview.damage, !force {
            throw ControlFailure(
                .damaged, "\(place.text): \(damage.text). `doppel promote --force` takes it over so"
            )
        }
        guard !dryRun, try preview.isSure || accept(preview) else { return preview }
        let generationID = PoolStore.randomID()
        do {
            return try ask(place) {
                $0.generationID = generationID
                $0.force = !preview.isSure || force
                $0.acceptsDamage = force
            }
        } catch {
            // What was asked may have been done, and the answer lost; from here on it is not done any more.
            guard
                case .taken = RemotePool.outcome(
                    place, generationID, poolID: nil, limitMs: RemotePool.answerMs)
            else { throw error }
            var info = preview
            info.isPromoted = true
            return info
        }
    }

    private static func ask(
        _ place: RemoteAddress, _ fill: (inout ControlArguments) -> Void
    ) throws -> PromotionInfo {
        let result = try RemotePool.perform(ControlRequest(.promote, fill), at: place)
        guard var info = result.promotion else {
            throw ControlFailure(.failed, "\(place.text) did not say what would be lost")
        }
        info.path = place.text
        return info
    }
}
