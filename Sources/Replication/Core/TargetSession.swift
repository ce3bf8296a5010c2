// The life of one target as a state machine without I/O: events in, effects out. Whoever drives it
// runs at most one operation at a time and answers each with one event.
//
//                 start, resume
//      paused ───────────────────► connecting ◄──────────── disconnected ◄── failure, silence,
//        ▲                            │ connected                ▲ retry        overflow: from
//        │ pause (from any)           ▼                          │              anywhere below
//        │                       negotiating ── compare ─────────┤
//        │                            │                          │
//        │       nothing lacks ┌──────┴───────┐ something lacks  │
//        │                     ▼              ▼                  │
//        │                 streaming ◄─── resyncing ─────────────┘
//        │                     └── barrier ──►┘
//      fenced: the target has a newer generation; nothing leads out but a new primary
//      scheduled: takes the place of streaming where what changed is shipped once in an interval
//      (TargetSession+Schedule)
//
// Functions: start/resume `begin`, connected `negotiate`, compared `answer`, legOpened `open`,
// staged `advance`, legCommitted `commit`, failed `fail`, tick `watch`, barrier `nextWhenStreaming`,
// retry and the end of a pause `nextWhenDisconnected`; `connectAnew` from anywhere, to come back at once.
//
// Invariants
//   S1 What was acknowledged is what the target said it has: written what its append returned for, or what
//      it was heard to have; durable what it flushed or committed. Never more.
//   S2 While `counts`, everything after `durable` is held for the target in the ring, also while it
//      is away for less than the timeout, and its legs have it after that. It stops counting only after
//      `recordStale` was answered.
//   S5 Who does not go on without the target (`on-timeout` block and fail) is held, or fails, from `lose`
//      to `find`; before its first time in step the target keeps nobody from anything.
//   S3 A staging is committed only when nothing of its leg is left, at a sequence that the stream
//      was staged to, not before the shape's.
//   S4 `legIsClean` follows `legCommitted` alone.
//   S6 The stream is held for a target only while its session goes on, or under S2.

import BlockCore

package struct TargetSession: Sendable {
    package enum State: String, Sendable, CaseIterable {
        case paused, connecting, negotiating, resyncing, streaming, scheduled, disconnected, fenced
    }

    package private(set) var options: SessionOptions
    package internal(set) var state = State.paused
    /// What the target holds durably, as it said.
    package internal(set) var durable = SequenceNumber.zero
    /// What it was given.
    package internal(set) var sent = SequenceNumber.zero
    /// What it said it has: all of that, but for a target that tells it later (TargetSession+Streaming).
    package internal(set) var written = SequenceNumber.zero
    /// How it is waited for, when it is: the mode in force.
    package internal(set) var policy: TargetPolicy
    /// Acknowledgements wait for it.
    package internal(set) var counts = false
    /// It was waited for too long: who does not go on without it is held, or fails.
    package internal(set) var isLost = false
    /// It was in step since it was added or last let go of on purpose.
    var isArmed: Bool
    /// How long it has to be in step before it counts; 0: it was not left behind yet.
    var rearmDelayMs: Int64 = 0
    var inStepSinceNs: Int64 = 0
    var countsSinceNs: Int64 = 0
    /// Why it is not streaming, and since when; kept while it resyncs.
    package internal(set) var outage: Outage?
    package internal(set) var resync: Resync?
    /// What decides on the mode in force (TargetSession+Adaptive).
    var adaptive: AdaptiveMode?
    /// Since when something may wait to be sent, and what is being sent.
    var recordsSinceNs: Int64 = 0
    var sendingSinceNs: Int64 = 0
    /// It stops counting, and goes on streaming.
    var isSteppingDown = false
    /// When what changed is shipped next, and since when it is now (TargetSession+Schedule).
    package internal(set) var nextRunNs: Int64 = 0
    package internal(set) var runSinceNs: Int64?
    /// It was seen to lack nothing up to here, whatever its checkpoint.
    package internal(set) var levelThrough = SequenceNumber.zero
    /// It has no checkpoint that this incarnation of the pool knows.
    var mustShip = false
    /// It is fenced for that.
    package internal(set) var isSplitBrain = false

    package struct Outage: Sendable, Hashable {
        package var sinceNs: Int64
        package var reason: String
        var retries = 0
        var retryAtNs: Int64 = 0
    }

    /// The operation under way, since when.
    var outstanding: (operation: SessionOperation, sinceNs: Int64)?
    var flushWanted = SequenceNumber.zero
    /// Since when somebody waits, for each that does.
    var wantedFlushes = SentStretches(stretchNs: 100_000)
    var hasRecords = false
    /// The next record is a barrier: what it stands for has to be staged.
    var metBarrier = false
    /// Of what is waited for: when it last came nearer.
    var flushProgressNs: Int64 = 0
    var unflushed = SentStretches()
    var underway = Underway()
    /// Waits for `staleRecorded`; then it stops counting.
    var isDegrading = false
    /// … for everybody, because somebody asked for it.
    var isReleasing = false
    var pauseWanted = false
    /// A resync goes in small steps.
    package internal(set) var makesWay = false
    /// What the blocks of a resync have to wait for; nil: nothing.
    var bucket: TokenBucket?
    /// The target was let go of since it was last connected.
    var isReleased = true
    /// What the last report asks for before anything else.
    var wantsEverything = false
    var needsComparing = false
    var random: UInt64

    /// - Parameters:
    ///   - seed: of the staging ids.
    ///   - counts: it was in step when the pool was closed, or when its primary died: nobody is
    ///     answered without it before it is written down that it is stale.
    ///   - isArmed: who does not go on without it does not begin to, either, because the pool was
    ///     opened anew.
    package init(
        options: SessionOptions, seed: UInt64, counts: Bool = false, isArmed: Bool = false
    ) {
        self.options = options
        policy = options.policy
        adaptive = options.latencyBudgetUs.map {
            AdaptiveMode(
                options: .init(
                    budgetNs: $0 * 1000, holdNs: options.rearmMs * 1_000_000,
                    longestHoldNs: options.longestRearmMs * 1_000_000))
        }
        self.counts = counts && options.policy.isWaitedFor
        self.isArmed = isArmed || self.counts
        isLost = isArmed && !self.counts
        bucket = options.bytesPerSecond.map(TokenBucket.init(bytesPerSecond:))
        random = seed
    }

    package mutating func apply(_ event: SessionEvent, now: Int64) -> [SessionEffect] {
        var effects: [SessionEffect] = []
        take(event, now, &effects)
        adapt(now, &effects)
        if outstanding == nil, let next = nextOperation(now, &effects) {
            if next == .send { (sendingSinceNs, recordsSinceNs) = (recordsSinceNs, now) }
            outstanding = (next, now)
            effects.append(.run(next))
        }
        return effects
    }

    private mutating func take(
        _ event: SessionEvent, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        switch event {
        case .start, .resume: begin(now)
        case .pause: pause(now, &effects)
        case .tick: watch(now, &effects)
        case .recordsWaiting:
            if !hasRecords { recordsSinceNs = now }
            hasRecords = true
        case .flushWanted(let sequence):
            wantFlush(sequence, now)
        case .ringOverflowed:
            let reason = "it fell behind further than the write stream reaches back"
            fail(TargetError(.io, reason), now, &effects)
            giveUp(reason, now, &effects)
        case .becameDurable(let through):
            guard state == .streaming, min(through, sent) > durable else { break }
            noteDurable(min(through, sent), now, &effects)
        case .heard(let progress): hear(progress, now, &effects)
        case .staleRecorded: stopCounting(now, &effects)
        case .connectAnew(let reason): connectAnew(reason, now, &effects)
        case .othersWrite(let isSo): makesWay = isSo
        case .rateChanged(let rate): bucket = rate.map(TokenBucket.init(bytesPerSecond:))
        case .flushBoundsChanged(let intervalMs, let bytes):
            (options.flushIntervalMs, options.flushBytes) = (intervalMs, bytes)
        default: answer(event, now, &effects)
        }
    }

    /// The answer to the operation under way. After a failure (silence, overflow) it only says that
    /// the thread is free again.
    private mutating func answer(
        _ event: SessionEvent, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        // Whoever waits does so since it was asked, and not since the line was found to be dead.
        let asked = [outstanding?.sinceNs, underway.silentSinceNs].compactMap { $0 }.min()
        let askedSinceNs = state == .streaming ? asked : nil
        if hasBegunTooLate(event) { effects.append(.stopStreaming) }
        outstanding = nil
        if case .failed(let error) = event {
            return fail(error, since: askedSinceNs, now, &effects)
        }
        switch (state, event) {
        case (.connecting, .connected(let report, let position)):
            negotiate(report, position, now, &effects)
        case (.negotiating, .compared): bringInStep(now, &effects)
        case (.scheduled, .looked(let isLevel, let through)): look(isLevel, through, &effects)
        case (.streaming, .sent(let through, let bytes, let isBarrierNext)):
            noteSent(through, bytes, now, &effects)
            if isBarrierNext { metBarrier = true }
        case (.streaming, .given(let through, let bytes)): noteGiven(through, bytes, now)
        case (.streaming, .noRoom): noteFull(now)
        case (.streaming, .flushAsked(let through)): noteFlushAsked(through, now)
        case (.streaming, .flushed(let through, let isStreamEmpty)):
            if isStreamEmpty { hasRecords = false }
            noteFlushed(through, now, &effects)
            // Asked again it would say the same, for ever.
            if through < sent {
                fail(TargetError(.io, "it lacks some of what it took"), now, &effects)
            }
        case (.resyncing, .flushed(let through, _)): noteFlushed(through, now, &effects)
        case (.resyncing, .legOpened(let leg)): open(leg)
        case (.resyncing, .streamStaged(let stretch)): advance(stretch)
        case (.resyncing, .blocksStaged(let chunk, let stretch)):
            advance(stretch)
            resync?.noteStaged(chunk)
        case (.resyncing, .stagingSynced): noteStagingSynced(&effects)
        case (.resyncing, .legCommitted): commit(now, &effects)
        default: keepWhatWasTaken(event)
        }
    }

    /// The operation under way began to hold the stream for the target (S6), and meanwhile the session left: nobody
    /// takes that, and those who write would wait for it.
    private func hasBegunTooLate(_ event: SessionEvent) -> Bool {
        switch (outstanding?.operation, event) {
        case (.openLeg, _): return state != .resyncing
        case (.connect, .connected):
            // One that was in step a moment ago has it held until the timeout (S2).
            let isHeldFor = state == .disconnected && counts && !isLost
            return state != .connecting && !isHeldFor
        default: return false
        }
    }

    /// An answer that comes too late to go on: the blocks in it were taken out of the legs and are
    /// this session's to remember.
    private mutating func keepWhatWasTaken(_ event: SessionEvent) {
        switch event {
        case .legOpened(let leg):
            open(leg)
            resync?.suspend()
        case .streamStaged(let stretch), .blocksStaged(_, let stretch):
            for (image, blocks) in stretch.dirtied {
                resync?.remaining[image, default: BlockSet()].formUnion(blocks)
            }
        default: break
        }
    }

    // MARK: Beginning and ending

    private mutating func begin(_ now: Int64) {
        pauseWanted = false
        guard state == .paused else { return }
        state = .connecting
        outage = Outage(sinceNs: now, reason: "not connected yet")
    }

    private mutating func pause(_ now: Int64, _ effects: inout [SessionEffect]) {
        guard state != .paused, state != .fenced else { return }
        pauseWanted = true
        leave("it is paused", now, &effects)
        giveUp("it is paused", now, releases: true, &effects)
        effects.append(.tell(kind: "target-paused", message: "it is paused"))
    }

    /// From here on the target may be behind. While it was in step a short absence costs nothing:
    /// the stream is held for it until the timeout (or, where nobody waits for it, the ring's end).
    /// - Parameter sinceNs: when it was asked what it did not answer; nil: now.
    mutating func fail(
        _ error: TargetError, since sinceNs: Int64? = nil, _ now: Int64,
        _ effects: inout [SessionEffect]
    ) {
        guard state != .paused, state != .fenced else { return }
        let wasDown = outage != nil
        leave(error.message, since: sinceNs, now, &effects)
        switch error.kind {
        case .fenced, .splitBrain:
            state = .fenced
            isSplitBrain = error.kind == .splitBrain
            if error.kind == .fenced { effects.append(.fence(reason: error.message)) }
            giveUp(error.message, now, releases: true, &effects)
            effects.append(
                .tell(
                    kind: error.kind == .fenced ? "target-fenced" : "split-brain",
                    message: error.message))
        default:
            if !wasDown {
                effects.append(.tell(kind: "target-lost", message: error.message))
            }
        }
    }

    /// It is neither lost nor behind for that: who waits for it goes on doing so.
    private mutating func connectAnew(
        _ reason: String, _ now: Int64, _ effects: inout [SessionEffect]
    ) {
        switch state {
        case .paused, .fenced, .disconnected: return
        case .connecting, .negotiating, .resyncing, .streaming, .scheduled:
            leave(reason, now, &effects)
            outage?.retryAtNs = now
        }
    }

    private mutating func leave(
        _ reason: String, since sinceNs: Int64? = nil, _ now: Int64,
        _ effects: inout [SessionEffect]
    ) {
        let retries = min(outage?.retries ?? 0, 20)
        var delayMs = min(options.firstRetryMs << Int64(retries), options.longestRetryMs)
        if options.retrySpreadPercent > 0 {
            let mostMs = UInt64(delayMs * options.retrySpreadPercent / 100)
            delayMs -= Int64((newStagingID() >> 8) % (mostMs + 1))
        }
        outage = Outage(
            sinceNs: outage?.sinceNs ?? sinceNs ?? now, reason: reason, retries: retries + 1,
            retryAtNs: now + delayMs * 1_000_000)
        if state == .resyncing { effects.append(.stopStreaming) }
        if policy.hearsOfWrites { effects.append(.retract) }
        state = .disconnected
        isReleased = false
        hasRecords = false
        metBarrier = false
        unflushed.removeAll()
        underway.removeAll()
        resync?.suspend()
    }

    /// Nothing is held for the target any more, and who goes on without it waits for it no longer; but
    /// first it is written down that it is behind (S2). Who does not go on without it is held, or fails.
    /// - Parameter releases: nobody waits for it any more, whatever was asked for.
    mutating func giveUp(
        _ reason: String, _ now: Int64, releases: Bool = false, _ effects: inout [SessionEffect]
    ) {
        if isDegrading {
            isReleasing = isReleasing || releases
            isSteppingDown = false
            return
        }
        let isForgone = counts && (releases || policy.isLeftBehind)
        guard isForgone else {
            if releases {
                (isArmed, isLost) = (false, false)
                effects.append(.releaseWaiters)
            } else {
                lose(reason, &effects)
            }
            return effects.append(.stopStreaming)
        }
        isDegrading = true
        isReleasing = releases
        let wasTrusted =
            rearmDelayMs == 0 || now - countsSinceNs >= options.longestRearmMs * 1_000_000
        rearmDelayMs =
            wasTrusted ? options.rearmMs : min(rearmDelayMs * 2, options.longestRearmMs)
        effects.append(.recordStale(since: durable, reason: reason))
        effects.append(.tell(kind: "target-degraded", message: reason))
    }

    private mutating func stopCounting(_ now: Int64, _ effects: inout [SessionEffect]) {
        guard isDegrading else { return }
        isDegrading = false
        counts = false
        if adaptive != nil {
            guard !stopCountingAdaptive(now, &effects) else { return }
        } else if isReleasing {
            (isArmed, isLost) = (false, false)
            effects.append(.releaseWaiters)
        } else {
            // S5, also where it was lost before: whose wait is over now is told.
            isLost = false
            lose("it is left behind", &effects)
        }
        isReleasing = false
        effects.append(.stopStreaming)
    }

    private mutating func lose(_ reason: String, _ effects: inout [SessionEffect]) {
        guard isArmed || counts, !isLost else { return }
        isLost = true
        effects.append(.lose)
        guard policy.hasStandstill else { return }
        effects.append(.tell(kind: "writes-stopped", message: reason))
    }

    mutating func newStagingID() -> UInt64 {
        // SplitMix64, never 0.
        random &+= 0x9e37_79b9_7f4a_7c15
        var z = random
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return (z ^ (z >> 31)) | 1
    }
}
