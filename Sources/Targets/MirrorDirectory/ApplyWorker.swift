import Replication
import SystemIO

/// The thread that applies what is durable in a mirror's journal.
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
        while true {
            lock.lock()
            while !isWoken && !isStopping { changed.wait(lock) }
            isWoken = false
            let stop = isStopping
            lock.unlock()
            if stop { return }
            // A failure is told to whoever appends next.
            do throws(TargetError) { while !shouldStop, try pool.applyStep() {} } catch {
                pool.log.error("applying the journal of \(pool.store.path): \(error)")
            }
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
