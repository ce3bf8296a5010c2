import BlockCore
import SystemIO
import TestSupport
import Testing

@testable import Pool

/// One layer: the order on flush, what a failed sync leaves, checksums.
@Suite struct LayerTests {
    private static let id = LayerID(rawValue: 7)
    private static let image = ImageID(rawValue: 3)

    private func make(_ disk: SimulatedDisk) throws -> Layer {
        try disk.createDirectory("/layers", mode: 0o700)
        try disk.syncDirectory("/")
        let map = try LayerMapFile.create(
            disk: disk, path: "/layers/7.map", layer: Self.id, image: Self.image,
            imageSizeBytes: 0, sequence: .zero)
        try map.file.sync()
        let data = try disk.open("/layers/7.data", [.readWrite, .create], mode: 0o600)
        try data.sync()
        try disk.syncDirectory("/layers")
        return Layer(
            id: Self.id, imageID: Self.image, data: data, map: map, isSealed: false, sums: nil)
    }
    private func write(_ block: UInt64, _ seed: UInt8, to layer: Layer) throws {
        try pattern(4096, seed: seed).withUnsafeBytes {
            try layer.data.write($0, at: block * 4096)
        }
        try layer.note(BlockRange(start: block, count: 1), .data)
    }
    private func commit(_ layer: Layer, at sequence: UInt64, seal: Bool = false) throws {
        _ = try layer.commit(
            imageSizeBytes: 1 << 20, sequence: SequenceNumber(rawValue: sequence), seal: seal)
    }
    private func contents(_ disk: SimulatedDisk) throws -> LayerContents {
        try LayerContents.read(disk: disk, path: "/layers/7.map", layer: Self.id)
    }

    /// L1: power may go at any sync of a commit: whatever the map says is there is there.
    @Test(arguments: Seeds.run(20)) func theMapNeverNamesWhatIsNotThere(seed: UInt64) throws {
        for sync in 1...2 {
            var random = SeededRandom(seed: seed)
            let disk = SimulatedDisk()
            let layer = try make(disk)
            for block in 0..<6 { try write(UInt64(block), UInt8(block + 1), to: layer) }
            disk.powerOff(atSync: sync)
            #expect(throws: LayerError.self) { try commit(layer, at: 1) }
            let after = disk.crash(&random)
            let named = try contents(after).data
            let data = try after.readAll("/layers/7.data")
            for range in named.ranges {
                for block in range.start..<range.end {
                    #expect(
                        Array(data[Int(block) * 4096..<Int(block + 1) * 4096])
                            == pattern(4096, seed: UInt8(block + 1)), "seed \(seed), sync \(sync)")
                }
            }
            if sync == 1 { #expect(named.isEmpty) }
        }
    }

    @Test func whatIsNotedDuringACommitGoesToTheNext() throws {
        let disk = SimulatedDisk()
        let layer = try make(disk)
        try write(1, 1, to: layer)
        var isFirst = true
        disk.whileSyncing { path in
            guard isFirst, path.hasSuffix(".data") else { return }
            isFirst = false
            try? write(9, 9, to: layer)
        }
        try commit(layer, at: 1)
        disk.whileSyncing(nil)
        #expect(try contents(disk).data == BlockSet([BlockRange(start: 1, count: 1)]))
        #expect(layer.hasPending)
        try commit(layer, at: 2)
        #expect(!layer.hasPending)
        #expect(try contents(disk).data.count == 2)
    }

    /// L3.
    @Test(arguments: [".data", ".map"]) func afterAFailedSyncNothingIsCommitted(suffix: String)
        throws
    {
        let disk = SimulatedDisk()
        let layer = try make(disk)
        try write(1, 1, to: layer)
        disk.failSyncs { $0.hasSuffix(suffix) }
        #expect(throws: LayerError.self) { try commit(layer, at: 1) }
        disk.failSyncs { _ in false }
        try write(2, 2, to: layer)
        for _ in 0..<2 { #expect(throws: LayerError.self) { try commit(layer, at: 2) } }
        #expect(layer.latchedFailure != nil)
    }

    /// G7.
    @Test func aCoveredBlockIsReadAsItWasOrNotAtAll() throws {
        let disk = SimulatedDisk()
        let layer = try make(disk)
        for block in 0..<70 { try write(UInt64(block), UInt8(block), to: layer) }
        try commit(layer, at: 1, seal: true)
        #expect(layer.isSealed)
        let sums = try SumsFile.create(disk: disk, path: "/layers/7.sums", layer: Self.id)
        // All but the last are covered.
        let hashes = (0..<69).map { block in
            pattern(4096, seed: UInt8(block)).withUnsafeBytes { SumsFile.hash(ofBlock: $0) }
        }
        try hashes.withUnsafeBufferPointer { try sums.set($0, startingAt: 0) }
        #expect(!sums.isComplete)
        layer.setSums(sums)
        func read(_ count: Int, at offset: UInt64) throws -> [UInt8] {
            var bytes = [UInt8](repeating: 0xee, count: count)
            try bytes.withUnsafeMutableBytes { try layer.read(into: $0, at: offset) }
            return bytes
        }
        let all = (0..<70).flatMap { pattern(4096, seed: UInt8($0)) }
        #expect(try read(70 * 4096, at: 0) == all)
        for block in [UInt64(0), 62, 63, 69] {
            try [UInt8(0xff)].withUnsafeBytes { try layer.data.write($0, at: block * 4096 + 7) }
        }
        // A part of a block is verified like the whole.
        let reads: [(offset: UInt64, count: Int, isGood: Bool)] = [
            (4096, 249_856, true), (0, 4096, false), (100, 10, false), (258_047, 1, false),
            (249_856, 12_288, false), (262_145, 20_000, true), (282_624, 4096, true),
        ]
        for (offset, count, isGood) in reads {
            let found = Result { try read(count, at: offset) }
            switch found {
            case .success(let bytes):
                #expect(isGood, "\(offset)")
                if offset < 69 * 4096 {
                    #expect(bytes == Array(all[Int(offset)..<Int(offset) + count]))
                }
            case .failure(let error):
                #expect(!isGood, "\(offset): \(error)")
                guard case .checksumMismatch? = error as? LayerError else {
                    Issue.record("\(error)")
                    continue
                }
            }
        }
        var rotten: [UInt64] = []
        #expect(
            try sums.verifyAll(of: layer.data) { block, isGood in
                if !isGood { rotten.append(block) }
                return true
            })
        #expect(rotten == [0, 62, 63])
        layer.unseal()
        #expect(try read(4096, at: 0)[7] == 0xff, "a head has no checksums")
    }

    /// S4: a file of checksums says that it is complete when all in it is durable.
    @Test(arguments: Seeds.run(10)) func completeMeansDurable(seed: UInt64) throws {
        for sync in 1...3 {
            var random = SeededRandom(seed: seed)
            let disk = SimulatedDisk()
            try disk.createDirectory("/layers", mode: 0o700)
            try disk.syncDirectory("/")
            let sums = try SumsFile.create(disk: disk, path: "/layers/7.sums", layer: Self.id)
            let hashes = (0..<200).map { UInt64($0 + 1) }
            disk.powerOff(atSync: sync)
            _ = try? hashes.withUnsafeBufferPointer { try sums.set($0, startingAt: 5) }
            _ = try? sums.setComplete(true)
            let after = disk.crash(&random)
            let opened = try #require(
                try SumsFile.open(disk: after, path: "/layers/7.sums", layer: Self.id))
            guard opened.isComplete else { continue }
            var found = [UInt64](repeating: 0, count: 200)
            try found.withUnsafeMutableBufferPointer {
                try opened.hashes(of: BlockRange(start: 5, count: 200), into: $0)
            }
            #expect(found == hashes, "seed \(seed), sync \(sync)")
        }
    }

    // MARK: Activity

    /// A1 to A3: whatever is written and forgotten, a region in use is marked on the disk.
    @Test(arguments: Seeds.run(20)) func aRegionInUseIsMarked(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        var disk = SimulatedDisk()
        try disk.createDirectory("/layers", mode: 0o700)
        try disk.syncDirectory("/")
        var log = try ActivityLog.create(disk: disk, path: "/layers/activity")
        var inUse: Set<Int> = []
        for _ in 0..<60 {
            switch random.below(10) {
            case ..<6:
                let first = random.below(9000)
                let last = first + random.below(3)
                try log.activate(first: first, last: last)
                log.touch(first: first, last: last)
                inUse.formUnion(first...last)
            case ..<8:
                let idle = log.retire(all: random.chance(30))
                #expect(Set(idle).isSubset(of: inUse))
                // Somebody writes there again before it is cleared.
                let again = idle.filter { _ in random.chance(30) }
                for region in again { try log.activate(first: region, last: region) }
                try log.clear(idle)
                inUse.subtract(Set(idle).subtracting(again))
            default:
                disk = disk.crash(&random)
                let opened = try ActivityLog.open(
                    disk: disk, path: "/layers/activity", imageSizeBytes: 1 << 40)
                #expect(!opened.wasDamaged)
                log = opened.log
                #expect(inUse.isSubset(of: log.regions), "seed \(seed)")
                inUse = Set(log.regions)
            }
        }
        #expect(inUse.isSubset(of: log.regions))
        #expect(log.activeCount == log.regions.count)
    }

    @Test func aLogThatDoesNotVerifyMarksEverything() throws {
        let disk = SimulatedDisk()
        try disk.createDirectory("/layers", mode: 0o700)
        for bytes in [[], [UInt8](repeating: 1, count: 5000)] {
            try disk.writeDurably("/layers/activity", contents: bytes)
            let (log, wasDamaged) = try ActivityLog.open(
                disk: disk, path: "/layers/activity", imageSizeBytes: 9 << 22)
            #expect(wasDamaged)
            #expect(log.regions == Array(0..<9))
        }
    }

    // MARK: Where blocks are

    /// Beside a plain array of slots.
    @Test(arguments: Seeds.run(10)) func theIndexIsWhatWasSet(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let index = BlockIndex()
        let count = 5 * Int(Geometry.blocksPerRegion)
        var model = [UInt16](repeating: 0, count: count)
        // From here on every region counts as one that was set.
        index.set(BlockRange(start: 0, count: UInt64(count)), to: .root)
        func some() -> LayerSlot {
            random.chance(20) ? .zero : LayerSlot(rawValue: UInt16(random.below(5)))
        }
        for _ in 0..<300 {
            switch random.below(20) {
            case ..<16:
                let start = random.below(count)
                let length = 1 + random.below(min(random.chance(30) ? count : 40, count - start))
                let slot = some()
                index.set(BlockRange(start: UInt64(start), count: UInt64(length)), to: slot)
                for block in start..<start + length { model[block] = slot.rawValue }
            case 16: index.collapse(region: random.below(5))
            case 17:
                let (old, new) = (some(), some())
                index.replaceAll(old, with: new, blockCount: UInt64(count))
                for block in model.indices where model[block] == old.rawValue {
                    model[block] = new.rawValue
                }
            case 18 where random.chance(20):
                let slot = some()
                index.reset(to: slot)
                for block in model.indices { model[block] = slot.rawValue }
            default:
                let at = random.below(count)
                let limit = 1 + random.below(count - at)
                let run = index.run(at: UInt64(at), limit: UInt64(limit))
                let expected = model[at..<at + limit].prefix { $0 == model[at] }.count
                #expect(run.slot.rawValue == model[at] && run.count == UInt64(expected))
                let range = BlockRange(start: UInt64(at), count: UInt64(limit))
                #expect(index.isAll(run.slot, in: range) == (expected == limit))
            }
        }
        for block in model.indices {
            guard index.slot(of: UInt64(block)).rawValue == model[block] else {
                Issue.record("seed \(seed): block \(block)")
                break
            }
        }
        index.freeRetired(index.takeRetired())
    }
}
