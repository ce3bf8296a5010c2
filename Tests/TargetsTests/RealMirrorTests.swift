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

/// A mirror in a folder of its own, and the first thing that its primary did staged on it.
private struct Begun {
    let folder: Folder
    let path: String
    let disk = LinuxDisk()
    var primary: PrimaryModel
    let start: SequenceNumber
    let target: MirrorTarget

    init(seed: UInt64, options: MirrorOptions = MirrorOptions()) throws {
        folder = try Folder()
        path = folder.path + "/mirror"
        try MirrorTarget.create(path: path, primaryPoolID: "primary", disk: disk)
        primary = PrimaryModel(seed: seed) { [disk] in disk.now() }
        primary.create()
        start = primary.last
        target = MirrorTarget(
            path: path, primaryPoolID: "primary", poolID: nil, disk: disk, options: options)
        _ = try target.connect(primary.hello)
        try target.beginStaging(id: 1, shape: primary.shape)
    }

    func commit() throws { try target.commitStaging(id: 1, at: start, snapshot: nil) }
}

/// A mirror on a real disk, with its threads: what is simulated elsewhere, together.
@Suite struct RealMirrorTests {
    /// The next open has nothing to replay once nothing came for a while.
    @Test func whatWasAppliedIsSettledInAQuietMoment() throws {
        var options = MirrorOptions()
        options.settleIdleMs = 30
        var begun = try Begun(seed: 12, options: options)
        let target = begun.target
        defer { target.disconnect() }
        try begun.commit()
        for _ in 0..<20 { begun.primary.step() }
        let primary = begun.primary
        let rest = primary.records.filter { $0.sequence > begun.start }
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
        let begun = try Begun(seed: 13)
        defer { begun.target.disconnect() }
        try FileManager.default.moveItem(atPath: begun.path, toPath: begun.path + "-gone")
        let failure = #expect(throws: TargetError.self) { try begun.commit() }
        #expect(failure?.kind == .absent)
    }

    /// Streams while others look at it, merges run, and the journal turns over.
    @Test func viewsAreRightWhileTheStreamGoesOn() throws {
        var options = MirrorOptions()
        options.journal = JournalOptions(segmentBytes: 256 << 10)
        options.settleBytes = 512 << 10
        options.historyMs = 60_000
        var begun = try Begun(seed: 11, options: options)
        let (target, start, path, disk) = (begun.target, begun.start, begun.path, begun.disk)
        try begun.commit()
        for _ in 0..<400 { begun.primary.step() }
        let model = begun.primary
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
