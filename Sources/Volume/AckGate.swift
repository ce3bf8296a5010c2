// Where requests wait for targets, when the local disk has done its part.
//
//   write    changed here ──► finishWrite ──► done: replied, or parked
//   flush    begin ──► the targets are asked for it ──► local sync ──► finish ──► the same
//   parked   ── a target's acknowledgement, or none is waited for any more ──► replied, by that thread
//
// Nobody sleeps here: a parked request is a few words in a table, so a slow target holds no thread of
// the mount. Where no target asks a request to wait, each of these calls is one load.
//
// Before a change begins, `mustHold` and `obstacle` tell whether a target that is lost keeps it from
// beginning (`on-timeout` block and fail), or one that must not fall further behind (`on-rpo`).

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

extension PendingReply {
    /// For replies that carry more than a number. Costs an allocation, and must be sent.
    package init(_ body: @escaping @Sendable (_ errno: Int32) -> Void) {
        let box = Unmanaged.passRetained(ReplyBox(body))
        self.init(context: UInt(bitPattern: box.toOpaque())) { context, _, errno in
            let box = Unmanaged<ReplyBox>.fromOpaque(
                UnsafeRawPointer(bitPattern: context).unsafelyUnwrapped
            ).takeRetainedValue()
            box.body(errno)
        }
    }
}

private final class ReplyBox: Sendable {
    let body: @Sendable (Int32) -> Void
    init(_ body: @escaping @Sendable (Int32) -> Void) { self.body = body }
}

package final class AckGate: @unchecked Sendable {  // all but the atomics is under `lock`
    private let flushesWait = Atomic<Bool>(false)
    private let writesWait = Atomic<Bool>(false)
    private let hasObstacles = Atomic<Bool>(false)
    private let lock = Lock()
    private var tracker = AckTracker<PendingReply>()
    /// Of targets that must not fall further behind; those that let everything begin have none.
    private var pacers: [TargetID: Pacer] = [:]
    private let hasSent = Condition()
    /// Threads that are replying to requests they took out of the table.
    private var sending = 0
    private var isRefusing = false
    private var isHolding = false
    private var ask: (@Sendable (SequenceNumber) -> Void)?
    private var needsAsking = false

    package init() {}

    /// - Parameter ask: tells the targets that count that somebody waits until everything up to here
    ///   is durable; called from the threads that flush, so it must not block.
    package func attach(ask: @escaping @Sendable (SequenceNumber) -> Void) {
        lock.withLock { self.ask = ask }
    }

    // MARK: The side of a flush

    /// - Parameter sequence: everything that the flush covers.
    /// - Returns: what ``finish(_:of:_:)`` needs; nil when no target is waited for.
    @inline(__always)
    package func begin(_ sequence: @autoclosure () -> SequenceNumber) -> SequenceNumber? {
        guard flushesWait.load(ordering: .acquiring) else { return nil }
        let sequence = sequence()
        lock.withLock { needsAsking ? ask : nil }?(sequence)
        return sequence
    }

    /// Replies now, or when the targets hold what the flush covers.
    /// - Parameter image: nil for a folder's.
    @inline(__always)
    package func finish(
        _ sequence: SequenceNumber?, of image: ImageID? = nil, _ reply: PendingReply
    ) {
        guard let sequence else { return reply.send(reply.context, reply.value, 0) }
        finish(sequence, isFlush: true, image, reply)
    }

    // MARK: The side of a write

    /// Replies now, or when the targets hold the change at `sequence` as their modes ask.
    @inline(__always)
    package func finishWrite(
        _ sequence: @autoclosure () -> SequenceNumber, of image: ImageID, _ reply: PendingReply
    ) {
        guard writesWait.load(ordering: .acquiring) else {
            return reply.send(reply.context, reply.value, 0)
        }
        finish(sequence(), isFlush: false, image, reply)
    }

    private func finish(
        _ sequence: SequenceNumber, isFlush: Bool, _ image: ImageID?, _ reply: PendingReply
    ) {
        let errno: Int32? = lock.withLock {
            if isRefusing { return Self.readOnlyError }
            if tracker.isDone(sequence, isFlush: isFlush, image: image) { return 0 }
            if hasObstacles.load(ordering: .relaxed), tracker.obstacle(for: image) == .fail {
                return Self.ioError
            }
            tracker.wait(for: sequence, isFlush: isFlush, image: image, reply)
            return nil
        }
        if let errno { reply.send(reply.context, reply.value, errno) }
    }

    // MARK: Before anything begins

    /// What a change of this image, or its flush, meets now: nil where it may begin.
    @inline(__always)
    package func obstacle(for image: ImageID?) -> TimeoutReaction? {
        guard hasObstacles.load(ordering: .relaxed) else { return nil }
        return lock.withLock { isHolding ? .block : tracker.obstacle(for: image) }
    }

    /// Until it is told otherwise nothing new begins, so far as somebody asks before.
    package func hold(_ isHolding: Bool) {
        lock.withLock {
            self.isHolding = isHolding
            publishObstacles()
        }
    }

    /// Whether a change of so many bytes is not to begin now; one that may counts as begun.
    /// - Parameter nowNs: of a clock that never goes back.
    @inline(__always)
    package func mustHold(
        _ bytes: Int, of image: ImageID, nowNs: @autoclosure () -> Int64
    ) -> Bool {
        guard hasObstacles.load(ordering: .relaxed) else { return false }
        return mustHold(bytes, of: image, at: nowNs())
    }

    private func mustHold(_ bytes: Int, of image: ImageID, at nowNs: Int64) -> Bool {
        lock.withLock {
            if isHolding || tracker.obstacle(for: image) == .block { return true }
            for target in pacers.keys {
                guard pacers[target]!.admits(nowNs: nowNs) else { return true }
            }
            for target in pacers.keys { pacers[target]!.take(bytes) }
            return false
        }
    }

    // MARK: The side of the targets

    /// Changes begin no faster than that, as far as this target is concerned.
    package func setPace(_ pace: Pace, for target: TargetID, nowNs: Int64) {
        lock.withLock {
            var pacer = pacers[target] ?? Pacer()
            pacer.set(pace, nowNs: nowNs)
            pacers[target] = pacer.isFree ? nil : pacer
            publishObstacles()
        }
    }

    private func publishObstacles() {
        hasObstacles.store(
            isHolding || tracker.hasObstacles || !pacers.isEmpty, ordering: .releasing)
    }

    package func count(
        _ target: TargetID, _ policy: TargetPolicy = TargetPolicy(AckPolicy(.flush)),
        durable: SequenceNumber, as standing: AckTracker<PendingReply>.Standing = .counting,
        isOnRecord: Bool = true
    ) {
        change {
            $0.count(target, policy, durable: durable, as: standing, isOnRecord: isOnRecord)
        }
        answer()
    }

    /// See ``AckTracker/setOnRecord(_:_:)``. Whose wait is over by that hears of it by ``answer()``.
    package func setOnRecord(_ target: TargetID, _ isSo: Bool) {
        lock.withLock { tracker.setOnRecord(target, isSo) }
    }

    /// Whose wait is over by that hears of it by ``answer()``.
    package func acknowledge(
        _ target: TargetID, _ point: AckPoint = .durable, _ sequence: SequenceNumber
    ) {
        lock.withLock { tracker.acknowledge(target, point, sequence) }
    }

    /// See ``AckTracker/retract(_:)``.
    package func retract(_ target: TargetID) { lock.withLock { tracker.retract(target) } }

    /// Replies to those whose wait is over.
    package func answer() { send { $0.takeDone() } }

    /// The target made no progress for too long: everybody is treated as their `on-timeout` says.
    package func isLost(_ target: TargetID) {
        change { $0.isLost(target) }
        send(errno: Self.ioError) { $0.takeFailed() }
        answer()
    }

    /// See ``AckTracker/isInStep(_:)``.
    package func isInStep(_ target: TargetID) {
        change { $0.isInStep(target) }
        answer()
    }

    /// It is waited for in another way: who waits already hears of it by ``answer()``.
    package func setPolicy(_ target: TargetID, _ policy: TargetPolicy) {
        change { $0.setPolicy(target, policy) }
    }

    /// Nobody waits for it any more.
    package func stopCounting(_ target: TargetID) {
        change { $0.forget(target) }
        answer()
    }

    /// The mount is about to go: nobody hears the replies, but what they refer to must not go first.
    package func abandon() {
        change { tracker in for target in tracker.known { tracker.forget(target) } }
        answer()
        lock.withLock { while sending > 0 { hasSent.wait(lock) } }
    }

    /// That a target is stale cannot be written down: who waits for it must not be told that all is
    /// well, and cannot wait for ever. It goes on counting.
    package func fail() { send(errno: Self.ioError) { $0.takeAny() } }
    private static let ioError: Int32 = 5

    /// The pool was fenced: who waits, or comes to wait for a target that counted, hears that.
    package func refuse() {
        lock.withLock { isRefusing = true }
        send(errno: Self.readOnlyError) { $0.takeAny() }
    }
    private static let readOnlyError: Int32 = 30

    /// See ``AckTracker/standing(of:)``.
    package func standing(of target: TargetID) -> AckTracker<PendingReply>.Standing? {
        lock.withLock { tracker.standing(of: target) }
    }
    package var waitingCount: Int { lock.withLock { tracker.waitingCount } }

    private func change(_ body: (inout AckTracker<PendingReply>) -> Void) {
        lock.withLock {
            body(&tracker)
            flushesWait.store(tracker.holdsFlushes, ordering: .releasing)
            writesWait.store(tracker.holdsWrites, ordering: .releasing)
            publishObstacles()
            needsAsking = tracker.needsDurable
        }
    }

    private func send(
        errno: Int32 = 0, _ take: (inout AckTracker<PendingReply>) -> PendingReply?
    ) {
        // Trivial values: nothing to destroy.
        withUnsafeTemporaryAllocation(of: PendingReply.self, capacity: 32) { replies in
            while true {
                var count = 0
                lock.withLock {
                    while count < replies.count, let reply = take(&tracker) {
                        replies.initializeElement(at: count, to: reply)
                        count += 1
                    }
                    if count > 0 { sending += 1 }
                }
                guard count > 0 else { return }
                for reply in replies[..<count] { reply.send(reply.context, reply.value, errno) }
                lock.withLock {
                    sending -= 1
                    if sending == 0 { hasSent.broadcast() }
                }
            }
        }
    }
}
