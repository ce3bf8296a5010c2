// Whether the next frame with records is compressed: as it was chosen, or where it pays.
//
// It pays where the line would take longer for the bytes that are saved than compressing takes. What both cost is
// measured: the line says how fast it is while more waits for it than it takes, and nothing where it keeps up.
//
//   resting ── the line is slow, and the pause over: `wants` ──► trying ── it pays ──► compressing
//      ▲ ◄── it does not; the next pause is twice as long ────────┘                        │
//      └──── it does not pay any more: `note`, at the end of a stretch; the pause is short again ◄──┘
//
// A stretch is enough to judge by; while trying it is short, so that what it costs in vain is lost in the rest.

import BlockCore

package struct CompressionPolicy: Sendable, Hashable {
    package enum State: Sendable, Hashable {
        case resting(untilNs: Int64)
        case trying
        case compressing
    }

    /// Less is a head, and not much more.
    static let leastBytes = 512
    static let firstPauseNs: Int64 = 500_000_000
    static let longestPauseNs: Int64 = 16_000_000_000
    private static let trialBytes: UInt64 = 64 << 10
    private static let trialFrames = 16
    private static let stretchBytes: UInt64 = 4 << 20
    private static let stretchFrames = 256

    package private(set) var state = State.resting(untilNs: .min)
    private var pauseNs = Self.firstPauseNs
    // Of the stretch under way.
    private var frames = 0
    private var rawBytes: UInt64 = 0
    private var savedBytes: UInt64 = 0
    private var costNs: Int64 = 0

    package init() {}

    /// - Parameter line: bytes a second; nil where it keeps up with what is sent.
    /// - Returns: the next frame is to be compressed.
    package mutating func wants(
        _ choice: CompressionChoice, frameBytes: Int, line: UInt64?, nowNs: Int64
    ) -> Bool {
        guard choice != .off, frameBytes >= Self.leastBytes else { return false }
        guard choice == .auto else { return true }
        guard case .resting(let untilNs) = state else { return true }
        guard line != nil, nowNs >= untilNs else { return false }
        begin(.trying)
        return true
    }

    /// A frame was compressed.
    /// - Parameters:
    ///   - saved: bytes fewer; 0 where it goes as it is.
    ///   - tookNs: on the way, whatever came of it.
    package mutating func note(
        rawBytes: Int, saved: Int, tookNs: Int64, line: UInt64?, nowNs: Int64
    ) {
        frames += 1
        self.rawBytes += UInt64(rawBytes)
        savedBytes += UInt64(saved)
        costNs += tookNs
        switch state {
        case .resting: return begin(state)
        case .trying:
            guard self.rawBytes >= Self.trialBytes || frames >= Self.trialFrames else { return }
        case .compressing:
            guard self.rawBytes >= Self.stretchBytes || frames >= Self.stretchFrames else { return }
        }
        guard let line else { return rest(forNs: 0) }
        let gainNs = Double(savedBytes) * 1e9 / Double(max(line, 1))
        // Somewhat more before it begins than for it to go on.
        let leastNs = Double(costNs) * (state == .trying ? 1.25 : 1)
        if gainNs > leastNs {
            pauseNs = Self.firstPauseNs
            begin(.compressing)
        } else {
            let pause = pauseNs
            if state == .trying { pauseNs = min(pauseNs * 2, Self.longestPauseNs) }
            rest(forNs: pause, from: nowNs)
        }
    }

    private mutating func rest(forNs pause: Int64, from nowNs: Int64 = .min) {
        begin(.resting(untilNs: pause == 0 ? .min : nowNs + pause))
    }

    private mutating func begin(_ new: State) {
        state = new
        (frames, rawBytes, savedBytes, costNs) = (0, 0, 0, 0)
    }
}
