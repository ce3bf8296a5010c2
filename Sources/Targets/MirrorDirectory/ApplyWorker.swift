import Replication
import SystemIO

/// The thread that applies what is durable in a mirror's journal, and settles it when nothing more comes.
final class ApplyWorker: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private let changed = Condition()
    private var isWoken = true
    private var isStopping = false
    private var thread: WorkerThread?

    init(_ pool: MirrorPool) {
        let worker = WorkerThread.start("doppel-apply") { [self] in run(pool) }
        lock.withLock { thread = worker }
    }

    func wake() {
        lock.withLock {
            isWoken = true
            changed.signal()
        }
    }

    private var shouldStop: Bool { lock.withLock { isStopping } }

    private func run(_ pool: MirrorPool) {
        var isSettled = false
        while let isWork = waitForWork(idleMs: isSettled ? nil : pool.options.settleIdleMs) {
            // A failure is told to whoever appends next.
            do throws(TargetError) {
                if !isWork {
                    isSettled = true
                    try pool.settle()
                }
                while !shouldStop, try pool.applyStep() { isSettled = false }
            } catch {
                pool.log.error("applying the journal of \(pool.store.path): \(error)")
            }
        }
    }

    /// - Returns: false when nothing came for so long; nil at the end.
    private func waitForWork(idleMs: Int64?) -> Bool? {
        lock.withLock {
            while !isWoken, !isStopping {
                guard let idleMs else {
                    changed.wait(lock)
                    continue
                }
                if !changed.wait(lock, timeoutMs: idleMs) { break }
            }
            defer { isWoken = false }
            return isStopping ? nil : isWoken
        }
    }

    func stop() {
        lock.lock()
        isStopping = true
        changed.signal()
        let worker = thread
        thread = nil
        lock.unlock()
        worker?.join()
    }
}
