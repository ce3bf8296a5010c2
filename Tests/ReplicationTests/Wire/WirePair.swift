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

extension WireEnd {
    var refusedAs: WireError.Kind? {
        if case .refused(let error) = self { error.kind } else { nil }
    }
    var brokenAs: WireError.Kind? {
        if case .broken(let error) = self { error.kind } else { nil }
    }
    var isSilent: Bool {
        if case .silent = self { true } else { false }
    }
}
