// The operations that a session asks for, on the session's thread.

import BlockCore

extension SessionDriver {
    func performConnect(_ opened: any ReplicaTarget) throws(TargetError) -> SessionEvent {
        target = opened
        let hello = source.hello
        let report = try opened.connect(hello)
        if let diverged = report.diverged { enter(diverged) }
        let isSame = report.incarnationID == hello.incarnationID
        let standing = stream.standing(id)
        let acknowledged = standing?.durable ?? .zero
        var holds = false
        if isSame, report.checkpoint >= acknowledged {
            // What was taken and not confirmed has to be given again: the legs hold it for a moment.
            stream.stopStreaming(id)
            holds = stream.beginStreaming(id, from: report.checkpoint)
        }
        let isDirty = stream.withLegs(id) { !$0.isClean } ?? true
        return .connected(
            report,
            StreamPosition(
                isSameIncarnation: isSame, holdsAllAfterCheckpoint: holds, isDirty: isDirty,
                acknowledged: acknowledged, isUnknown: !(report.diverged?.isComplete ?? true)))
    }

    // MARK: Streaming

    func send() throws(TargetError) -> SessionEvent {
        if let batch = stream.takeBatch(id, limitBytes: 4 << 20) {
            try connected().append(batch)
            return .sent(
                through: batch.lastSequence, bytes: batch.lengthBytes, isBarrierNext: false)
        }
        switch stream.waitForRecords(id, timeoutMs: 0) {
        case .barrier: return .sent(through: nil, isBarrierNext: true)
        case .notStreaming:
            throw TargetError(.io, "it fell behind further than the write stream reaches back")
        default: return .sent(through: nil, isBarrierNext: false)
        }
    }

    // MARK: Comparing

    /// Unknown blocks are held against the end of the first leg; what lies between the ends of the
    /// legs is not known for them either.
    func performCompare(everything: Bool) throws(TargetError) -> SessionEvent {
        if everything {
            let all = try source.allocatedBlocks()
            _ = stream.withLegs(id) { $0.enterUnknown(all) }
        }
        let first = try captureFirst()?.end
        defer { if let first { source.release(first) } }
        let target = try connected()
        let unknown: [ImageID: BlockSet]? = stream.withLegs(id) { $0.unknown }
        let rottenBefore = tally.figures.rottenBlocks
        for (image, blocks) in unknown ?? [:] {
            for region in blocks.regionNumbers {
                let range = BlockRange(
                    start: region * Geometry.blocksPerRegion, count: Geometry.blocksPerRegion)
                let here = try source.blockHashes(of: image, in: range, of: first)
                let there = try target.blockHashes(of: image, in: range)
                let differing = self.differing(here, there, in: range)
                _ = stream.withLegs(id) { $0.resolve(range, of: image, differing: differing) }
            }
        }
        tellRotten(tally.figures.rottenBlocks - rottenBefore)
        source.legsChanged(of: id)
        return .compared
    }

    private func differing(_ here: [UInt64], _ there: [UInt64], in range: BlockRange) -> BlockSet {
        var result = BlockSet()
        var rotten: UInt64 = 0
        for (offset, hash) in here.enumerated() {
            let other = offset < there.count ? there[offset] : unreadableBlockHash
            if offset < there.count, other == unreadableBlockHash { rotten += 1 }
            guard other != hash || other == unreadableBlockHash else { continue }
            result.insert(BlockRange(start: range.start + UInt64(offset), count: 1))
        }
        tally.compared.add(range.count, ordering: .relaxed)
        tally.rotten.add(rotten, ordering: .relaxed)
        return result
    }

    private func tellRotten(_ blocks: UInt64) {
        guard blocks > 0 else { return }
        let size = ByteSize(bytes: blocks * Geometry.blockSizeBytes)
        source.tell(
            id, kind: "target-damaged",
            message: "\(size) on it did not verify and are copied anew; its disk may be failing")
    }

    // MARK: Legs

    func openLeg(_ stagingID: UInt64) throws(TargetError) -> SessionEvent {
        closeLeg()
        if let (info, shape) = try captureFirst() {
            return try begin(
                stagingID, .snapshot(info), shape, streamFrom: info.sequence,
                takenAt: info.sequence)
        }
        let (shape, streamFrom) = try source.captureHead(for: id)
        return try begin(stagingID, .head, shape, streamFrom: streamFrom, takenAt: streamFrom)
    }

    /// The snapshot that the first leg ends in, captured; nil for the head. One that was deleted, or is
    /// of one image alone (what a restore replaced), cannot be shipped: its leg goes with the next.
    private func captureFirst() throws(TargetError) -> (end: SnapshotInfo, shape: PoolShape)? {
        while let info = stream.withLegs(id, { $0.legs[0].snapshot }) ?? nil {
            if let shape = try source.capture(info) { return (info, shape) }
            _ = stream.withLegs(id) { $0.join(cut: info.sequence) }
        }
        return nil
    }

    private func begin(
        _ stagingID: UInt64, _ end: LegEnd, _ shape: PoolShape, streamFrom: SequenceNumber,
        takenAt: SequenceNumber
    ) throws(TargetError) -> SessionEvent {
        var takenAt = takenAt
        // A barrier that ended the streaming comes first: its blocks are part of this leg.
        if end == .head, let passed = stream.passBarrier(id) { takenAt = passed.sequence }
        let blocks = takeFirstLeg()
        leg = OpenLeg(stagingID: stagingID, end: end, taken: blocks, takenAt: takenAt)
        do throws(TargetError) {
            try connected().beginStaging(id: stagingID, shape: shape)
        } catch {
            putBack(blocks)
            throw error
        }
        return .legOpened(
            LegSummary(
                end: end, blocks: blocks, shapeSequence: shape.sequence, streamFrom: streamFrom))
    }

    /// The first leg's blocks, which stay in the target's dirty file until the leg is committed.
    private func takeFirstLeg() -> [ImageID: BlockSet] {
        stream.withLegs(id) { $0.takeFirst() } ?? [:]
    }

    /// Blocks that were taken for an answer that is not given are dirty again.
    private func putBack(_ blocks: [ImageID: BlockSet]) {
        _ = stream.withLegs(id) { $0.putBack(blocks) }
    }

    // MARK: Staging

    /// - Parameter upTo: nil for what one batch holds.
    func stageStream(upTo limit: SequenceNumber?) throws(TargetError) -> StagedStretch {
        var stretch = StagedStretch()
        do throws(TargetError) { try stageStream(upTo: limit, into: &stretch) } catch {
            putBack(stretch.dirtied)
            throw error
        }
        return stretch
    }

    private func stageStream(
        upTo limit: SequenceNumber?, into stretch: inout StagedStretch
    ) throws(TargetError) {
        while true {
            if let batch = stream.takeBatch(id, limitBytes: 4 << 20, upTo: limit) {
                note(batch, in: &stretch)
                try stage(batch)
                stretch.through = batch.lastSequence
            } else if let passed = stream.passBarrier(id) {
                takeDirtied(passed.sequence, &stretch)
            } else if stream.standing(id)?.isStreaming != true {
                throw TargetError(
                    .io, "it fell behind further than the write stream reaches back")
            } else if let limit, !stream.hasTaken(id, upTo: limit) {
                // Somebody copies a record's content into the ring: a moment.
                _ = stream.waitForRecords(id, timeoutMs: 10)
            } else {
                break
            }
            if let cut = stretch.cut {
                // What is left of the leg is read from it.
                guard try source.capture(cut) != nil else {
                    throw TargetError(.absent, "snapshot '\(cut.name)' is gone")
                }
                break
            }
            if limit == nil { break }
        }
    }

    private func note(_ batch: RecordBatch, in stretch: inout StagedStretch) {
        let takenAt = leg?.takenAt ?? .zero
        batch.forEach { record, payload in
            switch record.kind {
            case .data, .zero:
                if record.sequence > takenAt {
                    stretch.covered[record.image, default: BlockSet()].insert(record.range)
                }
            case .snapshot:
                guard
                    let info = SnapshotPayload.decode(payload, sequence: record.sequence)
                else { return }
                stretch.cut = info
                turn(into: info)
            default: break
            }
        }
    }

    /// The cut of a snapshot came in the middle of the head's leg.
    private func turn(into info: SnapshotInfo) {
        // What was taken after the cut was made may have become dirty after it, too.
        if let leg, info.sequence <= leg.takenAt { putBack(leg.taken) }
        leg?.end = .snapshot(info)
    }

    private func takeDirtied(_ sequence: SequenceNumber, _ stretch: inout StagedStretch) {
        let blocks = takeFirstLeg()
        leg?.taken.formUnion(blocks)
        leg?.takenAt = sequence
        stretch.through = sequence
        stretch.dirtied.formUnion(blocks)
        for (image, set) in blocks { stretch.covered[image]?.subtract(set) }
    }

    private func stage(_ batch: RecordBatch) throws(TargetError) {
        leg?.batchNumber += 1
        try connected().stage(batch, number: leg?.batchNumber ?? 0)
        tally.stagedBytes.add(UInt64(batch.lengthBytes), ordering: .relaxed)
    }

    /// Blocks of the head are read without a lock. What was written meanwhile may be in them, wholly or
    /// in part; it is in the stream between the moments before and after. So the stream is staged up to
    /// the first, then the blocks, then the stream up to the second: what they have too much of by the
    /// order of things is made good before anything can be committed.
    func stageBlocks(
        _ image: ImageID, _ range: BlockRange
    ) throws(TargetError) -> SessionEvent {
        records.clear()
        if case .snapshot(let info)? = leg?.end {
            _ = try source.read(range, of: image, in: info, into: records)
            if !records.isEmpty { try stage(records.batch) }
            return .blocksStaged(image, range, StagedStretch())
        }
        let moment = try source.read(range, of: image, in: nil, into: records)
        var stretch = try stageStream(upTo: moment.from)
        if stretch.cut != nil || records.isEmpty {
            return stretch.cut != nil
                ? .streamStaged(stretch) : .blocksStaged(image, range, stretch)
        }
        do throws(TargetError) {
            try stage(records.batch)
            let before = stretch.dirtied
            try stageStream(upTo: moment.through, into: &stretch)
            if let cut = stretch.cut { try cutBack(image, to: cut) }
            // What a cut or a barrier came between has to be read again.
            if stretch.cut != nil || stretch.dirtied != before { return .streamStaged(stretch) }
        } catch {
            putBack(stretch.dirtied)
            throw error
        }
        return .blocksStaged(image, range, stretch)
    }

    /// Blocks that were read after a cut may have made the image longer than it is in the snapshot.
    private func cutBack(_ image: ImageID, to cut: SnapshotInfo) throws(TargetError) {
        guard let shape = try source.capture(cut) else { return }
        source.release(cut)
        guard let sizeBytes = shape.images.first(where: { $0.id == image })?.sizeBytes else {
            return
        }
        records.clear()
        records.append(
            StreamRecord(.size, sequence: cut.sequence, image: image, imageSizeBytes: sizeBytes)
        ) { _ in }
        try stage(records.batch)
    }

    func commitLeg(
        _ stagingID: UInt64, _ sequence: SequenceNumber, _ end: LegEnd
    ) throws(TargetError) -> SessionEvent {
        var snapshot: SnapshotInfo?
        if case .snapshot(let info) = end { snapshot = info }
        try connected().commitStaging(id: stagingID, at: sequence, snapshot: snapshot)
        closeLeg()
        return .legCommitted
    }
}
