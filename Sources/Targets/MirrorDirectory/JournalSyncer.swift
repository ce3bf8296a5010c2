import BlockCore
import SystemIO

/// The thread that syncs a mirror's journal while more is appended, so that neither who appends nor who asks
/// for a flush waits for all of it. It only ever brings forward what a flush would do: one that fails here
/// has failed for whoever asks next.
final class JournalSyncer: @unchecked Sendable {  // fields are under `lock`
    /// Less is not worth a sync of its own.
    private static let leastBytes = 4 << 20

    private let lock = Lock()
    private let changed = Condition()
    private var unsyncedBytes = 0
    private var isSyncing = false
    private var isStopping = false
    private var confirmed: SequenceNumber?
    private var thread: WorkerThread?

    /// - Parameter sync: what a flush does; nil where it failed, or nothing can be said.
    init(_ sync: @escaping @Sendable () -> SequenceNumber?) {
        let worker = WorkerThread.start("doppel-journal") { [self] in run(sync) }
        lock.withLock { thread = worker }
    }

    var durableThrough: SequenceNumber? { lock.withLock { confirmed } }

    func appended(_ bytes: Int) {
        lock.withLock {
            unsyncedBytes += bytes
            if unsyncedBytes >= Self.leastBytes, !isSyncing { changed.broadcast() }
        }
    }

    private func run(_ sync: () -> SequenceNumber?) {
        lock.lock()
        while true {
            while unsyncedBytes < Self.leastBytes, !isStopping { changed.wait(lock) }
            if isStopping { break }
            unsyncedBytes = 0
            isSyncing = true
            lock.unlock()
            let through = sync()
            lock.lock()
            isSyncing = false
            if let through { confirmed = max(confirmed ?? through, through) }
            changed.broadcast()
        }
        lock.unlock()
    }

    /// The stream begins anew: what was said of it before does not hold any more. Returns when no sync is
    /// under way.
    func forget() {
        lock.withLock {
            while isSyncing { changed.wait(lock) }
            unsyncedBytes = 0
            confirmed = nil
        }
    }

    func stop() {
        let worker = lock.withLock { () -> WorkerThread? in
            isStopping = true
            changed.broadcast()
            defer { thread = nil }
            return thread
        }
        worker?.join()
    }
}
