import BlockCore
import Pool
import SystemIO
import TestSupport
import Testing
import Volume

/// What a merge has to leave alone: the content, whoever reads the old one, the space of others.
@Suite struct MergeTests {
    @Test(arguments: MergeScene.all.indices)
    func twoLayersBecomeOne(_ index: Int) throws {
        let scene = MergeScene.all[index]
        do {
            let pool = try scene.make(seed: 7)
            try pool.mergeOnce()
            let merges = try pool.catalog.read { try $0.merges() }
            guard merges.first?.direction == scene.direction else {
                throw Violation("\(merges) is not the cheaper direction")
            }
            try pool.mergeAll()
            try pool.compareAll()
            try pool.checkHouse()
            guard try pool.layerCount == scene.layersInTheEnd else {
                throw Violation("\(try pool.layerCount) layers are left")
            }
            guard try pool.catalog.read({ try $0.merges() }).isEmpty else {
                throw Violation("a merge is left in the catalog")
            }
            try pool.reopenCleanly()
        } catch { Issue.record("\(scene.name): \(error)") }
    }

    /// Checksums go along with the blocks: nothing is read again to cover it, and rot that was there
    /// before is found and not made the truth.
    @Test(arguments: MergeRecord.Direction.allCases)
    func checksumsAreCarriedOver(_ direction: MergeRecord.Direction) throws {
        let scene = MergeScene(upper: .sealed, lower: .mapped, direction: direction)
        let pool = try scene.make(seed: 3)
        try pool.mergeAll()
        let uncovered = try pool.volume.uncoveredLayers()
        #expect(uncovered.isEmpty)
        let report = try pool.volume.scrub()
        #expect(report.damaged.isEmpty)
        #expect(report.blocksCovered == report.blocksRead)
    }

    @Test(arguments: MergeRecord.Direction.allCases)
    func aMergeStopsAtRotAndLosesNothingElse(_ direction: MergeRecord.Direction) throws {
        let scene = MergeScene(upper: .sealed, lower: .mapped, direction: direction)
        let pool = try scene.make(seed: 3, batchBlocks: 2)
        pool.interleaves = 0
        try pool.mergeOnce()
        let merge = try #require(try pool.catalog.read { try $0.merges() }.first)
        // A block that has not moved yet.
        let block = try #require(try pool.blocksLeft(of: merge).last)
        let row = try #require(try pool.catalog.read { try $0.layer(merge.layerID) })
        let path = pool.store.dataPath(image: row.imageID, layer: row.id)
        let file = try pool.disk.open(path, .readWrite, mode: 0o600)
        let offset = block << Geometry.blockShift
        try [UInt8](repeating: 0x5a, count: 100).withUnsafeBytes { try file.write($0, at: offset) }
        let layers = try pool.layerCount
        try pool.mergeAll()
        #expect(try pool.layerCount == layers)
        let events = try pool.catalog.read { try $0.events(limit: 10) }
        #expect(events.contains { $0.kind == "damaged" && $0.message.contains("scrub") })
        let image = try pool.volume.image(try pool.anyImage())
        var bytes = [UInt8](repeating: 0, count: 4096)
        #expect(throws: VolumeError.self) {
            try bytes.withUnsafeMutableBytes { try image.read(into: $0, at: offset) }
        }
    }

    @Test func whoHasADeletedSnapshotOpenReadsOn() throws {
        for scene in MergeScene.all {
            let pool = try scene.make(seed: 11)
            let id = try pool.anyImage()
            try pool.write(id, at: 20_000, length: 5000)
            try pool.snapshot()
            let name = try #require(pool.snapshots.keys.max())
            let content = try #require(pool.snapshots[name]?[id])
            let node = try #require(try pool.nodes(inSnapshot: name)[id])
            var view: LayerView? = try pool.volume.openView(
                node.layerID!, sizeBytes: node.sizeBytes)
            try pool.write(id, at: 0, length: 60_000)
            try pool.deleteSnapshot(name)
            for _ in 0..<4 {
                try pool.mergeAll()
                var bytes = [UInt8](repeating: 0xee, count: content.count)
                let got = try bytes.withUnsafeMutableBytes { try view!.read(into: $0, at: 0) }
                #expect(got == content.count && bytes == content, "\(scene.name)")
                try pool.write(id, at: 30_000, length: 50_000)
                try pool.flush(id)
            }
            #expect(try pool.layerCount > scene.layersInTheEnd)
            view = nil
            try pool.mergeAll()
            try pool.compareAll()
            #expect(try pool.layerCount == scene.layersInTheEnd, "\(scene.name)")
        }
    }

    /// The disk fills up at any moment of a merge: both layers stay good, and with space the merge comes
    /// to its end.
    @Test(arguments: MergeScene.all.indices)
    func aFullDiskStopsAMergeAndHarmsNothing(_ index: Int) throws {
        let scene = MergeScene.all[index]
        var stopped = 0
        do {
            for pages in 0..<30 {
                let pool = try scene.make(seed: 5)
                // A guest's writes would meet the full disk, too.
                pool.interleaves = 0
                pool.disk.limitSpace(toBytes: pages * 4096, showing: 1 << 30)
                try pool.mergeAll()
                try pool.compareAll()
                try pool.checkHouse()
                if try pool.volume.pendingMerges() > 0 { stopped += 1 }
                pool.disk.limitSpace(toBytes: 1 << 30)
                try pool.mergeAll()
                try pool.compareAll()
                try pool.checkHouse()
                guard try pool.layerCount == scene.layersInTheEnd else {
                    throw Violation("\(pages) pages: \(try pool.layerCount) layers are left")
                }
                try pool.reopenCleanly()
            }
            #expect(stopped > 0, "\(scene.name)")
        } catch { Issue.record("\(scene.name): \(error)") }
    }

    @Test(arguments: MergeScene.Upper.allCases)
    func deletingASnapshotFreesSpaceOnAFullDisk(_ upper: MergeScene.Upper) throws {
        let pool = try CheckedPool(
            seed: 5, options: .init(imageCount: 1, maxBytes: 40 * 4096))
        pool.interleaves = 0
        let id = try pool.anyImage()
        try pool.write(id, at: 0, length: 20 * 4096)
        try pool.snapshot()
        let name = try #require(pool.snapshots.keys.first)
        try pool.write(id, at: 0, length: 12 * 4096)
        if upper == .sealed { try pool.snapshot() }
        try pool.flush(id)
        while try pool.volume.coverNextLayer() {}
        pool.disk.limitSpace(toBytes: 0)
        try pool.deleteSnapshot(name)
        #expect(pool.disk.spaceLeftBytes >= 12 * 4096)
        pool.disk.limitSpace(toBytes: 0)
        try pool.mergeAll()
        #expect(try pool.volume.pendingMerges() == 1)
        #expect(
            try pool.catalog.read { try $0.events(limit: 10) }.contains { $0.kind == "merge-waits" }
        )
        try pool.compareAll()
        try pool.checkHouse()
        pool.disk.limitSpace(toBytes: 1 << 30)
        try pool.mergeAll()
        try pool.compareAll()
        try pool.checkHouse()
        #expect(try pool.volume.pendingMerges() == 0)
        try pool.reopenCleanly()
    }

    @Test func anImageThatTheStoreDoesNotTakeIsToldAsThat() throws {
        let pool = try CheckedPool(seed: 1, options: .init(imageCount: 1))
        let image = try pool.volume.image(try pool.anyImage())
        try pool.resize(image.id, to: 100_000)
        pool.disk.limitFiles(toBytes: 1 << 20)
        let error = #expect(throws: VolumeError.self) { try image.resize(to: 2 << 20) }
        #expect(error?.kind == .tooLarge)
        #expect(error?.message.contains("XFS") == true)
        #expect(image.sizeBytes == 100_000)
        let late = #expect(throws: VolumeError.self) {
            try [1, 2, 3].withUnsafeBytes { try image.write($0, at: 3 << 20) }
        }
        #expect(late?.kind == .tooLarge)
        try pool.compareAll()
        try pool.flush(image.id)
    }
}

extension CheckedPool {
    /// Data blocks that a merge between sealed layers with maps has not moved yet.
    func blocksLeft(of merge: MergeRecord) throws -> [UInt64] {
        func contents(_ id: LayerID) throws -> LayerContents {
            let row = try catalog.read { try $0.layer(id)! }
            let path = store.mapPath(image: row.imageID, layer: id)
            return try LayerContents.read(disk: disk, path: path, layer: id)
        }
        var left = try contents(merge.layerID).data
        if merge.direction == .up {
            let above = try contents(merge.intoLayerID)
            left.subtract(above.data)
            left.subtract(above.zero)
        }
        return left.ranges.flatMap { Array($0.start..<$0.end) }
    }
}
