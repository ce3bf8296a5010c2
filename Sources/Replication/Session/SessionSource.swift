import BlockCore

/// What a session reads of its pool, and what it has written down for it. Called from the session's
/// thread, but for `recordStale`, `tell` and `fence`, which any thread may call.
package protocol SessionSource: AnyObject, Sendable {
    /// - Parameter incarnationID: whose stream the target took last; nil where that is not known yet.
    func hello(for target: TargetID, having incarnationID: String?) -> PrimaryHello

    /// The pool's shape at a moment from which on the stream is held for the target.
    /// - Returns: the shape, and the last sequence that does not come through the stream.
    func captureHead(
        for target: TargetID
    ) throws(TargetError) -> (shape: PoolShape, streamFrom: SequenceNumber)

    /// A target that never streams is to be told something, although nothing of the pool changed.
    func hasNews(for target: TargetID) -> Bool

    /// The pool's shape in a snapshot, which can be read until `release`, also when it is deleted.
    /// - Returns: nil when there is no such snapshot (any more).
    func capture(_ snapshot: SnapshotInfo) throws(TargetError) -> PoolShape?
    func release(_ snapshot: SnapshotInfo)

    /// Appends records with the content of the blocks: data or zero, whichever they are. Blocks
    /// beyond the image's end are left out, and those of an image that is gone. Several threads may
    /// do so at a time.
    /// - Parameters:
    ///   - snapshot: as it is in there; nil for the head as it is now.
    ///   - sequence: of the records; not after the last one at the call.
    /// - Returns: no change after this one is in what was read.
    func read(
        _ chunk: BlockChunk, in snapshot: SnapshotInfo?, at sequence: SequenceNumber,
        into records: RecordBuffer
    ) throws(TargetError) -> SequenceNumber

    /// XXH3-64 of each block, as ``ReplicaTarget/blockHashes(of:in:)`` has them.
    func blockHashes(
        of image: ImageID, in range: BlockRange, of snapshot: SnapshotInfo?
    ) throws(TargetError) -> [UInt64]

    /// All blocks of every live image and of those in snapshots, whether anything is there or not; an empty set for
    /// an empty image.
    func wholeImages() throws(TargetError) -> [ImageID: BlockSet]

    /// Every block that any live image or snapshot has.
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet]

    /// The target's dirty file is to be brought up to date, in a while.
    func legsChanged(of target: TargetID)
    /// Sees to it that it is durable that the target lacks what came after `sequence`, and then calls
    /// ``SessionDriver/staleRecorded()``; returns at once.
    func recordStale(_ target: TargetID, since sequence: SequenceNumber, reason: String)
    func tell(_ target: TargetID, kind: String, message: String)
    /// The target was given to another primary: the pool takes no change any more, also after it was
    /// opened anew. Returns at once.
    func fence(_ target: TargetID, reason: String)

    /// Acknowledgements of the target, in order. Who waited for them hears of it by `answer`.
    /// The target's machine went down, and it lacks some of what it was given: until it was given that again,
    /// no write is answered on its strength, for after a crash of the primary it is not asked.
    func withhold(_ target: TargetID, _ isWithheld: Bool)
    func acknowledged(_ target: TargetID, _ point: AckPoint, _ sequence: SequenceNumber)
    func answer()
    /// How many requests wait for targets.
    var waitingCount: Int { get }
    /// What it did not say is durable there it may have lost.
    func retracted(_ target: TargetID)
    func counts(_ target: TargetID, _ policy: TargetPolicy, durable: SequenceNumber)
    /// It is waited for in another way, by who waits already, too.
    func policyChanged(_ target: TargetID, _ policy: TargetPolicy)
    func lost(_ target: TargetID)
    func found(_ target: TargetID)
    func releaseWaiters(of target: TargetID)
}
