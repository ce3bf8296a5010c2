import BlockCore
import SystemIO

/// Syncs a mirror's journal while more is appended, so that neither who appends nor who asks for a flush waits
/// for all of it. It only ever brings forward what a flush would do: a sync that fails here has failed for
/// whoever asks next.
final class JournalSyncer: @unchecked Sendable {  // fields are under `lock`
    /// Less is not worth a sync of its own.
    static let leastBytes = 4 << 20

    private let sync: @Sendable () -> SequenceNumber?
    private let lock = Lock()
    private let changed = Condition()
    private var unsyncedBytes = 0
    private var isSyncing = false
    private var isStopping = false
    private var confirmed: SequenceNumber?
    private var thread: WorkerThread?

    /// - Parameters:
    ///   - onThread: otherwise nothing happens but by ``step()``.
    ///   - sync: what a flush does; nil where it failed, or nothing can be said.
    init(onThread: Bool = true, _ sync: @escaping @Sendable () -> SequenceNumber?) {
        self.sync = sync
        guard onThread else { return }
        let worker = WorkerThread.start("doppel-journal") { [self] in run() }
        lock.withLock { thread = worker }
    }

    /// Up to where what was appended is durable, so far as was heard; nil: nothing was.
    var durableThrough: SequenceNumber? { lock.withLock { confirmed } }

    func appended(_ bytes: Int) {
        lock.withLock {
            unsyncedBytes += bytes
            if unsyncedBytes >= Self.leastBytes, !isSyncing { changed.broadcast() }
        }
    }

    private func run() {
        lock.lock()
        while !isStopping {
            if unsyncedBytes >= Self.leastBytes { syncLocked() } else { changed.wait(lock) }
        }
        lock.unlock()
    }

    /// - Returns: false when there is nothing to sync.
    func step() -> Bool {
        lock.withLock {
            guard unsyncedBytes > 0 else { return false }
            syncLocked()
            return true
        }
    }

    /// Under `lock`, which is let go of meanwhile.
    private func syncLocked() {
        unsyncedBytes = 0
        isSyncing = true
        lock.unlock()
        let through = sync()
        lock.lock()
        isSyncing = false
        if let through { confirmed = max(confirmed ?? through, through) }
        changed.broadcast()
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
