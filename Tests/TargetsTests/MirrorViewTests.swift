import BlockCore
import Replication
import SystemIO
import TestSupport
import Testing
import Volume

@testable import Pool
@testable import Targets

/// Mirrors mounted beside their primary, and as they were.
@Suite struct MirrorViewTests {
    private static let historyMs: Int64 = 4

    /// A mirror that keeps its history: the simulated clock goes a microsecond a look.
    private func keeping(_ seed: UInt64) throws -> (MirrorFixture, TargetWorld) {
        let fixture = try MirrorFixture()
        fixture.options.historyMs = Self.historyMs
        let world = TargetWorld(seed: seed, fixture: fixture)
        for _ in 0..<10 { world.primary.step() }
        try world.connect()
        while world.acknowledged < world.primary.last { try world.goOn() }
        return (fixture, world)
    }

    private func send(_ world: TargetWorld, _ count: Int) throws {
        for _ in 0..<count { world.primary.step() }
        while world.sent < world.primary.last { try world.goOn() }
        world.acknowledged = try world.target!.flush()
        while try (world.target as! MirrorTarget).applyStep() {}
    }

    private func check(_ view: MirrorView, _ world: TargetWorld, _ what: String) throws {
        let shown = try MirrorFixture.read(view)
        let model = try #require(world.primary.history[shown.sequence])
        try shown.check(against: model, "\(what), at \(shown.sequence.rawValue)")
    }

    // MARK: Beside the primary

    @Test(arguments: Seeds.run(2)) func aViewDoesNotMoveUnderItsReader(seed: UInt64) throws {
        let world = TargetWorld(seed: seed, fixture: try MirrorFixture())
        world.reusesTarget = true
        var views: [(view: MirrorView, shown: ShownPool)] = []
        for _ in 0..<250 {
            try world.step()
            // Also while the primary is away, and when it is back.
            if let target = world.target as? MirrorTarget, world.random.chance(10), views.count < 4
            {
                let view = try target.newestView()
                try check(view, world, "a view")
                views.append((view, try MirrorFixture.read(view)))
            }
            for (view, before) in views {
                let now = try MirrorFixture.read(view)
                guard now.images == before.images, now.names == before.names else {
                    throw Violation("seed \(seed): the view at \(view.sequence.rawValue) moved")
                }
            }
            if world.random.chance(10), !views.isEmpty {
                views.remove(at: world.random.below(views.count)).view.release()
            }
        }
        for (view, _) in views { view.release() }
    }

    /// After a failure the mirror is opened anew, and what was shown is an error, not something else.
    @Test func aViewOfAMirrorThatFailedIsAnError() throws {
        let world = TargetWorld(seed: 4, fixture: try MirrorFixture())
        for _ in 0..<20 { world.primary.step() }
        try world.connect()
        while world.acknowledged < world.primary.last { try world.goOn() }
        let target = world.target as! MirrorTarget
        let view = try target.newestView()
        let node = try #require(view.nodes.first { $0.sizeBytes > 0 })
        let content = try #require(try view.open(node))
        try send(world, 5)
        world.fixture.disk.failSyncs { $0.hasPrefix("/mirror/journal") }
        for _ in 0..<5 { world.primary.step() }
        try world.goOn()
        #expect(throws: TargetError.self) { _ = try target.flush() }
        world.fixture.disk.failSyncs { _ in false }
        _ = try MirrorFixture.bytes(node.sizeBytes) { try content.read(into: $0, at: 0) }
        _ = try target.connect(world.primary.hello)
        #expect(throws: VolumeError.self) {
            _ = try MirrorFixture.bytes(node.sizeBytes) { try content.read(into: $0, at: 0) }
        }
        view.release()
    }

    @Test func whatAViewHeldGoesWithIt() throws {
        let world = TargetWorld(seed: 4, fixture: try MirrorFixture())
        for _ in 0..<20 { world.primary.step() }
        try world.connect()
        while world.acknowledged < world.primary.last { try world.goOn() }
        let target = world.target as! MirrorTarget
        let view = try target.newestView()
        try send(world, 30)
        view.release()
        view.release()
        #expect(try target.pool!.internalSnapshots().isEmpty)
        // One that a dead process had goes at the next open.
        _ = try target.newestView()
        var random = SeededRandom(seed: 1)
        world.fixture.losePower(&random)
        let next = (world.fixture as! MirrorFixture).openMirror()
        _ = try next.connect(world.primary.hello)
        #expect(try next.pool!.internalSnapshots().isEmpty)
    }

    // MARK: As it was

    @Test(arguments: Seeds.run(2)) func everyMomentWithinReachCanBeShown(seed: UInt64) throws {
        let (fixture, world) = try keeping(seed)
        for round in 0..<25 {
            try send(world, 20)
            if round % 9 == 8 {
                // A resync: the journal begins anew.
                for _ in 0..<10 { world.primary.step() }
                try world.startResync()
                while world.acknowledged < world.primary.last { try world.goOn() }
            }
            let target = world.target as! MirrorTarget
            let reach = try #require(try target.reachNs())
            let moments = world.primary.records.filter { $0.atNs >= reach }
            let moment = try #require(moments.randomElement(using: &world.random))
            do {
                let view = try target.view(atNs: moment.atNs)
                defer { view.release() }
                try check(view, world, "seed \(seed), a moment")
                // Exactly that moment: nothing later, and nothing of before is missing.
                #expect(view.sequence >= moment.sequence)
                let next = world.primary.records.first { $0.sequence > view.sequence }
                #expect(next.map { $0.atNs > moment.atNs } ?? true)
            } catch let error as TargetError {
                // Only what a resync brought without its order cannot be shown.
                #expect(error.kind == .absent)
                #expect(round >= 8)
            }
        }
        _ = fixture
    }

    @Test(arguments: Seeds.run(1)) func theHistoryIsAsLongAsItWasAsked(seed: UInt64) throws {
        let (fixture, world) = try keeping(seed)
        let started = fixture.disk.now()
        for _ in 0..<40 {
            try send(world, 20)
            let target = world.target as! MirrorTarget
            let reach = try #require(try target.reachNs())
            let now = fixture.disk.now()
            #expect(reach <= max(started, now - Self.historyMs * 1_000_000))
            #expect(
                now - reach <= Self.historyMs * 1_000_000 * 3 / 2 + 3_000_000,
                "and not much longer: \((now - reach) / 1000) us")
        }
        let pool = (world.target as! MirrorTarget).pool!
        #expect(try pool.internalSnapshots().count <= 4)
        #expect(pool.journal.startSequence > .zero, "segments before the oldest base are gone")
        world.target!.disconnect()
        // Without a history nothing is kept.
        fixture.options.historyMs = 0
        let target = fixture.openMirror()
        _ = try target.connect(world.primary.hello)
        try target.pool!.applyAll()
        #expect(try target.pool!.internalSnapshots().isEmpty)
    }

    /// Who only looks leaves the history as it is.
    @Test func lookingBackWithoutThePrimary() throws {
        let (fixture, world) = try keeping(2)
        for _ in 0..<10 { try send(world, 20) }
        world.target!.disconnect()
        let before = try fixture.catalog.read { try $0.snapshots() }
        let mirror = try RecoveredMirror(store: try fixture.openStore(), runsInBackground: false)
        let reach = try #require(try mirror.reachNs())
        for record in world.primary.records
        where record.atNs >= reach && record.sequence.rawValue % 7 == 0 {
            let view = try mirror.view(at: record.sequence)
            #expect(view.sequence == record.sequence)
            try check(view, world, "by sequence")
            view.release()
        }
        #expect(throws: TargetError.self) { _ = try mirror.view(atNs: reach - 1_000_000_000) }
        mirror.close()
        #expect(try fixture.catalog.read { try $0.snapshots() } == before)
        #expect(try fixture.disk.list("/mirror").allSatisfy { !$0.name.hasPrefix("overlay") })
    }

    @Test func withoutAHistoryOnlySnapshotsCanBeShown() throws {
        let world = TargetWorld(seed: 1, fixture: try MirrorFixture())
        for _ in 0..<10 { world.primary.step() }
        try world.connect()
        while world.acknowledged < world.primary.last { try world.goOn() }
        try send(world, 5)
        world.primary.snapshot()
        let cut = world.primary.last
        let atNs = world.primary.cuts[cut]!.createdNs
        for _ in 0..<20 {
            try send(world, 40)
            try (world.target as! MirrorTarget).pool!.applyAll()
        }
        let target = world.target as! MirrorTarget
        let view = try target.view(atNs: atNs)
        #expect(view.sequence == cut)
        try check(view, world, "the snapshot's moment")
        view.release()
        #expect(target.pool!.journal.startSequence > cut)
        let gone = world.primary.records.first { $0.sequence.rawValue == cut.rawValue + 200 }!
        let isLater = world.primary.cuts.keys.contains {
            $0 > cut && world.primary.cuts[$0]!.createdNs == gone.atNs
        }
        if !isLater {
            #expect(throws: TargetError.self, "never something older in its place") {
                _ = try target.view(atNs: gone.atNs)
            }
        }
    }

    /// A full disk gives up the history, not what was confirmed.
    @Test func onAFullDiskHistoryGoesFirst() throws {
        let fixture = try MirrorFixture()
        fixture.options.historyMs = 3_600_000
        let world = TargetWorld(seed: 3, fixture: fixture)
        for _ in 0..<10 { world.primary.step() }
        try world.connect()
        while world.acknowledged < world.primary.last { try world.goOn() }
        fixture.disk.limitSpace(toBytes: 2_000_000)
        let pool = (world.target as! MirrorTarget).pool!
        var wasFull = false
        for _ in 0..<80 {
            // No snapshots of the primary's: those are never given up.
            let images = world.primary.pool.images.keys.sorted()
            for index in 0..<20 { world.primary.write(images[index % images.count]) }
            // What is given up comes back step by step, behind.
            for attempt in 0..<20 {
                do {
                    while world.sent < world.primary.last { try world.goOn() }
                    world.acknowledged = try world.target!.flush()
                    while try (world.target as! MirrorTarget).applyStep() {}
                    break
                } catch let error as TargetError where error.kind == .noSpace && attempt < 19 {
                    wasFull = true
                    while try pool.volume.mergeStep() {}
                }
            }
        }
        #expect(wasFull || pool.journal.startSequence > .zero)
        #expect(world.acknowledged == world.primary.last)
        try world.check()
    }
}
