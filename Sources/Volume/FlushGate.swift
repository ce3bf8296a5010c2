import SystemIO

/// Many flushes, one sync: a caller joins the first flush that starts after its call.
///
///     idle ──run()──► running ──done──► idle
///      │               │  ▲ callers that came meanwhile wait; one of them runs the next
///      └──runAlone()──► running: as run(), but the caller's own flush, which nobody joins
final class FlushGate: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private let changed = Condition()
    private var started: UInt64 = 0
    private var finished: UInt64 = 0
    private var isRunning = false
    private var failures: [UInt64: VolumeError] = [:]

    func run(_ flush: () throws(VolumeError) -> Void) throws(VolumeError) {
        lock.lock()
        let mine = started + 1
        while finished < mine {
            if isRunning {
                changed.wait(lock)
                continue
            }
            isRunning = true
            started += 1
            let turn = started
            lock.unlock()
            var failure: VolumeError?
            do throws(VolumeError) { try flush() } catch { failure = error }
            lock.lock()
            isRunning = false
            finished = turn
            if let failure { failures = [turn: failure] }
            changed.broadcast()
        }
        // A later turn's failure is this caller's too: its data may be what was not kept.
        let failure = failures.first { $0.key >= mine }?.value
        lock.unlock()
        if let failure { throw failure }
    }

    /// Runs `body` while no flush is under way; a failure is the caller's alone.
    func runAlone(_ body: () throws(VolumeError) -> Void) throws(VolumeError) {
        lock.lock()
        while isRunning { changed.wait(lock) }
        isRunning = true
        lock.unlock()
        defer {
            lock.withLock {
                isRunning = false
                changed.broadcast()
            }
        }
        try body()
    }
}
