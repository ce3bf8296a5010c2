// Where an fsync waits for targets, when the local disk has done its part.
//
//   begin ──► the targets that count are asked for it ──► local sync ──► finish
//                                                                          │ they have it: replied
//                                                                          └ else parked
//   parked ── a target's acknowledgement, or none counts any more ──► replied, by that thread
//
// Nobody sleeps here: a parked request is a few words in a table, so a slow target holds no thread of
// the mount. Without targets that count, both calls are one load.

import BlockCore
import Replication
import Synchronization
import SystemIO

/// How a request is answered from another thread than it came on; without a closure, so that parking
/// one costs no memory of its own.
package struct PendingReply: Sendable {
    package var context: UInt
    package var value: UInt
    /// - Parameter errno: 0 where all is well.
    package var send: @convention(c) (_ context: UInt, _ value: UInt, _ errno: Int32) -> Void

    package init(
        context: UInt, value: UInt = 0, send: @escaping @convention(c) (UInt, UInt, Int32) -> Void
    ) {
        self.context = context
        self.value = value
        self.send = send
    }
}

package final class AckGate: @unchecked Sendable {  // all but the atomic is under `lock`
    private let isCounting = Atomic<Bool>(false)
    private let lock = Lock()
    private var tracker = AckTracker<PendingReply>()
    private let hasSent = Condition()
    /// Threads that are replying to requests they took out of the table.
    private var sending = 0
    private var isRefusing = false
    private var ask: (@Sendable (SequenceNumber) -> Void)?

    package init() {}

    /// - Parameter ask: tells the targets that count that somebody waits for everything up to here;
    ///   called from the threads that flush, so it must not block.
    package func attach(ask: @escaping @Sendable (SequenceNumber) -> Void) {
        lock.withLock { self.ask = ask }
    }

    // MARK: The side of a flush

    /// - Parameter sequence: everything that the flush covers.
    /// - Returns: what ``finish(_:_:)`` needs; nil when no target counts.
    @inline(__always)
    package func begin(_ sequence: @autoclosure () -> SequenceNumber) -> SequenceNumber? {
        guard isCounting.load(ordering: .acquiring) else { return nil }
        let sequence = sequence()
        lock.withLock { ask }?(sequence)
        return sequence
    }

    /// Replies now, or when every target that counts holds what the flush covers.
    @inline(__always)
    package func finish(_ sequence: SequenceNumber?, _ reply: PendingReply) {
        var errno: Int32 = 0
        if let sequence {
            guard let verdict = verdict(sequence, reply) else { return }
            errno = verdict
        }
        reply.send(reply.context, reply.value, errno)
    }

    /// - Returns: the errno to reply with; nil for a request that was parked.
    private func verdict(_ sequence: SequenceNumber, _ reply: PendingReply) -> Int32? {
        lock.withLock {
            if isRefusing { return Self.readOnlyError }
            if tracker.isDone(sequence) { return 0 }
            tracker.wait(for: sequence, reply)
            return nil
        }
    }

    // MARK: The side of the targets

    package func count(_ target: TargetID, durable: SequenceNumber) {
        lock.withLock {
            tracker.count(target, durable: durable)
            isCounting.store(true, ordering: .releasing)
        }
    }

    package func acknowledge(_ target: TargetID, durable: SequenceNumber) {
        send { $0.acknowledge(target, durable: durable) }
    }

    package func stopCounting(_ target: TargetID) { send { $0.stopCounting(target) } }

    /// The mount is about to go: nobody hears the replies, but what they refer to must not go first.
    package func abandon() {
        send { tracker in tracker.counting.flatMap { tracker.stopCounting($0) } }
        lock.withLock { while sending > 0 { hasSent.wait(lock) } }
    }

    /// That a target is stale cannot be written down: who waits for it must not be told that all is
    /// well, and cannot wait for ever. It goes on counting.
    package func fail() { send(errno: Self.ioError) { $0.takeAll() } }
    private static let ioError: Int32 = 5

    /// The pool was fenced: who waits, or comes to wait for a target that counted, hears that.
    package func refuse() {
        lock.withLock { isRefusing = true }
        send(errno: Self.readOnlyError) { $0.takeAll() }
    }
    private static let readOnlyError: Int32 = 30

    package var waitingCount: Int { lock.withLock { tracker.waitingCount } }

    private func send(
        errno: Int32 = 0, _ take: (inout AckTracker<PendingReply>) -> [PendingReply]
    ) {
        let replies = lock.withLock {
            let replies = take(&tracker)
            isCounting.store(!tracker.counting.isEmpty, ordering: .releasing)
            if !replies.isEmpty { sending += 1 }
            return replies
        }
        guard !replies.isEmpty else { return }
        for reply in replies { reply.send(reply.context, reply.value, errno) }
        lock.withLock {
            sending -= 1
            hasSent.broadcast()
        }
    }
}
