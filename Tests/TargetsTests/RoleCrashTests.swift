// A mirror that is promoted, is a primary for a while, is demoted and follows the other one again; the
// power goes at every sync and commit of each of these. Whatever is left is the state before the step or
// the one after it, whole, and what the pool had alone is never lost.

import BlockCore
import Replication
import SystemIO
import TestSupport
import Testing

@testable import Pool
@testable import Targets
@testable import Volume

@Suite struct RoleCrashTests {
    /// The mirror's store, and what its primary was when it was replaced.
    private struct Scene {
        var fixture: MirrorFixture
        var world: TargetWorld
        var random: SeededRandom
        /// What the primary had, and the mirror was promoted with.
        var common: ModelPool
        var checkpoint: SequenceNumber
    }

    private func scene(seed: UInt64) throws -> Scene {
        let fixture = try MirrorFixture()
        let world = TargetWorld(seed: seed, fixture: fixture)
        for _ in 0..<30 { world.primary.step() }
        world.primary.create()
        world.primary.write(world.primary.pool.images.keys.max()!)
        try world.connect()
        while world.acknowledged < world.primary.last || world.resync != nil { try world.goOn() }
        world.target!.disconnect()
        return Scene(
            fixture: fixture, world: world, random: SeededRandom(seed: seed),
            common: world.primary.pool, checkpoint: world.acknowledged)
    }

    /// Tries until it is done, with the power going at the first sync, then at the second, and so on.
    /// - Parameter look: what has to hold after each loss.
    private func untilDone(
        _ scene: inout Scene, isDone: () throws -> Bool, _ attempt: () throws -> Void,
        look: () throws -> Void = {}
    ) throws {
        for count in 1...300 {
            scene.fixture.disk.powerOff(atSync: count)
            do { try attempt() } catch {
                guard scene.fixture.disk.isPoweredOff else { throw error }
            }
            scene.fixture.disk.cancelPowerOff()
            let isDone = try isDone()
            scene.fixture.losePower(&scene.random)
            try look()
            if isDone { return }
        }
        Issue.record("it never came to its end")
    }

    private func role(_ scene: Scene) throws -> ReplicaRecord {
        try #require(try scene.fixture.catalog.read { try $0.replica() })
    }

    private func promote(_ scene: inout Scene) throws {
        let fixture = scene.fixture
        try untilDone(
            &scene, isDone: { try fixture.catalog.read { try $0.replica() }?.role == .primary }
        ) {
            let mirror = try RecoveredMirror(
                store: try fixture.openStore(), runsInBackground: false)
            defer { mirror.close() }
            _ = try mirror.promote(NewGeneration(cause: .forced, primaryAddress: "/old"))
        }
    }

    /// Opens the pool as a primary whose targets cannot be reached, and lets it be changed.
    private func asPrimary(
        _ scene: Scene, _ body: (Volume, TargetHub) throws -> Void
    ) throws -> [ImageID: [UInt8]] {
        let store = try scene.fixture.openStore()
        let volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        var options = HubOptions()
        options.runsInBackground = false
        options.connects = false
        let hub = try TargetHub(
            volume: volume, stream: volume.attachStream(), suspects: volume.suspects(),
            options: options
        ) { (_) throws(TargetError) in throw TargetError(.absent, "nobody is there") }
        volume.attach(hub)
        hub.start(names: { { [] } })
        try body(volume, hub)
        var content: [ImageID: [UInt8]] = [:]
        for id in volume.imageIDs {
            let image = try volume.image(id)
            content[id] = try MirrorFixture.bytes(image.sizeBytes) {
                try image.read(into: $0, at: 0)
            }
        }
        #expect(hub.close())
        try volume.close()
        try store.close(clean: true, lastSequence: volume.sequence)
        return content
    }

    private func demote(_ scene: inout Scene, to heir: PoolSight) throws {
        let fixture = scene.fixture
        try untilDone(
            &scene, isDone: { try fixture.catalog.read { try $0.replica() }?.role == .replica }
        ) {
            let store = try fixture.openStore()
            let state = try store.catalog.read { try $0.poolState() }
            // A loss of power in an attempt before is no unclean end of the pool: nothing was changed.
            try Demotion.run(store, to: heir, at: "/old", isSettled: true)
            try store.close(clean: true, lastSequence: state.lastSequence)
        }
    }

    /// The old primary was promoted in its turn, where this pool left it.
    private func heir(_ scene: Scene) throws -> PoolSight {
        let history = try scene.fixture.catalog.read { try $0.history() }
        let parent = try #require(history.current)
        return PoolSight(
            poolID: "primary", isReplica: false, primaryPoolID: nil,
            history: GenerationHistory(
                history.entries + [
                    .init(
                        generation: Generation(
                            number: parent.number + 1, id: "heir", parentID: parent.id,
                            startSequence: scene.checkpoint), poolID: "primary", begunNs: 9,
                        cause: .forced)
                ]))
    }

    @Test(arguments: Seeds.run(4)) func aDemotionIsWholeOrNotAtAll(seed: UInt64) throws {
        var scene = try scene(seed: seed)
        try promote(&scene)
        let before = try asPrimary(scene) { _, _ in }
        try scene.fixture.catalog.write {
            try $0.setHandover(
                HandoverRecord(poolID: "primary", address: "/old", generationID: "heir"))
        }
        try demote(&scene, to: try heir(scene))
        // A primary again, it would take itself for handed over to whom it was then.
        #expect(try scene.fixture.catalog.read { try $0.handover() } == nil)
        let replica = try role(scene)
        #expect(replica.primaryPoolID == "primary")
        #expect(replica.generation?.id == "heir")
        let shown = try #require(try scene.fixture.showAlone())
        #expect(shown.images == before, "seed \(seed)")
        #expect(throws: VolumeError.self) {
            _ = try Volume(store: try scene.fixture.openStore())
        }
    }

    /// A promotion removes the journal, and the power may bring some of it back: not into that of the mirror
    /// that the pool became meanwhile.
    @Test(arguments: Seeds.run(8)) func aJournalOfBeforeIsNotReplayed(seed: UInt64) throws {
        var scene = try scene(seed: seed)
        let (fixture, world) = (scene.fixture, scene.world)
        try world.connect()
        for _ in 0..<8 { world.primary.write(world.primary.pool.images.keys.max()!) }
        while world.sent < world.primary.last { try world.goOn() }
        try world.confirm()
        world.target!.disconnect()
        (scene.common, scene.checkpoint) = (world.primary.pool, world.acknowledged)
        #expect(try fixture.newestSegmentNumber() > 0)
        let mirror = try RecoveredMirror(store: try fixture.openStore(), runsInBackground: false)
        _ = try mirror.promote(NewGeneration(cause: .forced, primaryAddress: "/old"))
        mirror.close()
        let store = try fixture.openStore()
        let last = try store.catalog.read { try $0.poolState() }.lastSequence
        try Demotion.run(store, to: try heir(scene), at: "/old", isSettled: true)
        try store.close(clean: true, lastSequence: last)
        fixture.losePower(&scene.random)
        let segment = try role(scene).journalSegment
        #expect(try fixture.newestSegmentNumber() < segment, "seed \(seed): it would be replayed")
        let shown = try #require(try fixture.showAlone())
        #expect(shown.sequence == last, "seed \(seed)")
        #expect(shown.images == scene.common.images.mapValues(\.bytes), "seed \(seed)")
    }

    @Test(arguments: Seeds.run(4)) func aPromotionOpensADirtySetForTheOldPrimary(
        seed: UInt64
    ) throws {
        var scene = try scene(seed: seed)
        try promote(&scene)
        let target = try #require(
            try scene.fixture.catalog.read { try $0.targets() }.first { $0.poolID == "primary" })
        #expect(target.address == "/old")
        #expect(target.stale?.sequence == scene.checkpoint)
        let opened = try #require(
            try DirtyFile.open(
                disk: scene.fixture.disk,
                path: "/mirror/targets/\(target.id.rawValue)/dirty", target: target.id))
        #expect(opened.state.acknowledged == scene.checkpoint)
        #expect(opened.state.legs.allSatisfy { $0.blocks.isEmpty })
        opened.file.close()
        let state = try scene.fixture.catalog.read { try $0.poolState() }
        #expect(state.lastSequence.rawValue & (1 << 48 - 1) == 0)
        #expect(state.lastSequence > scene.checkpoint)
    }

    /// What was deleted there has no blocks that the dirty set could name; and whatever it did, it did
    /// something.
    @Test(arguments: Seeds.run(4)) func aDivergenceTellsOfImagesThatAreGone(
        seed: UInt64
    ) throws {
        var scene = try scene(seed: seed)
        try promote(&scene)
        let id = try #require(scene.common.images.keys.max())
        var images: Set<ImageID> = []
        _ = try asPrimary(scene) { volume, _ in
            try volume.store.catalog.write { tx in
                try tx.apply(
                    try tx.nodes().filter { $0.imageID == id }.map { .remove($0.id) })
            }
            try volume.deleteImage(id)
            images = Set(volume.imageIDs)
        }
        let heir = try heir(scene)
        try demote(&scene, to: heir)
        let target = scene.fixture.openMirror()
        defer { target.disconnect() }
        let report = try target.connect(hello(of: heir))
        let diverged = try #require(report.diverged)
        #expect(diverged.isComplete && diverged.isSomething)
        #expect(diverged.images == images && !images.contains(id), "seed \(seed)")
    }

    private func hello(of heir: PoolSight) -> PrimaryHello {
        PrimaryHello(
            poolID: "primary", generation: heir.history.current!, incarnation: 7,
            incarnationID: "of the heir", history: heir.history, address: "/old")
    }

    /// What an empty target lacks is not what one has that the pool parted from: holes of today are not in it,
    /// nor what was cut off.
    @Test func ofATargetThatWasNeverInStepNothingIsTracked() throws {
        var scene = try scene(seed: 1)
        try promote(&scene)
        _ = try asPrimary(scene) { _, hub in
            try hub.remove(try #require(hub.all.first { $0.record.poolID == "primary" }).record.id)
            _ = try hub.add(
                TargetRecord(
                    address: "/old", poolID: "primary", mode: .flush, timeoutMs: 1000, addedNs: 0))
        }
        let heir = try heir(scene)
        try demote(&scene, to: heir)
        let target = scene.fixture.openMirror()
        defer { target.disconnect() }
        let diverged = try #require(try target.connect(hello(of: heir)).diverged)
        #expect(!diverged.isComplete)
    }

    /// The old primary may have gone on without what a third copy has. That one is asked to keep it, if it
    /// followed another incarnation than this pool did.
    @Test func whatAThirdCopyMayHaveAloneIsKeptThere() throws {
        var scene = try scene(seed: 1)
        try scene.fixture.catalog.write { tx in
            try tx.setPeer(PeerRecord(poolID: "third", address: "/third", seenNs: 0, stale: nil))
        }
        let incarnationID = try #require(try role(scene).incarnationID)
        try promote(&scene)
        _ = try asPrimary(scene) { volume, hub in
            for target in hub.all {
                let (id, isThird) = (target.record.id, target.record.poolID == "third")
                func keeps(_ incarnationID: String?) -> Bool {
                    hub.source.hello(for: id, having: incarnationID).keepsDiverged
                }
                #expect(keeps(nil) == isThird)
                #expect(keeps("of before") == isThird)
                #expect(!keeps(incarnationID))
            }
            #expect(hub.all.count == 2)
            // One that is added anew may have been a target before.
            let new = try hub.add(
                TargetRecord(
                    address: "/new", poolID: "new", mode: .flush, timeoutMs: 1000, addedNs: 0))
            let source = hub.source
            #expect(!source.hello(for: new.id, having: nil).keepsDiverged)
            #expect(source.hello(for: new.id, having: "of before").keepsDiverged)
            let own = source.hello(for: new.id, having: nil).incarnationID
            #expect(!source.hello(for: new.id, having: own).keepsDiverged)
        }
    }

    @Test(arguments: Seeds.run(4)) func aFailbackLosesPowerAnywhereAndKeepsWhatWasAlone(
        seed: UInt64
    ) throws {
        var scene = try scene(seed: seed)
        try promote(&scene)
        let id = try #require(scene.common.images.keys.max())
        let size = scene.common.images[id]!.sizeBytes
        let alone = try asPrimary(scene) { volume, _ in
            let image = try volume.image(id)
            try [UInt8](repeating: 0xaa, count: 5000).withUnsafeBytes {
                try image.write($0, at: 0)
            }
            if size > 5000 { try image.resize(to: 5000) }
        }
        let heir = try heir(scene)
        try demote(&scene, to: heir)
        let hello = hello(of: heir)
        let (fixture, world, common) = (scene.fixture, scene.world, scene.common)
        let (sequence, checkpoint) = (SequenceNumber(rawValue: 1 << 50), scene.checkpoint)
        var isCommitted = false
        func attempt() throws {
            let target = fixture.openMirror()
            defer { target.disconnect() }
            let report = try target.connect(hello)
            guard report.incarnationID != hello.incarnationID else { return }
            let diverged = try #require(report.diverged)
            #expect(report.checkpoint == checkpoint)
            #expect(diverged.isComplete)
            #expect(diverged.suspects.blockCount == 0)
            #expect(diverged.blocks[id]?.contains(0) == true)
            #expect(Set(diverged.blocks.keys) == [id])
            var shape = world.primary.shape
            shape.sequence = sequence
            try target.beginStaging(id: 5, shape: shape)
            let records = diverged.blocks.flatMap { id, blocks in
                blocks.ranges.flatMap { Array($0.start..<$0.end) }
                    .filter { $0 * 4096 < common.images[id]?.sizeBytes ?? 0 }
                    .map { world.primary.blockRecord(id, $0, of: common, at: sequence) }
            }
            if !records.isEmpty {
                try withBatch(records, first: sequence, last: sequence, split: nil) {
                    try target.stage($0, number: 1)
                }
            }
            try target.syncStaging()
            try target.commitStaging(id: 5, at: sequence, snapshot: nil)
        }
        try untilDone(
            &scene,
            isDone: {
                isCommitted = try fixture.catalog.read { try $0.replica() }?.divergence == nil
                return isCommitted
            }, attempt
        ) {
            let shown = try #require(try fixture.showAlone())
            let expected = isCommitted ? common.images.mapValues(\.bytes) : alone
            #expect(shown.images == expected, "seed \(seed), committed: \(isCommitted)")
        }
        // What was alone is there once, whole.
        let kept = try fixture.catalog.read { try $0.snapshots() }.filter {
            $0.origin == SnapshotRecord.divergedOrigin && $0.name.hasPrefix("diverged-")
        }
        #expect(kept.count == 1)
        let store = try fixture.openStore()
        let volume = try Volume(
            store: store, options: VolumeOptions(runsInBackground: false, isReplica: true))
        for node in try store.catalog.read({ try $0.snapshotNodes(kept[0].id) }) {
            guard let image = node.node.imageID, let layer = node.layerID else { continue }
            let view = try volume.openView(layer, sizeBytes: node.sizeBytes)
            let bytes = try MirrorFixture.bytes(node.sizeBytes) { try view.read(into: $0, at: 0) }
            let expected = try #require(alone[image])
            #expect(
                difference(bytes, from: expected) == nil, "seed \(seed): image \(image.rawValue)")
        }
        volume.abandon()
        try store.close(clean: false, lastSequence: volume.sequence)
        #expect(try fixture.catalog.read { try $0.history() } == heir.history)
    }
}
