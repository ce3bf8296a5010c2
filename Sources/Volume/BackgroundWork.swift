import BlockCore
import SystemIO

/// One thread that does what can wait: it is woken when there may be work, and asks for steps until
/// there is none.
final class BackgroundWork: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private let changed = Condition()
    private var isStopping = false
    private var isWoken = true
    private var isRetrying = false
    private var settling: Set<ImageID> = []
    private var thread: WorkerThread?

    /// - Parameter step: does a bounded piece of work; false when there is nothing left.
    func start(_ step: @escaping @Sendable () -> Bool) {
        let worker = WorkerThread.start("doppel-behind") { [self] in
            while true {
                lock.lock()
                while !isWoken && !isStopping {
                    if !isRetrying {
                        changed.wait(lock)
                    } else if !changed.wait(lock, timeoutMs: Self.retryMs) {
                        isWoken = true
                    }
                }
                isRetrying = false
                isWoken = false
                let stop = isStopping
                lock.unlock()
                if stop { return }
                while !shouldStop, step() {}
            }
        }
        lock.withLock { thread = worker }
    }

    var shouldStop: Bool { lock.withLock { isStopping } }

    private static let retryMs: Int64 = 5000

    /// Something waits for what nobody tells, such as space: the thread looks again after a while.
    func retryLater() { lock.withLock { isRetrying = true } }

    func wake() {
        lock.withLock {
            isWoken = true
            changed.signal()
        }
    }

    func wake(settling image: ImageID) {
        lock.withLock {
            settling.insert(image)
            isWoken = true
            changed.signal()
        }
    }

    func takeSettling() -> ImageID? { lock.withLock { settling.popFirst() } }

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
