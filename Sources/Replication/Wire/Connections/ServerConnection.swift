// The server's side of one connection, without I/O: bytes and time in; bytes and events out.
//
//   waiting ── takeHello ──► greeted ── takeAdmission ──► admitting ── admitted, attached, entered ──► open
//      │                        │                             │ refuseAdmission                       │ the client's goodbye
//      │ no version             │ nothing asked for in time   │                                       ▼
//      └────────────────────────┴──────────────► ended ◄──────┴─────────────────────── finish ──── leaving
//
//   anything ── end: a refusal, silence, what is not understood, `lost`, `sayGoodbye` ──► ended
//
// - W5  Requests have the numbers 1, 2, 3 …: nothing is missing, nothing comes twice.
// - W6  More records than there was credit for end the connection before they take any memory; so do more
//       requests at once than may be.
// - W7  After the end nothing that comes is looked at: neither what was under way, nor what comes later.
// - W8  What asks for a session shows the challenge of this very greeting.

import BlockCore

package struct ServerConnection: LinkMachine {
    package enum State: Sendable, Hashable {
        case waiting, greeted, admitting, open, leaving
        case ended(WireEnd)
    }
    package enum Event: Sendable, LinkEvent {
        case connect(WireConnect)
        case attach(WireAttach)
        case enter(WireEnter)
        /// - Parameter cost: credit that it took, to be given back when it is done.
        case request(UInt64, WireRequest, cost: UInt64)
        /// Of a control connection.
        case query(UInt64, WireQuery)
        /// Nothing more comes: ``finish(now:)`` when everything before is done.
        case leaving
        case suspected
        case recovered
        case ended(WireEnd)
    }

    package struct Options: Sendable, Hashable {
        package var timing = WireTiming()
        package var software = "doppel"
        package var longestMessageBytes = WireFormat.longestMessageBytes
        package var features = WireFeatures.known
        package var creditBytes: UInt64 = 32 << 20
        package var mostRequests = 16
        /// Of what waits to be sent; beyond it nothing is read for it, until some of it is gone.
        package var mostWaitingBytes = 4 << 20
        package init() {}
    }

    private let options: Options
    private let instance: UInt64
    private let challenge: UInt64
    package private(set) var state = State.waiting
    package private(set) var role = WireRole.ordered
    /// The client takes compressed frames.
    package private(set) var mayPack = false
    var link: LinkCore
    private var lastNumber: UInt64 = 0
    /// Requests without records that were not answered yet.
    private var unanswered: Set<UInt64> = []
    private var acknowledgement = WireAcknowledgement()
    private var told = WireAcknowledgement()
    private var askBeforeNs: Int64

    /// - Parameters:
    ///   - instance: of this run of the server.
    ///   - challenge: random, of this connection.
    package init(options: Options, instance: UInt64, challenge: UInt64, now: Int64) {
        self.options = options
        self.instance = instance
        self.challenge = challenge
        link = LinkCore(
            decoder: FrameDecoder(accepts: WireKinds([.hello]), credit: options.creditBytes),
            longestMessageBytes: options.longestMessageBytes, timing: options.timing, now: now)
        acknowledgement.creditBytes = options.creditBytes
        told = acknowledgement
        askBeforeNs = now + 2 * options.timing.timeoutMs * 1_000_000
    }

    package var hasEnded: Bool { if case .ended = state { true } else { false } }
    package var roundTrips: RoundTrips { link.clock.roundTrips }
    package var wakeNs: Int64 {
        if hasEnded { return .max }
        let asking = state == .waiting || state == .greeted ? askBeforeNs : .max
        return min(link.clock.wakeNs, asking)
    }
    /// What was answered waits to be sent: the next long answer, and acknowledgements, wait for that.
    package var isCongested: Bool { link.output.waitingBytes >= options.mostWaitingBytes }

    /// What is to be sent now, in order. A transport takes it when it can send it: what is not taken holds up
    /// what comes after it.
    package mutating func takeOutput(now: Int64) -> [WirePiece] {
        let pieces = link.output.take()
        tellAcknowledgements(now: now)
        return pieces + link.output.take()
    }

    // MARK: Beginning

    /// waiting → greeted
    private mutating func takeHello(_ frame: WireFrame, _ now: Int64) throws(WireError) {
        let hello = try frame.read { (body) throws(WireError) in
            try WireHello(decoding: body)
        }
        let spoken = WireFormat.versions
        let common = min(hello.versions.upperBound, spoken.upperBound)
        guard common >= max(hello.versions.lowerBound, spoken.lowerBound) else {
            throw WireError(
                .version, "hello.versions", at: 8,
                "this side speaks versions \(spoken.lowerBound) to \(spoken.upperBound), the other "
                    + "\(hello.versions.lowerBound) to \(hello.versions.upperBound)")
        }
        role = hello.role
        let features = hello.features.intersection(options.features)
        mayPack = features.contains(.compressedFrames)
        if mayPack { link.decoder.takePacked() }
        link.longestMessageBytes = Int(hello.longestMessageBytes)
        link.clock.beginPinging(theirsMs: hello.heartbeatMs, now: now)
        let welcome = WireWelcome(
            version: common, features: features,
            longestMessageBytes: UInt32(clamping: options.longestMessageBytes),
            heartbeatMs: UInt32(clamping: options.timing.heartbeatMs),
            creditBytes: options.creditBytes, mostRequests: UInt32(clamping: options.mostRequests),
            instance: instance, challenge: challenge,
            software: options.software)
        link.sendFixed(.welcome, welcome.encoded(), now: now)
        state = .greeted
        link.decoder.accepts = WireKinds(
            LinkCore.notices + [Self.admission(of: role)])
    }

    private static func admission(of role: WireRole) -> WireKind {
        switch role {
        case .ordered: .connect
        case .bulk: .attach
        case .control: .enter
        }
    }

    /// greeted → admitting
    private mutating func takeAdmission(_ frame: WireFrame) throws(WireError) -> Event {
        let (event, shown): (Event, UInt64)
        switch frame.head.kind {
        case .connect:
            let request = try frame.read { (body) throws(WireError) in
                try WireConnect(decoding: body)
            }
            (event, shown) = (.connect(request), request.challenge)
        case .enter:
            let request = try frame.read { (body) throws(WireError) in
                try WireEnter(decoding: body)
            }
            (event, shown) = (.enter(request), request.challenge)
        default:
            let request = try frame.read { (body) throws(WireError) in
                try WireAttach(decoding: body)
            }
            (event, shown) = (.attach(request), request.challenge)
        }
        guard shown == challenge else {
            throw WireError(
                .superseded, "\(frame.head.kind).challenge", at: 0,
                "it is no answer to this greeting")
        }
        state = .admitting
        link.decoder.accepts = WireKinds(LinkCore.notices)
        return event
    }

    /// admitting → open
    /// - Throws: `.tooLarge`: nothing was sent.
    package mutating func admitted(_ connected: WireConnected, now: Int64) throws(WireError) {
        guard state == .admitting, role == .ordered else { return }
        try link.send(.connected, number: lastNumber, try connected.encoded(), now: now)
        let checkpoint = connected.report.checkpoint
        acknowledgement.received = checkpoint
        acknowledgement.written = checkpoint
        acknowledgement.durable = checkpoint
        told = acknowledgement
        open(WireRequest.orderedKinds)
    }

    /// admitting → open
    package mutating func attached(now: Int64) throws(WireError) {
        guard state == .admitting, role == .bulk else { return }
        try link.send(
            .attached, number: lastNumber, WireWriter("attached", capacity: 0), now: now)
        open(WireRequest.bulkKinds)
    }

    /// admitting → open
    package mutating func entered(now: Int64) throws(WireError) {
        guard state == .admitting, role == .control else { return }
        try link.send(.entered, number: lastNumber, WireWriter("entered", capacity: 0), now: now)
        open(WireQuery.kinds)
    }

    private mutating func open(_ kinds: [WireKind]) {
        unanswered = []
        state = .open
        link.decoder.accepts = WireKinds(LinkCore.notices + kinds)
    }

    /// admitting → ended
    package mutating func refuseAdmission(_ error: TargetError, now: Int64) -> [Event] {
        guard state == .admitting else { return [] }
        sendReply(lastNumber, .failed(error), now)
        return [end(.failed(error))]
    }

    // MARK: What comes

    package mutating func receive(_ bytes: UnsafeRawBufferPointer, now: Int64) -> [Event] {
        guard !hasEnded else { return [] }
        return takeFrames(bytes, now: now)
    }

    mutating func take(_ frame: WireFrame, _ now: Int64) throws(WireError) -> Event? {
        if let notice = try link.take(notice: frame, now: now) {
            switch notice {
            case .beat(let recovered): return recovered ? .recovered : nil
            case .refused(let error): return end(.refused(error))
            case .goodbye(let goodbye):
                guard state == .open else { return end(.goodbye(goodbye)) }
                state = .leaving
                link.decoder.accepts = WireKinds([.ping, .pong, .refused])
                return .leaving
            }
        }
        if frame.head.kind == .hello {
            try takeHello(frame, now)
            return nil
        }
        guard frame.head.number == lastNumber + 1 else {
            throw WireError(
                .outOfOrder, "frame.number", at: 8,
                "request \(frame.head.number) after \(lastNumber)")
        }
        lastNumber = frame.head.number
        if !frame.head.kind.takesCredit {
            guard unanswered.count < options.mostRequests else {
                throw WireError(
                    .tooManyRequests, "frame.number", at: 8,
                    "\(unanswered.count) requests wait already")
            }
            unanswered.insert(lastNumber)
        }
        if state == .greeted { return try takeAdmission(frame) }
        if role == .control { return .query(lastNumber, try WireQuery(frame)) }
        let cost = frame.head.kind.takesCredit ? UInt64(frame.head.totalBytes) : 0
        return .request(lastNumber, try WireRequest(frame), cost: cost)
    }

    // MARK: Answering

    package mutating func reply(_ number: UInt64, _ reply: WireReply, now: Int64) {
        guard state == .open || state == .leaving else { return }
        unanswered.remove(number)
        sendReply(number, reply, now)
    }

    private mutating func sendReply(_ number: UInt64, _ reply: WireReply, _ now: Int64) {
        do throws(WireError) {
            guard case .content(let content) = reply else {
                return try link.send(reply.kind, number: number, try reply.encoded(), now: now)
            }
            link.send(
                .content, number: number, content.buffer, isPacked: content.isPacked, now: now)
        } catch {
            // Instead of a reply that is too long, why there is none: that always has room.
            let failure = WireReply.failed(TargetError(.io, "the answer is too long: \(error)"))
            do throws(WireError) {
                try link.send(.failed, number: number, try failure.encoded(), now: now)
            } catch { preconditionFailure("an error has its length: \(error)") }
        }
    }

    /// Said with ``tellAcknowledgements(now:)``; what is not beyond what was said changes nothing.
    package mutating func acknowledge(
        received: SequenceNumber = .zero, written: SequenceNumber = .zero,
        durable: SequenceNumber = .zero, staged: UInt64 = 0
    ) {
        acknowledgement.written = max(acknowledgement.written, written)
        // A target whose story is another one may hold more, durably, than it was given here.
        acknowledgement.durable = max(
            acknowledgement.durable, min(durable, acknowledgement.written))
        acknowledgement.received = max(
            acknowledgement.received, received, acknowledgement.written)
        acknowledgement.staged = max(acknowledgement.staged, staged)
    }

    /// What a request with records took is free again.
    package mutating func release(cost: UInt64) {
        acknowledgement.creditBytes += cost
    }

    /// Credit alone is told when a quarter of it has come together.
    package mutating func tellAcknowledgements(now: Int64) {
        guard state == .open || state == .leaving, !isCongested else { return }
        var alike = acknowledgement
        alike.creditBytes = told.creditBytes
        let freed = acknowledgement.creditBytes - told.creditBytes
        guard alike != told || freed >= options.creditBytes / 4 else { return }
        link.decoder.grant(freed)
        told = acknowledgement
        link.acknowledge(told, now: now)
    }

    // MARK: Time and the end

    package mutating func tick(now: Int64) -> [Event] {
        guard !hasEnded else { return [] }
        if state == .waiting || state == .greeted, now >= askBeforeNs {
            let why = "it did not ask for anything in time"
            return [sayGoodbye(.done, why, now: now)].compactMap { $0 }
        }
        return watchClock(now: now)
    }

    /// leaving → ended: all that was asked for is done.
    package mutating func finish(now: Int64) -> Event? {
        guard state == .leaving else { return nil }
        return sayGoodbye(.done, "", now: now)
    }

    /// Ends it in good order.
    package mutating func sayGoodbye(
        _ reason: WireGoodbye.Reason, _ text: String, now: Int64
    ) -> Event? {
        guard !hasEnded else { return nil }
        let goodbye = WireGoodbye(reason: reason, message: text)
        link.sayGoodbye(reason, text, now: now)
        return end(state == .leaving ? .left : .goodbye(goodbye))
    }

    /// Ends it: what it asked for cannot be.
    package mutating func refuse(_ error: WireError, now: Int64) -> Event? {
        guard !hasEnded else { return nil }
        link.refuse(error, now: now)
        return end(.broken(error))
    }

    /// The transport has no connection any more.
    package mutating func lost(_ why: String) -> [Event] {
        hasEnded ? [] : [end(.lost(why))]
    }

    mutating func end(_ end: WireEnd) -> Event {
        state = .ended(end)
        unanswered = []
        return .ended(end)
    }
}
