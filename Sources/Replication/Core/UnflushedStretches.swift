import BlockCore

/// What a target was given and did not say is durable, in stretches of the stream: how much it is, and since
/// when.
struct UnflushedStretches: Sendable {
    private struct Stretch: Sendable {
        var through: SequenceNumber
        var bytes: UInt64
        var sinceNs: Int64
    }

    // What is sent bit by bit is one stretch, so that there are never many.
    private static let stretchBytes: UInt64 = 1 << 20
    private static let stretchNs: Int64 = 50_000_000

    private var stretches: [Stretch] = []
    private(set) var bytes: UInt64 = 0

    var sinceNs: Int64? { stretches.first?.sinceNs }

    mutating func note(through: SequenceNumber, bytes: UInt64, nowNs: Int64) {
        self.bytes += bytes
        if let last = stretches.last, last.bytes < Self.stretchBytes,
            nowNs - last.sinceNs < Self.stretchNs
        {
            stretches[stretches.count - 1].through = through
            stretches[stretches.count - 1].bytes += bytes
        } else {
            stretches.append(Stretch(through: through, bytes: bytes, sinceNs: nowNs))
        }
    }

    /// Stretches that ended at or before `through` are durable.
    mutating func remove(through: SequenceNumber) {
        let count = stretches.prefix { $0.through <= through }.count
        bytes -= stretches[..<count].reduce(0) { $0 + $1.bytes }
        stretches.removeFirst(count)
    }

    mutating func removeAll() {
        stretches.removeAll(keepingCapacity: true)
        bytes = 0
    }
}
