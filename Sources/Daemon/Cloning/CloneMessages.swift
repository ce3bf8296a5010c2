import BlockCore
import Replication

/// What a copy of a pool begins with, as its source says it.
package struct CloneSourceInfo: Codable, Sendable, Hashable {
    package struct Leg: Codable, Sendable, Hashable {
        /// nil: the checkpoint.
        var snapshot: Replication.SnapshotInfo?
        /// That the one before may not have.
        var blocks: UInt64
    }
    /// The source's own pool, and the one that it is a mirror of.
    var pool: String
    var primaryPool: String
    var primaryAddress: String?
    var generation: Generation
    var history: GenerationHistory
    var incarnationID: String
    var sequence: SequenceNumber
    var shownNs: Int64
    /// Every snapshot, the oldest first, then the checkpoint.
    var legs: [Leg]

    /// What a pool may have, whoever says it: sequences go up, and what is counted can be counted.
    var isSound: Bool {
        var blocks: UInt64 = 0
        for leg in legs {
            guard leg.blocks <= Self.mostBlocks - blocks else { return false }
            blocks += leg.blocks
        }
        guard let last = legs.last, last.snapshot == nil, sequence <= .highestTold,
            generation.number <= Generation.highestNumberTold
        else { return false }
        let cuts = legs.dropLast().map { $0.snapshot?.sequence } + [sequence]
        return zip(cuts, cuts.dropFirst()).allSatisfy { before, after in
            guard let before, let after else { return false }
            return before <= after
        }
    }
    /// In bytes, two exbibytes: what is done is counted in them.
    private static let mostBlocks: UInt64 = 1 << 49

    /// As its primary would introduce itself.
    var hello: PrimaryHello {
        PrimaryHello(
            poolID: primaryPool, generation: generation, incarnation: 0,
            incarnationID: incarnationID, history: history, address: primaryAddress)
    }
}

/// What came of it.
package struct CloneInfo: Codable, Sendable, Hashable {
    package var path: String
    package var source: String
    /// The copy's own, and the one that it follows.
    package var pool: String
    package var primaryPool: String
    package var generation: UInt64
    package var sequence: UInt64
    /// When the last operation in it was made.
    package var shownNs: Int64
    package var images: Int
    package var snapshots: [String]
    /// Something was there from an earlier try.
    package var wasResumed: Bool
    /// What travelled as content, this time.
    package var copiedBytes: UInt64
    /// What was read back from here and held against the source by hash, this time.
    package var verifiedBytes: UInt64
    package var elapsedMs: Int64
}
