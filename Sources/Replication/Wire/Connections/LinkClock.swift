// Whether the other side of a connection lives, in both directions.
//
// - It is heard: each whole frame counts, and each 4 KiB of a longer one. A trickle of single bytes in the
//   middle of a frame is silence.
// - It takes what is sent: each beat says how many bytes it has taken. What is under way for as long as the
//   timeout while beats come and none says that more was taken goes nowhere: a link of one direction.
//
// Bytes that move count, not answers: on a slow line a beat waits behind megabytes of records. While other
// things than beats come, what beats would say may still be on its way.
//
//     fine ── nothing for `suspectMs` ──► suspected ── nothing until `timeoutMs` ──► failed
//       ◄───────────── anything ──────────┘

import BlockCore

package struct WireTiming: Sendable, Hashable {
    /// A side says something at least so often.
    package var heartbeatMs: Int64 = 500
    package var suspectMs: Int64 = 2000
    package var timeoutMs: Int64 = 5000
    package init() {}
}

/// How long a ping and its pong take together.
package struct RoundTrips: Sendable, Hashable {
    package private(set) var count: UInt64 = 0
    package private(set) var lastNs: Int64 = 0
    /// Smoothed as TCP does: an eighth of each new one.
    package private(set) var smoothedNs: Int64 = 0
    package private(set) var leastNs: Int64 = .max
    package private(set) var mostNs: Int64 = 0

    mutating func note(_ ns: Int64) {
        lastNs = ns
        smoothedNs = count == 0 ? ns : smoothedNs + (ns - smoothedNs) / 8
        leastNs = min(leastNs, ns)
        mostNs = max(mostNs, ns)
        count += 1
    }
}

struct LinkClock {
    enum Finding: Equatable {
        case pingIsDue
        case suspected
        case failed(String)
    }
    static let livelyBytes = 4096

    private let suspectNs: Int64
    private let timeoutNs: Int64
    private var heartbeatNs: Int64
    private var heardNs: Int64
    /// Of a frame that is not whole, since `heardNs`.
    private var heardBytes = 0
    private var sentBytes: UInt64 = 0
    private var takenBytes: UInt64 = 0
    /// Since when something is under way and nothing more was taken.
    private var untakenSinceNs: Int64?
    /// When something else than beats was heard the last time.
    private var heardOtherNs: Int64 = .min
    /// nil: the other side is not known to understand it.
    private var nextPingNs: Int64?
    private let begunNs: Int64
    private var pingsHeard: Int64 = 0
    private(set) var isSuspected = false
    private(set) var roundTrips = RoundTrips()

    init(_ timing: WireTiming, now: Int64) {
        suspectNs = timing.suspectMs * 1_000_000
        timeoutNs = timing.timeoutMs * 1_000_000
        heartbeatNs = timing.heartbeatMs * 1_000_000
        heardNs = now
        begunNs = now
    }

    /// - Parameter theirsMs: how often the other side wants to say, and hear, something.
    mutating func beginPinging(theirsMs: UInt32, now: Int64) {
        heartbeatNs = min(heartbeatNs, Int64(theirsMs) * 1_000_000)
        nextPingNs = now + heartbeatNs
    }

    mutating func sent(inAllBytes total: UInt64, now: Int64) {
        guard total > sentBytes else { return }
        // Nobody says what it took before there are beats.
        if nextPingNs == nil { takenBytes = total }
        sentBytes = total
        if untakenSinceNs == nil, sentBytes > takenBytes { untakenSinceNs = now }
    }

    /// - Parameter isOther: not beats alone.
    /// - Returns: true where it was suspected, and is not any more.
    mutating func heard(_ bytes: Int, frames: Int, isOther: Bool, now: Int64) -> Bool {
        heardBytes += bytes
        if isOther { heardOtherNs = now }
        guard frames > 0 || heardBytes >= Self.livelyBytes else { return false }
        heardBytes = 0
        heardNs = now
        return settle(now)
    }

    mutating func told(taken bytes: UInt64, now: Int64) throws(WireError) -> Bool {
        guard bytes <= sentBytes else {
            throw WireError(
                .malformed, "beat.taken", at: 8, "\(bytes) bytes, and \(sentBytes) were sent")
        }
        guard bytes > takenBytes else { return false }
        takenBytes = bytes
        untakenSinceNs = sentBytes > takenBytes ? now : nil
        return settle(now)
    }

    private mutating func settle(_ now: Int64) -> Bool {
        guard isSuspected, silentNs(now) < suspectNs else { return false }
        isSuspected = false
        return true
    }

    /// One in a heartbeat is asked for; a few may come together.
    /// - Throws: for many more: each would be answered, and nobody need hear that.
    mutating func heardPing(now: Int64) throws(WireError) {
        pingsHeard += 1
        guard pingsHeard <= 16 + 4 * ((now - begunNs) / heartbeatNs) else {
            throw WireError(
                .tooManyRequests, "ping", at: 0,
                "\(pingsHeard) in \((now - begunNs) / 1_000_000) ms")
        }
    }

    mutating func answered(pingOf sentNs: Int64, now: Int64) throws(WireError) {
        guard begunNs <= sentNs, sentNs <= now else {
            throw WireError(.malformed, "beat.sentNs", at: 0, "a ping that was never sent")
        }
        roundTrips.note(now - sentNs)
    }

    private var untakenNs: Int64? { untakenSinceNs.map { max($0, heardOtherNs) } }

    private func silentNs(_ now: Int64) -> Int64 {
        max(now - heardNs, untakenNs.map { now - $0 } ?? 0)
    }

    mutating func tick(now: Int64) -> [Finding] {
        let silent = silentNs(now)
        if silent >= timeoutNs {
            let what = now - heardNs >= timeoutNs ? "it says nothing" : "it takes nothing"
            return [.failed("\(what) for \(silent / 1_000_000) ms")]
        }
        var findings: [Finding] = []
        if silent >= suspectNs, !isSuspected {
            isSuspected = true
            findings.append(.suspected)
        }
        if let next = nextPingNs, now >= next {
            nextPingNs = now + heartbeatNs
            findings.append(.pingIsDue)
        }
        return findings
    }

    /// Nothing is due before.
    var wakeNs: Int64 {
        let begin = min(heardNs, untakenNs ?? .max)
        return min(begin + (isSuspected ? timeoutNs : suspectNs), nextPingNs ?? .max)
    }
}
