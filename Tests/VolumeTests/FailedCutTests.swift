import BlockCore
import Pool
import SystemIO
import TestSupport
import Testing
import Volume

/// Snapshots, restores, clones and new images that fail on their way leave nothing behind, and deleting
/// older snapshots gives space back all the same (G9).
@Suite struct FailedCutTests {
    /// Where the catalog meets a full disk: after so many commits, and for how long. The first failure
    /// ends the snapshot, the next ones meet who takes it back: without and then with the reserve.
    private static let full: [(after: Int, times: Int)] = (0..<6).flatMap { after in
        (1...4).map { (after, $0) }
    }

    private func pool(seed: UInt64) throws -> CheckedPool {
        let pool = try CheckedPool(
            seed: seed,
            options: .init(imageCount: 2, maxBytes: 40 * 4096, expectsNoSpace: true))
        pool.store.makeReserve(lengthBytes: 40_000)
        for id in pool.images.keys.sorted() {
            try pool.write(id, at: 0, length: 30 * 4096)
            try pool.flush(id)
        }
        try pool.snapshot()
        let first = try #require(pool.images.keys.min())
        try pool.write(first, at: 9000, length: 12 * 4096)
        return pool
    }

    /// The second image is written while the snapshot is under way: it needs its head late.
    private func fillLate(_ pool: CheckedPool, _ full: (after: Int, times: Int)) throws {
        let second = try #require(pool.images.keys.max())
        pool.power.fill(after: full.after, times: full.times) { commit in
            if commit == 3 { try pool.write(second, at: 5000, length: 3 * 4096) }
        }
    }

    /// Old snapshots can be deleted, their layers merge, a snapshot can be made again, and the next open
    /// finds all of it.
    private func goOn(_ pool: CheckedPool) throws {
        try pool.compareAll()
        try pool.write(try pool.anyImage(), at: 70_000, length: 9000)
        for name in pool.snapshots.keys.sorted() { try pool.deleteSnapshot(name) }
        try pool.mergeAll()
        guard try pool.layerCount == pool.images.count, try pool.volume.pendingMerges() == 0 else {
            throw Violation("\(try pool.layerCount) layers are left of \(pool.images.count) images")
        }
        try pool.checkHouse()
        for id in pool.images.keys.sorted() { try pool.write(id, at: 100, length: 20_000) }
        let count = pool.snapshots.count
        try pool.snapshot()
        guard pool.snapshots.count == count + 1 else { throw Violation("no snapshot can be made") }
        try pool.compareAll()
        try pool.checkHouse()
        try pool.reopenCleanly()
    }

    @Test(arguments: Seeds.run(1))
    func aSnapshotThatMeetsAFullDiskAnywhereIsTakenBack(seed: UInt64) {
        do {
            var (failed, made) = (0, 0)
            for pages in 0..<12 {
                let pool = try pool(seed: seed)
                let before = try pool.layerCount
                pool.disk.limitSpace(toBytes: pages * 4096)
                try pool.snapshot()
                if pool.snapshots.count == 1 {
                    failed += 1
                    guard try pool.layerCount == before else {
                        throw Violation("\(pages) pages: a layer is left")
                    }
                } else {
                    made += 1
                }
                try pool.checkHouse()
                pool.disk.limitSpace(toBytes: 1 << 30)
                try goOn(pool)
            }
            #expect(failed > 1 && made > 1)
            for full in Self.full {
                let pool = try pool(seed: seed)
                try fillLate(pool, full)
                try pool.snapshot()
                guard pool.snapshots.count == 1 else {
                    throw Violation("a full catalog took snapshot \(full)")
                }
                pool.power.makeRoom()
                try goOn(pool)
            }
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    /// As long as the catalog takes nothing at all, nothing merges and nothing is lost; then all goes on.
    @Test(arguments: 0..<6, Seeds.run(1))
    func whatCannotBeTakenBackWaitsForRoom(after: Int, seed: UInt64) {
        do {
            let pool = try pool(seed: seed)
            try fillLate(pool, (after, .max / 2))
            for _ in 0..<3 {
                try pool.snapshot()
                try pool.mergeAll()
                try pool.write(try pool.anyImage(), at: 20_000, length: 9000)
                for name in pool.snapshots.keys.sorted() { try pool.deleteSnapshot(name) }
            }
            #expect(pool.snapshots.count == 1)
            pool.power.makeRoom()
            try goOn(pool)
        } catch { Issue.record("seed \(seed), after \(after) commits: \(error)") }
    }

    /// The power goes at every sync and commit of a snapshot that fails, of taking it back (at once, and
    /// later), and of deleting what was there before.
    @Test(
        arguments: full.indices.filter { index in
            let (after, times) = full[index]
            return after > 0 && times == (after % 2 == 0 ? 3 : 1)
        }, Seeds.run(1))
    func aFailedSnapshotMayBeCutOffAnywhere(_ index: Int, seed: UInt64) {
        let full = Self.full[index]
        do {
            var isDone = false
            var count = 0
            while !isDone {
                count += 1
                let pool = try pool(seed: seed)
                do {
                    isDone = try pool.run(toCrashAtSync: count) {
                        try fillLate(pool, full)
                        try pool.snapshot()
                        let id = try pool.anyImage()
                        try pool.resize(id, to: 37 * 4096 + 55)
                        try pool.write(id, at: 70_000, length: 9000)
                        try pool.flush(id)
                        pool.power.makeRoom()
                        for name in pool.snapshots.keys.sorted() { try pool.deleteSnapshot(name) }
                        try pool.mergeAll()
                    }
                    try goOn(pool)
                } catch { throw Violation("power off at sync \(count): \(error)") }
            }
            #expect(count > 8)
        } catch { Issue.record("seed \(seed), full \(full): \(error)") }
    }

    @Test(arguments: Seeds.run(1))
    func restoresAndClonesThatMeetAFullDiskAreTakenBack(seed: UInt64) {
        do {
            for isRestore in [true, false] {
                for after in 0..<3 {
                    for times in 1...4 {
                        let pool = try pool(seed: seed)
                        let id = try #require(pool.images.keys.min())
                        let before = (try pool.layerCount, pool.images.count)
                        let name = try #require(pool.snapshots.keys.first)
                        pool.power.fill(after: after, times: times)
                        if isRestore, after == 2 {
                            try restoreWithoutRoomForItsEnd(pool, id, from: name, times: times)
                        } else {
                            try isRestore
                                ? pool.restore(id, from: name) : pool.clone(id, from: name)
                            guard pool.snapshots.count == 1, pool.images.count == before.1 else {
                                throw Violation("it was done on a full disk")
                            }
                            pool.power.makeRoom()
                            try pool.mergeAll()
                            guard try pool.layerCount == before.0 else {
                                throw Violation("restore \(isRestore), \(after): a layer is left")
                            }
                        }
                        try goOn(pool)
                    }
                }
            }
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    /// The pointers are switched: with the reserve, or when there is room, it comes to its end.
    private func restoreWithoutRoomForItsEnd(
        _ pool: CheckedPool, _ id: ImageID, from name: String, times: Int
    ) throws {
        let node = try #require(try pool.nodes(inSnapshot: name)[id])
        let old = try #require(pool.images[id]).content
        let result = Result {
            try pool.volume.restore(
                image: id, to: node.layerID!, sizeBytes: node.sizeBytes, keepAs: "kept",
                nodes: [node.node])
        }
        pool.images[id]!.replace(with: pool.snapshots[name]![id]!)
        pool.snapshots["kept"] = [id: old]
        guard times > 1 else { return try result.get() }
        let error = #expect(throws: VolumeError.self) { try result.get() }
        #expect(error?.kind == .noSpace)
        #expect(error?.message.contains("the image is restored") == true)
        try pool.compareLive(id)
        #expect(try pool.volume.snapshots().count == 1)
        pool.power.makeRoom()
        try pool.mergeAll()
    }

    @Test(arguments: Seeds.run(1))
    func newImagesThatMeetAFullDiskAreTakenBack(seed: UInt64) {
        do {
            for after in 0..<2 {
                for times in 1...4 {
                    let pool = try pool(seed: seed)
                    pool.power.fill(after: after, times: times)
                    try pool.createImage()
                    guard pool.images.count == 2 else { throw Violation("a full disk took it") }
                    pool.power.makeRoom()
                    try pool.mergeAll()
                    try goOn(pool)
                    guard try pool.catalog.read({ try $0.images() }).count == 2 else {
                        throw Violation("a row of the image is left")
                    }
                }
            }
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    private final class BrokenKeeper: TargetKeeper {
        func secure(upTo sequence: SequenceNumber) throws(VolumeError) {
            throw VolumeError(.io, "no dirty file")
        }
        func letGo(of cut: SequenceNumber) {}
    }

    /// After the cut there is no way back: what was sealed is, and the snapshot is not there.
    @Test(arguments: Seeds.run(1))
    func aCutWhoseTargetsCannotBeSecuredIsGivenUp(seed: UInt64) {
        do {
            let pool = try pool(seed: seed)
            var keeper: BrokenKeeper? = BrokenKeeper()
            pool.volume.attach(keeper!)
            #expect(throws: VolumeError.self) {
                try pool.volume.createSnapshot(name: "x") { { [] } }
            }
            #expect(try pool.volume.pendingMerges() == 1, "the cut's layer can merge with the head")
            keeper = nil
            try pool.compareAll()
            let rows = try pool.catalog.read { try $0.layers() }
            #expect(rows.count { !$0.isSealed } == 2, "the two heads")
            _ = try pool.volume.createSnapshot(name: "x") { { [] } }
            try pool.volume.deleteSnapshot(name: "x")
            try goOn(pool)
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    /// One that is latched is told before the cut: each try would leave another layer.
    @Test func aLatchedImageIsToldBeforeTheCut() throws {
        let pool = try pool(seed: 3)
        let id = try #require(pool.images.keys.min())
        pool.disk.failSyncs { $0.hasSuffix(".data") }
        #expect(throws: VolumeError.self) { try pool.volume.image(id).flush() }
        pool.disk.failSyncs { _ in false }
        let before = try pool.layerCount
        let error = #expect(throws: VolumeError.self) {
            try pool.volume.createSnapshot(name: "x") { { [] } }
        }
        #expect(error?.kind == .latched)
        #expect(try pool.layerCount == before)
    }
}
