// Who waits for what. A request is done when every target that counts for it has come as far as the
// mode asks; a target that stops counting keeps nobody waiting any more.
//
//                 count                      isLost                       isInStep
//     (unknown) ────────► counting ───────────────────────► lost ─────────────────────► in step
//         ▲                   ▲                              │ ▲                          │ │
//         │ forget            └──────────────────────────────┼─┼──────────── count ───────┘ │
//         └──────────────────────────────────────────────────┘ └──────── isLost ────────────┘
//
//                degrade          block                            fail
//     counting   waited for       waited for                       waited for
//     lost       not any more     waited for; nothing new begins   EIO, also for what is new
//     in step    not yet          waited for                       waited for
//
// Invariants
//   A1 What a request waits for is decided by what was acknowledged, never by when it came.
//   A2 Nobody is answered for a write on the strength of a target of which it is not on record that it has
//      everything: after a loss of power such a target is not asked for what the local disk lost.
//   A3 Requests are in queues by what they wait for (their *class*); in a queue they are in the order of
//      their sequence, so that one look at its head tells whether anybody is done.

import BlockCore

/// - Waiter: what the owner knows a waiting request by.
package struct AckTracker<Waiter: Sendable>: Sendable {
    package enum Standing: Sendable, Hashable { case counting, lost, inStep }

    private struct Target: Sendable {
        var policy: TargetPolicy
        var standing: Standing
        /// It is written down that it lacks nothing that was answered (A2).
        var isOnRecord: Bool
        /// By ``AckPoint``.
        var levels: (received: SequenceNumber, written: SequenceNumber, durable: SequenceNumber)

        /// How far requests are served. What is flushed the local disk has, too.
        func level(_ point: AckPoint, _ kind: Kind) -> SequenceNumber {
            guard isOnRecord || kind.isFlush else { return .zero }
            return switch point {
            case .received: levels.received
            case .written: levels.written
            case .durable: levels.durable
            }
        }

        /// What a request has to wait for here; nil for nothing.
        func needed(_ kind: Kind) -> AckPoint? {
            let policy = policy.policy(for: kind.image)
            if standing != .counting, policy.onTimeout == .degrade { return nil }
            return kind.isFlush ? policy.mode.flushPoint : policy.mode.writePoint
        }

        /// How a request that comes now is to be treated.
        func reaction(for image: ImageID?) -> TimeoutReaction? {
            guard standing == .lost else { return nil }
            let policy = policy.policy(for: image)
            return policy.mode.isWaitedFor ? policy.onTimeout : nil
        }
    }

    /// What makes a class.
    private struct Kind: Sendable, Hashable {
        var isFlush: Bool
        /// nil for those that are as their targets' others.
        var image: ImageID?
    }

    private struct Waiting: Sendable {
        var sequence: SequenceNumber
        var waiter: Waiter
    }

    /// Those before `first` are done.
    private struct Queue: Sendable {
        let kind: Kind
        var items: ContiguousArray<Waiting> = []
        var first = 0
        /// Everything up to here is where this class needs it.
        var agreed = SequenceNumber(rawValue: .max)
        var isFailing = false

        var count: Int { items.count - first }

        mutating func insert(_ waiting: Waiting) {
            var index = items.count
            while index > first, items[index - 1].sequence > waiting.sequence { index -= 1 }
            items.insert(waiting, at: index)
        }

        mutating func takeFirst() -> Waiter {
            let waiter = items[first].waiter
            first += 1
            // Keeps its memory: in the steady state nothing is allocated.
            if first == items.count || first >= 1024 {
                items.removeFirst(first)
                first = 0
            }
            return waiter
        }
    }

    private var targets: [(id: TargetID, target: Target)] = []
    private var queues: [Queue]
    /// Where the two classes of an image begin that a target has otherwise than the rest.
    private var classes: [ImageID: Int] = [:]

    package init() {
        queues = [
            Queue(kind: Kind(isFlush: false, image: nil)),
            Queue(kind: Kind(isFlush: true, image: nil)),
        ]
    }

    // MARK: Requests

    /// - Returns: whether there is nothing to wait for (any more).
    package func isDone(
        _ sequence: SequenceNumber, isFlush: Bool = true, image: ImageID? = nil
    ) -> Bool {
        queues[index(isFlush, image)].agreed >= sequence
    }

    package mutating func wait(
        for sequence: SequenceNumber, isFlush: Bool = true, image: ImageID? = nil, _ waiter: Waiter
    ) {
        queues[index(isFlush, image)].insert(Waiting(sequence: sequence, waiter: waiter))
    }

    /// What a request that comes now meets: nil where it may begin.
    package func obstacle(for image: ImageID?) -> TimeoutReaction? {
        var result: TimeoutReaction?
        for (_, target) in targets {
            switch target.reaction(for: image) {
            case .fail: return .fail
            case .block: result = .block
            case .degrade, nil: break
            }
        }
        return result
    }

    /// - Returns: one whose wait is over; nil when there is none (any more).
    package mutating func takeDone() -> Waiter? {
        for index in queues.indices where queues[index].count > 0 {
            if queues[index].items[queues[index].first].sequence <= queues[index].agreed {
                return queues[index].takeFirst()
            }
        }
        return nil
    }

    /// - Returns: one that waits for a target that is lost, and is not to wait for it any longer.
    package mutating func takeFailed() -> Waiter? {
        for index in queues.indices where queues[index].isFailing && queues[index].count > 0 {
            return queues[index].takeFirst()
        }
        return nil
    }

    /// - Returns: one that waits for anything.
    package mutating func takeAny() -> Waiter? {
        for index in queues.indices where queues[index].count > 0 {
            return queues[index].takeFirst()
        }
        return nil
    }

    // MARK: Targets

    /// All that are waited for by somebody, or would be if they were in step.
    package var known: [TargetID] { targets.map(\.id).sorted() }
    /// nil: nobody waits for it.
    package func standing(of id: TargetID) -> Standing? {
        targets.first { $0.id == id }?.target.standing
    }
    package var waitingCount: Int { queues.reduce(0) { $0 + $1.count } }
    /// A write may have to wait.
    package var holdsWrites: Bool { queues.contains { !$0.kind.isFlush && $0.agreed < .last } }
    package var holdsFlushes: Bool { queues.contains { $0.kind.isFlush && $0.agreed < .last } }
    /// Some requests are held, or fail, before they begin.
    package var hasObstacles: Bool {
        targets.contains { _, target in
            target.standing == .lost
                && (target.reaction(for: nil).map { $0 != .degrade } ?? false
                    || target.policy.images.keys.contains {
                        target.reaction(for: $0).map { $0 != .degrade } ?? false
                    })
        }
    }
    /// Somebody who counts is asked for what only a flush of the target gives.
    package var needsDurable: Bool {
        targets.contains { _, target in
            queues.contains { target.needed($0.kind) == .durable }
        }
    }

    /// The target is waited for as `policy` says.
    package mutating func count(
        _ id: TargetID, _ policy: TargetPolicy, durable: SequenceNumber,
        as standing: Standing = .counting, isOnRecord: Bool = true
    ) {
        for image in policy.images.keys where classes[image] == nil {
            classes[image] = queues.count
            queues.append(Queue(kind: Kind(isFlush: false, image: image)))
            queues.append(Queue(kind: Kind(isFlush: true, image: image)))
        }
        let new = Target(
            policy: policy, standing: standing, isOnRecord: isOnRecord,
            levels: (durable, durable, durable))
        if let index = targets.firstIndex(where: { $0.id == id }) {
            targets[index].target = new
        } else {
            targets.append((id, new))
        }
        agree()
    }

    package mutating func acknowledge(
        _ id: TargetID, _ point: AckPoint, _ sequence: SequenceNumber
    ) {
        change(id) { target in
            target.levels.received = max(target.levels.received, sequence)
            if point >= .written { target.levels.written = max(target.levels.written, sequence) }
            if point == .durable { target.levels.durable = max(target.levels.durable, sequence) }
        }
    }

    /// The connection is gone: what the target had and did not confirm as durable it may have lost.
    package mutating func retract(_ id: TargetID) {
        change(id) { target in
            target.levels.received = target.levels.durable
            target.levels.written = target.levels.durable
        }
    }

    /// It is written down that it lacks nothing that was answered, or is about to be no more.
    package mutating func setOnRecord(_ id: TargetID, _ isSo: Bool) {
        change(id) { $0.isOnRecord = isSo }
    }

    /// It made no progress for too long; that it is stale is written down where that was due.
    package mutating func isLost(_ id: TargetID) { change(id) { $0.standing = .lost } }

    /// It is there again: who did not go on without it is served as before.
    package mutating func isInStep(_ id: TargetID) {
        change(id) { if $0.standing == .lost { $0.standing = .inStep } }
    }

    /// It is waited for in another way from now on: who waits already, too.
    package mutating func setPolicy(_ id: TargetID, _ policy: TargetPolicy) {
        change(id) { $0.policy = policy }
    }

    package mutating func forget(_ id: TargetID) {
        targets.removeAll { $0.id == id }
        agree()
    }

    // MARK: Classes

    private func index(_ isFlush: Bool, _ image: ImageID?) -> Int {
        let base = classes.isEmpty ? 0 : image.flatMap { classes[$0] } ?? 0
        return isFlush ? base + 1 : base
    }

    private mutating func change(_ id: TargetID, _ body: (inout Target) -> Void) {
        guard let index = targets.firstIndex(where: { $0.id == id }) else { return }
        body(&targets[index].target)
        agree()
    }

    private mutating func agree() {
        for index in queues.indices {
            let kind = queues[index].kind
            var agreed = SequenceNumber.last
            var isFailing = false
            for (_, target) in targets {
                if let point = target.needed(kind) {
                    agreed = min(agreed, target.level(point, kind))
                }
                if target.reaction(for: kind.image) == .fail { isFailing = true }
            }
            queues[index].agreed = agreed
            queues[index].isFailing = isFailing
        }
    }
}

extension SequenceNumber {
    fileprivate static var last: SequenceNumber { SequenceNumber(rawValue: .max) }
}
