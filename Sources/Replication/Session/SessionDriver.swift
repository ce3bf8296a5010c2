// Runs a session: does what the state machine asks for, one operation at a time, and tells it what
// came of it; on a thread of its own, or step by step for whoever has no threads.
//
// Locks: `lock` guards the machine; its effects are carried out under it, in order, and none of them
// blocks. Whoever calls from outside (an fsync, a timer) takes it for a moment; an operation under way
// does not hold it, so a target that hangs keeps nobody out.

import BlockCore
import SystemIO

// Unchecked: fields are under `lock`, or the thread's own.
package final class SessionDriver: @unchecked Sendable {
    package let id: TargetID
    package let tally = SessionTally()
    let stream: WriteStream
    let source: any SessionSource
    private let connect: @Sendable () throws(TargetError) -> any ReplicaTarget
    private let clock: @Sendable () -> Int64
    package let options: SessionOptions
    private let lock = Lock()
    private let changed = Condition()
    private var session: TargetSession
    private var pending: SessionOperation?
    private var wakeAtNs: Int64?
    private var owesReplies = false
    private var isStopping = false
    private var hasEnded = false
    /// The target may have something to say.
    private var hasNews = false
    private var heard: TargetProgress?
    /// Counts what was connected to: what an earlier one still says is of no interest.
    private var connectionNumber = 0
    /// Nothing but the machine has to know of what is heard.
    private var hearsAtOnce = false
    private var thread: WorkerThread?

    // The thread's own.
    var target: (any ReplicaTarget)?
    /// The same, where it takes more while something is under way.
    var pipeline: (any PipelinedTarget)?
    /// What was last given to it.
    var given = SequenceNumber.zero
    var leg: OpenLeg?
    let records = RecordBuffer(capacityBytes: 4096)
    /// Batches of the stream are in its memory.
    private let consumer: AnyObject?
    private var priority: ThreadPriority?
    private(set) var courtesy = Courtesy()
    /// What the blocks of the operation under way took; the stream beside them is nobody's to rest from.
    private var blockWorkNs: Int64 = 0
    /// The target was not yet given again all that it had been given, up to here.
    var givenThrough: SequenceNumber?
    /// Of the leg under way.
    var reads: ReadAhead?
    private(set) var hasThreads = true

    /// The leg under way, as the operations need it.
    struct OpenLeg {
        var stagingID: UInt64
        var end: LegEnd
        /// Everything taken out of the dirty legs for it.
        var taken: [ImageID: BlockSet]
        var takenAt: SequenceNumber
        var batchNumber: UInt64 = 0
    }

    /// - Parameters:
    ///   - clock: nanoseconds that never go back.
    ///   - connect: opens the target; called again for every attempt.
    ///   - counts, isArmed: see ``TargetSession/init(options:seed:counts:isArmed:)``.
    package init(
        id: TargetID, options: SessionOptions, seed: UInt64, counts: Bool, isArmed: Bool = false,
        stream: WriteStream, source: any SessionSource, clock: @escaping @Sendable () -> Int64,
        connect: @escaping @Sendable () throws(TargetError) -> any ReplicaTarget
    ) {
        self.id = id
        self.stream = stream
        self.source = source
        self.clock = clock
        self.connect = connect
        self.options = options
        consumer = stream.consumer(id)
        session = TargetSession(
            options: options, seed: seed, counts: counts, isArmed: isArmed)
    }

    // MARK: From outside

    /// - Parameter onThread: otherwise nothing happens but by ``step()``.
    package func start(onThread: Bool = true) {
        // What an earlier session took and did not commit is this one's to ship.
        _ = stream.withLegs(id) { $0.returnTaken() }
        hasThreads = onThread
        tell(.start)
        guard onThread else { return }
        let worker = WorkerThread.start("doppel-target-\(id.rawValue)") { [self] in run() }
        lock.withLock { thread = worker }
    }

    /// Lets go of the target and ends the thread. What the target lacks is in its legs afterwards.
    /// - Returns: false when the target hangs: its thread is left to itself.
    package func stop(timeoutMs: Int64) -> Bool {
        tell(.pause)
        let deadline = clock() + timeoutMs * 1_000_000
        lock.lock()
        isStopping = true
        changed.broadcast()
        let worker = thread
        thread = nil
        if worker == nil {
            lock.unlock()
            while step() {}
            return true
        }
        while worker != nil, !hasEnded, clock() < deadline {
            _ = changed.wait(lock, timeoutMs: 20)
        }
        let isFree = worker == nil || hasEnded
        lock.unlock()
        if isFree { worker?.join() }
        return isFree
    }

    /// As ``stop(timeoutMs:)``, and waits for nothing: the thread ends when the target lets it.
    package func abandon() {
        tell(.pause)
        lock.withLock {
            isStopping = true
            thread = nil
            changed.broadcast()
        }
    }

    package func pause() { tell(.pause) }
    package func resume() { tell(.resume) }
    package func tick() { tell(.tick) }
    package func wantFlush(_ sequence: SequenceNumber) { tell(.flushWanted(sequence)) }
    /// Of blocks that a resync ships; holds at once.
    package func setRate(bytesPerSecond: UInt64?) {
        tell(.rateChanged(bytesPerSecond: bytesPerSecond))
    }
    /// How much may be sent and not be durable yet; holds at once.
    package func setFlushBounds(intervalMs: Int64, bytes: UInt64) {
        tell(.flushBoundsChanged(intervalMs: intervalMs, bytes: bytes))
    }
    /// What ``SessionSource/hello(for:having:)`` says has changed.
    package func connectAnew(_ reason: String) { tell(.connectAnew(reason: reason)) }
    /// The answer to ``SessionSource/recordStale(_:since:reason:)``.
    package func staleRecorded() { tell(.staleRecorded) }

    package var snapshot: TargetSession { lock.withLock { session } }

    private func tell(_ event: SessionEvent) {
        lock.lock()
        let wasStreaming = session.state == .streaming
        apply(event)
        // The thread may hang in a call, and would hear of it only when that is over.
        if case .tick = event, session.state == .streaming,
            stream.standing(id)?.hasOverflowed ?? false
        {
            apply(.ringOverflowed)
        }
        changed.broadcast()
        // The thread may wait for records, although there is none to come any more.
        let mayWaitForRecords = wasStreaming || session.state == .streaming
        let owesReplies = takeReplies()
        lock.unlock()
        if owesReplies { source.answer() }
        if mayWaitForRecords { stream.interrupt(id) }
    }

    /// Whoever is answered is answered outside the lock: others may have something to tell meanwhile.
    private func takeReplies() -> Bool {
        defer { owesReplies = false }
        return owesReplies
    }

    // MARK: The machine, under `lock`

    private func apply(_ event: SessionEvent) {
        wakeAtNs = nil
        for effect in session.apply(event, now: clock()) { carryOut(effect) }
    }

    private func carryOut(_ effect: SessionEffect) {
        switch effect {
        case .run(let operation): pending = operation
        case .acknowledge(let point, let sequence):
            if point == .durable { stream.acknowledge(id, durable: sequence) }
            source.acknowledged(id, point, sequence)
            owesReplies = true
        case .retract: source.retracted(id)
        case .stopStreaming: stream.stopStreaming(id)
        case .recordStale(let since, let reason):
            source.recordStale(id, since: since, reason: reason)
        case .countForAcknowledgements:
            source.counts(id, session.policy, durable: session.durable)
        case .policyChanged(let policy):
            stream.setHoldsWriters(id, policy.isWaitedFor)
            source.policyChanged(id, policy)
            owesReplies = true
        case .fence(let reason): source.fence(id, reason: reason)
        case .lose: source.lost(id)
        case .find: source.found(id)
        case .releaseWaiters: source.releaseWaiters(of: id)
        case .legIsClean:
            _ = stream.withLegs(id) { $0.commitFirst() }
            source.legsChanged(of: id)
        case .settleStaged(let through):
            stream.settleStaged(id, through: through)
            source.legsChanged(of: id)
        case .joinLegs(let through):
            _ = stream.withLegs(id) { $0.joinLegs(through: through) }
        case .wake(let atNs): wakeAtNs = atNs
        case .tell(let kind, let message): source.tell(id, kind: kind, message: message)
        }
    }

    // MARK: Working

    private func run() {
        priority = ThreadPriority(returns: true)
        while true {
            if step() { continue }
            lock.lock()
            if isStopping, pending == nil { break }
            waitForWork()
            lock.unlock()
        }
        hasEnded = true
        changed.broadcast()
        lock.unlock()
    }

    /// Does the next thing there is to do.
    /// - Returns: false when there is nothing now.
    @discardableResult
    package func step() -> Bool {
        lock.lock()
        defer { lock.unlock() }
        if let operation = pending {
            pending = nil
            lock.unlock()
            let event = perform(operation)
            // What it has by itself need not be waited for.
            let durable =
                operation == .send && pipeline == nil ? target?.durableThrough : nil
            lock.lock()
            if let durable { apply(.becameDurable(through: durable)) }
            if courtesy.isWritten != session.makesWay {
                apply(.othersWrite(courtesy.isWritten))
            }
            apply(event)
            changed.broadcast()
            answerAll()
            if pipeline != nil, session.state == .streaming { listen() }
            return true
        }
        if let wakeAtNs, clock() >= wakeAtNs {
            apply(.tick)
            return true
        }
        guard session.state == .streaming else { return false }
        if listen() { return true }
        guard session.state == .streaming, pending == nil else { return true }
        switch stream.waitForRecords(id, timeoutMs: 0) {
        case .records, .barrier:
            guard !session.awaitsTarget else { return false }
            apply(.recordsWaiting)
        case .notStreaming: apply(.ringOverflowed)
        case .interrupted: break
        case .timeout: return false
        }
        return true
    }

    /// Under `lock`, which is let go of meanwhile.
    private func answerAll() {
        guard takeReplies() else { return }
        lock.unlock()
        source.answer()
        lock.lock()
    }

    /// Under `lock`, which is let go of meanwhile: a target that tells takes locks of its own.
    /// - Returns: whether the target had something to say.
    @discardableResult
    private func listen() -> Bool {
        hasNews = false
        lock.unlock()
        let error = target?.knownFailure
        let now = pipeline?.progress
        if let now { noteGiven(now.written) }
        lock.lock()
        hearsAtOnce = givenThrough == nil
        guard session.state == .streaming else { return true }
        // What is under way is answered first.
        if let error, pending == nil {
            apply(.failed(error))
        } else if let now, now != heard {
            heard = now
            apply(.heard(now))
        } else {
            return false
        }
        changed.broadcast()
        answerAll()
        return true
    }

    /// - Returns: what it is known by that is followed from now on.
    func beginListening() -> Int {
        lock.withLock {
            heard = nil
            hearsAtOnce = false
            connectionNumber += 1
            return connectionNumber
        }
    }

    private static let mostAnsweredHere = 4

    /// The target says something. Nobody need be woken who comes by soon, or waits for nothing; and where nothing else
    /// is under way, the one who brings the news answers those who wait for it: one thread less to wake. Where there is
    /// more to come, or many wait, the session's own thread answers many at a time: the line is not kept waiting
    /// meanwhile, and they send what follows together.
    /// - Parameter progress: nil where something failed.
    func noteNews(_ progress: TargetProgress?, of connection: Int) {
        lock.lock()
        guard connection == connectionNumber,
            session.policy.isWaitedFor || session.awaitsTarget
        else {
            hasNews = true
            return lock.unlock()
        }
        let wasDueNs = wakeAtNs ?? .max
        if let progress, hearsAtOnce, session.state == .streaming,
            session.isAnswered(by: progress), source.waitingCount <= Self.mostAnsweredHere
        {
            heard = progress
            apply(.heard(progress))
        } else {
            hasNews = true
        }
        let mustWake =
            hasNews || pending != nil || session.state != .streaming
            || wakeAtNs ?? .max < wasDueNs
        if mustWake { changed.broadcast() }
        let owesReplies = takeReplies()
        lock.unlock()
        if owesReplies { source.answer() }
        if mustWake { stream.interrupt(id) }
    }

    /// Under `lock`, which is let go of meanwhile.
    private func waitForWork() {
        guard pending == nil else { return }
        let leftMs = wakeAtNs.map { max(($0 - clock()) / 1_000_000, 1) } ?? 1000
        guard session.state == .streaming else {
            _ = changed.wait(lock, timeoutMs: leftMs)
            return
        }
        guard !session.awaitsTarget else {
            if !hasNews { _ = changed.wait(lock, timeoutMs: min(leftMs, 100)) }
            return
        }
        // Where nobody waits, records may gather, so that one wake-up serves many.
        let isAsync = !session.policy.isWaitedFor
        lock.unlock()
        _ = stream.waitForRecords(
            id, atLeastBytes: isAsync ? 256 << 10 : 1,
            timeoutMs: isAsync ? min(leftMs, 20) : leftMs)
        lock.lock()
    }

    private func perform(_ operation: SessionOperation) -> SessionEvent {
        priority?.set(bulk: operation.isBulk)
        do throws(TargetError) {
            switch operation {
            case .connect: return try performConnect(try connect())
            case .disconnect:
                letGo()
                return .disconnected
            case .compare: return try performCompare(everything: false)
            case .markEverything: return try performCompare(everything: true)
            case .send: return try send()
            case .flush: return try flush()
            case .look:
                let standing = stream.standing(id)
                return .looked(
                    isLevel: (standing?.isLevel ?? true) && !source.hasNews(for: id),
                    through: standing?.last ?? .zero)
            case .openLeg(let stagingID): return try openLeg(stagingID)
            case .stageStream: return .streamStaged(try stageStream(upTo: nil))
            case .stageBlocks(let chunk, let ahead):
                guard hasThreads else { return try stageBlocks(chunk, ahead: ahead) }
                makeWay()
                blockWorkNs = 0
                defer { courtesy.worked(forNs: blockWorkNs, nowNs: clock()) }
                return try stageBlocks(chunk, ahead: ahead)
            case .syncStaging:
                try connected().syncStaging()
                return .stagingSynced
            case .commitLeg(let stagingID, let at, let end):
                return try commitLeg(stagingID, at, end)
            }
        } catch { return .failed(error) }
    }

    /// Nobody notices if it is slept through.
    private static let shortRestNs: Int64 = 2_000_000

    /// Returns when the next chunk's turn has come.
    private func makeWay() {
        lock.lock()
        defer { lock.unlock() }
        while !isStopping {
            let leftNs = courtesy.restsUntilNs - clock()
            guard leftNs > 0 else { break }
            if leftNs < Self.shortRestNs {
                lock.unlock()
                Pause.microseconds(UInt32(leftNs / 1000))
                lock.lock()
            } else {
                _ = changed.wait(lock, timeoutMs: leftNs / 1_000_000)
            }
        }
        courtesy.look(at: stream.lastSequence, nowNs: clock())
    }

    func timingBlocks<T>(_ body: () throws(TargetError) -> T) throws(TargetError) -> T {
        let startNs = clock()
        defer { blockWorkNs += clock() - startNs }
        return try body()
    }

    func connected() throws(TargetError) -> any ReplicaTarget {
        guard let target else { throw TargetError(.absent, "it is not connected") }
        return target
    }

    private func letGo() {
        closeLeg()
        target?.disconnect()
        target = nil
        pipeline = nil
    }

    func closeLeg() {
        reads?.end()
        reads = nil
        if case .snapshot(let info)? = leg?.end { source.release(info) }
        leg = nil
    }
}
