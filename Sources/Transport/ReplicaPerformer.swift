import Replication
import SystemIO

/// A replica behind a server, with the thread that asks its target.
package final class ReplicaPerformer: @unchecked Sendable {  // fields are under `lock`
    package let replica: ServedReplica
    private let bell: Bell
    private let thread: WorkerThread

    /// Something to do, or not any more.
    private final class Bell: @unchecked Sendable {  // fields are under `lock`
        private let lock = Lock()
        private let changed = Condition()
        private var isRung = false
        private var isOver = false

        func ring() {
            lock.withLock {
                isRung = true
                changed.signal()
            }
        }
        func end() {
            lock.withLock {
                isOver = true
                changed.signal()
            }
        }
        /// - Returns: false when it is over.
        func wait() -> Bool {
            lock.lock()
            defer { lock.unlock() }
            while !isRung, !isOver { changed.wait(lock) }
            isRung = false
            return !isOver
        }
    }

    package init(name: String, target: any ReplicaTarget) {
        let bell = Bell()
        let replica = ServedReplica(
            name: name, target: target, random: { .random(in: .min ... .max) },
            wake: { bell.ring() })
        self.bell = bell
        self.replica = replica
        thread = WorkerThread.start("doppel-replica") {
            while bell.wait() { while replica.performNext() {} }
            while replica.performNext() {}
        }
    }

    /// Returns when all that was put in is done, and the target is let go of. Its connections have ended.
    package func stop() {
        bell.end()
        thread.join()
    }
}
