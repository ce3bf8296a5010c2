/// How much of a mirror's journal is applied before its images are synced and the journal's segments may go.
///
/// The more, the less often the same blocks go to the disk, and a burst costs two copies instead of three.
/// The less, the shorter is that sync, which who appends may have to wait for, and the sooner a mirror that was
/// killed has replayed its journal. So it is what the disk syncs in a second.
struct SettleBudget: Sendable {
    private static let targetNs: UInt64 = 1_000_000_000
    /// One sync says little of the next.
    private static let growth: UInt64 = 4

    private let leastBytes: UInt64
    private let mostBytes: UInt64
    private var wantedBytes: UInt64
    private var freeBytes = UInt64.max

    init(leastBytes: UInt64, mostBytes: UInt64) {
        self.leastBytes = leastBytes
        self.mostBytes = mostBytes
        wantedBytes = leastBytes
    }

    /// The journal takes no more than an eighth of what is free, but for a segment.
    var bytes: UInt64 { max(leastBytes, min(wantedBytes, mostBytes, freeBytes / 8)) }

    mutating func limit(freeBytes: UInt64) { self.freeBytes = freeBytes }

    /// The images were synced after so much was applied.
    mutating func settled(_ bytes: UInt64, tookNs: Int64) {
        // Less is mostly what each sync costs, whatever there is to do.
        guard bytes >= leastBytes else { return }
        let inTime = Double(bytes) * Double(Self.targetNs) / Double(max(tookNs, 1))
        let grown = min(wantedBytes, mostBytes) * Self.growth
        wantedBytes = max(leastBytes, min(UInt64(min(inTime, 0x1p62)), grown))
    }
}
