import Synchronization

/// What a session has done since it was made; for status, which reads it from any thread.
package final class SessionTally: Sendable {
    /// Held against the target by hash.
    let compared = Atomic<UInt64>(0)
    /// Of these, those that the target could not read back as they were written.
    let rotten = Atomic<UInt64>(0)
    /// Given to the target as it came.
    let sentBytes = Atomic<UInt64>(0)
    /// Given to the target in stagings, with the records' headers.
    let stagedBytes = Atomic<UInt64>(0)

    package struct Figures: Sendable, Hashable {
        package var comparedBlocks: UInt64 = 0
        package var rottenBlocks: UInt64 = 0
        package var sentBytes: UInt64 = 0
        package var stagedBytes: UInt64 = 0
        package init() {}

        package static func + (one: Figures, other: Figures) -> Figures {
            var sum = one
            sum.comparedBlocks += other.comparedBlocks
            sum.rottenBlocks += other.rottenBlocks
            sum.sentBytes += other.sentBytes
            sum.stagedBytes += other.stagedBytes
            return sum
        }
    }

    package var figures: Figures {
        var figures = Figures()
        figures.comparedBlocks = compared.load(ordering: .relaxed)
        figures.rottenBlocks = rotten.load(ordering: .relaxed)
        figures.sentBytes = sentBytes.load(ordering: .relaxed)
        figures.stagedBytes = stagedBytes.load(ordering: .relaxed)
        return figures
    }
}
