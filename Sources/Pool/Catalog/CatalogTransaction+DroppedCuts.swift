// Snapshots that a crash kept the pool from completing. Their targets may have them: what they show may be what
// the crash took from the pool. They hear of it, and so does who hears of it from them.

import BlockCore

extension CatalogTransaction {
    private static let droppedCutsKey = "dropped-cuts"
    /// Who did not hear of one before so many more were dropped keeps it as what it was made for.
    private static let mostDroppedCuts = 256

    /// In the story of the pool, the oldest first.
    package func droppedCuts() throws -> [DroppedCut] {
        guard let text = try setting(Self.droppedCutsKey) else { return [] }
        return try text.split(separator: " ").map { part in
            let ends = part.split(separator: "-").compactMap { UInt64($0) }
            guard ends.count == 2 else {
                throw CatalogError(message: "'\(text)' are no places of snapshots", cause: "")
            }
            return DroppedCut(
                after: SequenceNumber(rawValue: ends[0]),
                through: SequenceNumber(rawValue: ends[1]))
        }
    }

    package func setDroppedCuts(_ cuts: [DroppedCut]) throws {
        let text = cuts.suffix(Self.mostDroppedCuts).map {
            "\($0.after.rawValue)-\($0.through.rawValue)"
        }
        try setSetting(Self.droppedCutsKey, text.joined(separator: " "))
    }
}
