import Replication
import SystemIO

/// Fetches the next things while one is used: both ends of a copy are busy at a time.
enum CloneAhead {
    private static let depth = 2

    /// Shared by the thread that fetches and the one that uses. Unchecked, for the compiler knows nothing of `lock`,
    /// under which every `var` is read and changed.
    private final class Queue<Item: Sendable>: @unchecked Sendable {
        let lock = Lock()
        let changed = Condition()
        var items: [Item] = []
        var failure: TargetError?
        var hasAll = false
        var isOver = false
    }

    /// - Parameters:
    ///   - fetch: on a thread of its own, in order.
    ///   - use: on the caller's, in the same order.
    static func run<Part: Sendable, Item: Sendable>(
        _ parts: [Part], fetch: @escaping @Sendable (Part) throws(TargetError) -> Item,
        use: (Part, Item) throws(TargetError) -> Void
    ) throws(TargetError) {
        let queue = Queue<Item>()
        let worker = WorkerThread.start("doppel-fetch") {
            for part in parts {
                let result = Result { () throws(TargetError) in try fetch(part) }
                queue.lock.lock()
                defer { queue.lock.unlock() }
                switch result {
                case .success(let item): queue.items.append(item)
                case .failure(let error): queue.failure = error
                }
                queue.changed.broadcast()
                while queue.items.count >= depth, !queue.isOver { queue.changed.wait(queue.lock) }
                if queue.isOver || queue.failure != nil { break }
            }
            queue.lock.withLock {
                queue.hasAll = true
                queue.changed.broadcast()
            }
        }
        defer {
            queue.lock.withLock {
                queue.isOver = true
                queue.changed.broadcast()
            }
            worker.join()
        }
        for part in parts {
            queue.lock.lock()
            while queue.items.isEmpty, queue.failure == nil { queue.changed.wait(queue.lock) }
            let item = queue.items.isEmpty ? nil : queue.items.removeFirst()
            let failure = queue.failure
            queue.changed.broadcast()
            queue.lock.unlock()
            guard let item else { throw failure ?? TargetError(.io, "nothing was fetched") }
            try use(part, item)
        }
    }
}
