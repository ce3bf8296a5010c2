// A target as plain values, for the session's model test: what is durable, what is only in memory,
// and a staging beside both.

import BlockCore
import Replication
import TestSupport

struct Violation: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// What a pool shows: per image and block the sequence of what was written there, 0 for nothing.
typealias PoolContent = [[UInt64]]

struct ModelRecord {
    enum Operation {
        case write(image: Int, block: Int)
        case cut(SnapshotInfo)
        /// Blocks changed that the stream does not carry.
        case barrier
    }
    var sequence: UInt64
    var operation: Operation
}

/// Bugs built in on purpose; see docs/testing.md.
enum ModelBug: CaseIterable {
    /// A write while the target is away is not entered in its legs.
    case forgetsMark
    /// The target confirms what it has only in memory.
    case confirmsTooEarly
    /// The leg's blocks are clean before it is committed.
    case cleansTooEarly
    /// A block is staged without the stream up to the moment it was read.
    case stagesAhead
    /// The ring lets go of what was sent and not confirmed.
    case forgetsUnconfirmed
    /// A cut in the stream does not end the leg.
    case missesCut
    /// A record from before a block became dirty takes it for clean.
    case coversTooEarly
    /// What the stream carried into a staging, and left the ring, is forgotten with the staging.
    case forgetsCarried
    /// What comes after a barrier is sent as if nothing lacked.
    case passesBarrier
    /// A target that lost what it had not made durable is believed to have it.
    case believesWhatWasLost
    /// What the target has written is taken for durable.
    case takesWrittenForDurable
    /// Who waits goes on before it is written down that the target is stale.
    case releasesBeforeStale
    /// Who stands still is let go of when the target is lost.
    case goesOnWithoutIt
    /// The target is said to have what is on its way to it.
    case hearsTooEarly
}

/// On its way to the target.
enum ModelCall {
    case record(ModelRecord)
    case flush
}

/// A write or an fsync that waits for the target.
struct ModelRequest: Sendable {
    var sequence: UInt64
    /// What the target has to have it as.
    var point: AckPoint
}

struct ModelTarget {
    struct Staging {
        var id: UInt64
        var content: PoolContent
        var synced: PoolContent
    }

    var incarnation: String?
    var checkpoint: UInt64 = 0
    var content: PoolContent
    var snapshots: [String: PoolContent] = [:]
    var unsynced: [ModelRecord] = []
    var staging: Staging?
    var isAbsent = false

    private mutating func apply(_ record: ModelRecord) {
        switch record.operation {
        case .write(let image, let block): content[image][block] = record.sequence
        case .cut(let info): snapshots[info.name] = content
        case .barrier: preconditionFailure("a barrier is never sent")
        }
        checkpoint = record.sequence
    }

    mutating func flush() {
        for record in unsynced { apply(record) }
        unsynced = []
    }

    /// Of what was not synced a prefix is kept; of a staging, any of its blocks.
    mutating func crash(_ random: inout SeededRandom) {
        for record in unsynced.prefix(random.below(unsynced.count + 1)) { apply(record) }
        unsynced = []
        guard var lost = staging else { return }
        for image in lost.content.indices {
            for block in lost.content[image].indices where random.chance(50) {
                lost.content[image][block] = lost.synced[image][block]
            }
        }
        staging = random.chance(20) ? nil : lost
    }

    mutating func beginStaging(_ id: UInt64) {
        if staging?.id != id {
            staging = Staging(id: id, content: content, synced: content)
        }
    }

    mutating func commit(_ id: UInt64, at sequence: UInt64, as name: String?, by primary: String)
        throws
    {
        guard let done = staging, done.id == id else { throw Violation("no such staging") }
        content = done.content
        checkpoint = sequence
        incarnation = primary
        staging = nil
        if let name { snapshots[name] = content }
    }
}
