// Comparing with a target's checkpoint, and becoming what it has there. See RecoveryPull.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

extension RecoveryPull {
    /// What has to change here.
    private struct Plan {
        struct Change {
            var image: PoolShape.Image
            var blocks: BlockSet
        }
        var changes: [Change] = []
        /// All names; nil where those here are as new, or newer.
        var names: [NameChange]?

        var isEmpty: Bool { changes.isEmpty && names == nil }
        var blockCount: UInt64 { changes.reduce(0) { $0 + $1.blocks.count } }
    }

    /// What is pulled from one of several.
    private enum Part {
        /// These images, and no names; there is more to pull from another after that.
        case only(Set<ImageID>)
        /// Names, and all images but those that came from others.
        case rest(but: Set<ImageID>)

        func contains(_ image: ImageID) -> Bool {
            switch self {
            case .only(let images): images.contains(image)
            case .rest(let others): !others.contains(image)
            }
        }
        var isLast: Bool { if case .rest = self { true } else { false } }
    }

    /// The pool becomes what the best of those that were asked has at its checkpoint, where that is ahead; but
    /// images of which another promises more become what that one has, and stay so.
    /// - Parameters:
    ///   - progress: blocks done, and all of them, of the best one.
    package func pull(
        from ahead: [Asked], best: Int, progress: (UInt64, UInt64) -> Void
    ) throws(TargetError) -> Summary {
        let others = others(of: ahead.map { ($0.record, $0.report) }, beside: best)
        for (index, images) in others {
            _ = try pull(.only(images), from: ahead[index]) { _, _ in }
        }
        let taken = Set(others.flatMap(\.images))
        return try pull(.rest(but: taken), from: ahead[best], progress)
    }

    private func pull(
        _ part: Part, from asked: Asked, _ progress: (UInt64, UInt64) -> Void
    ) throws(TargetError) -> Summary {
        let (record, target) = (asked.record, asked.target)
        try look()
        let volume = try TargetError.volume { () throws(VolumeError) in
            try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        }
        // Region marks stay, and nothing is settled (P3).
        defer { volume.abandon() }
        let shape = try target.call { (target) throws(TargetError) in try target.shape() }
        let plan = try makePlan(part, asked, shape, volume, progress)
        var summary = Summary(
            blocks: plan.blockCount, images: plan.changes.count, hasNames: plan.names != nil)
        if !plan.isEmpty {
            try keepState(of: volume)
            summary.keptSnapshot = note.keptSnapshot
        }
        var done: UInt64 = 0
        for change in plan.changes {
            try apply(change, target, volume) { (blocks) in
                done += blocks
                progress(done, plan.blockCount)
            }
        }
        let message = Self.message(summary, record)
        try TargetError.volume { () throws(VolumeError) in
            try volume.changeStructure { tx in
                if let names = plan.names {
                    try tx.deleteAllNodes()
                    try tx.apply(names)
                    try tx.setNamesSequence(shape.sequence)
                }
                if part.isLast { try tx.setLostPower(nil) }
                try tx.addEvent(event("recovery-pull", message))
            }
        }
        return summary
    }

    private static func message(_ summary: Summary, _ record: TargetRecord) -> String {
        guard let kept = summary.keptSnapshot else {
            return "the machine went down; nothing is missing that \(record.address) has"
        }
        let size = ByteSize(bytes: summary.blocks * Geometry.blockSizeBytes)
        return "the machine went down; \(size) in \(summary.images) images came back from "
            + "\(record.address)\(summary.hasNames ? ", and names" : ""). What this disk had is kept "
            + "in snapshot '\(kept)'"
    }

    // MARK: Comparing

    private func makePlan(
        _ part: Part, _ asked: Asked, _ shape: PoolShape, _ volume: Volume,
        _ progress: (UInt64, UInt64) -> Void
    ) throws(TargetError) -> Plan {
        let (record, target, report) = asked
        guard let names = shape.names.withUnsafeBytes(NamesCodec.decode) else {
            throw TargetError(.damaged, "the names of \(record.address) are no tree")
        }
        var plan = Plan()
        let nodes = names.compactMap { change -> NodeRecord? in
            if case .put(let node) = change { node } else { nil }
        }
        let isNewer = try isNewer(shape.sequence, than: volume)
        let held = isNewer && part.isLast && isPromised(nil, by: record, report)
        if held, try differ(nodes, volume) { plan.names = names }
        let named = Set(nodes.compactMap(\.imageID))
        let left = try untouchable(at: shape.sequence)
        let suspects = volume.suspects()
        let damaged = Set(volume.damagedImages.map(\.id))
        for image in shape.images where named.contains(image.id) && !damaged.contains(image.id) {
            let own = try? volume.image(image.id)
            // Names that are taken have their images, however those are waited for.
            let isTaken =
                own == nil
                || isPromised(image.id, by: record, report) && !left.contains(image.id)
            guard isTaken, own == nil || part.contains(image.id) else { continue }
            if let own {
                let blocks = try differing(
                    own, suspects[image.id] ?? BlockSet(), target, image.sizeBytes)
                guard !blocks.isEmpty || own.sizeBytes != image.sizeBytes else { continue }
                plan.changes.append(.init(image: image, blocks: blocks))
            } else if held {
                let all = try target.call { (target) throws(TargetError) in
                    try target.allocatedBlocks()
                }
                plan.changes.append(.init(image: image, blocks: all[image.id] ?? BlockSet()))
            }
            progress(0, plan.blockCount)
        }
        return plan
    }

    func isPromised(
        _ image: ImageID?, by record: TargetRecord, _ report: ReplicaReport
    ) -> Bool {
        // Adaptive may have been in semi-sync.
        if record.mode == .adaptive { return report.keptAllReceived }
        return switch policy(of: record).policy(for: image).mode.flushPoint {
        case nil: false
        case .durable: true
        case .received, .written: report.keptAllReceived
        }
    }

    private func isNewer(
        _ sequence: SequenceNumber, than volume: Volume
    ) throws(TargetError) -> Bool {
        sequence > (try TargetHub.read(store) { try $0.namesSequence() })
    }

    /// Times of writes are settled late, and no reason to take all names.
    private func differ(_ there: [NodeRecord], _ volume: Volume) throws(TargetError) -> Bool {
        func plain(_ nodes: [NodeRecord]) -> [NodeID: NodeRecord] {
            Dictionary(
                uniqueKeysWithValues: nodes.map { node in
                    var node = node
                    (node.accessNs, node.modifyNs, node.changeNs) = (0, 0, 0)
                    return (node.id, node)
                })
        }
        let here = try TargetError.volume { () throws(VolumeError) in try volume.catalogNodes() }
        return plain(there) != plain(here)
    }

    /// P2 and P4: images that are durable here beyond the checkpoint, or came there without the stream.
    private func untouchable(at checkpoint: SequenceNumber) throws(TargetError) -> Set<ImageID> {
        var result = Set((note.heads ?? [:]).filter { $0.value >= checkpoint }.keys)
        let kept = note.keptSnapshot
        let nodes = try TargetHub.read(store) { tx in
            try tx.snapshots().filter {
                $0.state == .complete && $0.sequence >= checkpoint && $0.name != kept
            }.flatMap { try tx.snapshotNodes($0.id) }
        }
        result.formUnion(nodes.compactMap(\.node.imageID))
        return result
    }

    private func differing(
        _ image: Image, _ suspects: BlockSet, _ target: PatientTarget, _ sizeBytes: UInt64
    ) throws(TargetError) -> BlockSet {
        var result = BlockSet()
        let id = image.id
        for region in suspects.regionNumbers {
            let range = BlockRange(
                start: region * Geometry.blocksPerRegion, count: Geometry.blocksPerRegion)
            let there = try target.call { (target) throws(TargetError) in
                try target.blockHashes(of: id, in: range)
            }
            let here = try BlockHashes.of(range, toleratesRot: true) {
                (buffer, offset) throws(VolumeError) in
                try image.read(into: buffer, at: offset)
            }
            for (offset, hash) in there.enumerated()
            where hash != unreadableBlockHash && (offset >= here.count || here[offset] != hash) {
                result.insert(BlockRange(start: range.start + UInt64(offset), count: 1))
            }
        }
        // What is past the end there goes with the size.
        let end = Geometry.blockCount(sizeBytes: sizeBytes)
        let last = ((suspects.regionNumbers.last ?? 0) + 1) * Geometry.blocksPerRegion
        if last > end { result.remove(BlockRange(start: end, count: last - end)) }
        return result
    }

    // MARK: Changing

    /// P2 says that nothing is lost; but that is for the promised. What else this disk had stays to be
    /// looked at (G5).
    private func keepState(of volume: Volume) throws(TargetError) {
        if note.keptSnapshot == nil {
            // A clock that was set back says what it said before.
            var name = "diverged-\(CivilTime(store.disk.now()).compact)"
            while try TargetHub.read(store, { try $0.snapshot(named: name) }) != nil { name += "'" }
            let free = name
            try change { $0.keptSnapshot = free }
        }
        let name = note.keptSnapshot!
        guard try TargetHub.read(store, { try $0.snapshot(named: name) }) == nil else { return }
        try TargetError.volume { () throws(VolumeError) in
            _ = try volume.createSnapshot(
                name: name, origin: SnapshotRecord.divergedOrigin,
                at: SnapshotPlace(createdNs: store.disk.now(), sequence: volume.sequence),
                nodes: try volume.catalogNodes())
        }
    }

    private func apply(
        _ change: Plan.Change, _ target: PatientTarget, _ volume: Volume, _ done: (UInt64) -> Void
    ) throws(TargetError) {
        let id = change.image.id
        let image = try TargetError.volume { () throws(VolumeError) in
            let image =
                volume.hasImage(id) ? try volume.image(id) : try volume.createImage(id: id)
            if image.sizeBytes != change.image.sizeBytes {
                try image.resize(to: change.image.sizeBytes)
            }
            return image
        }
        for run in change.blocks.ranges {
            var block = run.start
            while block < run.end {
                let piece = BlockRange(start: block, count: min(256, run.end - block))
                let bytes = try target.call { (target) throws(TargetError) in
                    var bytes = [UInt8](repeating: 0, count: Int(piece.lengthBytes))
                    try bytes.withTypedMutableBytes { (raw) throws(TargetError) in
                        try target.read(piece, of: id, into: raw)
                    }
                    return bytes
                }
                try TargetError.volume { () throws(VolumeError) in
                    try write(bytes, at: piece, to: image)
                }
                block = piece.end
                done(piece.count)
            }
        }
        try TargetError.volume { () throws(VolumeError) in
            volume.withNameChange { _ in image.setModified(ns: change.image.modifiedNs) }
            try image.flush()
        }
    }

    /// What is past the image's end is padding. Blocks of zeros stay holes.
    private func write(
        _ bytes: [UInt8], at piece: BlockRange, to image: Image
    ) throws(VolumeError) {
        let start = piece.startByte
        guard image.sizeBytes > start else { return }
        let length = Int(min(piece.lengthBytes, image.sizeBytes - start))
        guard bytes[..<length].contains(where: { $0 != 0 }) else {
            return try image.trim(at: start, length: UInt64(length))
        }
        try bytes.withTypedBytes { (raw) throws(VolumeError) in
            _ = try image.write(UnsafeRawBufferPointer(rebasing: raw[..<length]), at: start)
        }
    }
}
