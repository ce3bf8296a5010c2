import BlockCore
import TestSupport
import Testing

@testable import Replication

/// A remote replica and its server over pipes that cut bytes anywhere, stop, and break. The same pair passes the
/// conformance suite of targets, with real ones behind it.
@Suite struct RemoteReplicaTests {
    private final class World {
        let target = LogTarget()
        let link: MemoryLink
        var clients: UInt64 = 0

        init(seed: UInt64) { link = MemoryLink(seed: seed, ["vms": target]) }

        func replica(bulk: Int = 0, pool: String = "vms") -> RemoteReplica {
            var options = RemoteReplica.Options(pool: pool)
            options.bulkConnections = bulk
            // As if it paid.
            if bulk > 0 { options.compression = LineCompression(.on) }
            clients += 1
            return RemoteReplica(link, options: options, client: clients)
        }
    }

    private func kind(_ body: () throws -> Void) -> TargetError.Kind? {
        do { try body() } catch { return (error as? TargetError)?.kind }
        return nil
    }

    /// Trims of one block each, from one sequence number on.
    private func withTrims<T>(
        _ first: UInt64, count: Int = 1, block: UInt64 = 0, isSplit: Bool = false,
        _ body: (RecordBatch) throws -> T
    ) rethrows -> T {
        let buffer = RecordBuffer(capacityBytes: 4096)
        for index in 0..<UInt64(count) {
            buffer.append(
                StreamRecord(
                    .zero, sequence: sequence(first + index), image: ImageID(rawValue: 1),
                    range: BlockRange(start: block + index, count: 1))
            ) { _ in }
        }
        var batch = buffer.batch
        if isSplit {
            let whole = batch.pieces[0]
            batch.pieces = [
                UnsafeRawBufferPointer(rebasing: whole[..<64]),
                UnsafeRawBufferPointer(rebasing: whole[64...]),
            ]
        }
        return try body(batch)
    }

    @Test(arguments: Seeds.run(8), [0, 3])
    func everyCallTravels(seed: UInt64, bulk: Int) throws {
        let world = World(seed: seed)
        let replica = world.replica(bulk: bulk)
        var hello = WireSamples.hello
        hello.givenThrough = sequence(39)
        hello.droppedCuts = [
            DroppedCut(after: sequence(7), through: sequence(11)),
            DroppedCut(after: sequence(20), through: sequence(1 << 40)),
        ]
        let report = try replica.connect(hello)
        #expect(world.target.hello == hello)
        #expect(report.checkpoint == sequence(40) && report.keptAllReceived)
        try withTrims(41, count: 3, isSplit: true) { try replica.append($0) }
        #expect(world.target.taken == [41, 42, 43])
        #expect(try replica.flush() == sequence(43))
        var shape = WireSamples.shape
        shape.names = [UInt8](repeating: 9, count: 3 << 20)
        try replica.beginStaging(id: 9, shape: shape)
        for number in 1...20 as ClosedRange<UInt64> {
            try withTrims(44, block: number) { try replica.stage($0, number: number) }
        }
        let image = ImageID(rawValue: 4)
        // A read sees what was staged before it.
        let hashes = try replica.blockHashes(of: image, in: BlockRange(start: 5, count: 70_000))
        #expect(hashes == (5..<70_005).map { LogTarget.hash(image, $0) })
        #expect(world.target.taken == [41, 42, 43] + (1...20).map { UInt64($0) }, "in order")
        try replica.syncStaging()
        try replica.commitStaging(id: 9, at: sequence(44), snapshot: WireSamples.snapshot)
        #expect(try replica.allocatedBlocks() == WireSamples.blocks)
        world.target.shapeNames = [UInt8](repeating: 3, count: 2 << 20)
        #expect(try replica.shape().names == world.target.shapeNames)
        let range = BlockRange(start: 3, count: 1030)
        var bytes = [UInt8](repeating: 0xee, count: Int(range.lengthBytes))
        try bytes.withUnsafeMutableBytes { try replica.read(range, of: image, into: $0) }
        for block in range.start..<range.end {
            let start = Int(block - range.start) * 4096
            let expected = LogTarget.byte(image, block)
            #expect(bytes[start] == expected && bytes[start + 4095] == expected)
        }
        replica.disconnect()
        let staged = (1...20).map { "stage \($0)" }
        #expect(
            world.target.log == [
                "connect i7", "append 41", "flush", "begin 9, 3145728 of names",
            ] + staged + [
                "hashes 5+65536", "hashes 65541+4464", "sync",
                "commit 9 at 44 as vor dem Update ✓", "allocated", "shape", "read 3+1024",
                "read 1027+6", "disconnect",
            ])
        #expect(!world.target.isConnected)
    }

    @Test func everyErrorTravels() throws {
        for error in WireSamples.errors {
            let world = World(seed: 1)
            let replica = world.replica()
            for call in ["connect", "append", "flush", "begin", "hashes", "read", "shape"] {
                world.target.failing = (call, error)
                var found: TargetError?
                do {
                    _ = try replica.connect(WireSamples.hello)
                    let next = world.target.checkpoint.rawValue + 1
                    switch call {
                    case "append": try withTrims(next) { try replica.append($0) }
                    case "flush": _ = try replica.flush()
                    case "begin": try replica.beginStaging(id: 1, shape: WireSamples.shape)
                    case "hashes":
                        _ = try replica.blockHashes(
                            of: ImageID(rawValue: 1), in: BlockRange(start: 0, count: 1))
                    case "read":
                        var bytes = [UInt8](repeating: 0, count: 4096)
                        try bytes.withUnsafeMutableBytes {
                            try replica.read(
                                BlockRange(start: 0, count: 1), of: ImageID(rawValue: 1), into: $0)
                        }
                    default: _ = try replica.shape()
                    }
                } catch { found = error as? TargetError }
                #expect(found == error, "\(call)")
            }
        }
    }

    @Test func aPoolThatIsNotThereIsAbsent() {
        let world = World(seed: 1)
        #expect(kind { _ = try world.replica(pool: "other").connect(WireSamples.hello) } == .absent)
        world.link.isDown = true
        #expect(kind { _ = try world.replica().connect(WireSamples.hello) } == .absent)
        #expect(world.target.log.isEmpty)
    }

    // MARK: Pipelining

    /// What a line does not take waits with whoever has it: what is found out about the line holds for that.
    @Test func littleIsGivenToALineThatTakesNothing() throws {
        let world = World(seed: 4)
        let replica = world.replica()
        _ = try replica.connect(WireSamples.hello)
        world.link.pipes[0].stopsToServer = true
        var (given, next) = (0, UInt64(41))
        do {
            while given < 30 << 20 {
                try withTrims(next, count: 1000) { batch in
                    try replica.send(batch)
                    given += batch.lengthBytes
                }
                next += 1000
            }
            Issue.record("all of it was taken")
        } catch { #expect((error as? TargetError)?.kind == .absent) }
        #expect(given >= 4 << 20 && given <= (4 << 20) + (65 << 10), "\(given)")
    }

    /// Many batches are under way at once; a failure in the middle lets none after it be done (E4).
    @Test(arguments: Seeds.run(5)) func nothingIsDoneAfterAFailure(seed: UInt64) throws {
        let world = World(seed: seed)
        let replica = world.replica()
        _ = try replica.connect(WireSamples.hello)
        world.target.failing = ("append 45", TargetError(.noSpace, "full", errno: 28))
        world.link.performs = false
        for next in 41..<61 as Range<UInt64> {
            try withTrims(next) { try replica.send($0, tellsReceived: true) }
        }
        world.link.settle()
        #expect(replica.acknowledged?.received == sequence(60))
        #expect(replica.acknowledged?.written == sequence(40))
        world.link.performs = true
        world.link.settle()
        #expect(replica.acknowledged?.written == sequence(44))
        #expect(world.target.log == ["connect i7"] + (41...45).map { "append \($0)" })
        #expect(kind { _ = try withTrims(61) { try replica.append($0) } } == .noSpace)
        // Another session goes on from what there is.
        world.target.failing = nil
        #expect(try replica.connect(WireSamples.hello).checkpoint == sequence(44))
        try withTrims(45) { try replica.append($0) }
    }

    /// Batches of a staging that come by several connections, and one of them is slow.
    @Test(arguments: Seeds.run(8)) func aStagingHasOneOrder(seed: UInt64) throws {
        let world = World(seed: seed)
        let replica = world.replica(bulk: 3)
        _ = try replica.connect(WireSamples.hello)
        try replica.beginStaging(id: 1, shape: WireSamples.shape)
        world.link.settle()
        let slow = world.link.pipes[1 + Int(seed % 3)]
        slow.stopsToServer = true
        for number in 1...40 as ClosedRange<UInt64> {
            try withTrims(50, block: number) { try replica.stage($0, number: number) }
        }
        world.link.settle()
        let before = world.target.taken
        #expect(before == Array(1...40).prefix(before.count).map { UInt64($0) })
        #expect(before.count < 40)
        slow.stopsToServer = false
        try replica.syncStaging()
        #expect(world.target.taken == (1...40).map { UInt64($0) })
        #expect(world.target.log.last == "sync")
    }

    // MARK: Epochs

    /// The old connection's writes stall on the line; a newer session is connected; then they arrive.
    @Test(arguments: Seeds.run(10)) func aStalledWriteOfAnOldConnectionIsNeverApplied(
        seed: UInt64
    ) throws {
        let world = World(seed: seed)
        let old = world.replica()
        _ = try old.connect(WireSamples.hello)
        try withTrims(41) { try old.append($0) }
        world.link.settle()
        let stalled = world.link.pipes[0]
        stalled.stopsToServer = true
        for next in 42..<50 as Range<UInt64> { try withTrims(next) { try old.send($0) } }
        // A part of them is through, up to the middle of a frame.
        stalled.stopsToServer = false
        stalled.lastBytesToServer = Int(seed) * 61
        world.link.settle()
        let newer = world.replica()
        let report = try newer.connect(WireSamples.hello)
        let through = report.checkpoint.rawValue
        #expect(world.target.taken == Array(41..<through + 1), "all that was there before it")
        stalled.lastBytesToServer = nil
        world.link.settle()
        #expect(world.target.taken == Array(41..<through + 1), "and nothing after")
        #expect(world.target.log.last == "connect i7")
        try withTrims(through + 1) { try newer.append($0) }
        #expect(kind { _ = try withTrims(51) { try old.append($0) } } == .absent)
        // The older one's end is not the newer one's.
        old.disconnect()
        world.link.settle()
        #expect(world.target.isConnected)
        #expect(try newer.flush() == sequence(through + 1))
    }

    /// A replica whose server has 41 to 45 in memory, and does not get to apply them.
    private func receiving(_ world: World) throws -> RemoteReplica {
        let replica = world.replica()
        _ = try replica.connect(WireSamples.hello)
        world.link.performs = false
        for next in 41..<46 as Range<UInt64> {
            try withTrims(next) { try replica.send($0, tellsReceived: true) }
        }
        world.link.settle()
        return replica
    }

    /// What is in the server's memory when the line breaks is applied: it said that it was received.
    @Test func whatWasReceivedIsAppliedWhenTheLineBreaks() throws {
        let world = World(seed: 3)
        let replica = try receiving(world)
        #expect(replica.acknowledged?.received == sequence(45))
        for pipe in world.link.pipes { pipe.client.lost("the cable is out") }
        world.link.settle()
        world.link.performs = true
        world.link.settle()
        #expect(world.target.taken == [41, 42, 43, 44, 45])
        #expect(world.target.log.last == "disconnect")
        let again = world.replica()
        #expect(try again.connect(WireSamples.hello).checkpoint == sequence(45))
    }

    /// … and before a newer session begins, it is applied as well.
    @Test func whatWasReceivedIsAppliedBeforeANewerSession() throws {
        let world = World(seed: 4)
        let older = try receiving(world)
        defer { older.disconnect() }
        world.link.performs = true
        let newer = world.replica()
        #expect(try newer.connect(WireSamples.hello).checkpoint == sequence(45))
        #expect(world.target.log.last == "connect i7")
    }

    @Test func anOlderAttemptComesTooLate() throws {
        let world = World(seed: 5)
        let replica = world.replica()
        _ = try replica.connect(WireSamples.hello)
        _ = try replica.connect(WireSamples.hello)
        // The same client says again what it said first, to a new greeting.
        let link = world.link
        let late = RemoteConnection(.ordered, .init(), link)
        let welcome = try late.begin()
        let found = kind {
            _ = try late.connect(
                WireConnect(
                    challenge: welcome.challenge, client: 1, attempt: 1, pool: "vms",
                    hello: WireSamples.hello))
        }
        #expect(found == .io)
        #expect(try replica.flush() == sequence(40), "the session is not disturbed")
    }

    @Test func aBulkConnectionOfAnotherSessionIsRefused() throws {
        let world = World(seed: 6)
        let replica = world.replica()
        _ = try replica.connect(WireSamples.hello)
        for (epoch, token) in [(1, 0x7001), (2, 0x7000), (0, 0x7000)] as [(UInt64, UInt64)] {
            let bulk = RemoteConnection(.bulk, .init(), world.link)
            let welcome = try bulk.begin()
            let found = kind {
                try bulk.attach(
                    WireAttach(
                        challenge: welcome.challenge, epoch: epoch, token: token, pool: "vms"))
            }
            #expect(found == .io)
        }
        #expect(try replica.flush() == sequence(40))
    }

    // MARK: Who may follow whom

    /// Another primary does not disturb the one in session, unless it comes after it.
    @Test func aStrangerDoesNotDisturb() throws {
        let world = World(seed: 7)
        let replica = world.replica()
        _ = try replica.connect(WireSamples.hello)
        var older = WireSamples.hello
        older.generation = WireSamples.hello.history.entries[0].generation
        #expect(kind { _ = try world.replica().connect(older) } == .fenced)
        var other = WireSamples.hello
        other.poolID = "another"
        other.generation.id = "another"
        #expect(kind { _ = try world.replica().connect(other) } == .absent)
        other.generation.number = 9
        other.history = GenerationHistory()
        #expect(kind { _ = try world.replica().connect(other) } == .absent)
        #expect(world.target.log == ["connect i7"])
        try withTrims(41) { try replica.append($0) }
        // Promoted from it: follows.
        var next = WireSamples.hello
        next.poolID = "promoted"
        next.generation = Generation(
            number: 3, id: "g3", parentID: "g2", startSequence: sequence(60))
        next.history.entries.append(
            .init(generation: next.generation, poolID: "promoted", begunNs: 9, cause: .promoted))
        #expect(throws: Never.self) { _ = try world.replica().connect(next) }
        #expect(kind { _ = try replica.flush() } == .absent)
    }

    @Test func anOperationThatComesTwiceIsRefused() throws {
        let world = World(seed: 10)
        let replica = world.replica()
        _ = try replica.connect(WireSamples.hello)
        let late = RemoteConnection(.bulk, .init(), world.link)
        let welcome = try late.begin()
        try late.attach(
            WireAttach(challenge: welcome.challenge, epoch: 1, token: 0x7000, pool: "vms"))
        try replica.beginStaging(id: 1, shape: WireSamples.shape)
        try withTrims(50) { try late.stage($0, order: 1, number: 1) }
        world.link.settle()
        #expect(kind { try late.requireSound() } == .io)
        #expect(world.target.taken.isEmpty)
        // Nor anything after it.
        #expect(kind { try replica.syncStaging() } == .io)
    }

    // MARK: Lines that fail

    /// Whatever is cut, and wherever: an error comes within the timeout, and the next connection works.
    @Test(arguments: Seeds.run(30)) func aLineThatStopsIsNoticed(seed: UInt64) throws {
        let world = World(seed: seed)
        let replica = world.replica(bulk: Int(seed % 3))
        _ = try replica.connect(WireSamples.hello)
        var random = SeededRandom(seed: seed)
        let pipe = world.link.pipes[random.below(world.link.pipes.count)]
        switch random.below(3) {
        case 0: pipe.stopsToServer = true
        case 1: pipe.stopsToClient = true
        default: pipe.lastBytesToServer = random.below(400)
        }
        let begun = world.link.nowNs
        var failed = false
        try? replica.beginStaging(id: 1, shape: WireSamples.shape)
        for number in 1...60 as ClosedRange<UInt64> where !failed {
            do {
                try withTrims(50, block: number) { try replica.stage($0, number: number) }
                if number % 4 == 0 { try replica.syncStaging() }
                world.link.pass(ms: 100)
            } catch { failed = true }
        }
        #expect(failed, "seed \(seed)")
        // The timeout, and what may be done until the first thing that does not come through.
        #expect(world.link.nowNs - begun < 7_000_000_000, "seed \(seed)")
        let again = world.replica()
        #expect(throws: Never.self, "seed \(seed)") { _ = try again.connect(WireSamples.hello) }
    }

    @Test func aTargetThatHangsIsNoSilence() throws {
        let world = World(seed: 8)
        let replica = world.replica()
        _ = try replica.connect(WireSamples.hello)
        world.link.performs = false
        try withTrims(41) { try replica.send($0) }
        // The server lives and says so: what is waited for is the session's to judge.
        for _ in 0..<200 {
            world.link.pass(ms: 100)
            world.link.settle()
        }
        #expect(!replica.isSuspected)
        world.link.performs = true
        try withTrims(42) { try replica.append($0) }
    }

    @Test func malformedRecordsNeverReachATarget() throws {
        let world = World(seed: 9)
        for change in [0, 4, 8, 60] {
            let replica = world.replica()
            let report = try replica.connect(WireSamples.hello)
            let next = report.checkpoint.rawValue + 1
            let found = kind {
                try withTrims(next, count: 2) { batch in
                    var bytes = Array(batch.pieces[0])
                    bytes[64 + change] ^= 0x44
                    try bytes.withUnsafeBytes { raw in
                        try replica.append(
                            RecordBatch(
                                pieces: [raw], firstSequence: batch.firstSequence,
                                lastSequence: batch.lastSequence))
                    }
                }
            }
            #expect(found == .damaged)
        }
        #expect(world.target.taken.isEmpty)
    }
}
