// What a crash of the whole machine leaves to be done. A process that is killed leaves its writes to the
// kernel, and they are there at the next open; a machine that goes down takes with it what was not synced,
// and a target may have that. Which of the two it was the machine's boot id tells.

import BlockCore
import Foundation

/// The machine went down while the pool was in use, and its targets were not asked yet for what its disk
/// lost.
package struct LostPowerRecord: Sendable, Hashable, Codable {
    /// Everything before it was durable here, or was gone on without: a target that is not as far has
    /// nothing that the pool may have lost.
    package var floor: SequenceNumber
    /// Everything up to there is durable here, by image, where its map tells; nil before anybody looked.
    package var heads: [ImageID: SequenceNumber]?
    /// The snapshot that keeps what this disk had, from before anything is pulled.
    package var keptSnapshot: String?

    package init(floor: SequenceNumber) { self.floor = floor }
}

extension CatalogTransaction {
    private static let bootKey = "boot"
    private static let floorKey = "recovery-floor"
    private static let lostPowerKey = "lost-power"
    private static let lostReceivedKey = "lost-received"

    private func setSetting(_ key: String, orNone value: String?) throws {
        if let value { return try setSetting(key, value) }
        try execute(sql: "DELETE FROM settings WHERE key = ?", arguments: [key])
    }

    /// At each open, in the transaction that says that the pool is in use.
    /// - Parameters:
    ///   - boot: of the machine, now; nil where that is not known.
    ///   - state: as the last life of the pool left it.
    func noteBoot(_ boot: String?, _ state: PoolState) throws {
        let before = try setting(Self.bootKey)
        let isReplica = try replica()?.role == .replica
        if state.cleanlyClosed || isReplica {
            try setFloor(isReplica ? nil : state.lastSequence)
        }
        if !state.cleanlyClosed, let before, let boot, before != boot {
            if isReplica {
                try setLostReceived(true)
            } else if try lostPower() == nil {
                if try targets().isEmpty {
                    try setFloor(nextLife(state))
                } else {
                    try setLostPower(LostPowerRecord(floor: try floor() ?? state.lastSequence))
                }
            }
        }
        // A process that was killed left its writes to the machine: what they began with holds for the next
        // ones, too.
        if try !isReplica && floor() == nil { try setFloor(state.lastSequence) }
        try setSetting(Self.bootKey, orNone: boot)
    }

    private func floor() throws -> SequenceNumber? {
        try setting(Self.floorKey).flatMap(UInt64.init).map(SequenceNumber.init(rawValue:))
    }
    private func setFloor(_ sequence: SequenceNumber?) throws {
        try setSetting(Self.floorKey, orNone: sequence.map { String($0.rawValue) })
    }

    /// Where the sequence goes on after an unclean end, at the least.
    private func nextLife(_ state: PoolState) throws -> SequenceNumber {
        let cuts = try snapshots().map(\.sequence)
        let known = max(state.lastSequence, try namesSequence(), cuts.max() ?? .zero)
        return SequenceNumber(rawValue: (known.rawValue >> 40 + 1) << 40)
    }

    package func lostPower() throws -> LostPowerRecord? {
        guard let text = try setting(Self.lostPowerKey) else { return nil }
        return try JSONDecoder().decode(LostPowerRecord.self, from: Data(text.utf8))
    }
    package func setLostPower(_ record: LostPowerRecord?) throws {
        let text = try record.map {
            String(decoding: try JSONEncoder().encode($0), as: UTF8.self)
        }
        try setSetting(Self.lostPowerKey, orNone: text)
        // What is here now is durable, and what is not here was gone on without.
        if record == nil { try setFloor(nextLife(poolState())) }
    }

    /// Of a mirror: what it was given and had not made durable it may have lost, and it was not given it
    /// again since.
    package func lostReceived() throws -> Bool { try setting(Self.lostReceivedKey) != nil }
    package func setLostReceived(_ isLost: Bool) throws {
        try setSetting(Self.lostReceivedKey, orNone: isLost ? "1" : nil)
    }
}
