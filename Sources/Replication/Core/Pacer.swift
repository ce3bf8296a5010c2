/// How fast changes may begin.
package enum Pace: Sendable, Hashable {
    case free
    case slowed(bytesPerSecond: UInt64)
    /// So much in all, until something else is said.
    case limited(bytes: UInt64)
    case held
}

/// Lets changes begin as a pace says. Who asked for much is let through, and those after it wait for it: a
/// change is never cut in pieces. A new pace holds at once, also for those who wait.
package struct Pacer: Sendable, Hashable {
    private var pace = Pace.free
    /// What may begin now; below zero, what has begun before its time.
    private var creditBytes = 0.0
    private var lastNs: Int64 = 0

    /// What nobody used is kept for so long: those who wait are looked at now and then, not all the time.
    private static let memorySeconds = 0.02
    /// What a change costs that carries nothing.
    private static let leastBytes = 4096.0

    package init() {}

    package var isFree: Bool { pace == .free }

    package mutating func set(_ new: Pace, nowNs: Int64) {
        earn(nowNs)
        if case .limited(let bytes) = new {
            creditBytes = Double(bytes)
        } else if case .slowed = pace {
            // Goes on with what is owed.
        } else {
            creditBytes = 0
        }
        pace = new
    }

    /// A change may begin.
    package mutating func admits(nowNs: Int64) -> Bool {
        earn(nowNs)
        switch pace {
        case .free: return true
        case .held: return false
        case .slowed: return creditBytes >= 0
        case .limited: return creditBytes > 0
        }
    }

    /// It begins.
    package mutating func take(_ bytes: Int) { creditBytes -= max(Double(bytes), Self.leastBytes) }

    private mutating func earn(_ nowNs: Int64) {
        let elapsed = Double(max(nowNs - lastNs, 0)) / 1e9
        lastNs = max(lastNs, nowNs)
        guard case .slowed(let bytesPerSecond) = pace else { return }
        let rate = Double(bytesPerSecond)
        creditBytes = min(creditBytes + rate * elapsed, rate * Self.memorySeconds)
    }
}
