import BlockCore
import TestSupport
import Testing
import WireHarness

@testable import Replication

@Suite struct WireHeartbeatTests {
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
        #expect(pair.clientEnd?.isSilent == true && pair.serverEnd?.isSilent == true)
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
        #expect(pair.clientEnd?.isSilent == true)
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
        #expect(pair.serverEnd?.isSilent == true)
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
        #expect(pair.serverEnd?.brokenAs == .tooManyRequests)
        #expect(joined(pair.server.takeOutput(now: pair.nowNs)).count < 2000)
    }

    @Test func beatsThatLieEndIt() throws {
        for (kind, sentNs, taken) in [
            (WireKind.ping, 0, UInt64.max), (.pong, Int64.min, 0), (.pong, .max, 0), (.pong, 1, 0),
        ] {
            var pair = try WirePair.open()
            var output = WireOutput()
            try output.send(kind, WireBeat(sentNs: sentNs, takenBytes: taken).encoded())
            pair.toServer(joined(output.take()))
            #expect(pair.serverEnd?.brokenAs == .malformed)
        }
    }

}
