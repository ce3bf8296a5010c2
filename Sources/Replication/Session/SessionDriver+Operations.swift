// The operations that a session asks for, on the session's thread.

import BlockCore

extension SessionDriver {
    func performConnect(_ opened: any ReplicaTarget) throws(TargetError) -> SessionEvent {
        follow(opened)
        let last = stream.lastSequence
        var hello = source.hello(for: id, having: nil)
        hello.givenThrough = last
        var report = try opened.connect(hello)
        var told = source.hello(for: id, having: report.incarnationID)
        told.givenThrough = last
        if told != hello {
            hello = told
            report = try opened.connect(hello)
        }
        if let diverged = report.diverged { try enter(diverged) }
        let isSame = report.incarnationID == hello.incarnationID
        // Before anything is acknowledged.
        let isLacking = !report.keptAllReceived && report.checkpoint < last
        givenThrough = isLacking ? last : nil
        given = report.checkpoint
        source.withhold(id, isLacking)
        let standing = stream.standing(id)
        let acknowledged = standing?.durable ?? .zero
        var holds = false
        // One that is shipped to by a schedule never streams.
        if isSame, report.checkpoint >= acknowledged, options.intervalMs == nil {
            // What was taken and not confirmed has to be given again: the legs hold it for a moment.
            stream.stopStreaming(id)
            holds = stream.beginStreaming(id, from: report.checkpoint)
        }
        let (isDirty, hasUnknown) =
            stream.withLegs(id) { (!$0.isClean, !$0.unknown.isEmpty) } ?? (true, false)
        return .connected(
            report,
            StreamPosition(
                isSameIncarnation: isSame, holdsAllAfterCheckpoint: holds, isDirty: isDirty,
                hasUnknown: hasUnknown, acknowledged: acknowledged,
                isUnknown: !(report.diverged?.isComplete ?? true), isNew: acknowledged == .zero))
    }

    private func follow(_ opened: any ReplicaTarget) {
        target = opened
        pipeline = opened as? any PipelinedTarget
        let number = beginListening()
        pipeline?.onNews { [weak self] in self?.noteNews($0, of: number) }
    }

    // MARK: Streaming

    private static let mostGivenBytes = 4 << 20

    func send() throws(TargetError) -> SessionEvent {
        if let pipeline, !pipeline.progress.hasRoom { return .noRoom }
        let limit = min(Self.mostGivenBytes, pipeline?.roomBytes ?? .max)
        if let batch = stream.takeBatch(id, limitBytes: limit) {
            tally.sentBytes.add(UInt64(batch.lengthBytes), ordering: .relaxed)
            guard let pipeline else {
                try connected().append(batch)
                noteGiven(batch.lastSequence)
                return .sent(
                    through: batch.lastSequence, bytes: batch.lengthBytes, isBarrierNext: false)
            }
            try pipeline.give(batch)
            given = batch.lastSequence
            return .given(through: batch.lastSequence, bytes: batch.lengthBytes)
        }
        switch stream.waitForRecords(id, timeoutMs: 0) {
        case .barrier: return .sent(through: nil, isBarrierNext: true)
        case .notStreaming:
            throw TargetError(.io, "it fell behind further than the write stream reaches back")
        default: return .sent(through: nil, isBarrierNext: false)
        }
    }

    func flush() throws(TargetError) -> SessionEvent {
        if let pipeline {
            try pipeline.askFlush()
            return .flushAsked(through: given)
        }
        let through = try connected().flush()
        return .flushed(through: through, isStreamEmpty: stream.isEmpty(id))
    }

    func noteGiven(_ through: SequenceNumber) {
        guard let given = givenThrough, through >= given else { return }
        givenThrough = nil
        source.withhold(id, false)
    }

    // MARK: Legs

    func openLeg(_ stagingID: UInt64) throws(TargetError) -> SessionEvent {
        closeLeg()
        // What the ring still holds becomes part of the legs, cuts and all: a leg's shape must not be
        // newer than the leg's end, and a cut in the ring would end it before that.
        stream.stopStreaming(id)
        if let (info, shape) = try captureFirst() {
            return try begin(
                stagingID, .snapshot(info), shape, streamFrom: info.sequence,
                takenAt: info.sequence)
        }
        let (shape, streamFrom) = try source.captureHead(for: id)
        return try begin(stagingID, .head, shape, streamFrom: streamFrom, takenAt: streamFrom)
    }

    /// The snapshot that the first leg ends in, captured; nil for the head. One that was deleted, or is of one image
    /// alone (what a restore replaced), or lacks one that could not be opened, cannot be shipped: its leg goes with
    /// the next.
    func captureFirst() throws(TargetError) -> (end: SnapshotInfo, shape: PoolShape)? {
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
    func putBack(_ blocks: [ImageID: BlockSet]) {
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

    func stageStream(
        upTo limit: SequenceNumber?, into stretch: inout StagedStretch
    ) throws(TargetError) {
        // Blocks that were read ahead come first (ReadAhead, A2).
        let bound = limit ?? reads?.limit
        while true {
            if let batch = stream.takeBatch(id, limitBytes: 4 << 20, upTo: bound) {
                note(batch, in: &stretch)
                try stage(batch)
                stretch.through = batch.lastSequence
            } else if let passed = stream.passBarrier(id, upTo: bound) {
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
        stretch.lengthBytes += batch.lengthBytes
        batch.forEach { record, payload in
            stretch.carried.insert(record.range, of: record.image)
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

    func stage(_ batch: RecordBatch) throws(TargetError) {
        leg?.batchNumber += 1
        try connected().stage(batch, number: leg?.batchNumber ?? 0)
        tally.stagedBytes.add(UInt64(batch.lengthBytes), ordering: .relaxed)
    }

    func commitLeg(
        _ stagingID: UInt64, _ sequence: SequenceNumber, _ end: LegEnd
    ) throws(TargetError) -> SessionEvent {
        var snapshot: SnapshotInfo?
        if case .snapshot(let info) = end { snapshot = info }
        try connected().commitStaging(id: stagingID, at: sequence, snapshot: snapshot)
        noteGiven(sequence)
        closeLeg()
        return .legCommitted
    }
}
