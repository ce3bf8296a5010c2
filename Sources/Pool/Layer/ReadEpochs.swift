import Synchronization
import SystemIO

/// Lets a writer wait until every read that was under way has ended, at the price of two atomic
/// adds a read. A merge uses it before it punches a hole under data that readers may have found.
package final class ReadEpochs: Sendable {
    private let parity = Atomic<Int>(0)
    private let even = Atomic<Int>(0)
    private let odd = Atomic<Int>(0)
    private let synchronizing = Lock()

    package init() {}

    @inline(__always)
    package func enter() -> Int {
        while true {
            let now = parity.load(ordering: .sequentiallyConsistent)
            count(now, 1)
            if parity.load(ordering: .sequentiallyConsistent) == now { return now }
            count(now, -1)
        }
    }

    @inline(__always)
    package func leave(_ ticket: Int) { count(ticket, -1) }

    @inline(__always)
    private func count(_ parity: Int, _ change: Int) {
        if parity == 0 {
            even.add(change, ordering: .sequentiallyConsistent)
        } else {
            odd.add(change, ordering: .sequentiallyConsistent)
        }
    }

    private func readers(of parity: Int) -> Int {
        parity == 0
            ? even.load(ordering: .sequentiallyConsistent)
            : odd.load(ordering: .sequentiallyConsistent)
    }

    /// Returns when every reader that entered before the call has left.
    package func synchronize() {
        synchronizing.withLock {
            let old = parity.load(ordering: .sequentiallyConsistent)
            parity.store(1 - old, ordering: .sequentiallyConsistent)
            var waited: UInt32 = 1
            while readers(of: old) != 0 {
                Pause.microseconds(waited)
                waited = min(waited * 2, 500)
            }
        }
    }
}
