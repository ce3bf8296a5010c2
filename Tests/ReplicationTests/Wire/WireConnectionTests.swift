import BlockCore
import TestSupport
import Testing
import WireHarness

@testable import Replication

@Suite struct WireConnectionTests {
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
            #expect(pair.serverEnd?.brokenAs == expected)
            pair.client.begin(now: pair.nowNs)
            pair.toClient(joined(pair.server.takeOutput(now: pair.nowNs)))
            #expect(pair.clientEnd?.refusedAs == expected)
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
        #expect(again.serverEnd?.brokenAs == .superseded)
    }

    @Test func whatIsNoFrameEndsIt() {
        var pair = WirePair()
        pair.toServer(Array("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8))
        #expect(pair.serverEnd?.brokenAs == .check)
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
                    #expect(pair.serverEnd?.brokenAs != nil, "\(what): \(kind)")
                } else {
                    pair.toClient(samples["\(kind)"]!)
                    #expect(pair.clientEnd?.brokenAs != nil, "\(what): \(kind)")
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
        #expect(pair.serverEnd?.brokenAs == (number == 0 ? .malformed : .outOfOrder))
        pair = try WirePair.open()
        pair.toServer(WireForge.frame(kind: 6, number: 2, body: []))
        #expect(pair.requests.map(\.0) == [2])
        pair.toServer(WireForge.frame(kind: 6, number: 2, body: []))
        #expect(pair.serverEnd?.brokenAs == .outOfOrder, "it came twice")
    }

    @Test func aReplyThatNobodyWaitsForEndsIt() throws {
        let done = WireForge.frame(kind: 35, number: 2, body: [])
        var pair = try WirePair.open()
        pair.toClient(done)
        #expect(pair.clientEnd?.brokenAs == .outOfOrder)
        pair = try WirePair.open()
        #expect(try pair.client.ask(.flush, now: pair.nowNs) == 2)
        pair.toClient(done)
        #expect(pair.clientEnd?.brokenAs == .outOfOrder, "a flush has another reply")
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
        #expect(pair.serverEnd?.brokenAs == .tooManyRequests)
        // Nor does the client send them.
        pair = try WirePair.open()
        for _ in 0..<16 { _ = try pair.client.ask(.flush, now: pair.nowNs) }
        #expect(!pair.client.mayAsk)
        #expect(throws: WireError.self) { try pair.client.ask(.flush, now: pair.nowNs) }
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
