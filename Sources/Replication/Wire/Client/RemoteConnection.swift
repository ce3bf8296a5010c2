// One connection on the client's side: its machine, its transport, and who waits for its answers.

import BlockCore
import SystemIO

package final class RemoteConnection: @unchecked Sendable {  // fields are under `lock`
    /// Records wait with whoever has them rather than here: what a line is like, and whether it pays to compress,
    /// holds for what was not packed yet.
    private static let mostUnsentBytes = 4 << 20

    private let link: any WireLink
    private let lock = Lock()
    private let changed = Condition()
    private var machine: ClientConnection
    private var channel: (any WireChannel)?
    private var replies: [UInt64: WireReply] = [:]
    private var welcome: WireWelcome?
    private var connected: WireConnected?
    private var isAttached = false
    private var hasEntered = false
    /// Of records that the target did not take: nothing after them is done.
    private var failure: TargetError?
    private var end: WireEnd?
    /// Called with no lock held, by whoever brought the news.
    private let onNews: (@Sendable (TargetProgress?) -> Void)?
    private var hasNews = false
    /// When whoever asks has waited for long enough, though the line is alive.
    private var patience: (endNs: Int64, ms: Int64)?

    init(
        _ role: WireRole, _ options: ClientConnection.Options, _ link: any WireLink,
        onNews: (@Sendable (TargetProgress?) -> Void)? = nil
    ) {
        self.link = link
        self.onNews = onNews
        machine = ClientConnection(role, options: options, now: link.nowNs)
    }

    // MARK: The transport's side

    package func receive(_ bytes: UnsafeRawBufferPointer) {
        handle { machine, now in machine.receive(bytes, now: now) }
    }
    package func tick() {
        handle { machine, now in
            if let ended = patience, now >= ended.endNs {
                // Once: a time that is past would wake the line again and again while it closes.
                patience = nil
                return machine.lost("it did not answer within \(ended.ms) ms")
            }
            return machine.tick(now: now)
        }
    }
    package func lost(_ why: String) { handle { machine, _ in machine.lost(why) } }
    /// Less than ``mostUnsentBytes`` waits for the line.
    package func madeRoom() { lock.withLock { changed.broadcast() } }
    package static func hasRoom(_ unsentBytes: Int) -> Bool { unsentBytes < mostUnsentBytes }
    private var hasRoom: Bool { Self.hasRoom(channel?.unsentBytes ?? 0) }
    package var wakeNs: Int64 {
        lock.withLock { min(machine.wakeNs, patience?.endNs ?? .max) }
    }
    /// The transport tells it.
    package let line = LineRate()

    package var roundTrips: RoundTrips { lock.withLock { machine.roundTrips } }
    package var isSuspected: Bool { lock.withLock { machine.isSuspected } }
    package var hasEnded: Bool { lock.withLock { machine.hasEnded } }
    package var acknowledged: WireAcknowledgement { lock.withLock { machine.acknowledged } }

    private func handle(
        _ body: (inout ClientConnection, Int64) -> [ClientConnection.Event]
    ) {
        let now = link.nowNs
        let (isNew, progress) = lock.withLock { () -> (Bool, TargetProgress?) in
            for event in body(&machine, now) { take(event) }
            flush()
            defer { hasNews = false }
            return (hasNews, failure == nil && end == nil ? currentProgress : nil)
        }
        if isNew { onNews?(progress) }
    }

    /// Under the lock, so that what is sent keeps its order: a channel never blocks.
    private func flush() {
        let pieces = machine.takeOutput()
        if !pieces.isEmpty { channel?.send(pieces) }
        if machine.hasEnded {
            channel?.close()
            channel = nil
        }
    }

    private func take(_ event: ClientConnection.Event) {
        switch event {
        case .welcomed(let welcome): self.welcome = welcome
        case .connected(let connected): self.connected = connected
        case .attached: isAttached = true
        case .entered: hasEntered = true
        case .reply(let number, let reply):
            take(number, reply)
        case .ended(let end):
            self.end = end
            hasNews = true
        case .acknowledged: hasNews = true
        case .suspected, .recovered: break
        }
        changed.broadcast()
    }

    private func take(_ number: UInt64, _ reply: WireReply) {
        guard !asked.contains(number) else { return replies[number] = reply }
        switch reply {
        case .failed(let error): failure = failure ?? error
        case .flushed(let through):
            // Asked again it would say the same, for ever.
            if let wanted = flushes[number], through < wanted {
                failure = failure ?? TargetError(.io, "it lacks some of what it took")
            }
            flushedThrough = max(flushedThrough, through)
        default: return
        }
        flushes[number] = nil
        hasNews = true
    }
    /// Numbers whose replies somebody waits for.
    private var asked: Set<UInt64> = []
    /// Flushes that nobody waits for, with what each is to confirm.
    private var flushes: [UInt64: SequenceNumber] = [:]
    private var flushedThrough = SequenceNumber.zero

    // MARK: The caller's side

    /// Returns what `body` finds, once it finds something.
    private func wait<T>(_ body: () throws(TargetError) -> T?) throws(TargetError) -> T {
        while true {
            if let found = try body() { return found }
            if let end { throw end.targetError }
            link.wait(lock, changed)
        }
    }

    private func sending(_ body: () throws(WireError) -> Void) throws(TargetError) {
        defer { flush() }
        do throws(WireError) { try body() } catch {
            throw TargetError(.io, "it cannot be asked: \(error)")
        }
    }

    /// From now on: what is not answered by then is not waited for. A server that has the line's beats going may
    /// have a disk that hangs.
    func limit(toMs ms: Int64) {
        lock.withLock { patience = (link.nowNs + ms * 1_000_000, ms) }
    }

    /// - Returns: what the server says of itself.
    func begin() throws(TargetError) -> WireWelcome {
        let opened = try link.open(self)
        lock.lock()
        defer { lock.unlock() }
        channel = opened
        machine.begin(now: link.nowNs)
        flush()
        return try wait { () throws(TargetError) in welcome }
    }

    func connect(_ request: WireConnect) throws(TargetError) -> WireConnected {
        lock.lock()
        defer { lock.unlock() }
        try sending { () throws(WireError) in try machine.connect(request, now: link.nowNs) }
        return try wait { () throws(TargetError) in connected }
    }

    func attach(_ request: WireAttach) throws(TargetError) {
        lock.lock()
        defer { lock.unlock() }
        try sending { () throws(WireError) in try machine.attach(request, now: link.nowNs) }
        try wait { () throws(TargetError) -> Void? in isAttached ? () : nil }
    }

    func enter(_ request: WireEnter) throws(TargetError) {
        lock.lock()
        defer { lock.unlock() }
        try sending { () throws(WireError) in try machine.enter(request, now: link.nowNs) }
        try wait { () throws(TargetError) -> Void? in hasEntered ? () : nil }
    }

    /// Asks all of it at once, as far as may be, and waits for the answers.
    func ask(_ queries: [WireQuery]) throws(TargetError) -> [WireReply] {
        try ask(count: queries.count) { (machine, index, now) throws(WireError) in
            try machine.ask(queries[index], now: now)
        }
    }

    /// Asks all of it at once, as far as may be, and waits for the answers.
    func ask(_ requests: [WireRequest]) throws(TargetError) -> [WireReply] {
        try ask(count: requests.count) { (machine, index, now) throws(WireError) in
            try machine.ask(requests[index], now: now)
        }
    }

    private func ask(
        count: Int, _ next: (inout ClientConnection, Int, Int64) throws(WireError) -> UInt64
    ) throws(TargetError) -> [WireReply] {
        lock.lock()
        defer { lock.unlock() }
        var (numbers, answers): ([UInt64], [WireReply]) = ([], [])
        defer {
            for number in numbers {
                asked.remove(number)
                replies[number] = nil
            }
        }
        while answers.count < count {
            while numbers.count < count, machine.mayAsk {
                try sending { () throws(WireError) in
                    let number = try next(&machine, numbers.count, link.nowNs)
                    numbers.append(number)
                    asked.insert(number)
                }
            }
            guard answers.count < numbers.count else {
                try wait { () throws(TargetError) -> Void? in machine.mayAsk ? () : nil }
                continue
            }
            let number = numbers[answers.count]
            let reply = try wait { () throws(TargetError) in
                replies.removeValue(forKey: number)
            }
            if case .failed(let error) = reply { throw error }
            answers.append(reply)
        }
        return answers
    }

    func ask(_ request: WireRequest) throws(TargetError) -> WireReply {
        try ask([request])[0]
    }

    private func requireSize(_ batch: RecordBatch) throws(TargetError) {
        guard batch.lengthBytes <= WireFormat.longestBodyBytes - 32 else {
            throw TargetError(.io, "a batch of \(batch.lengthBytes) bytes cannot be carried")
        }
    }

    /// Before the lock is taken: it takes its time.
    /// - Parameter line: bytes a second, where the line is slow.
    private func pack(
        _ fields: WireWriter, _ batch: RecordBatch, _ packer: FramePacker?, line: UInt64?
    ) -> UnsafeRawBufferPointer? {
        guard let packer, lock.withLock({ machine.mayPack }) else { return nil }
        return fields.withBody { body in
            packer.pack(body, batch, line: line, clock: { link.nowNs })
        }
    }
    package var nowNs: Int64 { link.nowNs }

    /// Returns when the records are on their way: ``wait(written:)``.
    /// - Parameters:
    ///   - packer: of the caller; nil: it goes as it is.
    ///   - lineBytesPerSecond: nil where the line keeps up.
    func append(
        _ batch: RecordBatch, tellsReceived: Bool, _ packer: FramePacker? = nil,
        lineBytesPerSecond line: UInt64? = nil
    ) throws(TargetError) {
        try requireSize(batch)
        let packed = pack(
            WireRequest.appendFields(batch, tellsReceived: tellsReceived), batch, packer, line: line
        )
        lock.lock()
        defer { lock.unlock() }
        try wait { () throws(TargetError) -> Void? in
            if let failure { throw failure }
            return machine.hasCredit(for: batch, isStage: false) && hasRoom ? () : nil
        }
        try sending { () throws(WireError) in
            try machine.append(
                batch, tellsReceived: tellsReceived, packed: packed, now: link.nowNs)
        }
    }

    /// Returns when the question is on its way; ``progress`` tells the answer.
    func askFlush(of given: SequenceNumber) throws(TargetError) {
        lock.lock()
        defer { lock.unlock() }
        try wait { () throws(TargetError) -> Void? in
            if let failure { throw failure }
            return machine.mayAsk ? () : nil
        }
        try sending { () throws(WireError) in
            let number = try machine.ask(.flush, now: link.nowNs)
            flushes[number] = given
        }
    }

    var progress: TargetProgress { lock.withLock { currentProgress } }
    private var currentProgress: TargetProgress {
        let said = machine.acknowledged
        return TargetProgress(
            written: said.written, durable: max(said.durable, flushedThrough),
            hasRoom: room(machine).isMuch)
    }
    var room: (bytes: Int, isMuch: Bool) { lock.withLock { room(machine) } }

    /// With a quarter of what there was at first there is room for the largest of records.
    private func room(_ machine: ClientConnection) -> (bytes: Int, isMuch: Bool) {
        let all = welcome?.creditBytes ?? 0
        let left = machine.creditBytes
        return (Int(clamping: left) - WireFormat.headBytes - 32, left >= all / 4)
    }

    func wait(written sequence: SequenceNumber) throws(TargetError) {
        lock.lock()
        defer { lock.unlock() }
        try wait { () throws(TargetError) -> Void? in
            if machine.acknowledged.written >= sequence { return () }
            if let failure { throw failure }
            return nil
        }
    }

    /// Returns when the records are on their way.
    func stage(
        _ batch: RecordBatch, order: UInt64, number: UInt64, _ packer: FramePacker? = nil,
        lineBytesPerSecond line: UInt64? = nil
    ) throws(TargetError) {
        try requireSize(batch)
        let packed = pack(
            WireRequest.stageFields(batch, order: order, number: number), batch, packer, line: line)
        lock.lock()
        defer { lock.unlock() }
        try wait { () throws(TargetError) -> Void? in
            if let failure { throw failure }
            return machine.hasCredit(for: batch, isStage: true) && hasRoom ? () : nil
        }
        try sending { () throws(WireError) in
            try machine.stage(
                batch, order: order, number: number, packed: packed, now: link.nowNs)
        }
    }

    /// What the target did not take, if anything.
    func requireSound() throws(TargetError) {
        if let error = lock.withLock({ failure ?? end?.targetError }) { throw error }
    }
    var creditBytes: UInt64 { lock.withLock { machine.creditBytes } }

    /// What was asked before is done; waits for that.
    func leave() {
        lock.lock()
        defer { lock.unlock() }
        for event in machine.leave(now: link.nowNs) { take(event) }
        flush()
        while end == nil { link.wait(lock, changed) }
    }

    /// Without a word.
    func drop(_ why: String) { handle { machine, _ in machine.lost(why) } }
}
