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
    private var restsUntilNs: Int64 = 0
    private var sequenceSeen = SequenceNumber.zero
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

    // MARK: Making way

    private static let restFactor: Int64 = 4
    private static let longestRestNs: Int64 = 1_000_000_000

    /// A piece of work that can wait was done; where the pool was changed since the one before, the next has
    /// to wait longer than it took.
    func rest(after nowNs: Int64, workedNs: Int64, at sequence: SequenceNumber) {
        lock.withLock {
            if sequence != sequenceSeen {
                restsUntilNs = nowNs + min(Self.restFactor * workedNs, Self.longestRestNs)
            }
            sequenceSeen = sequence
        }
    }

    /// - Returns: false when there may be something else to do first.
    func waitOutRest(_ clock: () -> Int64) -> Bool {
        lock.withLock {
            while !isStopping {
                let leftNs = restsUntilNs - clock()
                guard leftNs > 0 else { return true }
                if isWoken {
                    isWoken = false
                    return false
                }
                _ = changed.wait(lock, timeoutMs: leftNs / 1_000_000 + 1)
            }
            return false
        }
    }

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
