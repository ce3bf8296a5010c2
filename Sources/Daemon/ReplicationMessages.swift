// What the control socket says of targets.

import Pool

import BlockCore

/// How one target stands.
package struct TargetInfo: Codable, Sendable, Hashable {
    package var id: Int64
    package var address: String
    /// How late answers may be in mode adaptive.
    package var latencyBudgetUs: Int64?
    /// "mirror": another pool; "raw": plain files; "remote": another pool, behind a server.
    package var kind: String
    /// Of a raw mirror: "clean", or "torn" while it is being written to and from then on until it was let go
    /// of in good order; missing where nothing is known of it.
    package var content: String?
    package var tornSinceNs: Int64?
    /// As it was asked for; see ``modeInForce``.
    package var mode: String
    /// What is waited for now: "async" while the target is not in step.
    package var modeInForce: String
    package var timeoutMs: Int64
    /// What happens after the timeout: degrade, block or fail.
    package var onTimeout: String
    /// Since when writes are held, or fail, because the target is away.
    package var stoppedSinceNs: Int64?
    /// Images that have it otherwise.
    package var images: [TargetImageInfo]
    /// paused, connecting, negotiating, resyncing, streaming, scheduled (at a checkpoint, the next one
    /// at ``nextRunNs``), disconnected, fenced; while nothing is
    /// sent, for the pool is not mounted or is without its targets: level (nothing is missing), idle.
    package var state: String
    /// What changed is shipped once in so long; missing where it is as it comes.
    package var intervalMs: Int64?
    package var nextRunNs: Int64?
    /// What may be at risk at most: age of the oldest change that the target lacks, and bytes.
    package var rpoMs: Int64?
    package var rpoBytes: Int64?
    /// What happens beyond: alarm, throttle or stop; missing without an rpo.
    package var onRPO: String?
    /// Since when more is at risk than that.
    package var rpoPassedSinceNs: Int64?
    /// Writers are slowed to that.
    package var slowedToBytesPerSecond: UInt64?
    /// In step: what is missing there is on its way, or goes there with the next run.
    package var isInStep: Bool
    /// Since when it is not, and why.
    package var staleSinceNs: Int64?
    package var reason: String?
    /// Everything up to here is on it durably.
    package var durableSequence: UInt64
    /// When the pool was what is on it durably; missing where that was before it was opened.
    package var checkpointNs: Int64?
    package var lagBytes: UInt64
    package var lagMs: Int64
    /// Blocks that may differ, beside what is on its way.
    package var dirtyBytes: UInt64
    /// In regions that were being written when this machine or the pool's process died: nobody knows
    /// whether they differ before they were compared.
    package var suspectBytes: UInt64
    /// What would be lost if this machine were lost now, as far as it is known.
    package var atRiskBytes: UInt64
    /// Since the pool was opened: what was held against the target by hash, and what resyncs sent.
    package var comparedBytes: UInt64
    package var resyncedBytes: UInt64
    package var rateBytesPerSecond: UInt64
    /// What a resync is held to; missing where it goes as fast as it can.
    package var rateLimitBytesPerSecond: UInt64?
    /// Of a remote one, as it was asked for: auto, on or off.
    package var compress: String?
    /// What went last was compressed.
    package var isCompressing: Bool?
    /// Changes and blocks since the pool was opened, and what went over the line for them.
    package var lineRawBytes: UInt64?
    package var lineSentBytes: UInt64?
    package var resyncDoneBytes: UInt64?
    package var resyncTotalBytes: UInt64?
    package var etaMs: Int64?
    /// From when on the target can be mounted as it was at any moment.
    package var reachFromNs: Int64?

    package init(id: Int64, address: String, mode: String, timeoutMs: Int64) {
        self.id = id
        self.address = address
        self.mode = mode
        self.timeoutMs = timeoutMs
        kind = "mirror"
        onTimeout = "degrade"
        images = []
        modeInForce = "async"
        state = "paused"
        isInStep = false
        durableSequence = 0
        lagBytes = 0
        lagMs = 0
        dirtyBytes = 0
        suspectBytes = 0
        atRiskBytes = 0
        comparedBytes = 0
        resyncedBytes = 0
        rateBytesPerSecond = 0
    }
}

/// How one image waits for a target, where that differs from the others.
package struct TargetImageInfo: Codable, Sendable, Hashable {
    package var path: String
    package var mode: String
    package var onTimeout: String
}

/// What a pool is, besides a pool.
package struct ReplicaInfo: Codable, Sendable, Hashable {
    /// "primary", "replica", or "fenced": it was replaced by another and takes no changes.
    package var role: String
    /// The pool that a replica follows.
    package var primaryPool: String?
    package var checkpointSequence: UInt64?
    /// When the last operation was made that is shown.
    package var shownNs: Int64?
    /// From when on every moment can be mounted; nil where none can.
    package var reachFromNs: Int64?
    /// Its primary writes to it just now, and what is shown goes on. Missing where nobody holds the mirror.
    package var isConnected: Bool?
    /// A resync is under way: what is shown is the checkpoint before it.
    package var isResyncing: Bool?
    /// When it heard of its primary last.
    package var heardNs: Int64?
    /// Other copies that it heard of.
    package var copies: [CopyInfo]?

    package init(role: String) { self.role = role }
}

/// What a mirror was told of another copy of the same pool.
package struct CopyInfo: Codable, Sendable, Hashable {
    package var pool: String
    package var address: String
    /// Something was answered without it; missing while it was in step.
    package var staleSinceNs: Int64?
    package var reason: String?
}

extension CopyInfo {
    init(_ peer: PeerRecord) {
        pool = peer.poolID
        address = peer.address
        staleSinceNs = peer.stale?.sinceNs
        reason = peer.stale?.reason
    }
}

/// What `--mirror` and `target add` say of a target.
package struct TargetSpecification: Codable, Sendable, Hashable {
    package var address: String
    /// Where it is from now on.
    package var newAddress: String?
    package var mode: String?
    package var timeoutMs: Int64?
    /// How long its journal is kept, so that it can be mounted as it was.
    package var historyMs: Int64?
    package var onTimeout: String?
    /// There are copies of the images already, carried there by hand.
    package var isSeeded: Bool?
    /// Only this image, from now on.
    package var image: String?
    /// The image is as the others again.
    package var inherits: Bool?
    /// What a resync is held to; 0 for as fast as it can go.
    package var rateBytesPerSecond: UInt64?
    /// auto, on or off: what goes to another machine.
    package var compress: String?
    /// Ships what changed once in so long; 0 for as it comes.
    package var intervalMs: Int64?
    /// What may be at risk at most; 0 for whatever it is.
    package var rpoMs: Int64?
    package var rpoBytes: UInt64?
    package var onRPO: String?
    /// 0 for none.
    package var latencyBudgetUs: Int64?

    package init(address: String, mode: String? = nil, timeoutMs: Int64? = nil) {
        self.address = address
        self.mode = mode
        self.timeoutMs = timeoutMs
    }

    /// `DIR[,mode=async|flush|semi-sync|sync|adaptive][,latency-budget=5ms][,timeout=5s][,on-timeout=degrade|block|fail]
    /// [,interval=30s][,rpo=10s|64MiB][,on-rpo=alarm|throttle|stop][,history=1h][,rate=20MiB/s][,compress=auto|on|off]`; DIR
    /// may be `raw:DIR` or `doppel://HOST:PORT/POOL`; a comma in it is written `\,`.
    /// - Returns: nil for what is no target; then `problem` says why.
    package static func parse(_ text: String) -> (TargetSpecification?, problem: String) {
        var parts: [String] = [""]
        var isEscaped = false
        for character in text {
            if isEscaped || (character != "," && character != "\\") {
                parts[parts.count - 1].append(character)
                isEscaped = false
            } else if character == "\\" {
                isEscaped = true
            } else {
                parts.append("")
            }
        }
        guard let address = parts.first, !address.isEmpty else {
            return (nil, "a target begins with its directory: DIR[,mode=flush][,timeout=5s]")
        }
        if let problem = TargetAddress.problem(address) { return (nil, problem) }
        let modes = TargetRecord.Mode.allCases.map(\.rawValue)
        var result = TargetSpecification(address: address)
        for word in parts.dropFirst() {
            let pair = word.split(separator: "=", maxSplits: 1).map(String.init)
            switch (pair.first, pair.count == 2 ? pair[1] : nil) {
            case ("mode", let mode?) where modes.contains(mode): result.mode = mode
            case ("mode", _):
                return (nil, "'\(word)': the mode is one of \(modes.joined(separator: ", "))")
            case ("on-timeout", let text?):
                guard let reaction = TargetRecord.OnTimeout(rawValue: text) else {
                    return (nil, "'\(word)': on-timeout is degrade, block or fail")
                }
                result.onTimeout = reaction.rawValue
            case ("timeout", let text?):
                guard let timeoutMs = Duration.milliseconds(parsing: text), timeoutMs >= 100 else {
                    return (nil, "'\(word)': a timeout is such as 5s or 500ms, at least 100ms")
                }
                result.timeoutMs = timeoutMs
            case ("history", let text?):
                guard let historyMs = Duration.milliseconds(parsing: text) else {
                    return (nil, "'\(word)': a history is such as 1h or 2d, or 0s for none")
                }
                result.historyMs = historyMs
            case ("interval", let text?):
                guard let intervalMs = Duration.interval(parsing: text) else {
                    return (nil, "'\(word)': an interval is such as 30s or 15m, at least 1s")
                }
                result.intervalMs = intervalMs
            case ("latency-budget", let text?):
                guard let budgetUs = Duration.microseconds(parsing: text) else {
                    return (nil, "'\(word)': a latency budget is such as 5ms or 800us")
                }
                result.latencyBudgetUs = budgetUs
            case ("rpo", let text?):
                guard result.takeRPO(text) else {
                    return (nil, "'\(word)': an rpo is such as 10s or 64MiB, or 0 for none")
                }
            case ("on-rpo", let text?):
                guard let reaction = TargetRecord.OnRPO(rawValue: text) else {
                    return (nil, "'\(word)': on-rpo is alarm, throttle or stop")
                }
                result.onRPO = reaction.rawValue
            case ("rate", let text?):
                guard let rate = ByteSize.perSecond(parsing: text) else {
                    return (nil, "'\(word)': a rate is such as 20MiB/s, or 0 for no limit")
                }
                result.rateBytesPerSecond = rate
            case ("compress", let text?):
                guard let choice = CompressionChoice(rawValue: text) else {
                    return (nil, "'\(word)': compress is auto, on or off")
                }
                result.compress = choice.rawValue
            default:
                return (
                    nil,
                    "'\(word)' is no option of a target; there are mode, timeout, on-timeout, "
                        + "latency-budget, interval, rpo, on-rpo, history, rate and compress"
                )
            }
        }
        return (result, "")
    }
}

extension TargetSpecification {
    /// A time, or a size: both may be said, one after the other; 0 takes both away.
    /// - Returns: false for what is neither.
    package mutating func takeRPO(_ text: String) -> Bool {
        if text == "0" || text == "0s" {
            (rpoMs, rpoBytes) = (0, 0)
            onRPO = onRPO ?? TargetRecord.OnRPO.alarm.rawValue
        } else if let ageMs = Duration.milliseconds(parsing: text) {
            guard ageMs >= 1000 else { return false }
            rpoMs = ageMs
        } else {
            guard let size = ByteSize(parsing: text), size.bytes >= 1 << 20,
                Int64(exactly: size.bytes) != nil
            else { return false }
            rpoBytes = size.bytes
        }
        return true
    }
}

extension Duration {
    /// Of a budget: `800us`, or as ``milliseconds(parsing:)`` has it.
    package static func microseconds(parsing text: String) -> Int64? {
        if text.hasSuffix("us") {
            return Int64(text.dropLast(2)).flatMap { 0...longestMs * 1000 ~= $0 ? $0 : nil }
        }
        guard let ms = milliseconds(parsing: text), ms < 1_000_000 else { return nil }
        return ms * 1000
    }

    /// Of a schedule: 0 for none, or at least a second.
    package static func interval(parsing text: String) -> Int64? {
        milliseconds(parsing: text).flatMap { $0 == 0 || $0 >= 1000 ? $0 : nil }
    }

    /// A century: what is added up in nanoseconds stays in a word.
    package static let longestMs: Int64 = 36_525 * 86_400_000

    /// `5s`, `500ms`, `2m`, `1h`, `3d`; at most a century.
    package static func milliseconds(parsing text: String) -> Int64? {
        let units: [(String, Int64)] = [
            ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000),
        ]
        for (suffix, factor) in units where text.hasSuffix(suffix) {
            guard let number = Int64(text.dropLast(suffix.count)), number >= 0 else { continue }
            let (value, overflows) = number.multipliedReportingOverflow(by: factor)
            return overflows || value > longestMs ? nil : value
        }
        return nil
    }
}
