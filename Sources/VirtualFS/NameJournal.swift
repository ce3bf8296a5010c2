// Changes of names on their way to the catalog: many operations, one durable transaction.
//
// Invariants
//   N1 Operations are committed in the order they were queued, which is their sequence: what the
//      catalog holds is always a prefix of what was done.
//   N2 `waitDurable` returns only after a commit that holds everything queued before the call.
//   N3 After a failed commit nothing more is committed: every wait fails from then on. A commit
//      that a full store refused undid itself; its operations stay queued, at the front, and are
//      tried again.
//
//   idle ── queue ──► gathering ── waitDurable, or the delay ──► committing ──► idle
//                          ▲                                        ├─ store full ──► gathering
//                          └────────────────────────────────────────┘
//                                                                   └─ failed ──► latched

import BlockCore
import Pool
import Synchronization
import SystemIO

final class NameJournal: @unchecked Sendable {  // fields are atomic or under `lock`
    private let catalog: Catalog
    private let disk: Disk
    private let delayMs: Int64
    private let tickMs: Int64
    private let lock = Lock()
    private let changed = Condition()
    private var queue: [NameChange] = []
    private var lastSequence = SequenceNumber.zero
    private var queuedCount: UInt64 = 0
    private let durableCount = Atomic<UInt64>(0)
    private let hasFailed = Atomic<Bool>(false)
    private var isUrgent = false
    private var isStopping = false
    private var failure: FSError?
    /// What the full store said, as long as the last attempt met it.
    private var refusal: FSError?
    private var refusalCount: UInt64 = 0
    private var isTicking = false
    private var thread: WorkerThread?

    /// - Parameters:
    ///   - delayMs: how long an operation may wait for company.
    ///   - tickMs: how often the owner is called while it asked for that.
    init(catalog: Catalog, disk: Disk, delayMs: Int64 = 1000, tickMs: Int64 = 5000) {
        self.catalog = catalog
        self.disk = disk
        self.delayMs = delayMs
        self.tickMs = tickMs
    }

    /// - Parameter tick: called on the committer's thread, see ``startTicking()``; returns whether
    ///   it wants to be called again.
    func start(tick: @escaping @Sendable () -> Bool) {
        let worker = WorkerThread.start("doppel-names") { [self] in run(tick) }
        lock.withLock { thread = worker }
    }

    // MARK: Queueing

    /// - Returns: the ticket to wait for.
    @discardableResult
    func queue(_ changes: [NameChange], at sequence: SequenceNumber) -> UInt64 {
        lock.withLock {
            // Nothing to commit: a ticket of its own would never become durable.
            guard !changes.isEmpty else { return queuedCount }
            let wasEmpty = queue.isEmpty
            queue.append(contentsOf: changes)
            lastSequence = max(lastSequence, sequence)
            queuedCount += 1
            if wasEmpty { changed.broadcast() }
            return queuedCount
        }
    }

    /// Whether a further change makes sense.
    /// - Parameter isFreeing: it gives space back, so it is welcome on a full store too.
    /// - Throws: `.io` once a commit failed, `.noSpace` while the store is full.
    func check(isFreeing: Bool) throws(FSError) {
        try lock.withLock { () throws(FSError) in
            if let failure { throw failure }
            if !isFreeing, let refusal { throw refusal }
        }
    }

    // MARK: Waiting

    /// Returns at once, without a lock, when the ticket is durable and nothing ever failed.
    @inline(__always)
    func waitDurable(_ ticket: UInt64) throws(FSError) {
        if durableCount.load(ordering: .acquiring) >= ticket,
            !hasFailed.load(ordering: .acquiring)
        {
            return
        }
        try wait(for: ticket)
    }

    /// Waits for everything queued so far.
    func waitDurable() throws(FSError) { try wait(for: nil) }

    private func wait(for ticket: UInt64?) throws(FSError) {
        lock.lock()
        defer { lock.unlock() }
        let target = ticket ?? queuedCount
        let refusals = refusalCount
        while true {
            if let failure { throw failure }
            if durableCount.load(ordering: .relaxed) >= target { return }
            if let refusal, refusalCount != refusals { throw refusal }
            if isStopping && thread == nil {
                throw FSError(.io, "the pool is closed; this change was not committed")
            }
            isUrgent = true
            changed.broadcast()
            changed.wait(lock)
        }
    }

    // MARK: The thread

    /// Asks for the owner's `tick` from now on.
    func startTicking() {
        lock.withLock {
            guard !isTicking else { return }
            isTicking = true
            changed.broadcast()
        }
    }

    /// Commits what is queued and ends the thread.
    func stop() throws(FSError) {
        var failed: FSError?
        do throws(FSError) { try waitDurable() } catch { failed = error }
        end()?.join()
        if let failed { throw failed }
    }

    /// Ends the thread without waiting for it, and without a promise about what is queued.
    func abandon() { _ = end() }

    private func end() -> WorkerThread? {
        lock.withLock {
            isStopping = true
            changed.broadcast()
            defer { thread = nil }
            return thread
        }
    }

    private func run(_ tick: () -> Bool) {
        var nextTickNs = Int64.max
        lock.lock()
        while true {
            if isTicking, !isStopping {
                let now = disk.monotonic()
                nextTickNs = min(nextTickNs, now + tickMs * 1_000_000)
                if now >= nextTickNs {
                    // What asks while `tick` runs starts it again.
                    isTicking = false
                    lock.unlock()
                    let again = tick()
                    lock.lock()
                    if again { isTicking = true }
                    nextTickNs = .max
                    continue
                }
            }
            if queue.isEmpty {
                if isStopping { break }
                if isTicking {
                    let leftNs = nextTickNs - disk.monotonic()
                    _ = changed.wait(lock, timeoutMs: max(leftNs / 1_000_000, 1))
                } else {
                    changed.wait(lock)
                }
                continue
            }
            // Let others join, unless somebody waits already.
            if !isUrgent && !isStopping { _ = changed.wait(lock, timeoutMs: delayMs) }
            if !commitBatch(), isStopping || failure != nil { break }
        }
        // Nobody commits any more: who waits must hear it.
        thread = nil
        isStopping = true
        changed.broadcast()
        lock.unlock()
    }

    /// Commits all that is queued. The caller holds the lock, which is released meanwhile.
    private func commitBatch() -> Bool {
        let batch = queue
        let count = queuedCount
        let sequence = lastSequence
        queue = []
        isUrgent = false
        lock.unlock()
        var problem: (error: FSError, isRefusal: Bool)?
        do {
            try catalog.write { tx in
                try tx.apply(batch)
                try tx.setNamesSequence(sequence)
            }
        } catch {
            let isFull = (error as? CatalogError)?.isNoSpace ?? false
            let text = "the catalog did not take a change of names: \(error)"
            problem = (FSError(isFull ? .noSpace : .io, text), isFull)
        }
        lock.lock()
        defer { changed.broadcast() }
        guard let problem else {
            durableCount.store(count, ordering: .releasing)
            refusal = nil
            return true
        }
        if problem.isRefusal {
            queue = batch + queue
            refusal = problem.error
            refusalCount += 1
        } else {
            failure = problem.error
            hasFailed.store(true, ordering: .releasing)
        }
        return false
    }
}
