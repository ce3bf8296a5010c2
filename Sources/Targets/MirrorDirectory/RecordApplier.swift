// From records to a volume. Everything a record says is absolute, so a stretch that was applied in part
// may be applied again from its beginning, as long as it is then applied to its end.
//
// Structure (names, images, snapshots) is changed in the catalog, durably and at once, with the sequence
// up to which it was: a second time it is passed over. What is left to do of an image that went away
// later in the stretch is passed over for the same reason.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

final class RecordApplier {
    /// Where the records come from, and what that allows.
    enum Source {
        /// The journal: in order, without a gap.
        case stream
        /// A staging: besides, what the shape had already, and blocks of images that went.
        case staging
    }

    struct Progress {
        /// Structure is in the catalog up to here.
        var sequence: SequenceNumber
        /// Everything up to there is durable in the images as well.
        var isDurable = false
    }

    typealias Rows = (CatalogTransaction) throws -> Void
    /// Runs one catalog transaction; what it is given goes into the same one.
    typealias Transaction = (Rows) throws(TargetError) -> Void

    private let volume: Volume
    private let source: Source
    private let toleratesDamage: Bool
    /// Structure is in the catalog up to here.
    private(set) var structure: SequenceNumber
    /// When the last record was made.
    private(set) var lastNs: Int64 = 0
    private let commit: (Progress, Transaction) throws(TargetError) -> Void
    private var modifiedNs: [ImageID: Int64] = [:]
    private var writeback = BulkWriteback()

    /// - Parameter commit: runs the transaction and notes how far structure is in it.
    init(
        volume: Volume, source: Source, structure: SequenceNumber, toleratesDamage: Bool,
        commit: @escaping (Progress, Transaction) throws(TargetError) -> Void
    ) {
        self.volume = volume
        self.source = source
        self.structure = structure
        self.toleratesDamage = toleratesDamage
        self.commit = commit
    }

    func apply(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer
    ) throws(TargetError) {
        switch record.kind {
        case .data, .zero, .size: try applyContent(record, payload)
        // The image is in the catalog, and the power may have gone before its size was durable.
        case .imageCreated where record.sequence <= structure: try applyContent(record, payload)
        case .names, .imageCreated, .imageDeleted, .snapshot, .standing:
            guard record.sequence > structure else { break }
            try applyStructure(record, payload)
            structure = record.sequence
        case .barrier: return
        }
        lastNs = max(lastNs, record.atNs)
    }

    // MARK: Content

    private func applyContent(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer
    ) throws(TargetError) {
        guard let image = try image(record) else { return }
        modifiedNs[record.image] = record.atNs
        try TargetError.volume { () throws(VolumeError) in
            switch record.kind {
            case .data:
                // What is past the image's end is padding. A smaller size than the image has now is
                // no shrink: that is a record of its own.
                let start = record.range.startByte
                guard record.imageSizeBytes > start else { return }
                let count = min(record.range.lengthBytes, record.imageSizeBytes - start)
                try write(
                    UnsafeRawBufferPointer(rebasing: payload[..<Int(count)]), at: start, to: image)
            case .zero:
                try image.trim(at: record.range.startByte, length: record.range.lengthBytes)
            default: try image.resize(to: record.imageSizeBytes)
            }
        }
    }

    /// In a staging nobody waits for it, and a guest may wait for the processor or for the disk.
    private func write(
        _ content: UnsafeRawBufferPointer, at start: UInt64, to image: Image
    ) throws(VolumeError) {
        guard source == .staging else { return try image.write(content, at: start) }
        var done = 0
        while done < content.count {
            let end = min(done + BulkPiece.bytes, content.count)
            try image.write(
                UnsafeRawBufferPointer(rebasing: content[done..<end]), at: start + UInt64(done))
            done = end
        }
        writeback.note(image, at: start, length: UInt64(content.count))
    }

    /// - Returns: nil for an image that is gone by now.
    private func image(_ record: StreamRecord) throws(TargetError) -> Image? {
        do throws(VolumeError) { return try volume.image(record.image) } catch {
            guard error.kind == .notFound || toleratesDamage else { throw TargetError(error) }
            if error.kind != .notFound { return nil }
        }
        // Nothing of an image that is not there can be lost: whoever said it lied.
        if record.sequence <= structure || source == .staging || toleratesDamage { return nil }
        throw TargetError(
            .damaged,
            "operation \(record.sequence.rawValue) is of image \(record.image.rawValue), which is "
                + "not there")
    }

    /// The times of the last writes, as the primary has them, go to the images' files.
    func settleTimes() {
        for (id, ns) in modifiedNs {
            guard let image = try? volume.image(id) else { continue }
            volume.withNameChange { _ in image.setModified(ns: ns) }
        }
        modifiedNs = [:]
    }

    // MARK: Structure

    private func applyStructure(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer
    ) throws(TargetError) {
        let progress = Progress(sequence: record.sequence)
        switch record.kind {
        case .names:
            guard var changes = NamesCodec.decode(payload) else { throw malformed(record) }
            // A name of what is not there would keep everything after it from being applied.
            if toleratesDamage { changes.removeAll { !hasImage(of: $0) } }
            try change(progress) { tx in
                try tx.apply(changes)
                for case .put(let node) in changes {
                    let others = try tx.deleteOtherNames(than: node)
                    guard others == 0 || toleratesDamage else { throw malformed(record) }
                }
            }
        case .imageCreated:
            try TargetError.volume { () throws(VolumeError) in
                let image =
                    volume.hasImage(record.image)
                    ? try volume.image(record.image) : try volume.createImage(id: record.image)
                if image.sizeBytes != record.imageSizeBytes {
                    try image.resize(to: record.imageSizeBytes)
                }
            }
            try change(progress)
        case .imageDeleted:
            guard volume.hasImage(record.image) else { return try change(progress) }
            modifiedNs[record.image] = nil
            try commit(progress) { (rows) throws(TargetError) in
                try TargetError.volume { () throws(VolumeError) in
                    try volume.deleteImage(record.image, also: rows)
                }
            }
        case .standing: try note(record, payload)
        default:
            // In a staging the commit says what becomes a snapshot.
            guard source == .stream else { return }
            guard let info = SnapshotPayload.decode(payload, sequence: record.sequence),
                !info.name.contains("/")
            else { throw malformed(record) }
            try cut(info)
        }
    }

    private func hasImage(of change: NameChange) -> Bool {
        guard case .put(let node) = change, let image = node.imageID else { return true }
        // One that is set aside is there, and keeps its names.
        return volume.hasImage(image) || volume.damagedImage(image) != nil
    }

    private func change(
        _ progress: Progress, _ body: Rows = { _ in }
    ) throws(TargetError) {
        try commit(progress) { (rows) throws(TargetError) in
            try TargetError.volume { () throws(VolumeError) in
                try volume.changeStructure { tx in
                    try body(tx)
                    try rows(tx)
                }
            }
        }
    }

    /// How another copy stands. It is known here as soon as it is in the journal, for who takes over
    /// applies that first.
    private func note(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer
    ) throws(TargetError) {
        guard let standing = StandingPayload.decode(payload) else { throw malformed(record) }
        let isOwn = standing.poolID == volume.store.identity.id
        try change(Progress(sequence: record.sequence)) { tx in
            guard !isOwn else { return }
            try tx.setPeer(
                PeerRecord(
                    poolID: standing.poolID, address: standing.address, seenNs: record.atNs,
                    stale: standing.stale.map {
                        .init(sinceNs: $0.sinceNs, sequence: $0.sequence, reason: $0.reason)
                    }))
        }
    }

    private func malformed(_ record: StreamRecord) -> TargetError {
        TargetError(.damaged, "operation \(record.sequence.rawValue) says nothing that makes sense")
    }

    private func cut(_ info: SnapshotInfo) throws(TargetError) {
        settleTimes()
        try TargetError.volume { () throws(VolumeError) in
            if try !volume.makeWay(for: info) {
                let nodes = try volume.catalogNodes()
                _ = try volume.createSnapshot(
                    name: info.name, origin: info.origin,
                    at: SnapshotPlace(createdNs: info.createdNs, sequence: info.sequence),
                    nodes: nodes)
            }
            // A replay that begins after the cut writes nothing into the new heads that the sealed
            // layers have.
            try volume.flushAll()
        }
        try change(Progress(sequence: info.sequence, isDurable: true))
    }
}

extension Volume {
    func catalogNodes() throws(VolumeError) -> [NodeRecord] {
        do { return try store.catalog.read { try $0.nodes() } } catch {
            throw VolumeError(.io, "\(error)")
        }
    }

    /// An older snapshot with this name stays, under another: its primary deleted it, and what a
    /// target keeps is its own matter.
    /// - Returns: whether this very snapshot is there.
    func makeWay(for info: SnapshotInfo) throws(VolumeError) -> Bool {
        try changeStructure { tx in try Self.makeWay(for: info, tx) }
    }

    static func makeWay(for info: SnapshotInfo, _ tx: CatalogTransaction) throws -> Bool {
        guard let old = try tx.snapshot(named: info.name) else { return false }
        if old.sequence == info.sequence, old.state == .complete { return true }
        var name = "\(info.name).\(old.sequence.rawValue)"
        while try tx.snapshot(named: name) != nil { name += "'" }
        try tx.renameSnapshot(old.id, to: name)
        return false
    }
}
