// What a session hears (events), asks for (effects) and shows (status). The session itself does no
// I/O and knows no clock: see TargetSession.

import BlockCore

package struct SessionOptions: Sendable, Hashable {
    package var policy = TargetPolicy(AckPolicy(.flush))
    /// Ships what changed once in so long, rather than as it comes; see TargetSession+Schedule.
    package var intervalMs: Int64?
    /// Adaptive: as `policy` says while answers come within this, otherwise less (TargetSession+Adaptive).
    package var latencyBudgetUs: Int64?
    /// How long a target that is waited for may make no progress before it is degraded.
    package var timeoutMs: Int64 = 5000
    /// Longest time that a target's journal stays unsynced.
    package var flushIntervalMs: Int64 = 1000
    /// Bytes sent after which the journal is synced: what is not durable there is held in the ring.
    package var flushBytes: UInt64 = 16 << 20
    /// How long a target that was left behind streams again before it is waited for; doubled each time
    /// it is left behind again.
    package var rearmMs: Int64 = 10_000
    /// … up to this; one that was waited for so long is trusted as before.
    package var longestRearmMs: Int64 = 600_000
    package var firstRetryMs: Int64 = 200
    package var longestRetryMs: Int64 = 10_000
    /// By how much of that a try may come sooner, at random: those that lost one server do not come all at once.
    package var retrySpreadPercent: Int64 = 0
    /// Blocks read and staged at once.
    package var chunkBlocks: UInt64 = 512
    /// … while somebody writes to the pool: what keeps a processor from a guest is to be short.
    package var courteousChunkBlocks: UInt64 = 32
    /// Blocks between two syncs of the staging.
    package var blocksPerSync: UInt64 = 65_536
    /// Bytes of the stream beside them after which the staging is synced, so that the ring need not
    /// hold them until the commit.
    package var streamBytesPerSync = 16 << 20
    /// Threads that read for a resync; see ``ReadAhead``.
    package var readers = 4
    /// Of blocks read for a resync; nil: as fast as it goes.
    package var bytesPerSecond: UInt64?
    package init() {}

    /// It is waited for, or may come to be.
    package var mayBeWaitedFor: Bool { policy.isWaitedFor || latencyBudgetUs != nil }

    /// For who has no image otherwise.
    package var mode: ReplicationMode {
        get { policy.all.mode }
        set { policy.all.mode = newValue }
    }
}

/// The end of a leg: what the target is a copy of when the leg is committed.
package enum LegEnd: Sendable, Hashable {
    case head
    case snapshot(SnapshotInfo)
}

/// A leg of a resync as the session works it off.
package struct LegSummary: Sendable {
    package var end: LegEnd
    /// What changed, besides what an earlier try at the same leg had left.
    package var blocks: [ImageID: BlockSet]
    /// The sequence of the shape that the staging began with.
    package var shapeSequence: SequenceNumber
    /// For the head: the records after this one come through the stream.
    package var streamFrom: SequenceNumber

    package init(
        end: LegEnd, blocks: [ImageID: BlockSet], shapeSequence: SequenceNumber,
        streamFrom: SequenceNumber
    ) {
        self.end = end
        self.blocks = blocks
        self.shapeSequence = shapeSequence
        self.streamFrom = streamFrom
    }
}

/// Records of the stream that were staged.
package struct StagedStretch: Sendable {
    /// nil: there was nothing to stage.
    package var through: SequenceNumber?
    /// Blocks that the stream carried whole after they were last taken out of the legs: a record from
    /// before that may be older than what made them dirty.
    package var covered: [ImageID: BlockSet] = [:]
    /// All blocks that the stream carried.
    package var carried: [ImageID: BlockSet] = [:]
    package var lengthBytes = 0
    /// Blocks that a barrier in the stretch stands for.
    package var dirtied: [ImageID: BlockSet] = [:]
    /// The stretch ended in this cut.
    package var cut: SnapshotInfo?
    package init() {}
}

/// Where the stream stands for a target that has just connected.
package struct StreamPosition: Sendable, Hashable {
    /// The target took its last records from this incarnation of the pool.
    package var isSameIncarnation: Bool
    /// Every record after the target's checkpoint is in the ring.
    package var holdsAllAfterCheckpoint: Bool
    /// Blocks are known to differ, or may.
    package var isDirty: Bool
    /// Some of them may, which a comparison tells.
    package var hasUnknown: Bool
    /// What the target said was durable the last time; it must not have gone back.
    package var acknowledged: SequenceNumber
    /// What else the target has is not known: everything has to be compared.
    package var isUnknown: Bool
    /// Nothing of this pool was ever acknowledged by the target: what it has it got before it was one.
    package var isNew: Bool

    package init(
        isSameIncarnation: Bool, holdsAllAfterCheckpoint: Bool, isDirty: Bool,
        hasUnknown: Bool = false, acknowledged: SequenceNumber, isUnknown: Bool = false,
        isNew: Bool = false
    ) {
        self.isUnknown = isUnknown
        self.isNew = isNew
        self.isSameIncarnation = isSameIncarnation
        self.holdsAllAfterCheckpoint = holdsAllAfterCheckpoint
        self.isDirty = isDirty
        self.hasUnknown = hasUnknown
        self.acknowledged = acknowledged
    }
}

/// What may block: done on the session's own thread, one at a time, each answered by one event.
package enum SessionOperation: Sendable, Hashable {
    /// → `connected` or `failed`.
    case connect
    /// Lets go of the target → `disconnected`.
    case disconnect
    /// Compares by hash what an unclean end left unknown, and enters what differs in the legs
    /// → `compared` or `failed`.
    case compare
    /// Everything is unknown: enters every allocated block in the legs → `compared` or `failed`.
    case markEverything
    /// Appends what the stream has → `sent`, `given`, `noRoom` or `failed`.
    case send
    /// → `flushed`, `flushAsked` or `failed`.
    case flush
    /// Whether the target lacks anything → `looked` or `failed`.
    case look
    /// Takes the first leg. For the head the stream is held for the target from the shape on. Begins
    /// the staging, or goes on with it → `legOpened` or `failed`.
    case openLeg(stagingID: UInt64)
    /// Stages what the stream has, up to a cut at most → `streamStaged` or `failed`.
    case stageStream
    /// Reads blocks, stages the stream up to the moment of the read, then the blocks
    /// → `blocksStaged`, `streamStaged` with a cut when one came first, or `failed`. What is ahead
    /// may be read meanwhile, as it is likely to come next.
    case stageBlocks(BlockChunk, ahead: BlockChunk?)
    /// → `stagingSynced` or `failed`.
    case syncStaging
    /// → `legCommitted` or `failed`.
    case commitLeg(stagingID: UInt64, at: SequenceNumber, end: LegEnd)

    /// Much work that no write and no fsync waits for: the target does not stream meanwhile.
    var isBulk: Bool {
        switch self {
        case .compare, .markEverything, .openLeg, .stageStream, .stageBlocks, .syncStaging: true
        case .connect, .look, .disconnect, .send, .flush, .commitLeg: false
        }
    }
}

package enum SessionEvent: Sendable {
    case start
    case pause
    case resume
    case tick
    /// The stream has records that the target has not.
    case recordsWaiting
    /// Somebody waits until everything up to here is durable on the target.
    case flushWanted(SequenceNumber)
    /// The ring was full: the stream is not held for the target any more.
    case ringOverflowed
    /// The target says by itself up to where what it took is durable.
    case becameDurable(through: SequenceNumber)
    /// What the target says of what it was given.
    case heard(TargetProgress)
    /// The answer to `recordStale`.
    case staleRecorded
    /// What the target is told when it connects has changed.
    case connectAnew(reason: String)
    /// Somebody writes to the pool, or nobody does any more: see ``Courtesy``.
    case othersWrite(Bool)
    /// Blocks of a resync go no faster than this from now on; nil: as fast as they can.
    case rateChanged(bytesPerSecond: UInt64?)
    /// See ``SessionOptions/flushIntervalMs`` and ``SessionOptions/flushBytes``.
    case flushBoundsChanged(intervalMs: Int64, bytes: UInt64)

    case connected(ReplicaReport, StreamPosition)
    case disconnected
    case compared
    /// nil: there was nothing to send. With a barrier next, nothing after it was sent.
    case sent(through: SequenceNumber?, bytes: Int = 0, isBarrierNext: Bool)
    /// As `sent`; but the records are on their way, and `heard` will tell that the target has them.
    case given(through: SequenceNumber, bytes: Int)
    /// The target does not take more before it has done something: `heard` will tell.
    case noRoom
    /// A flush of everything up to here is on its way: `heard` will tell.
    case flushAsked(through: SequenceNumber)
    /// - Parameter isStreamEmpty: there was nothing to send at that moment.
    case flushed(through: SequenceNumber, isStreamEmpty: Bool = false)
    /// - Parameter through: the last thing that happened to the pool at that moment.
    case looked(isLevel: Bool, through: SequenceNumber)
    case legOpened(LegSummary)
    case streamStaged(StagedStretch)
    /// The blocks were staged after the stretch, which met no cut.
    case blocksStaged(BlockChunk, StagedStretch)
    case stagingSynced
    case legCommitted
    case failed(TargetError)
}

package enum SessionEffect: Sendable, Hashable {
    case run(SessionOperation)
    /// The target has everything up to here, so far as it said: who waited for that goes on. What is
    /// durable there the ring need not hold.
    case acknowledge(AckPoint, SequenceNumber)
    /// The connection is gone: what the target had and did not say is durable it may have lost.
    case retract
    /// The stream is not held for the target any more: what it lacks is dirty.
    case stopStreaming
    /// Writes down, before anybody is told that an fsync is done without this target, that it lacks
    /// what came after.
    case recordStale(since: SequenceNumber, reason: String)
    /// The target is in step again: it is not stale, and acknowledgements wait for it.
    case countForAcknowledgements
    /// It is waited for in this way from now on: the mode in force.
    case policyChanged(TargetPolicy)
    /// It is in step again: those who did not go on without it are served as before.
    case find
    /// It is not waited for by those who go on without it; the others are held, or fail.
    case lose
    /// It is not waited for by anybody.
    case releaseWaiters
    /// The target follows a newer generation: this pool was replaced and must take no change.
    case fence(reason: String)
    /// The leg's blocks are no longer dirty.
    case legIsClean
    /// The stream up to here is in a staging that survives the target's power loss: the ring need not
    /// hold it. Until the staging is committed its blocks are dirty.
    case settleStaged(SequenceNumber)
    /// The target turned out to be this far: legs that end at or before it are part of the next one.
    case joinLegs(through: SequenceNumber)
    /// Nothing to do before then, unless something happens.
    case wake(atNs: Int64)
    /// For people: what happened to this target.
    case tell(kind: String, message: String)
    /// What is told when the target begins to take the stream as it comes.
    package static let inStep = "target-in-step"
}
