import BlockCore
import Pool
import Replication
import SystemIO
import Volume

/// A mirror's content at one place of the sequence, for reading. It stays what it is until it is
/// released, whatever is written to the mirror meanwhile: a hidden snapshot holds its layers, and what
/// the journal added to that lies in a file of the view's own. Where the mirror has to be opened anew
/// after a failure, reading it is an error from then on.
package final class MirrorView: @unchecked Sendable {  // changed only before anybody else has it
    /// Names, with the sizes of their images.
    package private(set) var nodes: [SnapshotNode]
    /// Everything up to here is in it, and nothing beyond.
    package private(set) var sequence: SequenceNumber
    /// When the last operation in it was made, by the primary's clock.
    package private(set) var atNs: Int64
    package let volume: Volume
    private let pool: MirrorPool
    private let pin: SnapshotRecord
    /// Images that changed after the snapshot.
    private var overlays: [ImageID: OverlayView] = [:]
    private let lock = Lock()
    private var isReleased = false

    init(pool: MirrorPool, pin: SnapshotRecord) throws(TargetError) {
        self.pool = pool
        self.pin = pin
        volume = pool.volume
        sequence = pin.sequence
        atNs = pin.createdNs
        nodes = try pool.rows { try $0.snapshotNodes(pin.id) }
            .filter { !StagingNodes.isUnnamed($0.node) }
        pool.viewOpened()
    }

    /// The content of a file that is an image.
    package func open(_ node: SnapshotNode) throws(TargetError) -> LayerView? {
        guard let image = node.node.imageID else { return nil }
        if let overlay = overlays[image] { return LeasedView(overlay, pool.lease) }
        let view = try TargetError.volume { () throws(VolumeError) in
            try volume.openView(of: node.node.id, in: pin.id)
        }
        guard let view else {
            let reason = volume.damagedImages.first { $0.id == image }?.error.message
            throw TargetError(
                .damaged,
                "image \(image.rawValue) of \(pool.store.path) cannot be shown: "
                    + (reason ?? "it does not verify"))
        }
        return LeasedView(view, pool.lease)
    }

    /// Lets go of what the view holds; it must not be read any more.
    package func release() {
        let isFirst = lock.withLock {
            defer { isReleased = true }
            return !isReleased
        }
        guard isFirst else { return }
        // Of one that was closed underneath, the next open removes it.
        guard !pool.lease.hasEnded else { return pool.viewReleased() }
        do throws(TargetError) { try pool.delete([pin]) } catch {
            // The next open removes it.
            pool.log.error("a view of \(pool.store.path) was not released: \(error)")
        }
        pool.viewReleased()
    }

    // MARK: What the journal adds

    var lacksWhatFollows: TargetError {
        TargetError(
            .absent,
            "the journal of \(pool.store.path) lacks what came after operation "
                + "\(sequence.rawValue): that moment cannot be shown")
    }

    /// - Parameter known: something is known to have been there at this sequence.
    func replay(
        _ reader: JournalReader, knownTo known: SequenceNumber?,
        isAfter: (StreamRecord) -> Bool
    ) throws(TargetError) {
        var names = Dictionary(uniqueKeysWithValues: nodes.map { ($0.node.id, $0.node) })
        var bases: [ImageID: SnapshotNode] = [:]
        for node in nodes { if let image = node.node.imageID { bases[image] = node } }
        let limit = pool.journal.durableSequence
        var isOver = false
        while !isOver {
            let frame = try TargetError.journal { () throws(JournalError) in
                try reader.next(through: limit)
            }
            guard let frame else { break }
            let start = sequence
            try RecordReader.forEach(in: frame.payload) { (record, payload) throws(TargetError) in
                isOver = isOver || isAfter(record)
                guard !isOver, record.sequence > start else { return }
                try apply(record, payload, &names, bases)
                sequence = record.sequence
                atNs = max(atNs, record.atNs)
            }
        }
        guard isOver || known.map({ sequence >= $0 }) ?? true else {
            throw lacksWhatFollows
        }
        nodes = names.values.sorted { $0.id < $1.id }.map { node in
            guard let image = node.imageID else {
                return SnapshotNode(node: node, layerID: nil, sizeBytes: 0)
            }
            let overlay = overlays[image]
            var node = node
            if let overlay { node.modifyNs = max(node.modifyNs, overlay.modifiedNs) }
            return SnapshotNode(
                node: node, layerID: bases[image]?.layerID,
                sizeBytes: overlay?.sizeBytes ?? bases[image]?.sizeBytes ?? 0)
        }
    }

    private func apply(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer,
        _ names: inout [NodeID: NodeRecord], _ bases: [ImageID: SnapshotNode]
    ) throws(TargetError) {
        switch record.kind {
        case .names:
            guard let changes = NamesCodec.decode(payload) else {
                throw TargetError(
                    .damaged, "operation \(record.sequence.rawValue) says nothing that makes sense")
            }
            for change in changes {
                switch change {
                case .put(let node): names[node.id] = node
                case .remove(let id): names[id] = nil
                }
            }
        case .data, .zero, .size, .imageCreated:
            let overlay = try overlay(of: record.image, on: bases[record.image])
            try TargetError.volume { () throws(VolumeError) in
                switch record.kind {
                case .data:
                    try overlay.write(
                        payload, over: record.range, imageSizeBytes: record.imageSizeBytes)
                case .zero: overlay.zero(record.range)
                default: try overlay.resize(to: record.imageSizeBytes)
                }
            }
            overlay.modifiedNs = record.atNs
        case .imageDeleted: overlays[record.image] = nil
        case .snapshot, .barrier, .standing: return
        }
    }

    private func overlay(
        of image: ImageID, on base: SnapshotNode?
    ) throws(TargetError) -> OverlayView {
        if let overlay = overlays[image] { return overlay }
        let view = try TargetError.volume { () throws(VolumeError) in
            let below = try base.flatMap { (node) throws(VolumeError) in
                try volume.openView(of: node.node.id, in: pin.id)
            }
            return try volume.openOverlay(on: below)
        }
        overlays[image] = view
        return view
    }
}
