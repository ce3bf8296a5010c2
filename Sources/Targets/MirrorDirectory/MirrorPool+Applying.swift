// From the journal into the images: see R1, R2 and R5 in MirrorPool.swift.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

extension MirrorPool {
    // MARK: Journal

    func append(_ batch: RecordBatch) throws(TargetError) {
        try RecordReader.check(batch)
        if let failure = countLock.withLock({ applyFailure }) {
            // A disk that was full may have room by now; after anything else only opening helps.
            guard failure.kind == .noSpace else { throw failure }
            try applyAll()
        }
        if unappliedBytes > options.maxUnappliedBytes {
            _ = try flush()
            while unappliedBytes > options.maxUnappliedBytes, try applyStep() {}
        }
        // Before, as it may be applied a moment after.
        let bytes = UInt64(batch.lengthBytes)
        countLock.withLock { unapplied += bytes }
        do throws(TargetError) { try appendToJournal(batch) } catch {
            countLock.withLock { unapplied -= min(unapplied, bytes) }
            throw error
        }
    }

    /// On a full disk what is in the images makes room, once it is durable there; then the history.
    private func appendToJournal(_ batch: RecordBatch) throws(TargetError) {
        if try takes(batch) { return }
        _ = try flush()
        try applyAll(mayCut: false)
        if try takes(batch) { return }
        if options.keepsHistory { throw fullWithHistory }
        _ = try applying.withLock { () throws(TargetError) in try dropHistory() }
        try append(toJournal: batch)
    }

    /// - Returns: false where there is no room.
    private func takes(_ batch: RecordBatch) throws(TargetError) -> Bool {
        do throws(TargetError) {
            try append(toJournal: batch)
            return true
        } catch {
            guard error.kind == .noSpace, state.staging == nil else { throw error }
            return false
        }
    }

    private func append(toJournal batch: RecordBatch) throws(TargetError) {
        try TargetError.journal { () throws(JournalError) in
            try journal.append(
                batch.pieces, first: batch.firstSequence, last: batch.lastSequence)
        }
    }

    func flush() throws(TargetError) -> SequenceNumber {
        try TargetError.journal { () throws(JournalError) in try journal.sync() }
    }

    /// In the journal, and not yet in the images.
    var unappliedBytes: UInt64 { countLock.withLock { unapplied } }

    // MARK: Applying what is durable in the journal

    /// Applies one batch.
    /// - Returns: false when there is none.
    func applyStep() throws(TargetError) -> Bool {
        try applying.withLock { () throws(TargetError) in try applyStepLocked() }
    }

    private func applyStepLocked() throws(TargetError) -> Bool {
        do throws(TargetError) {
            let didApply = try applyNext()
            countLock.withLock { applyFailure = nil }
            return didApply
        } catch {
            // The reader is past what failed: the next attempt begins anew where all is well.
            reader = nil
            countLock.withLock { applyFailure = error }
            guard error.kind == .noSpace, try noting({ () throws(TargetError) in try makeRoom() })
            else { throw error }
            return true
        }
    }

    /// What fails is told to whoever appends next.
    private func noting<T>(_ body: () throws(TargetError) -> T) throws(TargetError) -> T {
        do throws(TargetError) { return try body() } catch {
            countLock.withLock { applyFailure = error }
            throw error
        }
    }

    /// Lets the journal go that is in the images; then what is kept for looking back.
    /// - Returns: whether there was any.
    private func makeRoom() throws(TargetError) -> Bool {
        if bytesSinceNoted > 0 {
            do throws(TargetError) {
                try noteApplied(mayCut: false)
                return true
            } catch { guard error.kind == .noSpace else { throw error } }
        }
        if options.keepsHistory { throw fullWithHistory }
        return try dropHistory()
    }

    private var fullWithHistory: TargetError {
        TargetError(
            .noSpace,
            "\(store.path) is full. What is kept there for looking back is not given up for its primary: give it "
                + "room, or less history (doppel serve --history)", errno: 28)
    }

    /// Nothing came for a while: the next open is to find little to do.
    func settle() throws(TargetError) {
        try applying.withLock { () throws(TargetError) in
            guard state.staging == nil, bytesSinceNoted > 0,
                countLock.withLock({ applyFailure == nil })
            else { return }
            try noting { () throws(TargetError) in try noteApplied() }
        }
    }

    private func applyNext() throws(TargetError) -> Bool {
        guard state.staging == nil else { return false }
        let limit = journal.durableSequence
        guard position < limit else { return false }
        let reader = self.reader ?? journal.reader(after: position)
        self.reader = reader
        let frame = try TargetError.journal { () throws(JournalError) in
            try reader.next(through: limit)
        }
        guard let frame else { return false }
        let applier = self.applier ?? streamApplier()
        self.applier = applier
        let applied = position
        try RecordReader.forEach(in: frame.payload) { (record, payload) throws(TargetError) in
            guard record.sequence > applied else { return }
            try applier.apply(record, payload)
        }
        position = frame.last
        let bytes = UInt64(frame.payload.count)
        countLock.withLock { unapplied -= min(unapplied, bytes) }
        bytesSinceNoted += bytes
        if bytesSinceNoted >= settleBudget.bytes || isBaseDue { try noteApplied() }
        return true
    }

    private func streamApplier() -> RecordApplier {
        // It lives no longer than its pool does.
        RecordApplier(
            volume: volume, source: .stream, structure: state.structureSequence,
            toleratesDamage: options.toleratesDamage
        ) { [unowned self] (progress, transaction) throws(TargetError) in
            try update(
                { record in
                    record.structureSequence = progress.sequence
                    if progress.isDurable { record.appliedSequence = progress.sequence }
                }, in: transaction)
        }
    }

    /// R2: makes what was applied durable, notes it, and lets the journal's segments go.
    /// - Parameter mayCut: no frame is applied in part.
    func noteApplied(mayCut: Bool = true) throws(TargetError) {
        applier?.settleTimes()
        let startNs = store.disk.monotonic()
        try TargetError.volume { () throws(VolumeError) in try volume.flushAll() }
        settleBudget.settled(bytesSinceNoted, tookNs: store.disk.monotonic() - startNs)
        let position = position
        if state.appliedSequence != position {
            try update {
                $0.appliedSequence = position
                $0.structureSequence = max($0.structureSequence, position)
            }
        }
        bytesSinceNoted = 0
        settleBudget.limit(freeBytes: freeBytes)
        // On a full disk what is kept for looking back may find no room; what is in the images may go all
        // the same.
        try free(keepingAfter: .zero)
        try free(keepingAfter: keepHistory(mayCut: mayCut))
    }

    private func free(keepingAfter history: SequenceNumber) throws(TargetError) {
        try TargetError.journal { () throws(JournalError) in
            try journal.free(through: position, keepingAfter: history)
        }
    }

    var freeBytes: UInt64 {
        (try? store.disk.fileSystemStatus(store.path))?.availableBytes ?? 0
    }

    /// Everything that is durable in the journal is durable in the images afterwards.
    func applyAll(mayCut: Bool = true) throws(TargetError) {
        try applying.withLock { () throws(TargetError) in
            try catchUp()
            guard state.staging == nil else { return }
            try noteApplied(mayCut: mayCut)
        }
    }

    /// Everything that is durable in the journal is in the images afterwards.
    func catchUp() throws(TargetError) { while try applyStepLocked() {} }

    /// When the last operation that was applied was made, by the primary's clock; 0 for not known.
    var lastAppliedNs: Int64 { applier?.lastNs ?? 0 }

    /// The images were changed otherwise: the stream goes on after `sequence`.
    /// - Parameter isNew: the journal holds nothing of it yet.
    func beginStream(after sequence: SequenceNumber, isNew: Bool) {
        if isNew {
            journal.restart(after: sequence)
            countLock.withLock { unapplied = 0 }
        }
        position = sequence
        reader = nil
        applier = nil
        bytesSinceNoted = 0
    }
}
