// Changes of names on their way to the catalog: many operations, one durable transaction.
//
// Invariants
//   N1 Operations are committed in the order they were queued, which is their sequence: what the
//      catalog holds is always a prefix of what was done.
//   N2 `waitDurable` returns only after a commit that holds everything queued before the call.
//   N3 After a failed commit nothing more is committed: every wait fails from then on. A full
//      disk is no such failure: the batch is kept and goes first the next time somebody waits.

import BlockCore
import Pool
import SystemIO

final class NameJournal: @unchecked Sendable {  // fields are under `lock`
    enum Change: Sendable {
        case put(NodeRecord)
        case remove(NodeID)
    }

    private let catalog: Catalog
    private let delayMs: Int64
    private let lock = Lock()
    private let changed = Condition()
    private var queue: [Change] = []
    private var lastSequence = SequenceNumber.zero
    private var queuedCount: UInt64 = 0
    private var durableCount: UInt64 = 0
    private var isUrgent = false
    private var isHeldBack = false
    private var isStopping = false
    private var failure: String?
    /// Counts attempts that met a full disk, so that those who wait for one learn of it.
    private var fullCount: UInt64 = 0
    private var thread: WorkerThread?

    init(catalog: Catalog, delayMs: Int64 = 1000) {
        self.catalog = catalog
        self.delayMs = delayMs
    }

    func start() {
        let worker = WorkerThread.start("doppel-names") { [self] in run() }
        lock.withLock { thread = worker }
    }

    /// - Returns: the ticket to wait for.
    @discardableResult
    func queue(_ changes: [Change], at sequence: SequenceNumber) -> UInt64 {
        lock.withLock {
            queue.append(contentsOf: changes)
            lastSequence = max(lastSequence, sequence)
            queuedCount += 1
            if queue.count == changes.count { changed.broadcast() }
            return queuedCount
        }
    }

    func waitDurable(_ ticket: UInt64? = nil) throws(FSError) {
        lock.lock()
        defer { lock.unlock() }
        let target = ticket ?? queuedCount
        let full = fullCount
        while durableCount < target {
            if let failure { throw FSError(.io, "the catalog did not take a change: \(failure)") }
            if fullCount > full {
                throw FSError(.noSpace, "the store is full: names cannot be made durable")
            }
            isUrgent = true
            changed.broadcast()
            changed.wait(lock)
        }
    }

    /// Commits what is queued and ends the thread.
    func stop() throws(FSError) {
        var failed: FSError?
        do throws(FSError) { try waitDurable() } catch { failed = error }
        lock.lock()
        isStopping = true
        changed.broadcast()
        let worker = thread
        thread = nil
        lock.unlock()
        worker?.join()
        if let failed { throw failed }
    }

    private func run() {
        lock.lock()
        while true {
            // After a full disk the batch waits for somebody to ask for it.
            while (queue.isEmpty || isHeldBack) && !isUrgent && !isStopping { changed.wait(lock) }
            if queue.isEmpty {
                isUrgent = false
                if isStopping { break }
                continue
            }
            if isStopping && isHeldBack { break }
            // Let others join, unless somebody waits already.
            if !isUrgent && !isStopping { _ = changed.wait(lock, timeoutMs: delayMs) }
            let batch = queue
            let count = queuedCount
            let sequence = lastSequence
            queue = []
            isUrgent = false
            lock.unlock()
            var failed: String?
            var isFull = false
            do {
                try catalog.write { tx in
                    for change in batch {
                        switch change {
                        case .put(let node): try tx.upsertNode(node)
                        case .remove(let id): try tx.deleteNode(id)
                        }
                    }
                    try tx.setNamesSequence(sequence)
                }
            } catch {
                isFull = (error as? CatalogError)?.isNoSpace ?? false
                failed = "\(error)"
            }
            lock.lock()
            isHeldBack = isFull
            if isFull {
                queue = batch + queue
                fullCount += 1
            } else if let failed {
                failure = failure ?? failed
            } else if failure == nil {
                durableCount = count
            }
            changed.broadcast()
        }
        lock.unlock()
    }
}
