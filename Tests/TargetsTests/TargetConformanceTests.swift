import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Testing

/// What every kind of target has to do, one promise after the other; with random work and crashes in
/// `TargetCrashTests`.
@Suite struct TargetConformanceTests {
    /// A target with a checkpoint, that takes the stream.
    private func streaming(
        _ kind: TargetKind, operations: Int = 20
    ) throws -> (TargetWorld, any ReplicaTarget) {
        let world = try TargetWorld(seed: 1, kind)
        for _ in 0..<operations { world.primary.step() }
        try world.connect()
        while world.acknowledged < world.primary.last { try world.goOn() }
        return (world, world.target!)
    }

    private func send(_ world: TargetWorld, _ count: Int) throws {
        for _ in 0..<count { world.primary.step() }
        while world.sent < world.primary.last { try world.goOn() }
    }

    private func error(_ body: () throws -> Void) -> TargetError.Kind? {
        do { try body() } catch { return (error as? TargetError)?.kind }
        return nil
    }

    @Test(arguments: TargetKind.withSockets)
    func aNewTargetHasNothingAndSaysSo(kind: TargetKind) throws {
        let world = try TargetWorld(seed: 1, kind)
        let target = world.fixture.open()
        let report = try target.connect(world.primary.hello)
        #expect(report.checkpoint == .zero)
        #expect(report.incarnationID == nil)
        #expect(report.staging == nil)
        #expect(report.snapshots.isEmpty)
        // Nothing can be streamed to it: it has nothing to go on from.
        world.primary.create()
        let record = world.primary.records[0]
        let refused = error {
            try withBatch([record.bytes], first: record.sequence, last: record.sequence, split: nil)
            { try target.append($0) }
        }
        #expect(refused == .io)
    }

    @Test(arguments: TargetKind.withSockets)
    func whatIsNotFlushedIsNotTheCheckpoint(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        let before = world.acknowledged
        try send(world, 10)
        var random = SeededRandom(seed: 3)
        world.fixture.losePower(&random)
        let report = try world.fixture.open().connect(world.primary.hello)
        let isTorn = !kind.can.contains(.keepsCheckpoint) && report.checkpoint == .zero
        #expect(report.checkpoint >= before && report.checkpoint <= world.primary.last || isTorn)
        _ = target
    }

    /// A connection that breaks off and comes back counts what it had appended: it is not sent again.
    @Test(arguments: TargetKind.withSockets)
    func aSecondConnectCountsWhatTheFirstAppended(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        try send(world, 10)
        let report = try target.connect(world.primary.hello)
        #expect(report.checkpoint == world.primary.last)
        try send(world, 5)
        #expect(try target.flush() == world.primary.last)
        try world.check()
    }

    // MARK: Who may write

    @Test(arguments: TargetKind.withSockets)
    func anotherPoolsTargetIsAbsent(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        target.disconnect()
        var hello = world.primary.hello
        hello.poolID = "another"
        #expect(error { _ = try world.fixture.open().connect(hello) } == .absent)
        let shown = try #require(try world.fixture.showAlone())
        #expect(shown.sequence == world.acknowledged)
    }

    @Test(arguments: TargetKind.withSockets)
    func anOlderGenerationIsFenced(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        target.disconnect()
        var hello = world.primary.hello
        hello.generation = Generation(
            number: 4, id: "fourth", parentID: "third", startSequence: world.primary.last)
        let next = world.fixture.open()
        _ = try next.connect(hello)
        // It was noted before anything came from it.
        var random = SeededRandom(seed: 1)
        world.fixture.losePower(&random)
        let after = world.fixture.open()
        #expect(error { _ = try after.connect(world.primary.hello) } == .fenced)
        hello.generation.id = "another fourth"
        #expect(error { _ = try after.connect(hello) } == .splitBrain)
        hello.generation.id = "fourth"
        #expect(throws: Never.self) { _ = try after.connect(hello) }
    }

    // MARK: The stream

    @Test(arguments: TargetKind.withSockets)
    func recordsOutOfOrderAndBarriersAreRefused(kind: TargetKind) throws {
        let (world, _) = try streaming(kind)
        for _ in 0..<3 { world.primary.write(world.primary.pool.images.keys.min()!) }
        let records = world.primary.records.suffix(2).map { $0 }
        func attempt(_ bytes: [[UInt8]], _ first: UInt64, _ last: UInt64) -> TargetError.Kind? {
            let target = world.fixture.open()
            defer { target.disconnect() }
            return error {
                _ = try target.connect(world.primary.hello)
                try withBatch(
                    bytes, first: SequenceNumber(rawValue: first),
                    last: SequenceNumber(rawValue: last), split: nil
                ) { try target.append($0) }
            }
        }
        world.target!.disconnect()
        let (a, b) = (records[0], records[1])
        let (first, last) = (a.sequence.rawValue, b.sequence.rawValue)
        #expect(attempt([b.bytes, a.bytes], last, first) == .damaged)
        #expect(attempt([a.bytes, b.bytes], first, last + 1) == .damaged)
        #expect(attempt([Array(a.bytes.dropLast(8))], first, first) == .damaged)
        #expect(attempt([[UInt8](repeating: 7, count: 64)], first, first) == .damaged)
        let barrier = PrimaryModel.encode(
            StreamRecord(.barrier, sequence: b.sequence, atNs: 0), [])
        #expect(attempt([barrier], last, last) == .damaged)
        let shown = try #require(try world.fixture.showAlone())
        #expect(shown.sequence == world.acknowledged)
    }

    // MARK: Staging

    /// Until the commit the target shows the old checkpoint, also after it was closed and opened.
    @Test(arguments: TargetKind.all(that: .keepsCheckpoint))
    func aStagingIsNotSeenBeforeItsCommit(kind: TargetKind) throws {
        let (world, _) = try streaming(kind)
        let before = world.acknowledged
        for _ in 0..<30 { world.primary.step() }
        try world.startResync()
        try world.goOn()
        #expect(try world.fixture.show(world.target!).sequence == before)
        try world.check()
        world.target!.disconnect()
        let shown = try #require(try world.fixture.showAlone())
        #expect(shown.sequence == before)
        try shown.check(against: world.primary.history[before]!, "alone")
    }

    @Test(arguments: TargetKind.all(that: .keepsCheckpoint))
    func anotherStagingBeginsAtTheCheckpoint(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        let before = world.acknowledged
        for _ in 0..<30 { world.primary.step() }
        try world.startResync()
        try world.goOn()
        #expect(try world.fixture.show(target).sequence == before, "it is under way")
        // The first was for nothing; the second is told to commit what the checkpoint has.
        world.primary.restart()
        let model = world.primary.history[before]!
        let shape = PoolShape(
            sequence: world.primary.last,
            images: model.images.map {
                .init(id: $0, sizeBytes: UInt64($1.sizeBytes), modifiedNs: 0)
            }, names: world.primary.names(of: model))
        try target.beginStaging(id: 77, shape: shape)
        try world.fixture.show(target).check(against: model, "put back")
        try target.commitStaging(id: 77, at: world.primary.last, snapshot: nil)
        let shown = try world.fixture.show(target)
        #expect(shown.sequence == world.primary.last)
        try shown.check(against: model, "the old content at a new checkpoint")
    }

    @Test(arguments: TargetKind.withSockets)
    func aCommitTooEarlyIsRefused(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        let image = world.primary.pool.images.keys.min()!
        world.primary.write(image)
        let shape = world.primary.shape
        try target.beginStaging(id: 5, shape: shape)
        #expect(
            error { try target.commitStaging(id: 5, at: world.acknowledged, snapshot: nil) } == .io)
        _ = try target.connect(world.primary.hello)
        try target.beginStaging(id: 5, shape: shape)
        world.primary.write(image)
        let record = world.primary.records.last!
        try withBatch([record.bytes], first: record.sequence, last: record.sequence, split: nil) {
            try target.stage($0, number: 1)
        }
        #expect(error { try target.commitStaging(id: 5, at: shape.sequence, snapshot: nil) } == .io)
        _ = try target.connect(world.primary.hello)
        #expect(
            error { try target.commitStaging(id: 5, at: record.sequence, snapshot: nil) } == .io)
    }

    @Test(arguments: TargetKind.withSockets)
    func theDurableBatchIsReported(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        for _ in 0..<30 { world.primary.step() }
        try target.beginStaging(id: 9, shape: world.primary.shape)
        let image = world.primary.pool.images.first { $0.value.sizeBytes > 0 }!.key
        for number in 1...4 {
            let record = world.primary.blockRecord(image, 0)
            try withBatch(
                [record], first: world.primary.last, last: world.primary.last, split: nil
            ) { try target.stage($0, number: UInt64(number)) }
            if number == 2 { try target.syncStaging() }
        }
        var random = SeededRandom(seed: 1)
        world.fixture.losePower(&random)
        let report = try world.fixture.open().connect(world.primary.hello)
        #expect(report.staging == ReplicaReport.Staging(id: 9, durableBatch: 2))
        #expect(report.checkpoint == world.acknowledged)
    }

    // MARK: Hashes

    @Test(arguments: TargetKind.withSockets)
    func hashesAreOfTheCheckpointUntilAStagingIsBegun(kind: TargetKind) throws {
        let (world, _) = try streaming(kind)
        let (id, old) = world.primary.pool.images.first { $0.value.sizeBytes > 4096 }!
        let range = BlockRange(start: 0, count: 2)
        let before = (0..<2).map { hashOf(old.bytes(of: $0)) }
        #expect(try world.target!.blockHashes(of: id, in: range) == before)
        #expect(
            try world.target!.blockHashes(of: ImageID(rawValue: 999), in: range)
                == [UInt64](repeating: hashOf([UInt8](repeating: 0, count: 4096)), count: 2))
        while world.primary.pool.images[id]?.bytes(of: 0) == old.bytes(of: 0) {
            world.primary.write(id)
        }
        try world.target!.beginStaging(id: 3, shape: world.primary.shape)
        try withBatch(
            [world.primary.blockRecord(id, 0)], first: world.primary.last,
            last: world.primary.last, split: nil
        ) { try world.target!.stage($0, number: 1) }
        let staged = hashOf(world.primary.pool.images[id]!.bytes(of: 0))
        #expect(try world.target!.blockHashes(of: id, in: range)[0] == staged)
        world.target!.disconnect()
        let again = world.fixture.open()
        _ = try again.connect(world.primary.hello)
        let kept = kind.can.contains(.keepsCheckpoint)
        #expect(try again.blockHashes(of: id, in: range) == (kept ? before : [staged, before[1]]))
    }

    /// What is compared is that, and all that it may show again: also of an image that a staging of before
    /// has no more. Who connects may have an image of its own with the same number.
    @Test(arguments: TargetKind.all(that: .keepsCheckpoint))
    func allBlocksOfTheCheckpointAreNamedUnderAStaging(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        world.primary.create(sizeBytes: 80_000)
        let id = world.primary.pool.images.keys.max()!
        for _ in 0..<3 { world.primary.write(id) }
        while world.sent < world.primary.last { try world.goOn() }
        try world.confirm()
        let shown = world.primary.pool
        world.primary.delete(id)
        try world.startResync()
        #expect(!world.primary.shape.images.contains { $0.id == id })
        target.disconnect()
        let again = world.fixture.open()
        // It was promoted before what this target has.
        let report = try again.connect(heir(of: world, startsAt: [-1]))
        let diverged = try #require(report.diverged)
        let held = try again.allocatedBlocks()
        for (id, image) in shown.images {
            for block in image.blocks.keys {
                #expect(held[id]?.contains(block) == true, "block \(block) of \(id)")
                #expect(diverged.suspects[id]?.contains(block) == true, "block \(block) of \(id)")
            }
        }
        again.disconnect()
    }

    /// One that followed a later generation, and was promoted before it had all that this one began with.
    @Test(arguments: TargetKind.all(that: .keepsCheckpoint))
    func whoWasPromotedOnItsWayHasNoMoreThanItHad(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        target.disconnect()
        let again = world.fixture.open()
        let report = try again.connect(heir(of: world, startsAt: [3, -1]))
        let common = SequenceNumber(rawValue: world.acknowledged.rawValue - 1)
        #expect(report.diverged?.common == common)
        #expect(report.diverged?.isComplete == false)
        #expect(report.checkpoint == common)
        again.disconnect()
    }

    /// - Parameter places: where generations began that came after the primary's, from what the target has.
    private func heir(of world: TargetWorld, startsAt places: [Int64]) -> PrimaryHello {
        var hello = world.primary.hello
        var story = [hello.generation]
        for place in places {
            let start = Int64(world.acknowledged.rawValue) + place
            story.append(
                Generation(
                    number: story.last!.number + 1, id: "\(story.count) later",
                    parentID: story.last!.id, startSequence: SequenceNumber(rawValue: UInt64(start))
                ))
        }
        hello.history = GenerationHistory(
            story.map { .init(generation: $0, poolID: "primary", begunNs: 0, cause: .forced) })
        (hello.generation, hello.incarnationID) = (story.last!, "of the heir")
        return hello
    }

    // MARK: Reading back

    /// Blocks, sizes and names are those of the checkpoint, also while a staging of before is there.
    @Test(arguments: TargetKind.all(that: .keepsCheckpoint))
    func whatIsReadIsTheCheckpoint(kind: TargetKind) throws {
        let (world, target) = try streaming(kind)
        let model = world.primary.pool
        func check(_ target: any ReplicaTarget, _ what: String) throws {
            let shape = try target.shape()
            #expect(shape.sequence == world.acknowledged, "\(what)")
            #expect(
                Dictionary(uniqueKeysWithValues: shape.images.map { ($0.id, Int($0.sizeBytes)) })
                    == model.images.mapValues(\.sizeBytes), "\(what)")
            let names = try #require(shape.names.withUnsafeBytes(NamesCodec.decode))
            let nodes = names.compactMap { change -> NodeRecord? in
                if case .put(let node) = change { node } else { nil }
            }
            #expect(Set(nodes.map(\.id)) == Set(model.names.keys), "\(what)")
            for node in nodes { #expect(model.names[node.id]?.name == node.name, "\(what)") }
            // Past the end, and of an image that is not there: zeros.
            for id in Array(model.images.keys) + [ImageID(rawValue: 999)] {
                let range = BlockRange(start: 0, count: 8)
                let expected = model.images[id]?.bytes ?? []
                let bytes = try read(target, range, of: id)
                let end = min(expected.count, bytes.count)
                #expect(
                    difference(bytes[..<end], from: expected[..<end]) == nil,
                    "\(what), image \(id.rawValue)")
                #expect(bytes[end...].allSatisfy { $0 == 0 }, "\(what), image \(id.rawValue)")
            }
        }
        try check(target, "streaming")
        for _ in 0..<20 { world.primary.step() }
        try world.startResync()
        try world.goOn()
        target.disconnect()
        let again = world.fixture.open()
        _ = try again.connect(world.primary.hello)
        try check(again, "a staging is there")
        again.disconnect()
    }

    private func read(
        _ target: any ReplicaTarget, _ range: BlockRange, of id: ImageID
    ) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: Int(range.lengthBytes))
        try bytes.withUnsafeMutableBytes { try target.read(range, of: id, into: $0) }
        return bytes
    }
}
