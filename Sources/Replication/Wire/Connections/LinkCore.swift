// What both sides of a connection have in common: frames in, frames out, the clock, and how it ends.

import BlockCore

/// Why a connection is over.
package enum WireEnd: Sendable, Hashable {
    /// This side wanted no more, and the other one did what was asked before.
    case left
    /// The other side ended it in good order.
    case goodbye(WireGoodbye)
    /// The other side did not understand this one.
    case refused(WireError)
    /// This side did not understand the other one.
    case broken(WireError)
    /// Nothing moves any more.
    case silent(String)
    /// The transport has no connection any more.
    case lost(String)
    /// The target refused the session.
    case failed(TargetError)

    /// As a session of replication takes it: what is away is tried again later.
    package var targetError: TargetError {
        switch self {
        case .left: TargetError(.absent, "it was let go of")
        case .goodbye(let goodbye): TargetError(.absent, goodbye.message)
        case .refused(let error) where error.kind == .limit: TargetError(.absent, error.message)
        case .refused(let error): TargetError(.io, "it refused what it was sent: \(error)")
        case .broken(let error): TargetError(.io, "what it sent is not understood: \(error)")
        case .silent(let why), .lost(let why): TargetError(.absent, why)
        case .failed(let error): error
        }
    }
}

struct LinkCore {
    var decoder: FrameDecoder
    var assembler: MessageAssembler
    var output = WireOutput()
    var clock: LinkClock
    /// What the other side takes.
    var longestMessageBytes = WireFormat.longestFragmentBytes

    /// - Parameter longestMessageBytes: that this side takes.
    init(decoder: FrameDecoder, longestMessageBytes: Int, timing: WireTiming, now: Int64) {
        self.decoder = decoder
        assembler = MessageAssembler(longestBytes: longestMessageBytes)
        clock = LinkClock(timing, now: now)
    }

    /// What any connection in use may be told.
    static let notices: [WireKind] = [.ping, .pong, .goodbye, .refused]

    mutating func send(
        _ kind: WireKind, number: UInt64 = 0, _ message: consuming WireWriter, now: Int64
    ) throws(WireError) {
        try output.send(
            kind, number: number, message, longestMessageBytes: longestMessageBytes)
        clock.sent(inAllBytes: output.totalBytes, now: now)
    }

    mutating func send(
        _ kind: WireKind, number: UInt64, _ fields: consuming WireWriter, records: RecordBatch,
        now: Int64
    ) throws(WireError) {
        try output.send(kind, number: number, fields, records: records)
        clock.sent(inAllBytes: output.totalBytes, now: now)
    }

    /// - Parameter packed: see ``WireOutput/send(_:number:packed:)``.
    mutating func send(
        _ kind: WireKind, number: UInt64, packed: UnsafeRawBufferPointer, now: Int64
    ) {
        output.send(kind, number: number, packed: packed)
        clock.sent(inAllBytes: output.totalBytes, now: now)
    }

    /// - Parameter body: of records; it is kept until it was sent.
    mutating func send(
        _ kind: WireKind, number: UInt64, _ body: WireBuffer, isPacked: Bool, now: Int64
    ) {
        output.send(kind, number: number, body, isPacked: isPacked)
        clock.sent(inAllBytes: output.totalBytes, now: now)
    }

    /// Of a length that it always has: it can be sent.
    mutating func sendFixed(_ kind: WireKind, _ message: WireWriter, now: Int64) {
        do throws(WireError) { try send(kind, message, now: now) } catch {
            preconditionFailure("'\(kind)' has its length: \(error)")
        }
    }

    mutating func acknowledge(_ acknowledgement: WireAcknowledgement, now: Int64) {
        sendFixed(.acknowledged, acknowledgement.encoded(), now: now)
    }
    mutating func sayGoodbye(_ reason: WireGoodbye.Reason, _ text: String, now: Int64) {
        sendFixed(.goodbye, WireGoodbye(reason: reason, message: text).encoded(), now: now)
    }
    mutating func refuse(_ error: WireError, now: Int64) {
        sendFixed(.refused, error.encoded(), now: now)
    }
    mutating func ping(now: Int64) {
        let beat = WireBeat(sentNs: now, takenBytes: decoder.takenBytes)
        sendFixed(.ping, beat.encoded(), now: now)
    }

    enum Notice {
        case beat(recovered: Bool)
        case goodbye(WireGoodbye)
        case refused(WireError)
    }

    /// - Returns: nil for what is no notice.
    mutating func take(notice frame: WireFrame, now: Int64) throws(WireError) -> Notice? {
        switch frame.head.kind {
        case .ping:
            let beat = try frame.read { (body) throws(WireError) in try WireBeat(decoding: body) }
            try clock.heardPing(now: now)
            let recovered = try clock.told(taken: beat.takenBytes, now: now)
            let pong = WireBeat(sentNs: beat.sentNs, takenBytes: decoder.takenBytes)
            sendFixed(.pong, pong.encoded(), now: now)
            return .beat(recovered: recovered)
        case .pong:
            let beat = try frame.read { (body) throws(WireError) in try WireBeat(decoding: body) }
            try clock.answered(pingOf: beat.sentNs, now: now)
            return .beat(recovered: try clock.told(taken: beat.takenBytes, now: now))
        case .goodbye:
            return try frame.read { (body) throws(WireError) in
                .goodbye(try WireGoodbye(decoding: body))
            }
        case .refused:
            return try frame.read { (body) throws(WireError) in
                .refused(try WireError(decoding: body))
            }
        default: return nil
        }
    }
}
