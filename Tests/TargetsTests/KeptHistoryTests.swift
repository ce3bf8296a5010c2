import BlockCore
import Glibc
import Replication
import SystemIO
import TestSupport
import Testing
import Volume

@testable import Pool
@testable import Targets

/// A primary that lies, or that somebody stole, takes nothing away from what its mirror keeps (`keepsHistory`).
@Suite struct KeptHistoryTests {
    /// The simulated clock goes a microsecond a look.
    private static let historyMs: Int64 = 1

    /// A mirror that a primary streams to, which is whatever a test makes of it.
    private final class Scene {
        let fixture: MirrorFixture
        var target: MirrorTarget
        var primary: PrimaryModel
        /// What the primary says of the time, beside the mirror's clock; nil: that.
        var saysNs: Int64?
        private var nextStaging: UInt64 = 1
        private(set) var sent = SequenceNumber.zero
        var pool: MirrorPool { target.pool! }

        init(
            seed: UInt64, historyMs: Int64 = KeptHistoryTests.historyMs, keepsHistory: Bool = true
        ) throws {
            let fixture = try MirrorFixture()
            fixture.options.historyMs = historyMs
            fixture.options.keepsHistory = keepsHistory
            self.fixture = fixture
            target = fixture.openMirror()
            var told: () -> Int64 = { 0 }
            primary = PrimaryModel(seed: seed) { told() }
            told = { [unowned self] in saysNs ?? fixture.disk.now() }
            for _ in 0..<3 { primary.create(sizeBytes: 20 * 4096) }
            _ = try target.connect(primary.hello)
            try resync(at: primary.last)
        }

        /// Brings all of it anew, at a place in the sequence that the primary makes up.
        func resync(at sequence: SequenceNumber) throws {
            var shape = primary.shape
            shape.sequence = sequence
            try target.beginStaging(id: nextStaging, shape: shape)
            var batch: UInt64 = 0
            for (id, block) in primary.difference(to: ModelPool(), from: primary.pool) {
                batch += 1
                try withBatch(
                    [primary.blockRecord(id, block, of: primary.pool, at: sequence)],
                    first: sequence, last: sequence, split: nil
                ) { try target.stage($0, number: batch) }
            }
            try target.commitStaging(id: nextStaging, at: sequence, snapshot: nil)
            nextStaging += 1
            sent = primary.last
        }

        /// Writes, and sends it.
        func write(_ count: Int) throws {
            let images = primary.pool.images.keys.sorted()
            for index in 0..<count { primary.write(images[index % images.count]) }
            let rest = primary.records.filter { $0.sequence > sent }
            guard let first = rest.first, let last = rest.last else { return }
            try withBatch(
                rest.map(\.bytes), first: first.sequence, last: last.sequence, split: nil
            ) { try target.append($0) }
            sent = last.sequence
            _ = try target.flush()
            while try target.applyStep() {}
        }

        /// A moment of the primary's, as the mirror has it.
        func expect(_ sequence: SequenceNumber, _ what: String) throws {
            let view = try pool.view(at: sequence)
            defer { view.release() }
            let shown = try MirrorFixture.read(view)
            try shown.check(against: primary.history[sequence]!, what)
        }
    }

    @Test func aFullDiskEndsNoHistory() throws {
        let scene = try Scene(seed: 5, historyMs: 3_600_000)
        for _ in 0..<10 { try scene.write(10) }
        let moments = scene.primary.records.map(\.sequence).filter {
            $0 > scene.pool.journal.storyStart
        }
        let bases = try scene.pool.internalSnapshots()
        #expect(!bases.isEmpty && moments.count >= 100)
        scene.fixture.disk.limitSpace(toBytes: 1_500_000)
        var refused: TargetError?
        for _ in 0..<200 where refused == nil {
            do { try scene.write(20) } catch let error as TargetError { refused = error }
        }
        #expect(refused?.kind == .noSpace && refused?.message.contains("not given up") == true)
        // It tries, and tries again, and connects anew.
        for _ in 0..<3 {
            #expect(throws: TargetError.self) { try scene.write(20) }
            scene.target.disconnect()
            _ = try? scene.target.connect(scene.primary.hello)
            if scene.target.pool == nil { scene.target = scene.fixture.openMirror() }
        }
        // Nor does somebody who may only look.
        scene.target.disconnect()
        let looked = try? RecoveredMirror(
            store: try scene.fixture.openStore(), runsInBackground: false, keepsHistory: true)
        looked?.close()
        scene.fixture.disk.limitSpace(toBytes: 1 << 40)
        scene.target = scene.fixture.openMirror()
        _ = try scene.target.connect(scene.primary.hello)
        let left = try scene.pool.internalSnapshots()
        #expect(bases.allSatisfy { base in left.contains { $0.id == base.id } })
        for moment in moments where moment.rawValue % 9 == 0 { try scene.expect(moment, "kept") }
    }

    /// Back in its own story, again and again: each state that was there, and each that was kept, stays.
    @Test(arguments: [false, true]) func aPrimaryThatGoesBackTakesNothingAway(anew: Bool) throws {
        let scene = try Scene(seed: 7, historyMs: 3_600_000)
        for _ in 0..<5 { try scene.write(10) }
        for round in 1...3 as ClosedRange<UInt64> {
            let before = try MirrorFixture.read(try scene.pool.newestView())
            let bases = try scene.pool.internalSnapshots().filter {
                MirrorPool.isBase($0) && $0.sequence != before.sequence
            }
            let known = try scene.pool.snapshots().map(\.name)
            // Something else altogether, from earlier than all that.
            if anew { scene.primary.incarnation += 1 }
            _ = try scene.target.connect(scene.primary.hello)
            let images = scene.primary.pool.images.keys.sorted()
            for image in images { scene.primary.write(image) }
            try scene.resync(at: SequenceNumber(rawValue: 4 - round))
            let kept = try scene.pool.snapshots().filter { !known.contains($0.name) }
            #expect(kept.count == bases.count + 1, "round \(round): \(kept)")
            #expect(kept.allSatisfy { $0.origin == SnapshotRecord.divergedOrigin })
            #expect(kept.allSatisfy { $0.name.hasPrefix("diverged-") })
            let shown = try kept.map { try scene.fixture.showSnapshot(scene.target, $0) }
            #expect(shown.contains { $0.images == before.images && $0.names == before.names })
            for base in bases {
                #expect(kept.contains { $0.sequence == base.sequence }, "round \(round)")
            }
            for name in known { #expect(try scene.pool.snapshots().contains { $0.name == name }) }
        }
    }

    /// However old, or new, it says that its writes are: the history is as long as it was asked for.
    @Test(
        arguments: getenv("DOPPEL_SOAK") == nil ? [1] : [1, 4_000_000_000_000_000_000] as [Int64])
    func timesThatAreMadeUpEndNoHistory(saysNs: Int64) throws {
        let scene = try Scene(seed: 3)
        for _ in 0..<5 { try scene.write(20) }
        scene.saysNs = saysNs
        var moments: [(sequence: SequenceNumber, atNs: Int64)] = []
        for _ in 0..<30 {
            try scene.write(20)
            let now = scene.fixture.disk.now()
            moments.append((scene.sent, now))
            // All that is no older than was asked for can be had, by its place in the story.
            guard moments.count % 4 == 0 else { continue }
            let limit = now - Self.historyMs * 1_000_000
            let young = moments.filter { $0.atNs > limit }
            for moment in [young.first, young.last].compactMap({ $0 }) {
                try scene.expect(moment.sequence, "\(saysNs), \(moment.atNs) at \(now)")
            }
        }
        let span = moments.last!.atNs - moments.first!.atNs
        #expect(span > 2 * Self.historyMs * 1_000_000, "more than what is kept: \(span)")
        // And what is older goes all the same: nobody fills the disk with times to come.
        #expect(scene.pool.journal.startSequence > moments[0].sequence)
    }

    /// What is shown above is no accident.
    @Test func otherwiseTimesThatAreMadeUpEndIt() throws {
        let scene = try Scene(seed: 3, keepsHistory: false)
        for _ in 0..<5 { try scene.write(20) }
        scene.saysNs = 1
        var isGone = false
        var moments: [(sequence: SequenceNumber, atNs: Int64)] = []
        for _ in 0..<20 where !isGone {
            try scene.write(20)
            let now = scene.fixture.disk.now()
            moments.append((scene.sent, now))
            let young = moments.first { $0.atNs > now - Self.historyMs * 1_000_000 / 2 }
            if let young {
                isGone = (try? scene.expect(young.sequence, "young")) == nil
            }
        }
        #expect(isGone)
    }
}
