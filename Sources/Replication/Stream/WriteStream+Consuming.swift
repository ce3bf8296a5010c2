// The side of the consumers: one thread for each target that streams.

import BlockCore
import Synchronization
import SystemIO

extension WriteStream {
    package enum Arrival: Sendable, Hashable {
        case records
        /// A barrier comes next: nothing after it is given before ``passBarrier(_:)``.
        case barrier
        /// The target does not stream (any more).
        case notStreaming
        case interrupted
        case timeout
    }

    /// Waits until there is something to take.
    /// - Parameter atLeastBytes: so much, or whatever there is when the time has passed.
    package func waitForRecords(
        _ id: TargetID, atLeastBytes: Int = 1, timeoutMs: Int64
    ) -> Arrival {
        let deadline = ContinuousClock.now + .milliseconds(timeoutMs)
        lock.lock()
        defer {
            targets[id]?.wakeAt = .max
            publishWake()
            lock.unlock()
        }
        while true {
            guard let target = targets[id], target.isStreaming else { return .notStreaming }
            if target.isInterrupted {
                target.isInterrupted = false
                return .interrupted
            }
            // Announced before looking: a record that gets ready after the look wakes us. What is
            // in the ring and not ready may be the one that is waited for.
            let wanted = target.taken + UInt64(max(atLeastBytes, 1))
            target.wakeAt = ring.end >= wanted ? 0 : wanted
            publishWake()
            let ready = ring.advanceReady()
            let leftMs = (deadline - ContinuousClock.now) / .milliseconds(1)
            if ready > target.taken {
                if isBarrier(target) { return .barrier }
                if ready >= wanted || leftMs <= 0 { return .records }
            }
            if leftMs <= 0 { return .timeout }
            _ = arrived.wait(lock, timeoutMs: Int64(leftMs.rounded(.up)))
        }
    }

    private func publishWake() {
        let lowest = targets.values.reduce(UInt64.max) { min($0, $1.wakeAt) }
        wakeAt.store(lowest, ordering: .sequentiallyConsistent)
    }

    func wakeConsumers() {
        lock.withLock {
            // Whoever waits on announces it again.
            wakeAt.store(.max, ordering: .sequentiallyConsistent)
            arrived.broadcast()
        }
    }

    /// Ends a wait of this target's consumer, now or the next.
    package func interrupt(_ id: TargetID) {
        lock.withLock {
            targets[id]?.isInterrupted = true
            arrived.broadcast()
        }
    }

    /// The next record is a barrier.
    private func isBarrier(_ target: StreamTarget) -> Bool {
        let place = memory.begin(target.taken, end: ring.end)
        guard place < ring.end else { return false }
        return memory.header(place).kind == .barrier
    }

    /// The next records that are ready, whole; they count as taken. A batch ends before a barrier,
    /// after a snapshot, and after `upTo`.
    /// - Returns: nil when there are none; valid until the next call for this target.
    package func takeBatch(
        _ id: TargetID, limitBytes: Int = 1 << 20, upTo: SequenceNumber? = nil
    ) -> RecordBatch? {
        lock.lock()
        guard let target = targets[id], target.isStreaming else {
            lock.unlock()
            return nil
        }
        let start = target.taken
        var batch = (bytes: 0, end: start, first: SequenceNumber.zero, last: SequenceNumber.zero)
        memory.forEach(from: start, to: ring.advanceReady()) { place, record in
            if record.kind == .barrier || record.sequence > upTo ?? record.sequence { return false }
            if batch.bytes > 0, batch.bytes + record.totalBytes > limitBytes { return false }
            if batch.bytes == 0 { batch.first = record.sequence }
            batch.bytes += record.totalBytes
            batch.end = place + UInt64(record.totalBytes)
            batch.last = record.sequence
            return record.kind != .snapshot
        }
        guard batch.bytes > 0 else {
            lock.unlock()
            return nil
        }
        target.take(upTo: batch.last, end: batch.end)
        target.pinned = start
        let buffer = target.buffer(batch.bytes)
        lock.unlock()
        let count = memory.copy(from: start, to: batch.end, into: buffer.baseAddress!)
        lock.lock()
        target.pinned = .max
        lock.unlock()
        return RecordBatch(
            pieces: [UnsafeRawBufferPointer(rebasing: buffer[0..<count])],
            firstSequence: batch.first, lastSequence: batch.last)
    }

    /// The target was given everything there is.
    package func isEmpty(_ id: TargetID) -> Bool {
        lock.withLock { targets[id].map { $0.isStreaming && $0.taken >= ring.end } ?? false }
    }

    /// Whether the target was given every record up to there. One that was not may not be ready yet.
    package func hasTaken(_ id: TargetID, upTo sequence: SequenceNumber) -> Bool {
        lock.withLock {
            guard let target = targets[id], target.isStreaming else { return true }
            let next = memory.begin(target.taken, end: ring.end)
            return next >= ring.end || memory.header(next).sequence > sequence
        }
    }

    /// Goes past the barrier that comes next: its blocks are in the target's legs.
    /// - Parameter upTo: a barrier after it is left where it is.
    /// - Returns: those blocks; nil when no barrier comes next.
    package func passBarrier(
        _ id: TargetID, upTo: SequenceNumber? = nil
    ) -> (sequence: SequenceNumber, blocks: [ImageID: BlockSet])? {
        lock.withLock {
            guard let target = targets[id], target.isStreaming, isBarrier(target) else {
                return nil
            }
            let place = memory.begin(target.taken, end: ring.end)
            let record = memory.header(place)
            guard record.sequence <= upTo ?? record.sequence, ring.advanceReady() > place else {
                return nil
            }
            target.take(upTo: record.sequence, end: place + UInt64(record.totalBytes))
            guard let barrier = target.barriers.removeValue(forKey: record.sequence.rawValue) else {
                return (record.sequence, [:])
            }
            target.legs.enter(barrier.blocks, hasNameChanges: barrier.hasNameChanges)
            return (record.sequence, barrier.blocks)
        }
    }
}
