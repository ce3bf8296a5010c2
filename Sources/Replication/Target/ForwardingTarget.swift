import BlockCore

/// A target with another behind it: what it does not do in its own way is done there.
package protocol ForwardingTarget: ReplicaTarget {
    /// The one behind, for a call that may fail.
    func reach() throws(TargetError) -> any ReplicaTarget
}

/// One that has the same behind it for as long as it lives.
package protocol WrappingTarget: ForwardingTarget {
    var inner: any ReplicaTarget { get }
}

extension WrappingTarget {
    package func reach() throws(TargetError) -> any ReplicaTarget { inner }
    package var durableThrough: SequenceNumber? { inner.durableThrough }
    package func disconnect() { inner.disconnect() }
    package var knownFailure: TargetError? { inner.knownFailure }
}

extension ForwardingTarget {
    package func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        try reach().connect(hello)
    }
    package func append(_ batch: RecordBatch) throws(TargetError) { try reach().append(batch) }
    package func flush() throws(TargetError) -> SequenceNumber { try reach().flush() }
    package func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try reach().beginStaging(id: id, shape: shape)
    }
    package func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try reach().stage(batch, number: number)
    }
    package func syncStaging() throws(TargetError) { try reach().syncStaging() }
    package func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try reach().commitStaging(id: id, at: sequence, snapshot: snapshot)
    }
    package func blockHashes(
        of image: ImageID, in range: BlockRange
    ) throws(TargetError) -> [UInt64] {
        try reach().blockHashes(of: image, in: range)
    }
    package func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try reach().allocatedBlocks()
    }
    package func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        try reach().read(range, of: image, into: buffer)
    }
    package func shape() throws(TargetError) -> PoolShape { try reach().shape() }
}
