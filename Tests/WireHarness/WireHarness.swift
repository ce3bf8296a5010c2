// Bytes from anywhere, given to either side of a connection in any state. Both a fuzzer that looks for new paths
// (`wire-fuzzer`) and an ordinary test over what it found run this.
//
//   byte 0   bits 0 to 3: which side, in which state; bit 7: the rest is taken as it is
//   byte 1   the longest piece that is given at once; 0: all of it
//   then     frames: kind (1), flags (1), what is added to the next number (1), length of the body (2), the body.
//            Lengths and checks are made right: no fuzzer guesses a hash. Of the flags, bits 4 and 5 say how many
//            blocks of zeros follow the body, and bit 6 that all of it is sent compressed, where it shrinks.

import BlockCore

@testable import Replication

package enum WireHarness {
    package enum Side: UInt8, CaseIterable {
        case serverWaiting, serverGreeted, serverOrdered, serverBulk
        case clientGreeting, clientGreeted, clientAdmitting, clientOrdered
        case serverControl, clientControl
    }
    private static let nowNs: Int64 = 1_000_000_000
    private static let challenge: UInt64 = 0x1122_3344_5566_7788

    /// - Returns: what it came to: something else for something new.
    @discardableResult
    package static func run(_ input: some Collection<UInt8>) -> Int {
        var input = Array(input)[...]
        guard let first = input.popFirst(), let piece = input.popFirst() else { return 0 }
        let side = Side.allCases[Int(first & 15) % Side.allCases.count]
        let bytes = first & 0x80 == 0 ? forge(&input, side) : Array(input)
        return switch side {
        case .serverWaiting, .serverGreeted, .serverOrdered, .serverBulk, .serverControl:
            runServer(side, bytes, piece)
        default: runClient(side, bytes, piece)
        }
    }

    private static func forge(_ input: inout ArraySlice<UInt8>, _ side: Side) -> [UInt8] {
        var bytes: [UInt8] = []
        let isOpen = [.serverOrdered, .serverBulk, .serverControl].contains(side)
        var next: UInt64 = isOpen ? 2 : 1
        var packer: ZstdCompressor?
        while input.count >= 5 {
            let head = Array(input.prefix(5))
            input = input.dropFirst(5)
            let body = Array(input.prefix(Int(head[3]) | Int(head[4]) << 8))
            input = input.dropFirst(body.count)
            let (whole, flags) = dressed(body, head[1], &packer)
            let kind = WireKind(rawValue: head[0])
            let isNumbered = kind.map { $0.isRequest || $0.isReply } ?? true
            let number = isNumbered ? next &+ UInt64(head[2]) : UInt64(head[2])
            if kind?.isRequest == true { next &+= 1 }
            bytes += WireForge.frame(kind: head[0], flags: flags, number: number, body: whole)
        }
        return bytes
    }

    /// What is in a compressed body no fuzzer finds by changing that, and whole blocks it finds late.
    private static func dressed(
        _ body: [UInt8], _ flags: UInt8, _ packer: inout ZstdCompressor?
    ) -> (body: [UInt8], flags: UInt8) {
        let zeros = Int(flags >> 4 & 3) << Int(Geometry.blockShift)
        let whole = body + [UInt8](repeating: 0, count: zeros)
        let plain = (whole, flags & 0x8f)
        guard flags & 0x40 != 0, whole.count > 8 else { return plain }
        packer = packer ?? ZstdCompressor()
        var place = [UInt8](repeating: 0, count: whole.count - 8)
        let none = UnsafeRawBufferPointer(start: nil, count: 0)
        let count = whole.withUnsafeBytes { raw in
            place.withUnsafeMutableBytes { packer?.compress(raw, none, none, into: $0) }
        }
        guard let count, count + 8 < whole.count else { return plain }
        let length = (0..<4).map { UInt8(truncatingIfNeeded: whole.count >> (8 * $0)) }
        return (length + [0, 0, 0, 0] + place[..<count], flags & 0x8f | 2)
    }

    private static func give(
        _ bytes: [UInt8], _ piece: UInt8, _ body: (UnsafeRawBufferPointer) -> Void
    ) {
        var rest = bytes[...]
        let most = piece == 0 ? bytes.count : Int(piece)
        while !rest.isEmpty {
            Array(rest.prefix(most)).withUnsafeBytes(body)
            rest = rest.dropFirst(most)
        }
    }

    private static func greeting(_ role: WireRole) -> [UInt8] {
        var output = WireOutput()
        let hello = WireHello(
            role: role, longestMessageBytes: 1 << 20, heartbeatMs: 500, software: "")
        try! output.send(.hello, hello.encoded())
        return joined(output.take())
    }

    private static func joined(_ pieces: [WirePiece]) -> [UInt8] {
        pieces.flatMap { piece in piece.withBytes { Array($0) } }
    }

    private static var report: ReplicaReport {
        ReplicaReport(
            incarnationID: nil, generation: nil, checkpoint: SequenceNumber(rawValue: 40),
            snapshots: [], staging: nil)
    }

    // MARK: The server

    private static func runServer(_ side: Side, _ bytes: [UInt8], _ piece: UInt8) -> Int {
        var options = ServerConnection.Options()
        options.creditBytes = 16 << 20
        options.longestMessageBytes = 1 << 20
        var machine = ServerConnection(
            options: options, instance: 1, challenge: challenge, now: nowNs)
        if side != .serverWaiting {
            let role: WireRole =
                side == .serverBulk ? .bulk : side == .serverControl ? .control : .ordered
            greeting(role).withUnsafeBytes { _ = machine.receive($0, now: nowNs) }
            if side != .serverGreeted { open(&machine, role) }
        }
        var seen = 0
        give(bytes, piece) { raw in
            for event in machine.receive(raw, now: nowNs) { seen += look(at: event, &machine) }
            _ = machine.takeOutput(now: nowNs)
        }
        _ = machine.tick(now: nowNs + 3_000_000_000)
        _ = machine.takeOutput(now: nowNs)
        return seen * 100 + stateNumber(machine.hasEnded)
    }

    private static func open(_ machine: inout ServerConnection, _ role: WireRole) {
        var output = WireOutput()
        if role == .control {
            let request = WireEnter(challenge: challenge, pool: "p")
            try! output.send(.enter, number: 1, try! request.encoded())
        } else if role == .bulk {
            let request = WireAttach(challenge: challenge, epoch: 1, token: 2, pool: "p")
            try! output.send(.attach, number: 1, try! request.encoded())
        } else {
            let hello = PrimaryHello(
                poolID: "p",
                generation: Generation(
                    number: 1, id: "g", parentID: nil, startSequence: .zero), incarnation: 1,
                incarnationID: "i")
            let request = WireConnect(
                challenge: challenge, client: 1, attempt: 1, pool: "p", hello: hello)
            try! output.send(.connect, number: 1, try! request.encoded())
        }
        joined(output.take()).withUnsafeBytes { _ = machine.receive($0, now: nowNs) }
        if role == .control {
            try! machine.entered(now: nowNs)
        } else if role == .bulk {
            try! machine.attached(now: nowNs)
        } else {
            try! machine.admitted(
                WireConnected(epoch: 1, token: 2, report: report), now: nowNs)
        }
        precondition(machine.state == .open)
    }

    /// Does with it what a server does.
    private static func look(
        at event: ServerConnection.Event, _ machine: inout ServerConnection
    ) -> Int {
        switch event {
        case .request(let number, let request, let cost):
            switch request {
            case .append(let records, _):
                let isSound = (try? WireRecordReader.check(records, isStream: true)) != nil
                if isSound { records.withBatch { batch in batch.forEach { _, _ in } } }
                machine.acknowledge(written: records.last)
                machine.release(cost: cost)
            case .stage(let order, _, let records):
                let isSound = (try? WireRecordReader.check(records, isStream: false)) != nil
                if isSound { records.withBatch { batch in batch.forEach { _, _ in } } }
                machine.acknowledge(staged: order)
                machine.release(cost: cost)
            case .flush: machine.reply(number, .flushed(.zero), now: nowNs)
            default: machine.reply(number, .failed(TargetError(.io, "no")), now: nowNs)
            }
            machine.tellAcknowledgements(now: nowNs)
            return Int(request.kind.rawValue)
        case .connect: return 1
        case .attach: return 2
        case .enter: return 4
        case .query(let number, let query):
            machine.reply(number, .answered([1, 2, 3]), now: nowNs)
            return 60 + Int(query.kind.rawValue)
        case .leaving:
            _ = machine.finish(now: nowNs)
            return 3
        case .suspected, .recovered, .ended: return 0
        }
    }

    // MARK: The client

    private static func runClient(_ side: Side, _ bytes: [UInt8], _ piece: UInt8) -> Int {
        var options = ClientConnection.Options()
        options.longestMessageBytes = 1 << 20
        let role: WireRole = side == .clientControl ? .control : .ordered
        var machine = ClientConnection(role, options: options, now: nowNs)
        machine.begin(now: nowNs)
        if side != .clientGreeting {
            var server = ServerConnection(
                options: .init(), instance: 1, challenge: challenge, now: nowNs)
            greeting(role).withUnsafeBytes { _ = server.receive($0, now: nowNs) }
            joined(server.takeOutput(now: nowNs)).withUnsafeBytes {
                _ = machine.receive($0, now: nowNs)
            }
        }
        if side == .clientAdmitting || side == .clientOrdered {
            let hello = PrimaryHello(
                poolID: "p",
                generation: Generation(
                    number: 1, id: "g", parentID: nil, startSequence: .zero), incarnation: 1,
                incarnationID: "i")
            try! machine.connect(
                WireConnect(
                    challenge: challenge, client: 1, attempt: 1, pool: "p", hello: hello),
                now: nowNs)
        }
        if side == .clientOrdered { open(&machine) }
        if side == .clientControl { enter(&machine) }
        _ = machine.takeOutput()
        var seen = 0
        give(bytes, piece) { raw in
            for event in machine.receive(raw, now: nowNs) { seen += look(at: event) }
            _ = machine.takeOutput()
        }
        _ = machine.tick(now: nowNs + 3_000_000_000)
        return seen * 100 + stateNumber(machine.hasEnded)
    }

    /// Open, with one request of each kind waiting: 2 flush, 3 hashes, 4 allocated, 5 read, 6 shape, 7 sync.
    private static func open(_ machine: inout ClientConnection) {
        var output = WireOutput()
        try! output.send(
            .connected, number: 1,
            try! WireConnected(epoch: 1, token: 2, report: report).encoded())
        joined(output.take()).withUnsafeBytes { _ = machine.receive($0, now: nowNs) }
        let image = ImageID(rawValue: 1)
        let range = BlockRange(start: 2, count: 3)
        let requests: [WireRequest] = [
            .flush, .blockHashes(after: 0, of: image, in: range), .allocatedBlocks(after: 0),
            .read(after: 0, range, of: image), .shape(after: 0), .syncStaging(order: 1),
        ]
        for request in requests { _ = try! machine.ask(request, now: nowNs) }
        precondition(machine.state == .open)
    }

    /// Open, with one query of each kind waiting: 2 control, 3 shape, 4 blocks, 5 hashes, 6 read, 7 control.
    private static func enter(_ machine: inout ClientConnection) {
        try! machine.enter(WireEnter(challenge: challenge, pool: "p"), now: nowNs)
        var output = WireOutput()
        try! output.send(.entered, number: 1, WireWriter("entered"))
        joined(output.take()).withUnsafeBytes { _ = machine.receive($0, now: nowNs) }
        let (image, range) = (ImageID(rawValue: 1), BlockRange(start: 2, count: 3))
        let queries: [WireQuery] = [
            .control([1]), .shape(leg: 0), .blocks(leg: 0), .hashes(leg: 0, of: image, in: range),
            .read(leg: 0, range, of: image), .control([1]),
        ]
        for query in queries { _ = try! machine.ask(query, now: nowNs) }
        precondition(machine.state == .open)
    }

    private static func look(at event: ClientConnection.Event) -> Int {
        guard case .reply(_, let reply) = event else { return 1 }
        if case .content(let content) = reply {
            var place = [UInt8](repeating: 0, count: 3 * 4096)
            let isWhole = place.withUnsafeMutableBytes { raw in
                (try? content.fill(
                    raw, with: BlockRange(start: 2, count: 3), of: ImageID(rawValue: 1))) != nil
            }
            return isWhole ? 99 : 98
        }
        return Int(reply.kind.rawValue)
    }

    private static func stateNumber(_ hasEnded: Bool) -> Int { hasEnded ? 1 : 2 }
}
