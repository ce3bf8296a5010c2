// A snapshot's cut reaches a mirror, and the primary loses power before the snapshot is complete.

import BlockCore
import Replication
import TestSupport
import Testing

@testable import Pool
@testable import Targets
@testable import Volume

@Suite struct DroppedCutTests {
    /// Lets the mirror have the cut, and then the power goes.
    private final class PowerCutter: TargetKeeper, @unchecked Sendable {  // one thread
        let pair: RecoveryPair
        init(_ pair: RecoveryPair) { self.pair = pair }

        func secure(upTo sequence: SequenceNumber) throws(VolumeError) {
            do { try pair.untilLevel() } catch { throw VolumeError(.io, "\(error)") }
            pair.disk.powerOff(atSync: 1)
        }
        func letGo(of cut: SequenceNumber) {}
    }

    private func snapshots(_ catalog: Catalog) throws -> [String: String] {
        let all = try catalog.read { try $0.snapshots() }.filter { !$0.isInternal }
        return Dictionary(uniqueKeysWithValues: all.map { ($0.name, $0.origin) })
    }

    private func nodes(_ pair: RecoveryPair) throws -> NameCapture {
        let nodes = try pair.catalog.read { try $0.nodes() }
        return { { nodes } }
    }

    private func write(_ pair: RecoveryPair, seed: UInt8) throws {
        _ = try pattern(9000, seed: seed).withUnsafeBytes {
            try pair.images[0].write($0, at: 40_000)
        }
    }

    /// - Parameter times: that the primary's machine goes down before it meets the mirror again.
    private func scene(_ mode: TargetRecord.Mode, times: Int = 1) throws -> RecoveryPair {
        var random = SeededRandom(seed: 3)
        let pair = try RecoveryPair(mode: mode)
        try write(pair, seed: 1)
        _ = try pair.volume.createSnapshot(name: "before", names: try nodes(pair))
        try write(pair, seed: 2)
        let cutter = PowerCutter(pair)
        pair.volume.attach(cutter)
        #expect(throws: VolumeError.self) {
            _ = try pair.volume.createSnapshot(name: "cut off", names: try nodes(pair))
        }
        for _ in 0..<times {
            pair.losePower(&random)
            if mode != .async { _ = try pair.recover() }
            try pair.open()
        }
        return pair
    }

    /// The primary never had it, and may have lost what it shows.
    @Test(arguments: [TargetRecord.Mode.async, .flush])
    func whatWasCutOffIsNoSnapshotOfThePrimary(mode: TargetRecord.Mode) throws {
        let pair = try scene(mode)
        #expect(try snapshots(pair.catalog)["cut off"] == nil)
        try pair.untilLevel()
        let found = try snapshots(pair.mirror.catalog)
        #expect(found["before"] == "user")
        #expect(found["cut off"] == SnapshotRecord.divergedOrigin, "it stays, as something else")
        // The next one with that name is one.
        _ = try pair.volume.createSnapshot(name: "cut off", names: try nodes(pair))
        _ = try pair.volume.createSnapshot(name: "after", names: try nodes(pair))
        try pair.untilLevel()
        #expect(pair.hub.close())
        // What is in its journal alone is applied.
        _ = try pair.mirror.showAlone()
        let again = try snapshots(pair.mirror.catalog)
        #expect(again["cut off"] == "user" && again["after"] == "user")
        #expect(again.values.filter { $0 == SnapshotRecord.divergedOrigin }.count == 1)
    }

    /// What the primary completed since then does not hide it, nor another crash.
    @Test func itIsKnownAlsoLater() throws {
        var random = SeededRandom(seed: 4)
        let pair = try scene(.async, times: 2)
        _ = try pair.volume.createSnapshot(name: "after", names: try nodes(pair))
        pair.losePower(&random)
        try pair.open()
        try pair.untilLevel()
        #expect(
            try snapshots(pair.mirror.catalog) == [
                "before": "user", "cut off": SnapshotRecord.divergedOrigin, "after": "user",
            ])
    }

    /// Who took over before it heard of that has it as its own.
    @Test func aMirrorThatIsPromotedKeepsIt() throws {
        let pair = try scene(.flush, times: 0)
        let promoted = try RecoveredMirror(
            store: try pair.mirror.openStore(), runsInBackground: false)
        _ = try promoted.promote(NewGeneration(cause: .forced))
        promoted.close()
        #expect(try snapshots(pair.mirror.catalog)["cut off"] == "user")
    }
}
