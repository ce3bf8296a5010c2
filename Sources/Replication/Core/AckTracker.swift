// Who waits for what. An fsync is done when the local disk and every target that counts hold what
// came before it; a target that stops counting keeps nobody waiting any more.

import BlockCore

/// - Waiter: what the owner knows a waiting request by.
package struct AckTracker<Waiter: Sendable>: Sendable {
    private struct Waiting: Sendable {
        var sequence: SequenceNumber
        var waiter: Waiter
    }

    /// What each target that counts holds durably.
    private var durable: [TargetID: SequenceNumber] = [:]
    /// Ascending by sequence.
    private var waiting: [Waiting] = []

    package init() {}

    package var counting: [TargetID] { durable.keys.sorted() }
    package var waitingCount: Int { waiting.count }
    /// Everything up to here is on every target that counts; nil where none counts.
    package var agreed: SequenceNumber? { durable.values.min() }

    package func isDone(_ sequence: SequenceNumber) -> Bool {
        durable.values.allSatisfy { $0 >= sequence }
    }

    package mutating func wait(for sequence: SequenceNumber, _ waiter: Waiter) {
        var index = waiting.count
        while index > 0, waiting[index - 1].sequence > sequence { index -= 1 }
        waiting.insert(Waiting(sequence: sequence, waiter: waiter), at: index)
    }

    /// - Returns: those whose wait is over, in the order of their sequence.
    package mutating func acknowledge(
        _ target: TargetID, durable sequence: SequenceNumber
    ) -> [Waiter] {
        guard let known = durable[target], known < sequence else { return [] }
        durable[target] = sequence
        return takeDone()
    }

    package mutating func count(_ target: TargetID, durable sequence: SequenceNumber) {
        durable[target] = sequence
    }

    /// - Returns: those whose wait is over.
    package mutating func stopCounting(_ target: TargetID) -> [Waiter] {
        durable[target] = nil
        return takeDone()
    }

    /// - Returns: everybody who waits; they do not any more.
    package mutating func takeAll() -> [Waiter] {
        defer { waiting = [] }
        return waiting.map(\.waiter)
    }

    private mutating func takeDone() -> [Waiter] {
        let end = agreed.map { agreed in
            waiting.firstIndex { $0.sequence > agreed } ?? waiting.count
        }
        let done = waiting[..<(end ?? waiting.count)].map(\.waiter)
        waiting.removeFirst(done.count)
        return done
    }
}
