// The client's side of one connection, without I/O: bytes and time in; bytes and events out.
//
//   idle ── begin ──► greeting ── takeWelcome ──► greeted ── connect, attach, enter ──► admitting
//                                                                                          │ takeAdmission
//                                   ended ◄── the server's goodbye ── leaving ◄── leave ── open ◄┘
//
//   anything ── end: a refusal, a goodbye, silence, what is not understood, `lost` ──► ended
//
// - W1  A request has the next number; a reply has the number of a request that waits for one, and is of a
//       kind that this request has.
// - W2  Bytes of frames with records never exceed what the server gave credit for.
// - W3  An acknowledgement never goes back, and never covers what was not sent.
// - W4  After the end nothing is sent, and nothing that comes is looked at.

import BlockCore

package struct ClientConnection: LinkMachine {
    package enum State: Sendable, Hashable {
        case idle, greeting, greeted, admitting, open, leaving
        case ended(WireEnd)
    }
    package enum Event: Sendable, LinkEvent {
        case welcomed(WireWelcome)
        case connected(WireConnected)
        case attached
        case entered
        case reply(UInt64, WireReply)
        case acknowledged(WireAcknowledgement)
        case suspected
        case recovered
        case ended(WireEnd)
    }

    package struct Options: Sendable, Hashable {
        package var timing = WireTiming()
        package var software = "doppel"
        package var longestMessageBytes = WireFormat.longestMessageBytes
        package var features = WireFeatures.known
        package init() {}
    }

    package let role: WireRole
    private let options: Options
    package private(set) var state = State.idle
    var link: LinkCore
    package private(set) var welcome: WireWelcome?
    package private(set) var acknowledged = WireAcknowledgement()
    private var lastNumber: UInt64 = 0
    /// Requests that wait for a reply.
    private var waiting: [UInt64: WireKind] = [:]
    /// Of the last request with records, which has a reply only if it failed.
    private var lastRecordsNumber: UInt64 = 0
    /// Bytes of frames with records that were sent.
    private var spentBytes: UInt64 = 0
    /// Nothing after it can be acknowledged.
    private var highestGiven = SequenceNumber.zero

    package init(_ role: WireRole, options: Options = Options(), now: Int64) {
        self.role = role
        self.options = options
        link = LinkCore(
            decoder: FrameDecoder(accepts: WireKinds([.welcome, .goodbye, .refused])),
            longestMessageBytes: options.longestMessageBytes, timing: options.timing, now: now)
    }

    package var hasEnded: Bool { if case .ended = state { true } else { false } }
    package var roundTrips: RoundTrips { link.clock.roundTrips }
    package var isSuspected: Bool { link.clock.isSuspected }
    /// Nothing is due before, unless something happens.
    package var wakeNs: Int64 { hasEnded ? .max : link.clock.wakeNs }

    /// What is to be sent now, in order.
    package mutating func takeOutput() -> [WirePiece] { link.output.take() }
    package var waitingBytes: Int { link.output.waitingBytes }

    // MARK: Beginning

    /// idle → greeting
    package mutating func begin(now: Int64) {
        guard state == .idle else { return }
        let hello = WireHello(
            role: role, features: options.features,
            longestMessageBytes: UInt32(clamping: options.longestMessageBytes),
            heartbeatMs: UInt32(clamping: options.timing.heartbeatMs),
            software: options.software)
        link.sendFixed(.hello, hello.encoded(), now: now)
        state = .greeting
    }

    /// greeting → greeted
    private mutating func takeWelcome(_ frame: WireFrame, _ now: Int64) throws(WireError) -> Event {
        let welcome = try frame.read { (body) throws(WireError) in
            try WireWelcome(decoding: body)
        }
        guard options.features.isSuperset(of: welcome.features) else {
            throw WireError(.unknown, "welcome.features", at: 16, "one was not offered")
        }
        if welcome.features.contains(.compressedFrames) { link.decoder.takePacked() }
        self.welcome = welcome
        state = .greeted
        link.decoder.accepts = WireKinds(LinkCore.notices)
        link.longestMessageBytes = Int(welcome.longestMessageBytes)
        link.clock.beginPinging(theirsMs: welcome.heartbeatMs, now: now)
        acknowledged.creditBytes = welcome.creditBytes
        return .welcomed(welcome)
    }

    /// greeted → admitting; for an ordered connection.
    package mutating func connect(_ request: WireConnect, now: Int64) throws(WireError) {
        try require(state == .greeted && role == .ordered, .connect)
        try send(.connect, try request.encoded(), now: now)
        admit(.connected)
    }

    /// greeted → admitting; for a bulk connection.
    package mutating func attach(_ request: WireAttach, now: Int64) throws(WireError) {
        try require(state == .greeted && role == .bulk, .attach)
        try send(.attach, try request.encoded(), now: now)
        admit(.attached)
    }

    /// greeted → admitting; for a control connection.
    package mutating func enter(_ request: WireEnter, now: Int64) throws(WireError) {
        try require(state == .greeted && role == .control, .enter)
        try send(.enter, try request.encoded(), now: now)
        admit(.entered)
    }

    private mutating func admit(_ reply: WireKind) {
        state = .admitting
        link.decoder.accepts = WireKinds(LinkCore.notices + [reply, .failed])
    }

    /// admitting → open, or ended
    private mutating func takeAdmission(_ frame: WireFrame, _ now: Int64) throws(WireError) -> Event
    {
        guard frame.head.number == lastNumber else { throw wrongNumber(frame) }
        waiting = [:]
        if frame.head.kind == .failed {
            return end(
                .failed(
                    try frame.read { (body) throws(WireError) in
                        try TargetError(wire: body)
                    }))
        }
        state = .open
        guard role != .control else {
            link.decoder.accepts = WireKinds(
                LinkCore.notices + [.answered, .hashes, .blocks, .content, .poolShape, .failed])
            return .entered
        }
        link.decoder.accepts = WireKinds(
            LinkCore.notices + [
                .flushed, .done, .hashes, .blocks, .content, .poolShape, .failed, .acknowledged,
            ])
        guard frame.head.kind == .connected else { return .attached }
        let connected = try frame.read { (body) throws(WireError) in
            try WireConnected(decoding: body)
        }
        let checkpoint = connected.report.checkpoint
        highestGiven = checkpoint
        acknowledged.received = checkpoint
        acknowledged.written = checkpoint
        acknowledged.durable = checkpoint
        return .connected(connected)
    }

    // MARK: Asking

    private func require(_ isSo: Bool, _ kind: WireKind) throws(WireError) {
        guard isSo else {
            throw WireError(.outOfOrder, "frame.kind", at: 4, "'\(kind)' cannot be sent now")
        }
    }

    private mutating func send(
        _ kind: WireKind, _ message: consuming WireWriter, now: Int64
    ) throws(WireError) {
        try link.send(kind, number: lastNumber + 1, message, now: now)
        lastNumber += 1
        waiting[lastNumber] = kind
    }

    /// Another request may be sent, besides those with records.
    package var mayAsk: Bool {
        state == .open && waiting.count < Int(welcome?.mostRequests ?? 0)
    }

    /// A batch may be sent.
    /// - Parameter isStage: it goes into a staging.
    package func hasCredit(for batch: RecordBatch, isStage: Bool) -> Bool {
        let bytes = UInt64(WireFormat.headBytes + (isStage ? 32 : 24) + batch.lengthBytes)
        return state == .open && bytes <= acknowledged.creditBytes - spentBytes
    }
    /// The server takes compressed frames.
    package var mayPack: Bool { welcome?.features.contains(.compressedFrames) ?? false }
    package var creditBytes: UInt64 { acknowledged.creditBytes - spentBytes }

    /// - Returns: its number, which the reply will have.
    package mutating func ask(_ request: WireRequest, now: Int64) throws(WireError) -> UInt64 {
        try require(mayAsk && mayCarry(request.kind), request.kind)
        try send(request.kind, try request.encoded(), now: now)
        if case .commitStaging(_, _, let sequence, _) = request {
            highestGiven = max(highestGiven, sequence)
        }
        return lastNumber
    }

    /// As ``ask(_:now:)-(WireRequest,_)``, on a control connection.
    package mutating func ask(_ query: WireQuery, now: Int64) throws(WireError) -> UInt64 {
        try require(mayAsk && mayCarry(query.kind), query.kind)
        try send(query.kind, try query.encoded(), now: now)
        return lastNumber
    }

    private func mayCarry(_ kind: WireKind) -> Bool {
        switch role {
        case .ordered: WireRequest.orderedKinds.contains(kind)
        case .bulk: WireRequest.bulkKinds.contains(kind)
        case .control: WireQuery.kinds.contains(kind)
        }
    }

    /// - Parameters:
    ///   - batch: its memory is in the output: that has to be taken, and sent or copied, before the batch is
    ///     not valid any more.
    ///   - packed: the same body, compressed; valid for as long.
    package mutating func append(
        _ batch: RecordBatch, tellsReceived: Bool = false, packed: UnsafeRawBufferPointer? = nil,
        now: Int64
    ) throws(WireError) {
        try require(role == .ordered && hasCredit(for: batch, isStage: false), .append)
        try sendRecords(
            .append, WireRequest.appendFields(batch, tellsReceived: tellsReceived), batch, packed,
            now)
        highestGiven = max(highestGiven, batch.lastSequence)
    }

    /// - Parameters:
    ///   - batch, packed: as for ``append(_:tellsReceived:packed:now:)``.
    package mutating func stage(
        _ batch: RecordBatch, order: UInt64, number: UInt64,
        packed: UnsafeRawBufferPointer? = nil, now: Int64
    ) throws(WireError) {
        try require(hasCredit(for: batch, isStage: true), .stage)
        try sendRecords(
            .stage, WireRequest.stageFields(batch, order: order, number: number), batch, packed,
            now)
    }

    private mutating func sendRecords(
        _ kind: WireKind, _ fields: consuming WireWriter, _ batch: RecordBatch,
        _ packed: UnsafeRawBufferPointer?, _ now: Int64
    ) throws(WireError) {
        let bytes = UInt64(WireFormat.headBytes + fields.bodyBytes + batch.lengthBytes)
        if let packed {
            link.send(kind, number: lastNumber + 1, packed: packed, now: now)
        } else {
            try link.send(kind, number: lastNumber + 1, fields, records: batch, now: now)
        }
        lastNumber += 1
        lastRecordsNumber = lastNumber
        spentBytes += bytes
    }

    // MARK: What comes

    package mutating func receive(_ bytes: UnsafeRawBufferPointer, now: Int64) -> [Event] {
        guard !hasEnded, state != .idle else { return [] }
        return takeFrames(bytes, now: now)
    }

    mutating func take(_ frame: WireFrame, _ now: Int64) throws(WireError) -> Event? {
        if let notice = try link.take(notice: frame, now: now) {
            switch notice {
            case .beat(let recovered): return recovered ? .recovered : nil
            case .refused(let error): return end(.refused(error))
            case .goodbye(let goodbye): return end(state == .leaving ? .left : .goodbye(goodbye))
            }
        }
        switch frame.head.kind {
        case .welcome: return try takeWelcome(frame, now)
        case .acknowledged: return try takeAcknowledgement(frame)
        default: break
        }
        if state == .admitting { return try takeAdmission(frame, now) }
        return try takeReply(frame)
    }

    private func wrongNumber(_ frame: WireFrame) -> WireError {
        WireError(
            .outOfOrder, "frame.number", at: 8,
            "'\(frame.head.kind)' to request \(frame.head.number), which waits for no such thing")
    }

    private mutating func takeReply(_ frame: WireFrame) throws(WireError) -> Event {
        let (kind, number) = (frame.head.kind, frame.head.number)
        guard let asked = waiting[number] else {
            // Requests with records are answered by acknowledgements, and when they fail.
            guard kind == .failed, number <= lastRecordsNumber else { throw wrongNumber(frame) }
            return .reply(number, try WireReply(frame))
        }
        guard kind == .failed || kind == Self.reply(to: asked) else { throw wrongNumber(frame) }
        waiting[number] = nil
        return .reply(number, try WireReply(frame))
    }

    private static func reply(to request: WireKind) -> WireKind {
        switch request {
        case .flush: .flushed
        case .blockHashes: .hashes
        case .allocatedBlocks: .blocks
        case .read: .content
        case .shape: .poolShape
        case .control: .answered
        default: .done
        }
    }

    private mutating func takeAcknowledgement(_ frame: WireFrame) throws(WireError) -> Event {
        let next = try frame.read { (body) throws(WireError) in
            try WireAcknowledgement(decoding: body)
        }
        let old = acknowledged
        guard
            next.received >= old.received, next.written >= old.written,
            next.durable >= old.durable, next.staged >= old.staged,
            next.creditBytes >= old.creditBytes
        else {
            throw WireError(.outOfOrder, "acknowledged", at: 0, "\(next) after \(old)")
        }
        guard role == .bulk || next.received <= highestGiven else {
            throw WireError(
                .malformed, "acknowledged.received", at: 0,
                "\(next.received.rawValue), and no more than \(highestGiven.rawValue) was sent")
        }
        acknowledged = next
        return .acknowledged(next)
    }

    // MARK: Time and the end

    package mutating func tick(now: Int64) -> [Event] {
        guard !hasEnded, state != .idle else { return [] }
        return watchClock(now: now)
    }

    /// open → leaving: what was asked before is still done, and answered.
    package mutating func leave(now: Int64) -> [Event] {
        switch state {
        case .open:
            link.sayGoodbye(.done, "", now: now)
            state = .leaving
            return []
        case .leaving, .ended: return []
        case .idle, .greeting: return [end(.left)]
        case .greeted, .admitting:
            link.sayGoodbye(.done, "", now: now)
            return [end(.left)]
        }
    }

    /// The transport has no connection any more.
    package mutating func lost(_ why: String) -> [Event] {
        hasEnded ? [] : [end(.lost(why))]
    }

    mutating func end(_ end: WireEnd) -> Event {
        state = .ended(end)
        waiting = [:]
        return .ended(end)
    }
}
