import Replication
import SystemIO

/// A replica behind a server, with the thread that asks its target.
package final class ReplicaPerformer: Sendable {
    package let replica: ServedReplica
    private let bell: Bell
    private let thread: WorkerThread

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
