// Having a served pool for oneself for a while: to look into it, or to change its role.
//
//     asked ── no session has the pool ──► had ── the body returned ──► over
//       └── one has it, and is not to be ended ──► not had
//
// Whoever performs the replica's work stands still meanwhile, so that nothing else is asked of the pool.

import SystemIO

final class ReplicaTurn: @unchecked Sendable {  // fields are under `lock`, but for `endsSession`
    let endsSession: Bool
    private let lock = Lock()
    private let changed = Condition()
    private var isHad: Bool?
    private var isOver = false

    init(endsSession: Bool) { self.endsSession = endsSession }

    /// From who performs; returns when the turn is over.
    func give(_ isHad: Bool) {
        lock.lock()
        defer { lock.unlock() }
        self.isHad = isHad
        changed.broadcast()
        while isHad, !isOver { changed.wait(lock) }
    }

    /// - Returns: whether it is had.
    func wait() -> Bool {
        lock.lock()
        defer { lock.unlock() }
        while true {
            if let isHad { return isHad }
            changed.wait(lock)
        }
    }

    func end() {
        lock.withLock {
            isOver = true
            changed.broadcast()
        }
    }
}

extension ServedReplica {
    /// Runs `body` on this thread while no session has the pool, and none begins (E6).
    /// - Parameter why: a session that is there ends at once, and its connections hear this; what was received before
    ///   is done. nil: it stays, and the turn is not had.
    /// - Returns: nil where there is a session, or this replica is not used any more.
    package func inTurn<T>(endingSession why: String? = nil, _ body: () throws -> T) rethrows -> T?
    {
        let turn = ReplicaTurn(endsSession: why != nil)
        let (isTaken, ended) = lock.withLock { () -> (Bool, [ServedConnection]) in
            guard !isRetired else { return (false, []) }
            turns.append(turn)
            guard why != nil, let lanes = session?.lanes else { return (true, []) }
            session!.isEnding = true
            return (true, lanes.map(\.connection))
        }
        guard isTaken else { return nil }
        for connection in ended { connection.sayGoodbye(.sessionEnded, why ?? "") }
        wakeUp()
        guard turn.wait() else { return nil }
        defer { turn.end() }
        return try body()
    }
}
