import Replication
import SystemIO

/// A target that may hang, and somebody who does not want to hang with it. Each call runs on a thread of its
/// own; one that does not come back in time is left behind, and lets go of the target when it does.
package final class PatientTarget: @unchecked Sendable {  // fields are under `lock`
    private let target: any ReplicaTarget
    private let limitMs: Int64
    private let isCancelled: @Sendable () -> Bool
    private let disk: Disk
    private let lock = Lock()
    private var isLeft = false

    /// - Parameters:
    ///   - limitMs: of one call.
    ///   - isCancelled: nobody waits for any of it any more.
    package init(
        _ target: any ReplicaTarget, limitMs: Int64, disk: Disk,
        isCancelled: @escaping @Sendable () -> Bool
    ) {
        self.target = target
        self.limitMs = limitMs
        self.disk = disk
        self.isCancelled = isCancelled
    }

    private final class Answer<T: Sendable>: @unchecked Sendable {  // `result` is under `lock`
        let lock = Lock()
        let changed = Condition()
        var result: Result<T, TargetError>?
    }

    package func call<T: Sendable>(
        _ body: @escaping @Sendable (any ReplicaTarget) throws(TargetError) -> T
    ) throws(TargetError) -> T {
        guard !lock.withLock({ isLeft }) else { throw TargetError(.absent, "it does not answer") }
        let answer = Answer<T>()
        let worker = WorkerThread.start("doppel-ask") { [self] in
            let result = Result { () throws(TargetError) in try body(target) }
            answer.lock.withLock {
                answer.result = result
                answer.changed.broadcast()
            }
            if lock.withLock({ isLeft }) { target.disconnect() }
        }
        let deadlineNs = disk.monotonic() + limitMs * 1_000_000
        answer.lock.lock()
        while answer.result == nil, disk.monotonic() < deadlineNs, !isCancelled() {
            _ = answer.changed.wait(answer.lock, timeoutMs: 20)
        }
        let result = answer.result
        // Under both: who answers now either is heard, or knows that nobody listens.
        if result == nil { lock.withLock { isLeft = true } }
        answer.lock.unlock()
        guard let result else {
            throw TargetError(.absent, "it does not answer within \(limitMs) ms")
        }
        worker.join()
        return try result.get()
    }

    package func disconnect() { try? call { $0.disconnect() } }
}
