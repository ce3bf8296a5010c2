import BlockCore
import TestSupport
import Testing
import WireHarness

@testable import Replication

/// The two machines of a connection, one beside the other.
struct WirePair {
    var client: ClientConnection
    var server: ServerConnection
    var nowNs: Int64 = 1_000_000_000
    var clientEvents: [ClientConnection.Event] = []
    var serverEvents: [ServerConnection.Event] = []
    static let challenge = WireSamples.challenge

    init(
        _ role: WireRole = .ordered, client options: ClientConnection.Options = .init(),
        server serverOptions: ServerConnection.Options = .init()
    ) {
        client = ClientConnection(role, options: options, now: nowNs)
        server = ServerConnection(
            options: serverOptions, instance: 1, challenge: Self.challenge, now: nowNs)
    }

    var connectRequest: WireConnect {
        WireConnect(
            challenge: client.welcome?.challenge ?? 0, client: 1, attempt: 1, pool: "vms",
            hello: WireSamples.hello)
    }

    /// An open pair.
    static func open(
        _ role: WireRole = .ordered, server options: ServerConnection.Options = .init()
    ) throws -> WirePair {
        var pair = WirePair(role, server: options)
        pair.client.begin(now: pair.nowNs)
        pair.exchange()
        if role == .ordered {
            try pair.client.connect(pair.connectRequest, now: pair.nowNs)
            pair.exchange()
            try pair.server.admitted(
                WireConnected(epoch: 1, token: 2, report: WireSamples.report), now: pair.nowNs)
        } else {
            try pair.client.attach(
                WireAttach(challenge: challenge, epoch: 1, token: 2, pool: "vms"), now: pair.nowNs)
            pair.exchange()
            try pair.server.attached(now: pair.nowNs)
        }
        pair.exchange()
        #expect(pair.client.state == .open && pair.server.state == .open)
        pair.clientEvents = []
        pair.serverEvents = []
        return pair
    }

    mutating func toServer(_ bytes: [UInt8]) {
        bytes.withUnsafeBytes { serverEvents += server.receive($0, now: nowNs) }
    }
    mutating func toClient(_ bytes: [UInt8]) {
        bytes.withUnsafeBytes { clientEvents += client.receive($0, now: nowNs) }
    }
    /// All that both have to say.
    mutating func exchange() {
        while true {
            let (up, down) = (joined(client.takeOutput()), joined(server.takeOutput(now: nowNs)))
            if up.isEmpty, down.isEmpty { return }
            if !up.isEmpty { toServer(up) }
            if !down.isEmpty { toClient(down) }
        }
    }
    mutating func pass(ms: Int64) {
        nowNs += ms * 1_000_000
        clientEvents += client.tick(now: nowNs)
        serverEvents += server.tick(now: nowNs)
    }

    var serverEnd: WireEnd? { if case .ended(let end) = server.state { end } else { nil } }
    var clientEnd: WireEnd? { if case .ended(let end) = client.state { end } else { nil } }
    var requests: [(UInt64, WireRequest, UInt64)] {
        serverEvents.compactMap {
            if case .request(let number, let request, let cost) = $0 {
                (number, request, cost)
            } else {
                nil
            }
        }
    }
}

@Suite struct WireConnectionTests {
    private func refusedAs(_ end: WireEnd?) -> WireError.Kind? {
        if case .refused(let error) = end { error.kind } else { nil }
    }
    private func brokenAs(_ end: WireEnd?) -> WireError.Kind? {
        if case .broken(let error) = end { error.kind } else { nil }
    }
    private func isSilent(_ end: WireEnd?) -> Bool {
        if case .silent = end { true } else { false }
    }

    // MARK: Greeting

    @Test func aSessionIsConnected() throws {
        var pair = WirePair()
        pair.client.begin(now: pair.nowNs)
        pair.exchange()
        #expect(pair.client.state == .greeted && pair.server.state == .greeted)
        #expect(pair.client.welcome?.challenge == WirePair.challenge)
        try pair.client.connect(pair.connectRequest, now: pair.nowNs)
        pair.exchange()
        guard case .connect(let request) = pair.serverEvents.first else {
            Issue.record("\(pair.serverEvents)")
            return
        }
        #expect(request.hello == WireSamples.hello && request.pool == "vms")
        #expect(pair.server.state == .admitting)
        try pair.server.admitted(
            WireConnected(epoch: 4, token: 5, report: WireSamples.report), now: pair.nowNs)
        pair.exchange()
        guard case .connected(let connected) = pair.clientEvents.last else {
            Issue.record("\(pair.clientEvents)")
            return
        }
        #expect(connected.epoch == 4 && connected.report == WireSamples.report)
        #expect(pair.client.acknowledged.durable == sequence(40))
    }

    @Test(arguments: [0...0, 2...7, 1...1, 1...9] as [ClosedRange<UInt16>])
    func aVersionIsAgreedOnOrRefused(versions: ClosedRange<UInt16>) throws {
        var pair = WirePair()
        var hello = WireHello(
            role: .ordered, longestMessageBytes: 1 << 20, heartbeatMs: 500, software: "other")
        hello.versions = versions
        var output = WireOutput()
        try output.send(.hello, hello.encoded())
        pair.toServer(joined(output.take()))
        if versions.contains(1) {
            #expect(pair.server.state == .greeted)
        } else {
            // Version 0 is none.
            let expected = versions.lowerBound == 0 ? WireError.Kind.malformed : .version
            #expect(brokenAs(pair.serverEnd) == expected)
            pair.client.begin(now: pair.nowNs)
            pair.toClient(joined(pair.server.takeOutput(now: pair.nowNs)))
            #expect(refusedAs(pair.clientEnd) == expected)
        }
    }

    @Test func featuresThatNobodyKnowsAreNotInForce() throws {
        var pair = WirePair()
        var hello = WireHello(
            role: .ordered, longestMessageBytes: 1 << 20, heartbeatMs: 500, software: "")
        hello.features = WireFeatures(rawValue: .max)
        var output = WireOutput()
        try output.send(.hello, hello.encoded())
        pair.client.begin(now: pair.nowNs)
        pair.toServer(joined(output.take()))
        pair.toClient(joined(pair.server.takeOutput(now: pair.nowNs)))
        #expect(pair.client.welcome?.features == .known)
    }

    /// What was recorded of an earlier connection is no answer to this one's greeting.
    @Test func aReplayIsRefused() throws {
        var first = WirePair()
        first.client.begin(now: first.nowNs)
        let hello = joined(first.client.takeOutput())
        first.toServer(hello)
        first.toClient(joined(first.server.takeOutput(now: first.nowNs)))
        try first.client.connect(first.connectRequest, now: first.nowNs)
        let recorded = hello + joined(first.client.takeOutput())
        var again = WirePair()
        again.server = ServerConnection(
            options: .init(), instance: 1, challenge: 77, now: again.nowNs)
        again.toServer(recorded)
        #expect(brokenAs(again.serverEnd) == .superseded)
    }

    @Test func whatIsNoFrameEndsIt() {
        var pair = WirePair()
        pair.toServer(Array("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8))
        #expect(brokenAs(pair.serverEnd) == .check)
        // Nothing that follows is looked at (W7).
        let count = pair.serverEvents.count
        pair.toServer(WireSamples.frames[0].bytes)
        #expect(pair.serverEvents.count == count)
    }

    @Test func aRefusedSessionSaysWhy() throws {
        var pair = WirePair()
        pair.client.begin(now: pair.nowNs)
        pair.exchange()
        try pair.client.connect(pair.connectRequest, now: pair.nowNs)
        pair.exchange()
        _ = pair.server.refuseAdmission(TargetError(.fenced, "it was replaced"), now: pair.nowNs)
        pair.exchange()
        #expect(pair.clientEnd == .failed(TargetError(.fenced, "it was replaced")))
        #expect(pair.clientEnd?.targetError.kind == .fenced)
    }

    @Test func whoAsksForNothingIsSentAway() {
        var pair = WirePair()
        pair.client.begin(now: pair.nowNs)
        pair.exchange()
        for _ in 0..<30 where pair.serverEnd == nil {
            pair.pass(ms: 500)
            pair.exchange()
        }
        guard case .goodbye = pair.serverEnd, case .goodbye = pair.clientEnd else {
            Issue.record("\(pair.server.state), \(pair.client.state)")
            return
        }
    }

    // MARK: In order

    /// In each state each kind that does not belong there ends the connection, with a reason.
    @Test func whatIsOutOfOrderIsRefused() throws {
        let samples = Dictionary(uniqueKeysWithValues: WireSamples.frames)
        let always: Set<WireKind> = [.ping, .pong, .goodbye, .refused]
        func check(
            _ what: String, _ pair: WirePair, isServer: Bool, may: Set<WireKind>
        ) {
            for kind in WireKind.allCases where !may.contains(kind) {
                var pair = pair
                if isServer {
                    pair.toServer(samples["\(kind)"]!)
                    #expect(brokenAs(pair.serverEnd) != nil, "\(what): \(kind)")
                } else {
                    pair.toClient(samples["\(kind)"]!)
                    #expect(brokenAs(pair.clientEnd) != nil, "\(what): \(kind)")
                }
            }
        }
        var pair = WirePair()
        check("server waiting", pair, isServer: true, may: [.hello])
        pair.client.begin(now: pair.nowNs)
        check(
            "client greeting", pair, isServer: false, may: [.welcome, .goodbye, .refused])
        pair.exchange()
        check("server greeted", pair, isServer: true, may: always.union([.connect]))
        check("client greeted", pair, isServer: false, may: always)
        let bulk = try WirePair.open(.bulk)
        let open = try WirePair.open(.ordered)
        let requests = Set(WireKind.allCases.filter(\.isRequest))
        check(
            "server, bulk", bulk, isServer: true,
            may: always.union(WireRequest.bulkKinds))
        check(
            "server, ordered", open, isServer: true,
            may: always.union(requests.subtracting([.connect, .attach])))
        check("client, open", open, isServer: false, may: always.union([.acknowledged]))
    }

    @Test(arguments: [0, 1, 3, .max] as [UInt64])
    func requestsAreNumberedWithoutAGap(number: UInt64) throws {
        var pair = try WirePair.open()
        pair.toServer(WireForge.frame(kind: 6, number: number, body: []))
        // The connect was the first.
        #expect(brokenAs(pair.serverEnd) == (number == 0 ? .malformed : .outOfOrder))
        pair = try WirePair.open()
        pair.toServer(WireForge.frame(kind: 6, number: 2, body: []))
        #expect(pair.requests.map(\.0) == [2])
        pair.toServer(WireForge.frame(kind: 6, number: 2, body: []))
        #expect(brokenAs(pair.serverEnd) == .outOfOrder, "it came twice")
    }

    @Test func aReplyThatNobodyWaitsForEndsIt() throws {
        let done = WireForge.frame(kind: 35, number: 2, body: [])
        var pair = try WirePair.open()
        pair.toClient(done)
        #expect(brokenAs(pair.clientEnd) == .outOfOrder)
        pair = try WirePair.open()
        #expect(try pair.client.ask(.flush, now: pair.nowNs) == 2)
        pair.toClient(done)
        #expect(brokenAs(pair.clientEnd) == .outOfOrder, "a flush has another reply")
    }

    @Test func moreRequestsThanMayBeEndIt() throws {
        var pair = try WirePair.open()
        for number in 2..<18 as Range<UInt64> {
            pair.toServer(WireForge.frame(kind: 6, number: number, body: []))
        }
        #expect(pair.requests.count == 16 && pair.serverEnd == nil)
        pair.server.reply(2, .flushed(sequence(40)), now: pair.nowNs)
        pair.toServer(WireForge.frame(kind: 6, number: 18, body: []))
        #expect(pair.serverEnd == nil)
        pair.toServer(WireForge.frame(kind: 6, number: 19, body: []))
        #expect(brokenAs(pair.serverEnd) == .tooManyRequests)
        // Nor does the client send them.
        pair = try WirePair.open()
        for _ in 0..<16 { _ = try pair.client.ask(.flush, now: pair.nowNs) }
        #expect(!pair.client.mayAsk)
        #expect(throws: WireError.self) { try pair.client.ask(.flush, now: pair.nowNs) }
    }

    // MARK: Credit

    @Test func aFloodBeyondTheCreditEndsIt() throws {
        var pair = try WirePair.open(
            server: {
                var options = ServerConnection.Options()
                options.creditBytes = 16 << 20
                return options
            }())
        let body = [UInt8](repeating: 0, count: 24 + (4 << 20))
        for number in 2..<5 as Range<UInt64> {
            pair.toServer(WireForge.frame(kind: 5, number: number, body: body))
        }
        #expect(pair.requests.count == 3 && pair.serverEnd == nil)
        // The head alone is enough: nothing is taken in.
        let last = WireForge.frame(kind: 5, number: 5, body: body)
        pair.toServer(Array(last.prefix(32)))
        #expect(brokenAs(pair.serverEnd) == .credit)
        #expect(pair.requests.count == 3)
    }

    /// Credit comes back as work is done, and only then; the client keeps to it.
    @Test func creditGoesRound() throws {
        var pair = try WirePair.open(
            server: {
                var options = ServerConnection.Options()
                options.creditBytes = 16 << 20
                return options
            }())
        let payload = [UInt8](repeating: 0, count: 5 << 20)
        var sent = 0
        try payload.withUnsafeBytes { raw in
            let batch = RecordBatch(
                pieces: [raw], firstSequence: sequence(41), lastSequence: sequence(41))
            for _ in 0..<10 {
                while pair.client.hasCredit(for: batch, isStage: false) {
                    try pair.client.append(batch, now: pair.nowNs)
                    pair.exchange()
                    sent += 1
                }
                #expect(throws: WireError.self) { try pair.client.append(batch, now: pair.nowNs) }
                #expect(pair.requests.count == sent && sent % 3 == 0)
                for (_, _, cost) in pair.requests.suffix(3) { pair.server.release(cost: cost) }
                pair.server.tellAcknowledgements(now: pair.nowNs)
                pair.exchange()
                #expect(pair.client.creditBytes == 16 << 20)
            }
        }
        #expect(sent == 30 && pair.serverEnd == nil && pair.clientEnd == nil)
    }

    // MARK: Acknowledgements

    @Test func acknowledgementsNeverGoBackNorAhead() throws {
        func told(_ change: (inout WireAcknowledgement) -> Void) throws -> WireError.Kind? {
            var pair = try WirePair.open()
            try WireSamples.withRecords { try pair.client.append($0, now: pair.nowNs) }
            var acknowledgement = pair.client.acknowledged
            acknowledgement.received = sequence(42)
            acknowledgement.written = sequence(41)
            change(&acknowledgement)
            var output = WireOutput()
            try output.send(.acknowledged, acknowledgement.encoded())
            pair.toClient(joined(output.take()))
            return brokenAs(pair.clientEnd)
        }
        #expect(try told { _ in } == nil)
        #expect(try told { $0.received = sequence(43) } == .malformed, "it was not sent")
        #expect(try told { $0.durable = sequence(39) } == .outOfOrder)
        #expect(try told { $0.creditBytes -= 1 } == .outOfOrder)
    }

    @Test func theServerSaysEachPointOnce() throws {
        var pair = try WirePair.open()
        try WireSamples.withRecords {
            try pair.client.append($0, now: pair.nowNs)
            pair.exchange()
        }
        pair.server.acknowledge(received: sequence(42))
        pair.server.tellAcknowledgements(now: pair.nowNs)
        pair.server.acknowledge(written: sequence(41))
        pair.server.acknowledge(written: sequence(42), durable: sequence(41))
        pair.server.acknowledge(written: sequence(40))
        pair.server.tellAcknowledgements(now: pair.nowNs)
        pair.server.tellAcknowledgements(now: pair.nowNs)
        pair.exchange()
        let all = pair.clientEvents.compactMap { event -> [UInt64]? in
            guard case .acknowledged(let one) = event else { return nil }
            return [one.received.rawValue, one.written.rawValue, one.durable.rawValue]
        }
        #expect(all == [[42, 40, 40], [42, 42, 41]])
    }

    // MARK: Heartbeats

    @Test func beatsKeepItAndMeasureIt() throws {
        var pair = try WirePair.open()
        for _ in 0..<40 {
            pair.pass(ms: 250)
            let up = joined(pair.client.takeOutput())
            pair.nowNs += 3_000_000
            pair.toServer(up)
            let down = joined(pair.server.takeOutput(now: pair.nowNs))
            pair.nowNs += 4_000_000
            pair.toClient(down)
        }
        #expect(pair.clientEnd == nil && pair.serverEnd == nil)
        #expect(!pair.client.isSuspected)
        let trips = pair.client.roundTrips
        #expect(trips.count > 10 && trips.leastNs == 7_000_000 && trips.lastNs == 7_000_000)
        #expect(trips.smoothedNs == 7_000_000)
    }

    @Test func silenceIsSuspectedThenFails() throws {
        var pair = try WirePair.open()
        let begun = pair.nowNs
        var suspectedMs: Int64?
        while pair.clientEnd == nil {
            pair.pass(ms: 50)
            _ = pair.client.takeOutput()
            _ = pair.server.takeOutput(now: pair.nowNs)
            if pair.client.isSuspected, suspectedMs == nil {
                suspectedMs = (pair.nowNs - begun) / 1_000_000
            }
        }
        #expect(suspectedMs == 2000)
        #expect((pair.nowNs - begun) / 1_000_000 == 5000)
        #expect(isSilent(pair.clientEnd) && isSilent(pair.serverEnd))
        #expect(pair.client.wakeNs == .max)
    }

    @Test func whoIsHeardAgainIsNotSuspected() throws {
        var pair = try WirePair.open()
        for _ in 0..<60 { pair.pass(ms: 50) }
        #expect(pair.client.isSuspected)
        pair.exchange()
        #expect(!pair.client.isSuspected)
        #expect(
            pair.clientEvents.contains { if case .recovered = $0 { true } else { false } })
    }

    /// All that the server says arrives, and nothing that the client says does.
    @Test func aLinkOfOneDirectionFails() throws {
        var pair = try WirePair.open()
        let begun = pair.nowNs
        while pair.clientEnd == nil, pair.nowNs - begun < 20_000_000_000 {
            pair.pass(ms: 100)
            _ = pair.client.takeOutput()
            // A server that has not noticed: it goes on saying how little it took.
            let beat = WireBeat(sentNs: pair.nowNs, takenBytes: 100)
            var output = WireOutput()
            try output.send(.ping, beat.encoded())
            pair.toClient(joined(output.take()))
        }
        #expect(isSilent(pair.clientEnd))
        #expect(pair.nowNs - begun <= 5_700_000_000)
    }

    /// Half a frame, and then a byte now and then: that is silence, too.
    @Test(arguments: [false, true]) func aStallInMidFrameIsNoticed(trickles: Bool) throws {
        var pair = try WirePair.open()
        let body = [UInt8](repeating: 0, count: 24 + (4 << 20))
        let frame = WireForge.frame(kind: 5, number: 2, body: body)
        pair.toServer(Array(frame.prefix(100_000)))
        let begun = pair.nowNs
        var at = 100_000
        while pair.serverEnd == nil, pair.nowNs - begun < 20_000_000_000 {
            pair.pass(ms: 100)
            if trickles {
                pair.toServer([frame[at]])
                at += 1
            }
        }
        #expect(isSilent(pair.serverEnd))
        #expect(pair.nowNs - begun == 5_000_000_000)
    }

    /// One frame that takes a minute to arrive, with all else behind it: the line is slow, and lives.
    @Test func aSlowLineIsNotSilent() throws {
        var pair = try WirePair.open()
        let payload = [UInt8](repeating: 0, count: 4 << 20)
        try payload.withUnsafeBytes { raw in
            try pair.client.append(
                RecordBatch(
                    pieces: [raw], firstSequence: sequence(41), lastSequence: sequence(41)),
                now: pair.nowNs)
            var line = joined(pair.client.takeOutput())[...]
            while !line.isEmpty {
                pair.pass(ms: 100)
                line += joined(pair.client.takeOutput())
                pair.toServer(Array(line.prefix(8000)))
                line = line.dropFirst(8000)
                pair.toClient(joined(pair.server.takeOutput(now: pair.nowNs)))
            }
        }
        #expect(
            pair.clientEnd == nil && pair.serverEnd == nil,
            "\(pair.client.state), \(pair.server.state)")
        #expect(pair.requests.count == 1)
    }

    @Test func aFloodOfPingsEndsIt() throws {
        var pair = try WirePair.open()
        let beat = WireBeat(sentNs: 0, takenBytes: 0)
        for _ in 0..<1000 where pair.serverEnd == nil {
            var output = WireOutput()
            try output.send(.ping, beat.encoded())
            pair.toServer(joined(output.take()))
        }
        #expect(brokenAs(pair.serverEnd) == .tooManyRequests)
        #expect(joined(pair.server.takeOutput(now: pair.nowNs)).count < 2000)
    }

    /// Who hears nothing and asks on makes nothing pile up: acknowledgements wait, and come as one.
    @Test func whatIsNotTakenDoesNotPileUp() throws {
        var pair = try WirePair.open(
            server: {
                var options = ServerConnection.Options()
                options.mostWaitingBytes = 1000
                return options
            }())
        for number in 41..<1041 as Range<UInt64> {
            pair.server.acknowledge(written: sequence(number))
            pair.server.tellAcknowledgements(now: pair.nowNs)
        }
        #expect(pair.server.isCongested)
        let bytes = joined(pair.server.takeOutput(now: pair.nowNs))
        #expect(bytes.count < 1200)
        // The last one that it heard says all.
        let last = bytes.suffix(40)
        #expect(last.prefix(2).elementsEqual([0x10, 0x04]))
    }

    @Test func beatsThatLieEndIt() throws {
        for (kind, sentNs, taken) in [
            (WireKind.ping, 0, UInt64.max), (.pong, Int64.min, 0), (.pong, .max, 0), (.pong, 1, 0),
        ] {
            var pair = try WirePair.open()
            var output = WireOutput()
            try output.send(kind, WireBeat(sentNs: sentNs, takenBytes: taken).encoded())
            pair.toServer(joined(output.take()))
            #expect(brokenAs(pair.serverEnd) == .malformed)
        }
    }

    // MARK: The end

    @Test func whoLeavesHearsWhatItAskedBefore() throws {
        var pair = try WirePair.open()
        let number = try pair.client.ask(.flush, now: pair.nowNs)
        _ = pair.client.leave(now: pair.nowNs)
        #expect(throws: WireError.self) { try pair.client.ask(.flush, now: pair.nowNs) }
        pair.exchange()
        #expect(pair.server.state == .leaving && pair.client.state == .leaving)
        pair.server.reply(number, .flushed(sequence(40)), now: pair.nowNs)
        _ = pair.server.finish(now: pair.nowNs)
        pair.exchange()
        #expect(pair.clientEnd == .left && pair.serverEnd == .left)
        guard case .reply(number, .flushed) = pair.clientEvents.first else {
            Issue.record("\(pair.clientEvents)")
            return
        }
    }

    @Test func aServerThatShutsDownSaysSo() throws {
        var pair = try WirePair.open()
        _ = pair.server.sayGoodbye(.shuttingDown, "back soon", now: pair.nowNs)
        pair.exchange()
        #expect(
            pair.clientEnd == .goodbye(WireGoodbye(reason: .shuttingDown, message: "back soon")))
        #expect(pair.clientEnd?.targetError.kind == .absent)
    }
}
