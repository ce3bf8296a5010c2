/// Something to do, or not any more: whoever finds it rings, and a thread waits for it. Rings that nobody waited
/// for are one.
package final class Bell: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private let changed = Condition()
    private var isRung = false
    private var isOver = false

    package init() {}

    package func ring() {
        lock.withLock {
            isRung = true
            changed.signal()
        }
    }

    package func end() {
        lock.withLock {
            isOver = true
            changed.signal()
        }
    }

    /// Returns when it is rung, or was since the last call, at the latest after `timeoutMs`.
    /// - Returns: false when it is over.
    package func wait(timeoutMs: Int64? = nil) -> Bool {
        lock.withLock {
            while !isRung, !isOver {
                guard let timeoutMs else {
                    changed.wait(lock)
                    continue
                }
                if !changed.wait(lock, timeoutMs: timeoutMs) { break }
            }
            isRung = false
            return !isOver
        }
    }
}
