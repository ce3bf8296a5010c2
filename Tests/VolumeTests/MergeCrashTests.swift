import BlockCore
import Pool
import SystemIO
import TestSupport
import Testing
import Volume

/// Power off at every sync and commit of a merge, of the rewriting of a map, and of making a head a plain
/// file: the next open must show the same, and what was under way must come to its end.
@Suite struct MergeCrashTests {
    /// Runs `body` anew for the first, second, ... sync until it comes to its end before.
    private func crashEverywhere(
        seed: UInt64, make: () throws -> CheckedPool, body: (CheckedPool) throws -> Void,
        after: (CheckedPool) throws -> Void
    ) throws -> Int {
        for count in 1...400 {
            let pool = try make()
            do {
                let isDone = try pool.run(toCrashAtSync: count) { try body(pool) }
                try after(pool)
                if isDone { return count }
            } catch { throw Violation("power off at sync \(count): \(error)") }
        }
        throw Violation("it never comes to an end")
    }

    @Test(arguments: MergeScene.all.indices, Seeds.run(1))
    func aMergeMayBeCutOffAnywhere(_ index: Int, seed: UInt64) {
        let scene = MergeScene.all[index]
        do {
            let boundaries = try crashEverywhere(
                seed: seed, make: { try scene.make(seed: seed) },
                body: { try $0.mergeWithGuest() },
                after: { pool in
                    try pool.mergeWithGuest()
                    try pool.compareAll()
                    try pool.checkHouse()
                    let layers = try pool.layerCount
                    guard layers == scene.layersInTheEnd else {
                        throw Violation("\(layers) layers instead of \(scene.layersInTheEnd)")
                    }
                    try pool.reopenCleanly()
                })
            #expect(boundaries > 4, "\(scene.name)")
        } catch { Issue.record("\(scene.name), seed \(seed): \(error)") }
    }

    /// An image that is in snapshots alone may not be looked at before the pool is closed again; then its layers are
    /// what a clean end says of them.
    @Test(
        arguments: MergeScene.all.indices.filter { MergeScene.all[$0].upper == .sealed },
        Seeds.run(1))
    func nobodyNeedLookBetweenTheCutOffAndACleanEnd(_ index: Int, seed: UInt64) {
        cutOffAMerge(MergeScene.all[index], seed: seed) { pool in
            try pool.openAgain()
            try pool.reopenCleanly()
        }
    }

    /// The same, and the disk does not give the maps back at first: what is torn of them is no damage.
    @Test(
        arguments: MergeScene.all.indices.filter { MergeScene.all[$0].upper == .sealed },
        Seeds.run(1))
    func aDiskMayFailBetweenTheCutOffAndACleanEnd(_ index: Int, seed: UInt64) {
        cutOffAMerge(MergeScene.all[index], seed: seed) { pool in
            pool.disk.failOpens { $0.hasSuffix(".map") }
            try pool.openAgain()
            try pool.volume.close()
            try pool.store.close(clean: true, lastSequence: pool.volume.sequence)
            pool.disk.failOpens { _ in false }
            try pool.losePower()
            try pool.openAgain()
        }
    }

    /// Power goes at each sync of a merge of an image that was deleted.
    /// - Parameter opens: what happens from there until the pool is open, and whole.
    private func cutOffAMerge(
        _ scene: MergeScene, seed: UInt64, opens: (CheckedPool) throws -> Void
    ) {
        do {
            for count in 1...400 {
                let pool = try scene.make(seed: seed, batchBlocks: 1)
                try pool.deleteImage(try pool.anyImage())
                pool.disk.powerOff(atSync: count)
                do { try pool.mergeAll() } catch {
                    guard pool.disk.isPoweredOff else { throw error }
                }
                let isDone = !pool.disk.isPoweredOff
                try pool.losePower()
                try opens(pool)
                try pool.mergeAll()
                try pool.compareAll()
                try pool.checkHouse()
                if isDone { return }
            }
            throw Violation("it never comes to an end")
        } catch { Issue.record("\(scene.name), seed \(seed): \(error)") }
    }

    @Test(arguments: [true, false], Seeds.run(1))
    func aMapMayBeRewrittenAnywhere(isSealed: Bool, seed: UInt64) {
        do {
            _ = try crashEverywhere(
                seed: seed,
                make: {
                    let pool = try CheckedPool(
                        seed: seed, options: .init(imageCount: 1, maxBytes: 20 * 4096))
                    let id = try pool.anyImage()
                    try pool.snapshot()
                    for _ in 0..<40 {
                        try pool.write(id, at: pool.random.below(10) * 4096, length: 4096)
                        try pool.flush(id)
                        try pool.trim(id, 0..<10 * 4096)
                        try pool.flush(id)
                    }
                    if isSealed { try pool.snapshot() }
                    return pool
                },
                body: { pool in
                    let id = try pool.anyImage()
                    try pool.write(id, at: 5000, length: 9000)
                    let wasRewritten = try pool.volume.rewriteNextMap()
                    guard wasRewritten else { throw Violation("no map was rewritten") }
                    let again = try pool.volume.rewriteNextMap()
                    if again { throw Violation("it is rewritten again and again") }
                    try pool.write(id, at: 12_000, length: 5000)
                    try pool.flush(id)
                    try pool.trim(id, 4096..<8192)
                    try pool.flush(id)
                },
                after: { pool in
                    try pool.compareAll()
                    try pool.checkHouse()
                    try pool.reopenCleanly()
                })
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    @Test(arguments: Seeds.run(1))
    func aHeadMayBecomeAPlainFileAnywhere(seed: UInt64) {
        do {
            let scene = MergeScene(upper: .head, lower: .plain, direction: .up)
            _ = try crashEverywhere(
                seed: seed,
                make: {
                    let pool = try scene.make(seed: seed)
                    try pool.mergeAll()
                    let map = try pool.mapOfHead()
                    guard try pool.disk.status(map) != nil else {
                        throw Violation("the head has no map after a merge up")
                    }
                    try pool.write(try pool.anyImage(), at: 70_000, length: 9000)
                    return pool
                },
                body: { pool in
                    for id in pool.images.keys { pool.images[id]!.settling() }
                    try pool.volume.close()
                },
                after: { pool in
                    try pool.compareAll()
                    try pool.checkHouse()
                    try pool.reopenCleanly()
                    let map = try pool.mapOfHead()
                    guard try pool.disk.status(map) == nil else {
                        throw Violation("a clean end left the head's map")
                    }
                })
        } catch { Issue.record("seed \(seed): \(error)") }
    }
}

extension CheckedPool {
    func mapOfHead() throws -> String {
        let id = try anyImage()
        let row = try catalog.read { tx in
            try tx.layer(tx.images().first { $0.id == id }!.headLayerID!)!
        }
        return store.mapPath(image: row.imageID, layer: row.id)
    }
}
