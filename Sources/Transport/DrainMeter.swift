// How fast a line takes bytes while more wait for it than it takes: from when a channel takes no more until it takes
// some again. What waits before that is none of the line's slowness.

import NIOCore
import Replication

struct DrainMeter {
    /// One that takes no more for long is looked at in between.
    private static let longestNs: Int64 = 250_000_000
    private var begun: (waitingBytes: Int, atNs: Int64)?

    /// - Parameters:
    ///   - waitingBytes: in the channel. While it takes no more, nothing is added.
    ///   - isFull: it takes no more.
    /// - Returns: what went, and in what time.
    mutating func look(
        waitingBytes: Int, isFull: Bool, nowNs: Int64
    ) -> (bytes: Int, inNs: Int64)? {
        guard let begun else {
            if isFull { self.begun = (waitingBytes, nowNs) }
            return nil
        }
        let stretch = (bytes: begun.waitingBytes - waitingBytes, inNs: nowNs - begun.atNs)
        guard !isFull || stretch.inNs >= Self.longestNs && stretch.bytes > 0 else { return nil }
        self.begun = isFull ? (waitingBytes, nowNs) : nil
        return stretch.bytes > 0 && stretch.inNs > 0 ? stretch : nil
    }

    /// On the channel's loop.
    mutating func look(at channel: any Channel, _ line: LineRate) {
        let isFull = !channel.isWritable
        guard isFull || begun != nil,
            let waiting = try? channel.syncOptions?.getOption(.bufferedWritableBytes)
        else { return }
        let nowNs = WakeTimer.nowNs
        guard let went = look(waitingBytes: waiting, isFull: isFull, nowNs: nowNs) else { return }
        line.note(went.bytes, inNs: went.inNs, nowNs: nowNs)
    }
}
