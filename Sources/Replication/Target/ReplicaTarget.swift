// What a target of replication can do. A session calls it from one thread at a time; every call may
// block, and returns when what it says is done.

import BlockCore

/// Who connects.
package struct PrimaryHello: Sendable, Hashable {
    package var poolID: String
    package var generation: Generation
    package var incarnation: UInt64
    package var incarnationID: String
    /// The generations that led to this one, itself the last; empty where it says nothing of them.
    package var history: GenerationHistory
    /// Where the primary is, for who looks for it later.
    package var address: String?
    /// The primary crashed and went on without what this target may have had of it: that is kept there.
    package var keepsDiverged = false
    /// The UUID that the target's own pool had at the first contact; of a target that is not asked by name nil.
    package var mirrorID: String?
    /// Where nothing is, the target's pool is laid out. Otherwise what is missing is absent.
    package var laysOut = false
    /// All that the target was given before, on whichever connection, is up to here; nil where that is not known.
    package var givenThrough: SequenceNumber?
    /// Snapshots that the primary never completed, although the target may have their cuts.
    package var droppedCuts: [DroppedCut] = []

    package init(
        poolID: String, generation: Generation, incarnation: UInt64, incarnationID: String,
        history: GenerationHistory = GenerationHistory(), address: String? = nil
    ) {
        self.poolID = poolID
        self.generation = generation
        self.incarnation = incarnation
        self.incarnationID = incarnationID
        self.history = history
        self.address = address
    }
}

/// A snapshot's cut as it travels.
package struct SnapshotInfo: Sendable, Hashable, Codable {
    package var name: String
    package var createdNs: Int64
    package var origin: String
    package var sequence: SequenceNumber

    package init(name: String, createdNs: Int64, origin: String, sequence: SequenceNumber) {
        self.name = name
        self.createdNs = createdNs
        self.origin = origin
        self.sequence = sequence
    }
}

/// What the target holds.
package struct ReplicaReport: Sendable, Equatable {
    package struct Staging: Sendable, Hashable {
        package var id: UInt64
        /// The highest batch of this staging that survives the target's power loss.
        package var durableBatch: UInt64

        package init(id: UInt64, durableBatch: UInt64) {
            self.id = id
            self.durableBatch = durableBatch
        }
    }

    /// The incarnation whose stream it last took; nil before the first checkpoint.
    package var incarnationID: String?
    package var generation: Generation?
    /// What a mount would show now: everything up to here and nothing beyond; zero for nothing.
    /// Where the two went apart: the last place that both have.
    package var checkpoint: SequenceNumber
    /// Those that it shows by now; what a mount would show first may be more.
    package var snapshots: [SnapshotInfo]
    package var staging: Staging?
    /// It lost nothing of what it was ever given: its machine runs since, and so does what keeps it.
    package var keptAllReceived = false
    /// What it has that this primary has not; it keeps it, as a snapshot.
    package var diverged: Divergence?
    /// The UUID of the target's own pool, where nobody on this side can look.
    package var poolID: String?

    package init(
        incarnationID: String?, generation: Generation?, checkpoint: SequenceNumber,
        snapshots: [SnapshotInfo], staging: Staging?, diverged: Divergence? = nil
    ) {
        self.diverged = diverged
        self.incarnationID = incarnationID
        self.generation = generation
        self.checkpoint = checkpoint
        self.snapshots = snapshots
        self.staging = staging
    }
}

package struct TargetError: Error, Sendable, Hashable, CustomStringConvertible {
    package enum Kind: Sendable, Hashable {
        /// Not there now: not mounted, empty, another pool, no answer. Tried again later.
        case absent
        /// It has a newer generation: this primary was replaced.
        case fenced
        /// Same generation number, another id, or a history that is not ours.
        case splitBrain
        case noSpace
        case io
        /// What it holds fails its checksums.
        case damaged
    }
    package var kind: Kind
    package var message: String
    package var errno: Int32?

    package init(_ kind: Kind, _ message: String, errno: Int32? = nil) {
        self.kind = kind
        self.message = message
        self.errno = errno
    }
    package var description: String { message }
}

/// A stretch of encoded records (`StreamRecord`), in order; valid during the call alone.
package struct RecordBatch {
    /// One piece, or two where the ring wraps. A record never lies in two pieces.
    package var pieces: [UnsafeRawBufferPointer]
    package var firstSequence: SequenceNumber
    package var lastSequence: SequenceNumber
    package var lengthBytes: Int { pieces.reduce(0) { $0 + $1.count } }

    package init(
        pieces: [UnsafeRawBufferPointer], firstSequence: SequenceNumber,
        lastSequence: SequenceNumber
    ) {
        self.pieces = pieces
        self.firstSequence = firstSequence
        self.lastSequence = lastSequence
    }
}

/// The images and names of a pool at one sequence number.
package struct PoolShape: Sendable, Hashable {
    package struct Image: Sendable, Hashable {
        package var id: ImageID
        package var sizeBytes: UInt64
        package var modifiedNs: Int64
        package init(id: ImageID, sizeBytes: UInt64, modifiedNs: Int64) {
            self.id = id
            self.sizeBytes = sizeBytes
            self.modifiedNs = modifiedNs
        }
    }
    package var sequence: SequenceNumber
    /// Every live image; the target removes those it has beyond.
    package var images: [Image]
    /// Every name, encoded as one names record's payload.
    package var names: [UInt8]

    package init(sequence: SequenceNumber, images: [Image], names: [UInt8]) {
        self.sequence = sequence
        self.images = images
        self.names = names
    }
}

/// In place of the hash of a block that does not verify: it counts as different from every other.
package let unreadableBlockHash: UInt64 = 0

package protocol ReplicaTarget: AnyObject, Sendable {
    /// - Throws: `.absent`, `.fenced`, `.splitBrain`, `.damaged`, `.io`.
    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport

    /// Takes records that follow the checkpoint, or the last ones taken, without a gap.
    /// On return they survive the target's process, not yet its power.
    func append(_ batch: RecordBatch) throws(TargetError)

    /// - Returns: everything up to here survives the target's power loss; it is the checkpoint.
    func flush() throws(TargetError) -> SequenceNumber

    /// Up to where records that were appended on this connection are known to survive the target's
    /// power loss, without asking it: nil where it says so only when it is asked.
    var durableThrough: SequenceNumber? { get }

    /// Begins, or goes on with, a staging on top of the checkpoint, which stays mountable. Images and
    /// names become those of `shape`; the batches that follow change them further, and may repeat
    /// what led to it.
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError)
    /// Takes records into the staging, in order. They need not follow one another without a gap:
    /// blocks read from the pool are data records with the sequence they were read at (from a
    /// snapshot: its own). None may be above the sequence of the commit.
    /// - Parameter number: grows by one with each batch of a staging.
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError)
    /// Every batch staged so far survives power loss, and is reported at the next connect.
    func syncStaging() throws(TargetError)
    /// Makes what was staged the checkpoint at `sequence`, durably and at once.
    /// - Parameter snapshot: what was staged becomes this snapshot, too.
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError)

    /// XXH3-64 of each block as the checkpoint shows it, or the staging that was begun since the
    /// last `connect`; ``unreadableBlockHash`` for one that fails its checksum there.
    func blockHashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64]

    /// Every block that may have something else than zeros in it, as ``blockHashes(of:in:)`` sees it.
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet]

    /// The blocks as ``blockHashes(of:in:)`` sees them; zeros where nothing is.
    /// - Throws: `.damaged` where one of them does not verify.
    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError)

    /// Images, sizes and names at the checkpoint, and its sequence.
    func shape() throws(TargetError) -> PoolShape

    func disconnect()

    /// Why nothing can be asked any more but to connect, where that is known without asking.
    var knownFailure: TargetError? { get }
}

extension ReplicaTarget {
    package var knownFailure: TargetError? { nil }
}

/// How far a target came with what it was given.
package struct TargetProgress: Sendable, Hashable {
    /// It has everything up to here as ``ReplicaTarget/append(_:)`` promises it.
    package var written: SequenceNumber
    /// Everything up to here survives its power loss.
    package var durable: SequenceNumber
    /// It takes more.
    package var hasRoom: Bool

    package init(written: SequenceNumber, durable: SequenceNumber, hasRoom: Bool) {
        self.written = written
        self.durable = durable
        self.hasRoom = hasRoom
    }
}

/// A target that is far away: what it is given and asked for is on its way while more is given, and it says by
/// itself how far it came. After an error of any of it nothing more is done.
package protocol PipelinedTarget: ReplicaTarget {
    /// As ``append(_:)``, but returns when the records are on their way.
    func give(_ batch: RecordBatch) throws(TargetError)
    /// What may be given at once.
    var roomBytes: Int { get }
    /// As ``flush()`` of everything that was given, but returns when that is on its way.
    func askFlush() throws(TargetError)
    /// Since the last `connect`.
    var progress: TargetProgress { get }
    /// - Parameter hear: called whenever ``progress`` or ``ReplicaTarget/knownFailure`` may have changed, from any
    ///   thread: with the progress as it is, or was a moment ago, and nil where something failed. It asks nothing of
    ///   the target.
    func onNews(_ hear: @escaping @Sendable (TargetProgress?) -> Void)
}
