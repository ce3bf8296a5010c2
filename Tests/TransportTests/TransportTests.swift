import BlockCore
import Identity
import Replication
import Synchronization
import SystemIO
import TestSupport
import Testing

@testable import Transport

/// The protocol over real sockets, with TLS and without. What the protocol itself does is shown without sockets; what
/// targets do behind it, in `TargetConformanceTests`.
@Suite struct TransportTests {
    @Test(arguments: [true, false], [0, 3])
    func everyCallTravels(isEncrypted: Bool, bulk: Int) throws {
        let pair = try TransportPair(isEncrypted: isEncrypted)
        defer { pair.close() }
        let replica = try pair.replica(bulk: bulk)
        #expect(try replica.connect(TransportPair.hello).checkpoint == .zero)
        for next in stride(from: 1, to: 2000, by: 50) as StrideTo<UInt64> {
            try withBlocks(next, count: 50) { try replica.send($0) }
        }
        try withBlocks(2001) { try replica.append($0) }
        #expect(pair.target.last == 2001)
        #expect(try replica.flush().rawValue == 2001)
        try replica.beginStaging(
            id: 1,
            shape: PoolShape(
                sequence: SequenceNumber(rawValue: 2001), images: [],
                names: [UInt8](repeating: 7, count: 3 << 20)))
        // More than there is credit for at once.
        for number in 1...20 as ClosedRange<UInt64> {
            try withBlocks(2002, count: 500, isStaged: true) {
                try replica.stage($0, number: number)
            }
        }
        try replica.syncStaging()
        #expect(pair.target.stagedNumbers == Array(1...20))
        #expect(pair.target.stagedByteCount > 39 << 20)
        let image = ImageID(rawValue: 1)
        let range = BlockRange(start: 3, count: 70_000)
        #expect(
            try replica.blockHashes(of: image, in: range) == (3..<70_003).map { $0 &* 31 })
        let some = BlockRange(start: 100, count: 1500)
        var bytes = [UInt8](repeating: 0, count: Int(some.lengthBytes))
        try bytes.withUnsafeMutableBytes { try replica.read(some, of: image, into: $0) }
        #expect(bytes[0] == 101 && bytes[4096 * 24] == 125)
        try replica.commitStaging(id: 1, at: SequenceNumber(rawValue: 2002), snapshot: nil)
        replica.disconnect()
        #expect(!pair.target.isConnected)
    }

    /// The server goes, cleanly, and comes back: nothing that was taken is lost, and the session goes on.
    @Test func aServerThatIsStartedAgainIsConnectedToAgain() throws {
        let target = NotedTarget()
        let first = try TransportPair(target: target)
        let replica = try first.replica()
        _ = try replica.connect(TransportPair.hello)
        for next in 1...100 as ClosedRange<UInt64> {
            try withBlocks(next) { try replica.send($0, tellsReceived: true) }
        }
        let port = first.address.port
        first.close()
        #expect(!target.isConnected)
        let error = failure { try withBlocks(101) { try replica.append($0) } }
        #expect(error?.kind == .absent)
        #expect(failure { _ = try replica.connect(TransportPair.hello) }?.kind == .absent)
        let second = try TransportPair(target: target, port: port)
        defer { second.close() }
        let checkpoint = try replica.connect(TransportPair.hello).checkpoint.rawValue
        #expect(checkpoint == target.last && checkpoint <= 100)
        #expect(checkpoint >= replica.acknowledged?.received.rawValue ?? 0)
        try withBlocks(checkpoint + 1) { try replica.append($0) }
    }

    /// A line that is slower than compressing: it is measured as it goes, and what shrinks goes through faster.
    @Test func aSlowLineIsSentWhatIsCompressed() throws {
        let pair = try TransportPair {
            $0.limits.bytesPerSecond = 8 << 20
            $0.connection.timing.timeoutMs = 20_000
        }
        defer { pair.close() }
        let compression = LineCompression()
        let replica = try pair.replica(compression: compression) { $0.timing.timeoutMs = 20_000 }
        _ = try replica.connect(TransportPair.hello)
        try replica.beginStaging(
            id: 1,
            shape: PoolShape(sequence: SequenceNumber(rawValue: 1), images: [], names: []))
        var number: UInt64 = 0
        func stage(_ count: Int) throws {
            for _ in 0..<count {
                number += 1
                try withBlocks(2, count: 256, isStaged: true) {
                    try replica.stage($0, number: number)
                }
            }
        }
        while !compression.figures.isCompressing, number < 300 { try stage(1) }
        #expect(compression.figures.isCompressing, "\(number) MiB, \(compression.figures)")
        #expect(compression.figures.sentBytes > 1 << 20, "as it was, before it was known")
        // On a machine that is busy otherwise it may take more than one try to see that it pays.
        var figures = compression.figures
        var isSmaller = false
        for _ in 0..<10 where !isSmaller {
            let before = figures
            try stage(16)
            figures = compression.figures
            isSmaller =
                figures.rawBytes - before.rawBytes > 4 * (figures.sentBytes - before.sentBytes)
        }
        #expect(isSmaller, "\(figures)")
        try replica.syncStaging()
        #expect(pair.target.stagedNumbers == Array(1...number))
        // Holds from the next frame on.
        compression.choice = .off
        try stage(1)
        #expect(!compression.figures.isCompressing)
        compression.choice = .on
        try stage(1)
        #expect(compression.figures.isCompressing)
        try replica.syncStaging()
        figures = compression.figures
        #expect(pair.target.stagedByteCount == Int(number) * 256 * (4096 + 64))
        #expect(figures.rawBytes > pair.target.stagedByteCount)
    }

    @Test func nobodyListens() throws {
        let pair = try TransportPair()
        let replica = try pair.replica()
        pair.close()
        let error = failure { _ = try replica.connect(TransportPair.hello) }
        #expect(error?.kind == .absent)
        #expect(error?.message.contains("Connection refused") == true, "\(error!)")
    }

    // MARK: Keys

    @Test func aServerWithAnotherKeyIsSentNothing() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let replica = try pair.replica(pinned: TransportPair.otherIdentity)
        let error = failure { _ = try replica.connect(TransportPair.hello) }
        #expect(error?.kind == .absent)
        #expect(
            error?.message.contains(TransportPair.serverIdentity.fingerprint.description) == true,
            "\(error!)")
        #expect(pair.target.connectCount == 0)
        #expect(pair.server.connectionCount == 0)
    }

    @Test func aClientWhoseKeyIsNotKnownIsNotLetIn() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let replica = try pair.replica(identity: TransportPair.otherIdentity)
        let error = failure { _ = try replica.connect(TransportPair.hello) }
        #expect(error?.kind == .absent)
        #expect(error?.message.contains("does not take this host's key") == true, "\(error!)")
        #expect(pair.target.connectCount == 0)
        #expect(pair.known.notes == ["peer-refused"])
        // Others come in all the same.
        _ = try pair.replica().connect(TransportPair.hello)
    }

    @Test func whoSpeaksNoTLSIsToldNothing() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let replica = try pair.replica(isEncrypted: false)
        #expect(failure { _ = try replica.connect(TransportPair.hello) }?.kind == .absent)
        #expect(pair.target.connectCount == 0)
        // The other way round.
        let open = try TransportPair(isEncrypted: false)
        defer { open.close() }
        let wary = try open.replica(isEncrypted: true)
        let error = failure { _ = try wary.connect(TransportPair.hello) }
        #expect(error?.message.contains("no TLS") == true, "\(error!)")
        #expect(open.target.connectCount == 0)
    }

    @Test(arguments: [true, false])
    func whatIsTakenBackEndsALiveSession(isKey: Bool) throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let replica = try pair.replica(bulk: 1)
        _ = try replica.connect(TransportPair.hello)
        try withBlocks(1) { try replica.append($0) }
        pair.server.recheck()
        try withBlocks(2) { try replica.append($0) }
        if isKey {
            pair.known.remove(TransportPair.clientIdentity.fingerprint)
        } else {
            pair.known.remove(pool: "vms")
        }
        pair.server.recheck()
        let error = failure {
            for next in 3...10_000 as ClosedRange<UInt64> {
                try withBlocks(next) { try replica.append($0) }
            }
        }
        #expect(error?.message.contains("taken back") == true, "\(String(describing: error))")
        #expect(pair.known.notes.contains("peer-ended"))
        // What had come before is done; then it is over.
        try eventually { !pair.target.isConnected }
        let last = pair.target.last
        #expect(failure { try withBlocks(last + 1) { try replica.append($0) } } != nil)
        if isKey {
            #expect(failure { _ = try replica.connect(TransportPair.hello) }?.kind == .absent)
        }
        #expect(pair.target.last == last)
    }

    // MARK: Who asks, and is no primary

    @Test func questionsAreAnsweredBesideASession() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let replica = try pair.replica()
        _ = try replica.connect(TransportPair.hello)
        // The session hangs, and what is asked is answered all the same.
        pair.target.hang(true)
        let control = try pair.control()
        #expect(try control.control([1, 2, 3]) == [1, 2, 3])
        let many = (1...60).map { WireQuery.control([UInt8($0), 0]) }
        let answers = try control.ask(many).map { reply -> [UInt8] in
            guard case .answered(let text) = reply else { return [] }
            return text
        }
        #expect(answers == (1...60).map { [UInt8($0), 0] }, "each has its own")
        // Long ones, more of them than may wait to be sent.
        let long = try control.ask((1...6).map { WireQuery.control([UInt8($0)]) })
        for (index, reply) in long.enumerated() {
            guard case .answered(let text) = reply else {
                Issue.record("\(reply)")
                continue
            }
            #expect(text == [UInt8](repeating: UInt8(index + 1), count: 3 << 20))
        }
        // What fails is typed, and the connection goes on.
        #expect(failure { _ = try control.control([]) }?.kind == .fenced)
        #expect(try control.control([9, 9]) == [9, 9])
        control.leave()
        try eventually { pair.visitor.ended.load(ordering: .sequentiallyConsistent) == 1 }
        // One that is cut off is let go of, too.
        let other = try pair.control()
        #expect(try other.control([4, 4]) == [4, 4])
        other.drop()
        try eventually { pair.visitor.ended.load(ordering: .sequentiallyConsistent) == 2 }
        pair.target.hang(false)
        try withBlocks(1) { try replica.append($0) }
        #expect(pair.target.last == 1)
    }

    private final class Looks: Sendable {
        let had = Atomic(0)
        let isOver = Atomic(false)
    }

    /// However often somebody looks at a pool that nobody has: a primary gets it.
    @Test func whoOnlyLooksMakesWayForAPrimary() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let served = pair.served
        let looks = Looks()
        let lookers = (0..<3).map { _ in
            TestThread { [served, looks] in
                while !looks.isOver.load(ordering: .relaxed) {
                    let isHad: Bool? = served.inTurn {
                        Pause.microseconds(2000)
                        return true
                    }
                    if isHad == nil { Pause.microseconds(1000) }
                    looks.had.wrappingAdd(isHad == nil ? 0 : 1, ordering: .relaxed)
                }
            }
        }
        try eventually { looks.had.load(ordering: .relaxed) > 20 }
        let replica = try pair.replica()
        _ = try replica.connect(TransportPair.hello)
        try withBlocks(1) { try replica.append($0) }
        // Whoever looks does not have it now; a promotion would.
        let none: Bool? = served.inTurn { true }
        #expect(none == nil)
        let had: Bool? = served.inTurn(endingSession: "it is promoted") {
            !pair.target.isConnected
        }
        #expect(had == true, "the target was let go of before")
        #expect(failure { try withBlocks(2) { try replica.append($0) } }?.kind == .absent)
        #expect(pair.target.last == 1)
        looks.isOver.store(true, ordering: .relaxed)
        for looker in lookers { _ = try looker.join() }
        _ = try replica.connect(TransportPair.hello)
    }

    @Test func whoMayNotAskAnyMoreIsSentAway() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        #expect(failure { _ = try pair.control(identity: TransportPair.otherIdentity) } != nil)
        let control = try pair.control()
        #expect(try control.control([1, 1]) == [1, 1])
        pair.known.remove(pool: "vms")
        pair.server.recheck()
        try eventually {
            failure { _ = try control.control([2, 2]) }?.kind == .absent
        }
        #expect(pair.known.notes.contains("peer-ended"))
        let asked = pair.visitor.asked.load(ordering: .sequentiallyConsistent)
        #expect(failure { _ = try control.control([3, 3]) } != nil)
        #expect(pair.visitor.asked.load(ordering: .sequentiallyConsistent) == asked)
    }

    @Test func withoutKeysItStaysOnTheLoopback() throws {
        let host = TransportHost(
            admits: { _ in true },
            find: { (_, _) throws(TargetError) in throw TargetError(.absent, "") },
            visitor: { (_, _) throws(TargetError) in throw TargetError(.absent, "") },
            mayStay: { _, _, _ in true }, tell: { _ in })
        for place in ["0.0.0.0:0", "192.0.2.1:0", "localhost:0", "[::1]:0"] {
            do {
                _ = try TransportServer.start(
                    .init(listen: [try #require(HostPort(place))], keys: nil), host)
                Issue.record("it listens on \(place)")
            } catch { #expect((error as? TransportError)?.kind == .unprotected) }
        }
        let link = TransportClient(
            .init(server: HostPort(host: "192.0.2.1", port: 7420), keys: nil, pinned: []))
        let replica = RemoteReplica(link, options: .init(pool: "vms"), client: 1)
        let error = failure { _ = try replica.connect(TransportPair.hello) }
        #expect(error?.message.contains("without a key") == true)
    }

    // MARK: Silence

    /// A target that hangs keeps nobody's connection from living, and a line that hangs is noticed.
    @Test func aTargetThatHangsIsNoDeadLine() throws {
        let pair = try TransportPair()
        defer { pair.close() }
        let replica = try pair.replica()
        _ = try replica.connect(TransportPair.hello)
        pair.target.hang(true)
        try withBlocks(1) { try replica.send($0, tellsReceived: true) }
        let begun = ContinuousClock.now
        // Longer than the timeout: the beats go on.
        while ContinuousClock.now - begun < .milliseconds(2600) {
            Pause.microseconds(20_000)
            #expect(!replica.isSuspected)
        }
        #expect(replica.acknowledged?.received.rawValue == 1)
        #expect(replica.roundTrips.map { $0.count > 10 } == true)
        pair.target.hang(false)
        try withBlocks(2) { try replica.append($0) }
    }
}
