import Synchronization

/// How fast a connection's line is, while more waits for it than it takes. Told by the thread that writes to it, read
/// by any.
package final class LineRate: Sendable {
    /// A line that keeps up for so long is not slow any more.
    package static let memoryNs: Int64 = 30_000_000_000
    private let rate = Atomic<UInt64>(0)
    private let notedNs = Atomic<Int64>(0)

    package init() {}

    /// So much went while something waited all the time.
    package func note(_ bytes: Int, inNs: Int64, nowNs: Int64) {
        guard bytes > 0, inNs > 0 else { return }
        let seen = Double(bytes) * 1e9 / Double(inNs)
        // One stretch says as much as all before it: lines change.
        let known = current(nowNs: nowNs).map { (Double($0) + seen) / 2 } ?? seen
        rate.store(UInt64(max(known, 1)), ordering: .relaxed)
        notedNs.store(nowNs, ordering: .releasing)
    }

    /// - Returns: bytes a second; nil where it keeps up.
    package func current(nowNs: Int64) -> UInt64? {
        let rate = rate.load(ordering: .relaxed)
        guard rate > 0, nowNs - notedNs.load(ordering: .acquiring) < Self.memoryNs else {
            return nil
        }
        return rate
    }
}
