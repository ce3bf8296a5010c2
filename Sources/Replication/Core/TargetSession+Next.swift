// What to do next, when nothing is under way.

import BlockCore

extension TargetSession {
    mutating func nextOperation(
        _ now: Int64, _ effects: inout [SessionEffect]
    ) -> SessionOperation? {
        switch state {
        case .paused: return nil
        case .fenced:
            if isReleased { return nil }
            isReleased = true
            return .disconnect
        case .connecting: return .connect
        // What was in the ring has to be in the legs before they are looked at.
        case .negotiating where isDegrading: return nil
        case .negotiating: return wantsEverything ? .markEverything : .compare
        case .disconnected: return nextWhenDisconnected(now, &effects)
        case .streaming: return nextWhenStreaming(now, &effects)
        case .scheduled: return nextWhenScheduled(now, &effects)
        case .resyncing where isDegrading: return nil
        case .resyncing: return nextOfResync(now, &effects)
        }
    }

    private mutating func nextWhenDisconnected(
        _ now: Int64, _ effects: inout [SessionEffect]
    ) -> SessionOperation? {
        if !isReleased {
            isReleased = true
            return .disconnect
        }
        if pauseWanted {
            pauseWanted = false
            state = .paused
            return nil
        }
        guard let retryAtNs = outage?.retryAtNs, now < retryAtNs else {
            state = .connecting
            return .connect
        }
        effects.append(.wake(atNs: retryAtNs))
        return nil
    }

    private mutating func nextWhenStreaming(
        _ now: Int64, _ effects: inout [SessionEffect]
    ) -> SessionOperation? {
        // What is durable there, or will be told to be.
        let asked = max(durable, underway.flushAsked)
        let mayFlush = sent > asked && underway.mayFlush
        if metBarrier {
            // The staging begins on top of a checkpoint that has everything sent so far.
            if sent > durable { return mayFlush ? .flush : nil }
            metBarrier = false
            state = .resyncing
            // The ring may have let go of the target meanwhile, with cuts that it has by now in its legs.
            effects.append(.joinLegs(through: durable))
            return nextOfResync(now, &effects)
        }
        let isWanted = flushWanted > asked
        if isWanted, sent >= flushWanted || !hasRecords, mayFlush { return .flush }
        if unflushed.bytes >= options.flushBytes, mayFlush { return .flush }
        if let unflushedSinceNs = unflushed.sinceNs, mayFlush {
            let due = unflushedSinceNs + options.flushIntervalMs * 1_000_000
            if now >= due { return .flush }
            if !hasRecords { effects.append(.wake(atNs: due)) }
        }
        return hasRecords && underway.fullSinceNs == nil ? .send : nil
    }
}
