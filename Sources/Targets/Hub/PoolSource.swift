// What sessions read of the pool: shapes, blocks, hashes.
//
// A snapshot that a session reads is *captured*: its images are open as views. Its deletion does not
// wait for the session (it may be what a full disk needs): `release(sequence)` takes the capture away
// between two reads, and the session begins anew without that leg.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

final class PoolSource: SessionSource, @unchecked Sendable {  // fields are under `lock` or `using`
    private struct Capture {
        var users = 0
        var views: [ImageID: LayerView]
        var shape: PoolShape
    }

    let volume: Volume
    let stream: WriteStream
    private let lock = Lock()
    private var currentHello: PrimaryHello
    /// Of a pool that was promoted: the incarnation that its content came from.
    private let formerIncarnationID: String?
    private var names: (@Sendable () -> @Sendable () -> [NodeRecord])?
    private weak var hub: TargetHub?
    /// Read: a view of a capture is being read. Write: one is taken away.
    private let using = ReadWriteLock()
    private var captures: [SequenceNumber: Capture] = [:]

    init(volume: Volume, stream: WriteStream) throws(TargetError) {
        self.volume = volume
        self.stream = stream
        currentHello = try Self.hello(of: volume.store)
        let replica = try TargetHub.read(volume.store) { try $0.replica() }
        formerIncarnationID = replica?.role == .primary ? replica?.incarnationID : nil
    }

    var hello: PrimaryHello { lock.withLock { currentHello } }
    func hello(for target: TargetID, having incarnationID: String?) -> PrimaryHello {
        var hello = hello
        // Who followed the same incarnation as this pool did has nothing of before it.
        if let incarnationID, incarnationID == formerIncarnationID { return hello }
        // One that is new here, and has something, may have been a target before, and have what was lost since.
        let isNew =
            incarnationID.map { $0 != hello.incarnationID } ?? false
            && stream.standing(target)?.durable ?? .zero == .zero
        hello.keepsDiverged = isNew || owner?.target(target)?.record.keepsDiverged ?? false
        return hello
    }

    /// The pool is in another generation by now.
    func readHello() throws(TargetError) {
        let hello = try Self.hello(of: volume.store)
        lock.withLock { currentHello = hello }
    }

    static func hello(of store: PoolStore) throws(TargetError) -> PrimaryHello {
        let (state, history, droppedCuts) = try TargetHub.read(store) {
            (try $0.poolState(), try $0.history(), try $0.droppedCuts())
        }
        var hello = PrimaryHello(
            poolID: store.identity.id, generation: state.generation,
            incarnation: state.incarnation, incarnationID: state.incarnationID, history: history,
            address: store.path)
        hello.droppedCuts = droppedCuts
        return hello
    }

    func attach(_ hub: TargetHub) { lock.withLock { self.hub = hub } }
    func setNames(_ names: @escaping @Sendable () -> @Sendable () -> [NodeRecord]) {
        lock.withLock { self.names = names }
    }
    private var owner: TargetHub? { lock.withLock { hub } }

    // MARK: Shapes

    func captureHead(
        for target: TargetID
    ) throws(TargetError) -> (shape: PoolShape, streamFrom: SequenceNumber) {
        guard let names = lock.withLock({ names }) else {
            throw TargetError(.absent, "the pool is not open yet")
        }
        try requireAllImages()
        var from = SequenceNumber.zero
        var unfold: (@Sendable () -> [NodeRecord])?
        let images = volume.shape {
            from = stream.beginStreaming(target)
            unfold = names()
        }
        owner?.tellWithRun(target)
        let shape = PoolShape(
            sequence: from, images: images.map { Self.image($0.id, $0.sizeBytes, $0.modifiedNs) },
            names: NamesCodec.encode((unfold?() ?? []).map { .put($0) }))
        return (shape, from)
    }

    /// An image that is set aside cannot be copied. A target that were brought in step without it would have to give up
    /// what it has of it, which may be all that is left, or show something older than all else.
    private func requireAllImages() throws(TargetError) {
        let damaged = volume.damagedImages
        guard !damaged.isEmpty else { return }
        let nodes = try TargetHub.read(volume.store) { try $0.nodes() }
        for image in damaged {
            guard let node = nodes.first(where: { $0.imageID == image.id }) else { continue }
            throw TargetError(
                .io,
                "'\(String(decoding: node.name, as: UTF8.self))' of this pool cannot be opened, and nothing "
                    + "is copied without it: restore it, or delete it (`doppel check "
                    + "\(volume.store.path)` says what is left of it)")
        }
    }

    func hasNews(for target: TargetID) -> Bool { owner?.hasNews(for: target) ?? false }

    private static func image(_ id: ImageID, _ bytes: UInt64, _ ns: Int64) -> PoolShape.Image {
        PoolShape.Image(id: id, sizeBytes: bytes, modifiedNs: ns)
    }

    func capture(_ snapshot: SnapshotInfo) throws(TargetError) -> PoolShape? {
        if let known = using.withWrite({ use(snapshot.sequence) }) { return known }
        // One that is being made is waited for: its cut is in the stream before it is complete.
        let found = try TargetError.volume { () throws(VolumeError) in
            try volume.completeSnapshot(at: snapshot.sequence)
        }
        // One that was taken while an image was set aside has nothing of that, and the head may have it again.
        guard let found,
            !found.nodes.contains(where: { $0.node.imageID != nil && $0.layerID == nil })
        else { return nil }
        var views: [ImageID: LayerView] = [:]
        var images: [PoolShape.Image] = []
        for node in found.nodes {
            guard let id = node.node.imageID, let layer = node.layerID else { continue }
            views[id] = try TargetError.volume { () throws(VolumeError) in
                try volume.openView(layer, sizeBytes: node.sizeBytes)
            }
            images.append(Self.image(id, node.sizeBytes, node.node.modifyNs))
        }
        let shape = PoolShape(
            sequence: snapshot.sequence, images: images,
            names: NamesCodec.encode(found.nodes.map { .put($0.node) }))
        let capture = Capture(users: 1, views: views, shape: shape)
        return using.withWrite {
            if let known = use(snapshot.sequence) { return known }
            captures[snapshot.sequence] = capture
            return shape
        }
    }

    private func use(_ sequence: SequenceNumber) -> PoolShape? {
        guard captures[sequence] != nil else { return nil }
        captures[sequence]?.users += 1
        return captures[sequence]?.shape
    }

    func release(_ snapshot: SnapshotInfo) {
        using.withWrite {
            captures[snapshot.sequence]?.users -= 1
            if captures[snapshot.sequence]?.users == 0 { captures[snapshot.sequence] = nil }
        }
    }

    /// The snapshot is about to be deleted.
    func letGo(of sequence: SequenceNumber) { using.withWrite { captures[sequence] = nil } }

    // MARK: Blocks

    func read(
        _ chunk: BlockChunk, in snapshot: SnapshotInfo?, at sequence: SequenceNumber,
        into records: RecordBuffer
    ) throws(TargetError) -> SequenceNumber {
        guard let snapshot else { return try readHead(chunk, at: sequence, into: records) }
        for range in chunk.ranges {
            try using.withRead { () throws(TargetError) in
                guard let capture = captures[snapshot.sequence] else {
                    throw TargetError(.absent, "snapshot '\(snapshot.name)' was deleted")
                }
                guard let view = capture.views[chunk.image] else { return }
                try records.append(
                    range, of: chunk.image, sizeBytes: view.sizeBytes, at: sequence
                ) { (buffer, offset) throws(VolumeError) in
                    try Self.inPieces(buffer, at: offset, read: view.read)
                }
            }
        }
        return snapshot.sequence
    }

    /// A thread inside the kernel keeps its processor from a guest's request until it is out again.
    private static func inPieces(
        _ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64,
        read: (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int
    ) throws(VolumeError) -> Int {
        var done = 0
        while done < buffer.count {
            let end = min(done + BulkPiece.bytes, buffer.count)
            let got = try read(
                UnsafeMutableRawBufferPointer(rebasing: buffer[done..<end]), offset + UInt64(done))
            done += got
            if done < end { break }
        }
        return done
    }

    /// Without a lock: what is written meanwhile is in the stream, up to what is returned.
    private func readHead(
        _ chunk: BlockChunk, at sequence: SequenceNumber, into records: RecordBuffer
    ) throws(TargetError) -> SequenceNumber {
        guard let image = try? volume.image(chunk.image) else { return sequence }
        for range in chunk.ranges {
            try records.append(range, of: chunk.image, sizeBytes: image.sizeBytes, at: sequence) {
                (buffer, offset) throws(VolumeError) in
                try Self.inPieces(buffer, at: offset, read: image.read)
            }
        }
        // Whoever was writing there has its place in the stream once it lets go.
        image.waitForWriters(of: chunk.ranges)
        return stream.lastSequence
    }

    func blockHashes(
        of id: ImageID, in range: BlockRange, of snapshot: SnapshotInfo?
    ) throws(TargetError) -> [UInt64] {
        guard let snapshot else {
            let image = try? volume.image(id)
            return try BlockHashes.of(range) { (buffer, offset) throws(VolumeError) in
                try image?.read(into: buffer, at: offset) ?? 0
            }
        }
        return try using.withRead { () throws(TargetError) in
            guard let capture = captures[snapshot.sequence] else {
                throw TargetError(.absent, "snapshot '\(snapshot.name)' was deleted")
            }
            let view = capture.views[id]
            return try BlockHashes.of(range) { (buffer, offset) throws(VolumeError) in
                try view?.read(into: buffer, at: offset) ?? 0
            }
        }
    }

    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try TargetError.volume { () throws(VolumeError) in try volume.allocatedBlocks() }
    }

    func wholeImages() throws(TargetError) -> [ImageID: BlockSet] {
        try TargetError.volume { () throws(VolumeError) in try volume.wholeImages() }
    }

    /// All that the pool has, as what a target with nothing lacks.
    /// - Parameter whileStill: called when no snapshot is made or deleted, before anything is looked at.
    func everything(whileStill: () -> Void) throws(TargetError) -> DirtyLegs {
        let legs = try TargetError.volume { () throws(VolumeError) in
            try volume.inventory(whileStill: whileStill)
        }
        let snapshots = Dictionary(
            uniqueKeysWithValues: legs.compactMap(\.snapshot).map { ($0.sequence, Self.info($0)) })
        return DirtyLegs(
            legs.enumerated().map { index, leg in
                DirtyLegState(
                    number: UInt64(index + 1), cut: leg.snapshot?.sequence, hasNameChanges: true,
                    blocks: leg.blocks)
            }
        ) { snapshots[$0] }
    }

    static func info(_ record: SnapshotRecord) -> SnapshotInfo {
        SnapshotInfo(
            name: record.name, createdNs: record.createdNs, origin: record.origin,
            sequence: record.sequence)
    }

    // MARK: To the hub

    func legsChanged(of target: TargetID) { owner?.target(target)?.addDirtyWork() }
    func recordStale(_ target: TargetID, since sequence: SequenceNumber, reason: String) {
        owner?.target(target)?.setStaleWork(since: sequence, reason: reason)
        owner?.wakeKeeper()
    }
    func tell(_ target: TargetID, kind: String, message: String) {
        owner?.tell(target, kind: kind, message: message)
    }
    func fence(_ target: TargetID, reason: String) { owner?.fence(target, reason: reason) }
    func acknowledged(_ target: TargetID, _ point: AckPoint, _ sequence: SequenceNumber) {
        volume.gate.acknowledge(target, point, sequence)
        if point == .durable { owner?.wakeKeeper() }
    }
    func withhold(_ target: TargetID, _ isWithheld: Bool) { owner?.withhold(target, isWithheld) }
    func answer() { volume.gate.answer() }
    var waitingCount: Int { volume.gate.waitingCount }
    func retracted(_ target: TargetID) { volume.gate.retract(target) }
    func lost(_ target: TargetID) { volume.gate.isLost(target) }
    func found(_ target: TargetID) { volume.gate.isInStep(target) }
    func counts(_ target: TargetID, _ policy: TargetPolicy, durable: SequenceNumber) {
        owner?.counts(target, policy, durable: durable)
    }
    func policyChanged(_ target: TargetID, _ policy: TargetPolicy) {
        volume.gate.setPolicy(target, policy)
    }
    func releaseWaiters(of target: TargetID) { volume.gate.stopCounting(target) }
}

extension TargetHub {
    /// As the pool introduces itself.
    package static func hello(of store: PoolStore) throws(TargetError) -> PrimaryHello {
        try PoolSource.hello(of: store)
    }
}
