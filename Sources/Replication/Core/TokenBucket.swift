import BlockCore

/// Lets so many bytes through in a second, and what is asked for in one go: who took much waits after
/// it, not before.
package struct TokenBucket: Sendable, Hashable {
    package let bytesPerSecond: UInt64
    /// What was let through is paid for then.
    private var paidAtNs: Int64 = 0

    /// What was not used is lost after this time: a long pause is no licence for a burst.
    private static let memoryNs: Int64 = 100_000_000

    package init(bytesPerSecond: UInt64) { self.bytesPerSecond = max(bytesPerSecond, 1) }

    /// - Returns: nil where they may pass; otherwise they do not, and may be asked for again after so
    ///   long, in nanoseconds.
    package mutating func take(_ bytes: UInt64, nowNs: Int64) -> Int64? {
        if paidAtNs > nowNs { return paidAtNs - nowNs }
        _ = charge(bytes, nowNs: nowNs)
        return nil
    }

    /// For what has passed already: it counts at once, so that who comes first is served first.
    /// - Parameter mostNs: no debt is longer; the rest of it is forgiven.
    /// - Returns: when it is paid for, in nanoseconds of the same clock; not later than `nowNs` where nobody need wait.
    package mutating func charge(_ bytes: UInt64, nowNs: Int64, mostNs: Int64 = .max) -> Int64 {
        let costNs = Double(bytes) * 1e9 / Double(bytesPerSecond)
        paidAtNs = max(paidAtNs, nowNs - Self.memoryNs) + Int64(min(costNs, 1e15))
        if mostNs < .max { paidAtNs = min(paidAtNs, nowNs + mostNs) }
        return paidAtNs
    }

    /// Blocks for about a twentieth of a second.
    package var chunkBlocks: UInt64 {
        max(bytesPerSecond / 20 / Geometry.blockSizeBytes, 1)
    }
}
