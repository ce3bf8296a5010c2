import BlockCore
import Pool
import Replication

extension TargetRecord {
    /// How it is waited for.
    /// - Parameter images: what is different for some.
    func policy(_ images: [ImageID: TargetImageRecord]) -> TargetPolicy {
        let all = AckPolicy(mode.replication, onTimeout: onTimeout.reaction)
        return TargetPolicy(
            all,
            images: images.mapValues { image in
                AckPolicy(
                    image.mode.flatMap(ReplicationMode.init(rawValue:)) ?? all.mode,
                    onTimeout: image.onTimeout.flatMap(TimeoutReaction.init(rawValue:))
                        ?? all.onTimeout)
            })
    }
}

extension TargetRecord.Mode {
    var replication: ReplicationMode {
        switch self {
        case .async: .async
        case .flush: .flush
        case .semiSync: .semiSync
        case .sync, .adaptive: .sync
        }
    }
}

extension TargetRecord.OnTimeout {
    var reaction: TimeoutReaction {
        switch self {
        case .degrade: .degrade
        case .block: .block
        case .fail: .fail
        }
    }
}

extension TargetRecord {
    package static let defaultTimeoutMs: Int64 = 5000
    package static let defaultHistoryMs: Int64 = 3_600_000
    /// What most guests do not notice.
    package static let defaultLatencyBudgetUs: Int64 = 5000

    /// What cannot be done as it was asked for (G4); nil where all of it can.
    /// - Parameter hasImages: single images have it otherwise.
    package func conflict(hasImages: Bool) -> String? {
        if intervalMs != nil, mode != .async {
            return "an interval goes with mode async, and the mode is \(mode.rawValue); "
                + "an interval of 0s takes it away"
        }
        if intervalMs != nil, hasImages {
            return
                "with an interval no image can have a mode of its own: the target is not in step "
                + "between two runs"
        }
        if compress == .on, TargetAddress(address).remote == nil {
            return "compress on goes with a target on another machine, doppel://HOST:PORT/POOL: "
                + "nothing travels to \(address)"
        }
        return conflictOfAdaptive(hasImages) ?? conflictOfRPO
    }

    private func conflictOfAdaptive(_ hasImages: Bool) -> String? {
        guard mode == .adaptive else {
            guard latencyBudgetUs != nil else { return nil }
            return "a latency budget goes with mode adaptive, and the mode is \(mode.rawValue); "
                + "a latency budget of 0ms takes it away"
        }
        if onTimeout != .degrade {
            return
                "mode adaptive goes on with less rather than stand still: on-timeout can only be "
                + "degrade"
        }
        if hasImages { return "in mode adaptive no image can have a mode of its own" }
        return nil
    }

    private var conflictOfRPO: String? {
        guard let goal = recoveryGoal else {
            return onRPO == .alarm
                ? nil
                : "on-rpo \(onRPO.rawValue) needs an rpo, such as 10s or 64MiB"
        }
        if mode != .async, mode != .adaptive {
            return
                "an rpo goes with modes async and adaptive, and the mode is \(mode.rawValue), which has a "
                + "timeout instead; an rpo of 0 takes it away"
        }
        if let intervalMs, let ageMs = goal.ageMs, ageMs <= intervalMs {
            return
                "what is shipped once in \(intervalMs) ms is older than \(ageMs) ms before it is "
                + "there: the rpo must be longer than the interval"
        }
        return nil
    }
}

extension SessionOptions {
    /// A target that is given little time is trusted again after little time.
    mutating func take(_ target: AttachedTarget) {
        policy = target.policy
        intervalMs = target.record.intervalMs
        if target.record.mode == .adaptive {
            latencyBudgetUs = target.record.latencyBudgetUs ?? TargetRecord.defaultLatencyBudgetUs
        }
        boundFlushes(target.record)
        timeoutMs = target.record.timeoutMs
        bytesPerSecond = target.record.rateBytesPerSecond.map(UInt64.init)
        rearmMs = min(rearmMs, 2 * timeoutMs)
        if TargetAddress(target.record.address).remote != nil {
            // A line that is back is used again within two seconds.
            longestRetryMs = 1000
            retrySpreadPercent = 50
        }
    }

    /// What is sent and not durable yet is at risk, too.
    mutating func boundFlushes(_ record: TargetRecord) {
        if let rpoMs = record.rpoMs {
            flushIntervalMs = min(flushIntervalMs, max(rpoMs / 8, 100))
        }
        if let rpoBytes = record.rpoBytes {
            flushBytes = min(flushBytes, max(UInt64(rpoBytes) / 8, 256 << 10))
        }
    }
}
