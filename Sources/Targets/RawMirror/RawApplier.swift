// Records, applied to plain files in the order of the stream.

import BlockCore
import Pool
import Replication
import SystemIO

struct RawApplier {
    private let tree: RawTree
    private let files: RawFiles
    /// Blocks of images that are gone may come.
    private let isStaging: Bool

    init(_ tree: RawTree, _ files: RawFiles, isStaging: Bool) {
        self.tree = tree
        self.files = files
        self.isStaging = isStaging
    }

    static func names(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer
    ) throws(TargetError) -> [NameChange] {
        guard let changes = NamesCodec.decode(payload) else {
            throw TargetError(
                .damaged, "operation \(record.sequence.rawValue) says nothing that makes sense")
        }
        return changes
    }

    /// What it needs was prepared (`RawTree.prepare`).
    func apply(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer
    ) throws(TargetError) {
        switch record.kind {
        case .data, .zero, .size: try applyContent(record, payload)
        case .names: try tree.arrange(try Self.names(record, payload))
        case .imageCreated:
            try files.resize(record.image, to: record.imageSizeBytes, ns: record.atNs)
            try tree.placeIfNamed(record.image)
        case .imageDeleted:
            files.forget(record.image)
            try tree.delete(record.image)
        // Snapshots are not kept, nor what others stand like: a raw mirror is promoted for what it is.
        case .snapshot, .barrier, .standing: return
        }
    }

    private func applyContent(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer
    ) throws(TargetError) {
        let image = record.image
        guard files.has(image) else {
            if isStaging { return }
            throw TargetError(
                .damaged,
                "operation \(record.sequence.rawValue) is of image \(image.rawValue), which is not "
                    + "there")
        }
        switch record.kind {
        case .data:
            // What is past the image's end is padding.
            let start = record.range.startByte
            guard record.imageSizeBytes > start else { return }
            let count = Int(min(record.range.lengthBytes, record.imageSizeBytes - start))
            try files.write(
                UnsafeRawBufferPointer(rebasing: payload[..<count]), to: image, at: start,
                ns: record.atNs)
        case .zero: try files.zero(record.range, of: image, ns: record.atNs)
        default: try files.resize(image, to: record.imageSizeBytes, ns: record.atNs)
        }
    }
}

extension StreamRecord {
    /// It changes which images or names there are.
    var isStructural: Bool {
        switch kind {
        case .names, .imageCreated, .imageDeleted, .snapshot: true
        case .data, .zero, .size, .barrier, .standing: false
        }
    }
}
