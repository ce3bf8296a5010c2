// What the owner of sessions and of dirty files asks the stream about a target.

import BlockCore

extension WriteStream {
    /// A target's place, for sessions and for status.
    package struct Standing: Sendable, Hashable {
        package var isStreaming = false
        /// The ring was full: it was made to stop.
        package var hasOverflowed = false
        /// What it said it holds durably.
        package var durable = SequenceNumber.zero
        package var taken = SequenceNumber.zero
        /// Bytes in the ring that it has not acknowledged.
        package var lagBytes: UInt64 = 0
        /// Blocks in its legs, shipped or not.
        package var dirtyBlocks: UInt64 = 0
        /// Blocks that an unclean end left unknown.
        package var unknownBlocks: UInt64 = 0
        package var isClean = true
        /// The last thing that happened to the pool.
        package var last = SequenceNumber.zero
        /// It is tracked, and lacks nothing.
        package var isLevel: Bool { isClean && !isStreaming }
        /// What its legs hold came from records alone.
        package var isFromRecordsOnly = true

        /// It has everything up to here durably: also what no record carries, as in a first copy.
        package func holds(_ sequence: SequenceNumber) -> Bool {
            durable >= sequence && (isClean || isFromRecordsOnly)
        }
    }

    package func standing(_ id: TargetID) -> Standing? {
        lock.withLock {
            guard let target = targets[id] else { return nil }
            return Standing(
                isStreaming: target.isStreaming, hasOverflowed: target.hasOverflowed,
                durable: target.durable, taken: target.takenSequence,
                lagBytes: target.isStreaming ? ring.end - target.cursor : 0,
                dirtyBlocks: target.legs.dirtyBlocks,
                unknownBlocks: target.legs.unknownBlocks, isClean: target.legs.isClean, last: last,
                isFromRecordsOnly: target.legs.isFromRecordsOnly)
        }
    }

    /// Bytes in the ring that the target has not acknowledged.
    package func lagBytes(_ id: TargetID) -> UInt64 { standing(id)?.lagBytes ?? 0 }

    /// Everything after this sequence is in the ring, and no barrier is.
    package func holdsAll(after sequence: SequenceNumber) -> Bool {
        lock.withLock { ring.place(after: sequence).map { !hasBarrier(after: $0) } ?? false }
    }

    /// Reads or changes what the target lacks besides what the ring holds for it.
    /// - Parameter body: under the lock that every append takes: short.
    package func withLegs<T>(_ id: TargetID, _ body: (inout DirtyLegs) -> T) -> T? {
        lock.withLock {
            guard let target = targets[id] else { return nil }
            return body(&target.legs)
        }
    }

    /// The stream up to here is in a staging, durably: it is the leg's from now on, as what was taken
    /// for it is (DirtyLegs, D1), and the ring goes on without it. A cut's own place stays in the ring.
    package func settleStaged(_ id: TargetID, through sequence: SequenceNumber) {
        lock.withLock {
            guard let target = targets[id], target.isStreaming else { return }
            var cut: SequenceNumber?
            let end = target.end(ofBatchesUpTo: sequence)
            memory.forEach(from: target.cursor, to: end) { _, record in
                guard record.kind != .snapshot else {
                    cut = record.sequence
                    return false
                }
                target.legs.enterTaken(record)
                return true
            }
            target.release(upTo: cut.map { SequenceNumber(rawValue: $0.rawValue - 1) } ?? sequence)
            cursorsChanged()
        }
    }

    // MARK: Dirty files

    /// What a target's dirty file must be given for the target to be held up to a sequence: its
    /// legs, and what the ring has for it up to there that it did not acknowledge.
    /// - Returns: every leg with the blocks that the file lacks.
    package func takeUnwritten(_ id: TargetID, upTo sequence: SequenceNumber) -> [DirtyLegState] {
        lock.withLock {
            guard let target = targets[id] else { return [] }
            // Nothing of it is needed but what the ring holds: the file begins anew.
            if target.isStreaming, target.legs.isClean { target.legs.clear() }
            return target.legs.takeUnwritten { more in
                guard target.isStreaming, target.durable < sequence else { return }
                enterRing(of: target, upTo: sequence, into: &more)
            }
        }
    }

    /// What was taken did not reach the file.
    package func markUnwritten(_ id: TargetID) {
        lock.withLock { targets[id]?.legs.markUnwritten() }
    }

    /// All that a new dirty file must hold.
    package func wholeState(
        _ id: TargetID, upTo sequence: SequenceNumber
    ) -> [DirtyLegState] {
        lock.withLock {
            guard let target = targets[id] else { return [] }
            target.legs.markUnwritten()
            return target.legs.takeUnwritten { more in
                guard target.isStreaming, target.durable < sequence else { return }
                enterRing(of: target, upTo: sequence, into: &more)
            }
        }
    }
}
