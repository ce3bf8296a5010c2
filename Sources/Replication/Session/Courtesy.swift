// A resync makes way for guests. Where the pool is written while blocks are read and staged, one thread
// reads and stages a few at a time, and rests twice as long as it works: the guest finds a processor and a
// disk that are mostly free, and never busy for long. (A low priority alone does not do: a scheduler that is
// fair over time lets who slept go on to the next tick of the clock, milliseconds away.) Where nobody writes, it goes as fast as it can. (DRBD's resync controller and Linux's md do
// the same, down to far less: `c-min-rate`, `speed_limit_min`.)

import BlockCore

package struct Courtesy: Sendable, Hashable {
    /// Rest for each unit of work.
    private static let restFactor: Int64 = 2
    /// A chunk that took long, for a disk that was busy, is no reason to rest for ever: the stream waits
    /// meanwhile, too.
    private static let longestRestNs: Int64 = 50_000_000
    /// Who wrote just now is going to write again.
    private static let memoryNs: Int64 = 100_000_000

    private var lastSequence = SequenceNumber.zero
    private var lastWriteNs: Int64?
    package private(set) var restsUntilNs: Int64 = 0

    /// Somebody wrote to the pool a moment ago.
    package private(set) var isWritten = false

    package init() {}

    /// Before a chunk.
    package mutating func look(at sequence: SequenceNumber, nowNs: Int64) {
        if lastSequence != .zero, sequence != lastSequence { lastWriteNs = nowNs }
        lastSequence = sequence
        isWritten = lastWriteNs.map { nowNs - $0 < Self.memoryNs } ?? false
    }

    /// A chunk was worked off.
    package mutating func worked(forNs: Int64, nowNs: Int64) {
        guard isWritten else { return }
        restsUntilNs = nowNs + min(Self.restFactor * forNs, Self.longestRestNs)
    }
}
