import BlockCore

/// What a target was given and did not confirm, in stretches of the stream: how much it is, and since when.
struct SentStretches: Sendable {
    private struct Stretch: Sendable {
        var through: SequenceNumber
        var bytes: UInt64
        var sinceNs: Int64
    }

    private static let stretchBytes: UInt64 = 1 << 20
    private let stretchNs: Int64

    private var stretches: [Stretch] = []
    private(set) var bytes: UInt64 = 0

    /// - Parameter stretchNs: what is sent bit by bit in so long is one stretch, so that there are never many.
    init(stretchNs: Int64 = 50_000_000) { self.stretchNs = stretchNs }

    var sinceNs: Int64? { stretches.first?.sinceNs }

    mutating func note(through: SequenceNumber, bytes: UInt64, nowNs: Int64) {
        self.bytes += bytes
        if let last = stretches.last, last.bytes < Self.stretchBytes,
            nowNs - last.sinceNs < stretchNs
        {
            stretches[stretches.count - 1].through = through
            stretches[stretches.count - 1].bytes += bytes
        } else {
            stretches.append(Stretch(through: through, bytes: bytes, sinceNs: nowNs))
        }
    }

    /// Stretches that ended at or before `through` are confirmed.
    /// - Returns: since when the first of them was not; nil where there were none.
    @discardableResult
    mutating func remove(through: SequenceNumber) -> Int64? {
        let sinceNs = stretches.first?.sinceNs
        let count = stretches.prefix { $0.through <= through }.count
        bytes -= stretches[..<count].reduce(0) { $0 + $1.bytes }
        stretches.removeFirst(count)
        return count > 0 ? sinceNs : nil
    }

    mutating func removeAll() {
        stretches.removeAll(keepingCapacity: true)
        bytes = 0
    }
}
