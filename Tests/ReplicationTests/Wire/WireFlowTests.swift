// How much may be under way: credit one way, acknowledgements the other.

import BlockCore
import TestSupport
import Testing
import WireHarness

@testable import Replication

@Suite struct WireFlowTests {
    private static func pair(creditBytes: UInt64) throws -> WirePair {
        var options = ServerConnection.Options()
        options.creditBytes = creditBytes
        return try WirePair.open(server: options)
    }

    // MARK: Credit

    @Test func aFloodBeyondTheCreditEndsIt() throws {
        var pair = try Self.pair(creditBytes: 16 << 20)
        let body = [UInt8](repeating: 0, count: 24 + (4 << 20))
        for number in 2..<5 as Range<UInt64> {
            pair.toServer(WireForge.frame(kind: 5, number: number, body: body))
        }
        #expect(pair.requests.count == 3 && pair.serverEnd == nil)
        // The head alone is enough: nothing is taken in.
        let last = WireForge.frame(kind: 5, number: 5, body: body)
        pair.toServer(Array(last.prefix(32)))
        #expect(pair.serverEnd?.brokenAs == .credit)
        #expect(pair.requests.count == 3)
    }

    /// Credit comes back as work is done, and only then; the client keeps to it.
    @Test func creditGoesRound() throws {
        var pair = try Self.pair(creditBytes: 16 << 20)
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
            return pair.clientEnd?.brokenAs
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

}
