import BlockCore
import Glibc
import Replication
import SystemIO
import TestSupport
import Testing
import Volume

@testable import Pool
@testable import Targets

/// What a mirror directory does when its disk lies, is full, or is damaged; and who may have it.
@Suite struct MirrorFaultTests {
    private func streaming(
        _ fixture: MirrorFixture = try! MirrorFixture(), seed: UInt64 = 1
    ) throws -> TargetWorld {
        let world = TargetWorld(seed: seed, fixture: fixture)
        for _ in 0..<20 { world.primary.step() }
        try world.connect()
        while world.acknowledged < world.primary.last { try world.goOn() }
        return world
    }

    private func send(_ world: TargetWorld, _ count: Int) throws {
        for _ in 0..<count { world.primary.step() }
        while world.sent < world.primary.last { try world.goOn() }
    }

    private func error(_ body: () throws -> Void) -> TargetError? {
        do { try body() } catch { return error as? TargetError }
        return nil
    }

    // MARK: Disks that lie: the tests above would notice

    /// Each of these breaks a promise, and some seed shows it.
    @Test(arguments: ["/mirror/journal/", "/mirror/images/"])
    func aSyncThatDoesNothingIsNoticed(path: String) throws {
        var misbehaviour = SimulatedDisk.Misbehaviour()
        misbehaviour.skipsSync = { $0.hasPrefix(path) }
        for seed in UInt64(1)...40 {
            let fixture = try MirrorFixture(disk: SimulatedDisk(misbehaviour: misbehaviour))
            let world = TargetWorld(seed: seed, fixture: fixture)
            do {
                for _ in 0..<6 {
                    try world.run(toPowerOffAtSync: 1 + world.random.below(90), stepLimit: 120)
                }
            } catch { return }
        }
        Issue.record("nobody noticed that syncs of \(path) did nothing")
    }

    // MARK: The journal

    @Test func aTornTailIsCutAndWhatIsBeforeItStays() throws {
        let fixture = try MirrorFixture()
        fixture.options.journal = JournalOptions(segmentBytes: 4 << 20)
        let world = try streaming(fixture)
        try send(world, 20)
        let durable = try world.target!.flush()
        let end = try fixture.journalEnd()
        try send(world, 10)
        var random = SeededRandom(seed: 1)
        // Of what follows only the first bytes are there.
        let (path, lengthBytes) = try fixture.newestSegment()
        let file = try fixture.disk.open(path, .readWrite, mode: 0o600)
        try file.zeroRange(at: end + 100, length: lengthBytes - end - 100)
        try file.sync()
        fixture.losePower(&random)
        let report = try fixture.open().connect(world.primary.hello)
        #expect(report.checkpoint == durable)
    }

    @Test func aDamagedFrameThatWasDurableIsAnError() throws {
        let fixture = try MirrorFixture()
        fixture.options.journal = JournalOptions(segmentBytes: 4 << 20)
        let world = try streaming(fixture)
        try send(world, 20)
        _ = try world.target!.flush()
        try send(world, 20)
        _ = try world.target!.flush()
        try fixture.flipByte(of: try fixture.newestSegment().path, at: 4096 + 200)
        var random = SeededRandom(seed: 1)
        fixture.losePower(&random)
        let failure = error { _ = try fixture.open().connect(world.primary.hello) }
        #expect(failure?.kind == .damaged)
        #expect(failure?.message.contains("attach the mirror anew") == true)
        #expect(error { _ = try fixture.showAlone() }?.kind == .damaged, "never older data")
    }

    // MARK: Full disks and broken ones

    @Test func aFullDiskTakesNothingAndGoesOnWhenThereIsRoom() throws {
        let fixture = try MirrorFixture()
        let world = try streaming(fixture)
        let confirmed = world.acknowledged
        fixture.disk.limitSpace(toBytes: 80_000)
        var failure: TargetError?
        for _ in 0..<200 where failure == nil {
            failure = error {
                try send(world, 4)
                _ = try world.target!.flush()
                while try (world.target as! MirrorTarget).applyStep() {}
            }
        }
        #expect(failure?.kind == .noSpace)
        // What it confirmed is there after a crash on the full disk.
        var random = SeededRandom(seed: 5)
        fixture.losePower(&random)
        fixture.disk.limitSpace(toBytes: 1 << 30)
        let target = fixture.openMirror()
        let report = try target.connect(world.primary.hello)
        #expect(report.checkpoint >= confirmed)
        world.target = target
        world.acknowledged = report.checkpoint
        world.sent = report.checkpoint
        try send(world, 20)
        #expect(try target.flush() == world.primary.last)
        try world.check()
    }

    /// What is in the images is settled early where the disk has no room for more of the journal, also
    /// where what is kept for looking back finds none.
    @Test(arguments: [Int64(0), 40]) func theJournalMakesRoomForWhatComes(historyMs: Int64) throws {
        let fixture = try MirrorFixture()
        fixture.options.historyMs = historyMs
        fixture.options.settleBytes = 1 << 30
        let world = try streaming(fixture)
        func send(untilSegment number: UInt64) throws {
            while try fixture.newestSegmentNumber() < number {
                try self.send(world, 20)
                #expect(try world.target!.flush() == world.primary.last)
                while try (world.target as! MirrorTarget).applyStep() {}
            }
        }
        fixture.disk.limitSpace(toBytes: 1 << 30)
        try send(untilSegment: 80)
        let journal = try fixture.disk.list("/mirror/journal").count
        #expect(journal > 20, "it is not settled")
        fixture.disk.limitSpace(toBytes: 0, showing: 1 << 40)
        try send(untilSegment: 84)
        #expect(try fixture.disk.list("/mirror/journal").count < journal)
        try world.check()
    }

    @Test func aSyncThatFailsBreaksTheConnectionAndNothingElse() throws {
        let fixture = try MirrorFixture()
        let world = try streaming(fixture)
        let confirmed = world.acknowledged
        try send(world, 5)
        fixture.disk.failSyncs { $0.hasPrefix("/mirror/journal") }
        #expect(error { _ = try world.target!.flush() }?.kind == .io)
        fixture.disk.failSyncs { _ in false }
        #expect(error { _ = try world.target!.flush() }?.kind == .io, "nothing is hoped over")
        // Connecting again opens it anew: what is there is read back.
        let report = try world.target!.connect(world.primary.hello)
        #expect(report.checkpoint >= confirmed)
        world.sent = report.checkpoint
        world.acknowledged = report.checkpoint
        try send(world, 5)
        #expect(try world.target!.flush() == world.primary.last)
        try world.check()
    }

    @Test func anImageThatCannotBeWrittenBreaksTheConnection() throws {
        let fixture = try MirrorFixture()
        let world = try streaming(fixture)
        fixture.disk.failSyncs { $0.hasPrefix("/mirror/images") }
        var failure: TargetError?
        for _ in 0..<100 where failure == nil {
            failure = error {
                try send(world, 4)
                _ = try world.target!.flush()
                while try (world.target as! MirrorTarget).applyStep() {}
            }
        }
        #expect(failure?.kind == .io)
        fixture.disk.failSyncs { _ in false }
        let report = try world.target!.connect(world.primary.hello)
        world.sent = report.checkpoint
        world.acknowledged = report.checkpoint
        try world.check()
    }

    /// What the journal has for an image that does not open for a moment would be passed over for good.
    @Test func whatCannotBeOpenedForAMomentIsNotLeftBehind() throws {
        var random = SeededRandom(seed: 3)
        let fixture = try MirrorFixture()
        let world = try streaming(fixture)
        var durable = try world.target!.flush()
        for _ in 0..<50 where (world.target as! MirrorTarget).unappliedBytes == 0 {
            try send(world, 3)
            durable = try world.target!.flush()
        }
        #expect((world.target as! MirrorTarget).unappliedBytes > 0)
        fixture.losePower(&random)
        fixture.disk.failOpens { $0.hasPrefix("/mirror/images/") && $0.hasSuffix(".data") }
        let failure = error { _ = try fixture.showAlone() }
        #expect(failure?.kind == .io, "\(String(describing: failure))")
        fixture.disk.failOpens { _ in false }
        let shown = try #require(try fixture.showAlone())
        #expect(shown.sequence >= durable)
        let model = try #require(world.primary.history[shown.sequence])
        try shown.check(against: model, "once its disk is well")
    }

    // MARK: Who has it

    @Test func aMirrorOfAnotherPoolAndAnotherMirrorAreAbsent() throws {
        let fixture = try MirrorFixture()
        let world = try streaming(fixture)
        world.target!.disconnect()
        fixture.poolID = "the one that was here before"
        #expect(error { _ = try fixture.open().connect(world.primary.hello) }?.kind == .absent)
        let disk = SimulatedDisk()
        let missing = MirrorTarget(
            path: "/nothing", primaryPoolID: "primary", poolID: "mirror", disk: disk)
        #expect(error { _ = try missing.connect(world.primary.hello) }?.kind == .absent)
        try disk.createDirectory("/nothing", mode: 0o700)
        #expect(error { _ = try missing.connect(world.primary.hello) }?.kind == .absent)
        #expect(try disk.list("/nothing").isEmpty, "an empty directory is not made a mirror again")
    }

    @Test func aMirrorIsNoPoolUntilItIsPromoted() throws {
        let fixture = try MirrorFixture()
        fixture.options.journal = JournalOptions(segmentBytes: 4 << 20)
        let world = try streaming(fixture)
        try send(world, 20)
        _ = try world.target!.flush()
        world.target!.disconnect()
        let refused = #expect(throws: VolumeError.self) {
            _ = try Volume(store: try fixture.openStore())
        }
        #expect(refused?.kind == .readOnly)
        #expect(refused?.message.contains("doppel promote") == true)
        let mirror = try RecoveredMirror(store: try fixture.openStore(), runsInBackground: false)
        let generation = try mirror.promote()
        mirror.close()
        #expect(generation.number == 4)
        #expect(generation.parentID == PrimaryModel.generation.id)
        #expect(generation.startSequence == world.primary.last)
        // Now it is one, at the last checkpoint, and its sequence goes on from there.
        let store = try fixture.openStore()
        let volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        #expect(volume.sequence >= world.primary.last)
        #expect(Set(volume.imageIDs) == Set(world.primary.pool.images.keys))
        for (id, model) in world.primary.pool.images {
            let image = try volume.image(id)
            let bytes = try MirrorFixture.bytes(image.sizeBytes) { try image.read(into: $0, at: 0) }
            #expect(difference(bytes, from: model.bytes) == nil)
        }
        try volume.close()
        // The old primary is refused, also while somebody has the pool open.
        #expect(error { _ = try fixture.open().connect(world.primary.hello) }?.kind == .fenced)
        let inUse = MirrorTarget(
            path: fixture.path, primaryPoolID: "primary", poolID: "mirror", disk: fixture.disk,
            options: MirrorOptions()
        ) { () throws(PoolError) in throw PoolError(.inUse, "somebody has it") }
        #expect(error { _ = try inUse.connect(world.primary.hello) }?.kind == .fenced)
    }

    /// An image whose files are gone is set aside, and has the name that it was given since all the same.
    @Test func anImageThatIsSetAsideKeepsItsNames() throws {
        let fixture = try MirrorFixture()
        let world = try streaming(fixture)
        _ = try world.target!.flush()
        var node = try #require(world.primary.pool.names.values.first { $0.imageID != nil })
        node.name = Array("renamed since".utf8)
        world.primary.rename(node)
        try send(world, 0)
        #expect(try world.target!.flush() == world.primary.last)
        var random = SeededRandom(seed: 1)
        fixture.losePower(&random)
        func named() throws -> NodeRecord? {
            try fixture.catalog.read { try $0.nodes() }.first { $0.id == node.id }
        }
        #expect(try named()?.name != node.name, "it is in the journal alone")
        let image = try #require(node.imageID)
        let folder = "/mirror/images/\(image.rawValue)"
        for file in try fixture.disk.list(folder) {
            try fixture.disk.removeFile(folder + "/" + file.name)
        }
        let mirror = try RecoveredMirror(store: try fixture.openStore(), runsInBackground: false)
        #expect(mirror.volume.damagedImages.map(\.id) == [image])
        _ = try mirror.promote()
        mirror.close()
        #expect(try named()?.name == node.name)
    }

    @Test(arguments: Seeds.run(6)) func aPromotionIsWholeOrNotAtAll(seed: UInt64) throws {
        let fixture = try MirrorFixture()
        let world = try streaming(fixture, seed: seed)
        try send(world, 30)
        if seed % 3 == 0 {
            // A resync was under way.
            _ = try world.target!.flush()
            world.acknowledged = world.sent
            for _ in 0..<10 { world.primary.step() }
            try world.startResync()
            try world.goOn()
        } else {
            world.acknowledged = try world.target!.flush()
        }
        let checkpoint = world.acknowledged
        var isPromoted = false
        for count in 1...200 where !isPromoted {
            fixture.losePower(&world.random)
            fixture.disk.powerOff(atSync: count)
            let store = try? fixture.openStore()
            let mirror = store.flatMap {
                try? RecoveredMirror(store: $0, runsInBackground: false)
            }
            let generation = try? mirror?.promote()
            fixture.disk.cancelPowerOff()
            let role = try fixture.catalog.read { try $0.replica() }!.role
            #expect(generation == nil || role == .primary)
            isPromoted = role == .primary
            if isPromoted { fixture.losePower(&world.random) }
        }
        let volume = try Volume(
            store: try fixture.openStore(), options: VolumeOptions(runsInBackground: false))
        let model = world.primary.history[checkpoint]!
        #expect(Set(volume.imageIDs) == Set(model.images.keys))
        for (id, expected) in model.images {
            let image = try volume.image(id)
            let bytes = try MirrorFixture.bytes(image.sizeBytes) { try image.read(into: $0, at: 0) }
            #expect(
                difference(bytes, from: expected.bytes) == nil, "seed \(seed): image \(id.rawValue)"
            )
        }
        #expect(error { _ = try fixture.open().connect(world.primary.hello) }?.kind == .fenced)
    }
}

extension MirrorFixture {
    func newestSegmentNumber() throws -> UInt64 {
        try disk.list("/mirror/journal").compactMap { UInt64($0.name) }.max() ?? 0
    }

    func newestSegment() throws -> (path: String, lengthBytes: UInt64) {
        let number = try newestSegmentNumber()
        let path = "/mirror/journal/\(number)"
        return (path, try disk.status(path)!.sizeBytes)
    }

    /// Where the frames of the newest segment end.
    func journalEnd() throws -> UInt64 {
        let (path, lengthBytes) = try newestSegment()
        let bytes = try disk.readAll(path)
        let last = bytes.lastIndex { $0 != 0 }.map(UInt64.init) ?? lengthBytes
        return (last + 8) & ~7
    }

    func flipByte(of path: String, at offset: UInt64) throws {
        let file = try disk.open(path, .readWrite, mode: 0o600)
        var byte: [UInt8] = [0]
        _ = try byte.withUnsafeMutableBytes { try file.read(into: $0, at: offset) }
        byte[0] ^= 0xff
        try byte.withUnsafeBytes { try file.write($0, at: offset) }
        try file.sync()
    }
}
