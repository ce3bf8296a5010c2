import SystemIO

/// A few threads that read for a session while its own thread stages. With none of them, work is done
/// when it is asked for, by who asks.
final class Readers: @unchecked Sendable {  // fields are under `lock`
    package typealias Work = @Sendable () -> Void

    private let lock = Lock()
    private let arrived = Condition()
    private var queue: [Work] = []
    private var isEnding = false
    private var threads: [WorkerThread] = []

    init(count: Int, name: String) {
        threads = (0..<count).map { number in
            WorkerThread.start("\(name)-r\(number)") { [self] in run() }
        }
    }

    func begin(_ work: @escaping Work) {
        guard !threads.isEmpty else { return work() }
        lock.withLock {
            queue.append(work)
            arrived.signal()
        }
    }

    private func run() {
        var priority = ThreadPriority(returns: false)
        priority.set(bulk: true)
        while let work = next() { work() }
    }

    private func next() -> Work? {
        lock.lock()
        defer { lock.unlock() }
        while queue.isEmpty {
            if isEnding { return nil }
            arrived.wait(lock)
        }
        return queue.removeFirst()
    }

    /// Returns when all that was begun is done.
    func end() {
        lock.withLock {
            isEnding = true
            arrived.broadcast()
        }
        for thread in threads { thread.join() }
        threads = []
    }
}
