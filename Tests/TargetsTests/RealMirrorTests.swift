import BlockCore
import Foundation
import Replication
import SystemIO
import TestSupport
import Testing

@testable import Pool
@testable import Targets

/// A folder that goes with the test.
private final class Folder {
    let path = "/tmp/doppel-mirror-\(getpid())-\(UInt32.random(in: 0...(.max)))"
    init() throws { try LinuxDisk().createDirectory(path, mode: 0o700) }
    deinit { try? FileManager.default.removeItem(atPath: path) }
}

/// A mirror on a real disk, with its threads: what is simulated elsewhere, together.
@Suite struct RealMirrorTests {
    /// The next open has nothing to replay once nothing came for a while.
    @Test func whatWasAppliedIsSettledInAQuietMoment() throws {
        let folder = try Folder()
        let path = folder.path + "/mirror"
        let disk = LinuxDisk()
        try MirrorTarget.create(path: path, primaryPoolID: "primary", disk: disk)
        var primary = PrimaryModel(seed: 12) { disk.now() }
        primary.create()
        let start = primary.last
        let shape = primary.shape
        for _ in 0..<20 { primary.step() }
        var options = MirrorOptions()
        options.settleIdleMs = 30
        let target = MirrorTarget(
            path: path, primaryPoolID: "primary", poolID: nil, disk: disk, options: options)
        defer { target.disconnect() }
        _ = try target.connect(primary.hello)
        try target.beginStaging(id: 1, shape: shape)
        try target.commitStaging(id: 1, at: start, snapshot: nil)
        let rest = primary.records.filter { $0.sequence > start }
        try withBatch(
            rest.map(\.bytes), first: rest[0].sequence, last: primary.last, split: 1
        ) { try target.append($0) }
        #expect(try target.flush() == primary.last)
        let pool = try target.opened()
        let deadline = ContinuousClock.now + .seconds(20)
        while pool.state.appliedSequence != primary.last, ContinuousClock.now < deadline {
            Pause.microseconds(1000)
        }
        #expect(pool.state.appliedSequence == primary.last)
    }

    /// Files that were deleted underfoot take everything, for nobody.
    @Test func nothingIsCommittedToAMirrorThatIsGone() throws {
        let folder = try Folder()
        let path = folder.path + "/mirror"
        let disk = LinuxDisk()
        try MirrorTarget.create(path: path, primaryPoolID: "primary", disk: disk)
        var primary = PrimaryModel(seed: 13) { disk.now() }
        primary.create()
        let target = MirrorTarget(path: path, primaryPoolID: "primary", poolID: nil, disk: disk)
        defer { target.disconnect() }
        _ = try target.connect(primary.hello)
        try target.beginStaging(id: 1, shape: primary.shape)
        try FileManager.default.moveItem(atPath: path, toPath: path + "-gone")
        let failure = #expect(throws: TargetError.self) {
            try target.commitStaging(id: 1, at: primary.last, snapshot: nil)
        }
        #expect(failure?.kind == .absent)
    }

    /// Streams while others look at it, merges run, and the journal turns over.
    @Test func viewsAreRightWhileTheStreamGoesOn() throws {
        let folder = try Folder()
        let path = folder.path + "/mirror"
        let disk = LinuxDisk()
        try MirrorTarget.create(path: path, primaryPoolID: "primary", disk: disk)
        var primary = PrimaryModel(seed: 11) { disk.now() }
        primary.create()
        let start = primary.last
        let shape = primary.shape
        for _ in 0..<400 { primary.step() }
        let model = primary

        var options = MirrorOptions()
        options.journal = JournalOptions(segmentBytes: 256 << 10)
        options.settleBytes = 512 << 10
        options.historyMs = 60_000
        let target = MirrorTarget(
            path: path, primaryPoolID: "primary", poolID: nil, disk: disk, options: options)
        _ = try target.connect(model.hello)
        try target.beginStaging(id: 1, shape: shape)
        try target.commitStaging(id: 1, at: start, snapshot: nil)
        #expect(target.poolID != nil)

        let history = model.history
        let readers = (0..<2).map { reader in
            TestThread {
                for round in 0..<25 {
                    let view = try target.newestView()
                    defer { view.release() }
                    let shown = try MirrorFixture.read(view)
                    try shown.check(
                        against: history[shown.sequence]!, "reader \(reader), \(round)")
                    let moment = history.keys.filter { $0 >= start && $0 <= shown.sequence }
                        .min()!
                    let past = try target.opened().view(at: moment)
                    defer { past.release() }
                    try MirrorFixture.read(past).check(
                        against: history[past.sequence]!, "reader \(reader), past")
                }
            }
        }
        var rest = model.records.filter { $0.sequence > start }[...]
        while let first = rest.first {
            let part = rest.prefix(3)
            rest = rest.dropFirst(3)
            try withBatch(
                part.map(\.bytes), first: first.sequence, last: part.last!.sequence, split: 1
            ) { try target.append($0) }
            if part.last!.sequence.rawValue % 2 == 0 {
                #expect(try target.flush() == part.last!.sequence)
            }
        }
        #expect(try target.flush() == model.last)
        for reader in readers { try reader.join() }
        target.disconnect()

        let store = try PoolStore.open(path: path, disk: disk)
        #expect(!store.wasUnclean)
        let mirror = try RecoveredMirror(store: store, runsInBackground: false)
        let view = try mirror.newestView()
        let shown = try MirrorFixture.read(view)
        #expect(shown.sequence == model.last)
        try shown.check(against: model.pool, "alone")
        view.release()
        _ = try mirror.promote()
        mirror.close()
        #expect(try disk.list(path + "/journal").isEmpty)
        let pool = try PoolStore.open(path: path, disk: disk)
        #expect(!pool.wasUnclean)
        try pool.close(clean: true, lastSequence: model.last)
    }

    @Test func aMirrorIsLaidOutInAnEmptyPlaceOnly() throws {
        let folder = try Folder()
        let disk = LinuxDisk()
        let path = folder.path + "/full"
        try disk.createDirectory(path, mode: 0o700)
        try disk.writeDurably(path + "/somebody's file", contents: [1], mode: 0o600)
        let refused = #expect(throws: TargetError.self) {
            try MirrorTarget.create(path: path, primaryPoolID: "primary", disk: disk)
        }
        #expect(refused?.kind == .absent)
        #expect(try disk.list(path).map(\.name) == ["somebody's file"])
        let pool = folder.path + "/pool"
        try PoolStore.initialize(path: pool, disk: disk)
        #expect(throws: TargetError.self) {
            try MirrorTarget.create(path: pool, primaryPoolID: "primary", disk: disk)
        }
        // A pool that is no mirror is left alone.
        let target = MirrorTarget(path: pool, primaryPoolID: "primary", poolID: nil, disk: disk)
        let absent = #expect(throws: TargetError.self) {
            _ = try target.connect(PrimaryModel(seed: 1) { 0 }.hello)
        }
        #expect(absent?.kind == .absent)
    }
}
