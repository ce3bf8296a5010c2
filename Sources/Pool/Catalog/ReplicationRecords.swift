// What the catalog knows of replication, on both sides, as plain values.

import BlockCore

/// What a mirror knows of itself.
package struct ReplicaRecord: Sendable, Hashable {
    package enum Role: String, Sendable {
        case replica
        /// It was promoted.
        case primary
    }

    /// Content on its way to the next checkpoint, on top of the snapshot of the last one.
    package struct Staging: Sendable, Hashable {
        package var id: UInt64
        /// The highest batch that survives power loss.
        package var durableBatch: UInt64
        /// Images and names are those of the primary at this sequence; nil until they are.
        package var shapeSequence: SequenceNumber?

        package init(id: UInt64, durableBatch: UInt64 = 0, shapeSequence: SequenceNumber? = nil) {
            self.id = id
            self.durableBatch = durableBatch
            self.shapeSequence = shapeSequence
        }
    }

    package var role: Role
    /// The UUID of the one pool whose content this is.
    package var primaryPoolID: String
    /// Of the primary whose stream it took last.
    package var generation: Generation?
    /// nil before the first checkpoint.
    package var incarnationID: String?
    /// Everything up to here is durable in the images.
    package var appliedSequence: SequenceNumber
    /// Names, images and snapshots up to here are in the catalog.
    package var structureSequence: SequenceNumber
    /// Segments of the journal before this one are history, never replayed.
    package var journalSegment: UInt64
    package var staging: Staging?
    /// Where the primary was when it connected last, for who looks for it.
    package var primaryAddress: String?
    /// When the primary was heard of last, by this side's clock.
    package var heardNs: Int64?
    /// The generation that the content is of; nil before the first checkpoint.
    package var contentGenerationID: String?
    /// It was a primary itself, and what it did then its primary does not have; nil from the first
    /// checkpoint on that came from there.
    package var divergence: Divergence?

    package enum Divergence: Sendable, Hashable {
        /// What was changed is in the dirty file of this target of its own, which was its primary later.
        case tracked(TargetID)
        case unknown
    }

    package init(primaryPoolID: String) {
        role = .replica
        self.primaryPoolID = primaryPoolID
        appliedSequence = .zero
        structureSequence = .zero
        journalSegment = 1
    }
}

/// A place that the pool is replicated to.
package struct TargetRecord: Sendable, Hashable {
    package enum Mode: String, Sendable, CaseIterable {
        case async, flush, sync
        case semiSync = "semi-sync"
        /// The first of sync, semi-sync and async that the target answers quickly enough for.
        case adaptive
    }

    /// 0 before it was inserted.
    package var id: TargetID
    package var address: String
    /// The pool found there at the first contact; it is bound to this one from then on.
    package var poolID: String?
    package var mode: Mode
    package var timeoutMs: Int64
    /// How long the target keeps its journal after it was applied.
    package var historyMs: Int64
    package var addedNs: Int64
    package var isPaused: Bool
    /// Acknowledgements were given without it; nil while it is in step.
    package var stale: Stale?
    package var onTimeout = OnTimeout.degrade
    /// It was in step since it was added or let go of on purpose: who does not go on without it stands
    /// still while it is away.
    package var isArmed = false
    /// Ships what changed once in so long; nil: as it comes.
    package var intervalMs: Int64?
    package var latencyBudgetUs: Int64?
    package var rateBytesPerSecond: Int64?
    /// What goes over a line to another machine.
    package var compress = CompressionChoice.auto
    package var rpoMs: Int64?
    package var rpoBytes: Int64?
    package var onRPO = OnRPO.alarm
    /// It was in step with its options as they are, and nothing was answered without it since: what its
    /// mode promises it has.
    package var isWhole = false
    /// The pool went on after a crash without what this target may have had of it: that is kept there
    /// before it is written over.
    package var keepsDiverged = false

    /// What happens when a target that is waited for makes no progress.
    package enum OnTimeout: String, Sendable, CaseIterable { case degrade, block, fail }
    /// What happens when more is at risk than was asked for.
    package enum OnRPO: String, Sendable, CaseIterable { case alarm, throttle, stop }

    /// Since when a target lacks something.
    package struct Stale: Sendable, Hashable {
        package var sinceNs: Int64
        /// It lacks what came after.
        package var sequence: SequenceNumber
        package var reason: String

        package init(sinceNs: Int64, sequence: SequenceNumber, reason: String) {
            self.sinceNs = sinceNs
            self.sequence = sequence
            self.reason = reason
        }
    }

    package init(
        id: TargetID = TargetID(rawValue: 0), address: String, poolID: String? = nil, mode: Mode,
        timeoutMs: Int64, historyMs: Int64 = 0, addedNs: Int64, isPaused: Bool = false,
        stale: Stale? = nil
    ) {
        self.id = id
        self.address = address
        self.poolID = poolID
        self.mode = mode
        self.timeoutMs = timeoutMs
        self.historyMs = historyMs
        self.addedNs = addedNs
        self.isPaused = isPaused
        self.stale = stale
    }
}

extension SnapshotRecord {
    /// Of snapshots that a mirror makes for itself. Their names have a slash, which users' never have.
    package static let internalOrigin = "internal"
    /// Never shown to users, who cannot use its name either.
    package var isInternal: Bool { origin == Self.internalOrigin && name.contains("/") }

    /// Of what a mirror had and its primary had not. It is no part of the story that the pool follows.
    package static let divergedOrigin = "diverged"

    /// Made by a verb for itself and deleted when it is done: no target hears of it.
    package var isHelper: Bool { origin == "clone" || origin == "diff" }

    /// Not so what a restore replaced: one image, without the others as they were then.
    package var isOfWholePool: Bool {
        !isInternal && !isHelper && origin != Self.restoreOrigin && origin != Self.divergedOrigin
    }
}
