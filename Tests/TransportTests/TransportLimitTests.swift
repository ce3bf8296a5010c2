import BlockCore
import Glibc
import Identity
import Replication
import SystemIO
import Testing

@testable import Transport

/// Clients that want more than they get, or do what no client does: they are told, or dropped, and others go on.
@Suite struct TransportLimitTests {
    /// A socket and nothing more.
    private final class Line {
        private let fd: Int32

        init(_ place: HostPort) throws {
            fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
            var address = sockaddr_in()
            address.sin_family = sa_family_t(AF_INET)
            address.sin_port = in_port_t(place.port).bigEndian
            address.sin_addr.s_addr = inet_addr(place.host)
            let result = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                    Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
                }
            }
            guard result == 0 else { throw TargetError(.absent, "no connection") }
            var limit = timeval(tv_sec: 20, tv_usec: 0)
            setsockopt(
                fd, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
        deinit { Glibc.close(fd) }

        func send(_ bytes: [UInt8]) {
            _ = bytes.withUnsafeBytes {
                Glibc.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
        }
        /// Everything until the other side closes.
        func receiveAll() -> [UInt8]? {
            var all: [UInt8] = []
            var piece = [UInt8](repeating: 0, count: 4096)
            while true {
                let got = recv(fd, &piece, piece.count, 0)
                if got == 0 { return all }
                if got < 0 { return errno == ECONNRESET ? all : nil }
                all += piece[..<got]
            }
        }
    }

    /// As a client begins.
    private static var hello: [UInt8] {
        var machine = ClientConnection(.ordered, now: 1)
        machine.begin(now: 1)
        return machine.takeOutput().flatMap { $0.withBytes { Array($0) } }
    }

    private static let shape = PoolShape(
        sequence: SequenceNumber(rawValue: 1), images: [], names: [])

    private func text(_ bytes: [UInt8]?) -> String {
        String(decoding: bytes ?? [], as: UTF8.self)
    }

    @Test(arguments: ["a head", "a length", "a body", "nothing of it"])
    func whoLiesIsRefusedAndOthersGoOn(about what: String) throws {
        let pair = try TransportPair(isEncrypted: false)
        defer { pair.close() }
        let replica = try pair.replica()
        _ = try replica.connect(TransportPair.hello)
        var bytes = Self.hello
        switch what {
        case "a head": bytes[30] ^= 1
        case "a length": bytes.replaceSubrange(0..<4, with: [255, 255, 255, 127])
        case "a body": bytes[40] ^= 8
        default: bytes = Array("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8)
        }
        let line = try Line(pair.address)
        line.send(bytes)
        let answer = line.receiveAll()
        #expect(text(answer).contains("frame."), "\(String(describing: answer))")
        try withBlocks(1) { try replica.append($0) }
        #expect(pair.target.connectCount == 1)
    }

    /// Half a frame, and then nothing: the connection ends after the timeout, whatever else is said.
    @Test func whoStopsInTheMiddleOfAFrameIsSentAway() throws {
        let pair = try TransportPair(isEncrypted: false) {
            $0.connection.timing.timeoutMs = 300
            $0.connection.timing.suspectMs = 100
        }
        defer { pair.close() }
        let line = try Line(pair.address)
        line.send(Array(Self.hello.prefix(40)))
        #expect(line.receiveAll() != nil, "it was closed")
        while pair.server.connectionCount > 0 { Pause.microseconds(1000) }
    }

    @Test func moreConnectionsThanOneHostMayHave() throws {
        let pair = try TransportPair { $0.limits.connectionsOfAPeer = 2 }
        defer { pair.close() }
        let replica = try pair.replica(bulk: 1)
        _ = try replica.connect(TransportPair.hello)
        try replica.beginStaging(id: 1, shape: Self.shape)
        let error = failure { _ = try pair.replica().connect(TransportPair.hello) }
        #expect(error?.kind == .absent)
        #expect(error?.message.contains("2 connections") == true, "\(String(describing: error))")
        try withBlocks(1) { try replica.append($0) }
        replica.disconnect()
        while pair.server.connectionCount > 0 { Pause.microseconds(1000) }
        _ = try pair.replica().connect(TransportPair.hello)
    }

    /// A resync goes over the one connection where there is room for no more.
    @Test func withoutRoomForMoreConnectionsOneDoes() throws {
        let pair = try TransportPair { $0.limits.connectionsOfAPeer = 1 }
        defer { pair.close() }
        let replica = try pair.replica(bulk: 3)
        _ = try replica.connect(TransportPair.hello)
        try replica.beginStaging(id: 1, shape: Self.shape)
        for number in 1...5 as ClosedRange<UInt64> {
            try withBlocks(2, isStaged: true) { try replica.stage($0, number: number) }
        }
        try replica.commitStaging(id: 1, at: SequenceNumber(rawValue: 2), snapshot: nil)
        #expect(pair.target.stagedNumbers == [1, 2, 3, 4, 5])
        try withBlocks(3) { try replica.append($0) }
    }

    @Test func moreConnectionsThanMemory() throws {
        let pair = try TransportPair(isEncrypted: false) { $0.limits.memoryBytes = 96 << 20 }
        defer { pair.close() }
        let first = try pair.replica(bulk: 1)
        _ = try first.connect(TransportPair.hello)
        try first.beginStaging(id: 1, shape: Self.shape)
        let error = failure { _ = try pair.replica().connect(TransportPair.hello) }
        #expect(error?.message.contains("no memory left") == true, "\(String(describing: error))")
        try withBlocks(1) { try first.append($0) }
    }

    /// Who shows no key holds no place for long.
    @Test func thoseThatShowNoKeyMakeWay() throws {
        let pair = try TransportPair { $0.limits.handshakes = 3 }
        defer { pair.close() }
        let silent = try (1...3).map { count in
            let line = try Line(pair.address)
            while pair.server.registry.handshakingCount < count { Pause.microseconds(1000) }
            return line
        }
        let next = try Line(pair.address)
        #expect(silent[0].receiveAll() == [], "the oldest was closed")
        _ = try pair.replica().connect(TransportPair.hello)
        withExtendedLifetime(next) {}
    }

    @Test func whoShowsNoKeyInTimeIsDropped() throws {
        let pair = try TransportPair { $0.handshakeMs = 200 }
        defer { pair.close() }
        #expect(try Line(pair.address).receiveAll() == [])
    }

    /// All its connections together, and none of them is starved: one in which nothing is read would be given up.
    /// What it sends takes longer than that, a quick one and a slow one.
    @Test(arguments: [(UInt64(4 << 20), 10, 256), (256 << 10, 3, 64)])
    func aPeerIsHeldToItsRate(bytesPerSecond: UInt64, batches: UInt64, blocks: Int) throws {
        let pair = try TransportPair { $0.limits.bytesPerSecond = bytesPerSecond }
        defer { pair.close() }
        let replica = try pair.replica(bulk: 2, compression: LineCompression(.off))
        _ = try replica.connect(TransportPair.hello)
        try replica.beginStaging(id: 1, shape: Self.shape)
        let begun = ContinuousClock.now
        for number in 1...batches {
            try withBlocks(2, count: blocks, isStaged: true) {
                try replica.stage($0, number: number)
            }
        }
        try replica.syncStaging()
        let took = ContinuousClock.now - begun
        // A tenth of a second is given, and each connection has read something that is not paid for yet.
        #expect(took > .milliseconds(2100), "2.5 to 3 seconds' worth took \(took)")
        #expect(pair.target.stagedNumbers.count == Int(batches))
        // Nor was it held up for as long as makes a line suspect.
        let roundTrips = try #require(replica.roundTrips)
        #expect(roundTrips.mostNs < TransportPair.timing.suspectMs * 1_000_000, "\(roundTrips)")
    }
}

/// What is changed of a server while it runs.
@Suite struct LiveServerTests {
    @Test func aKeyIsChangedUnderASession() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let replica = try pair.replica()
        _ = try replica.connect(TransportPair.hello)
        try withBlocks(1) { try replica.append($0) }
        pair.server.change(keys: try TransportKeys(TransportPair.otherIdentity))
        // What is connected goes on.
        try withBlocks(2) { try replica.append($0) }
        let old = failure { _ = try pair.replica().connect(TransportPair.hello) }
        #expect(
            old?.message.contains(TransportPair.otherIdentity.fingerprint.description) == true,
            "\(String(describing: old))")
        #expect(pair.target.last == 2)
        _ = try pair.replica(pinned: TransportPair.otherIdentity).connect(TransportPair.hello)
    }

    @Test func limitsAreChangedUnderASession() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let replica = try pair.replica(compression: LineCompression(.off))
        _ = try replica.connect(TransportPair.hello)
        var limits = TransportLimits()
        limits.connectionsOfAPeer = 1
        limits.bytesPerSecond = 1 << 20
        pair.server.change(limits: limits)
        let refused = failure { _ = try pair.replica().connect(TransportPair.hello) }
        #expect(refused?.message.contains("as many as the server gives to one") == true)
        // Nobody is sent away; a rate holds at once: 2 MiB take their time.
        let clock = ContinuousClock()
        let took = try clock.measure {
            for next in stride(from: 1, through: 481, by: 32) as StrideThrough<UInt64> {
                try withBlocks(next, count: 32) { try replica.append($0) }
            }
        }
        #expect(took > .milliseconds(1200), "\(took)")
        // Also a low one, of a line that reads in large pieces by now; nor is it held up until it counts as lost.
        limits.bytesPerSecond = 64 << 10
        pair.server.change(limits: limits)
        let tookLonger = try clock.measure {
            try withBlocks(513, count: 32) { try replica.append($0) }
        }
        #expect(tookLonger > .milliseconds(1200) && tookLonger < .seconds(10), "\(tookLonger)")
        // And holds no more when it is taken away.
        pair.server.change(limits: TransportLimits())
        try withBlocks(545, count: 400) { try replica.append($0) }
        #expect(pair.target.last == 944)
        _ = try pair.replica(identity: TransportPair.clientIdentity).connect(TransportPair.hello)
    }
}
