import BlockCore
import SystemIO
import TestSupport
import Testing

@testable import Pool

/// The map of a layer on a disk that forgets: commits, torn tails, the two slots of the header.
@Suite struct LayerMapFileTests {
    private static let path = "/layers/7.map"
    private static let layer = LayerID(rawValue: 7)

    /// A map that is written, and what each of its commits says.
    private final class Written {
        var disk: SimulatedDisk
        var map: LayerMapFile
        /// Extents of each commit; the first is the one that creation makes.
        var commits: [[MapExtent]] = [[]]
        /// Where each commit ends in the file.
        var ends: [UInt64] = []

        init() throws {
            disk = SimulatedDisk()
            try disk.createDirectory("/layers", mode: 0o700)
            try disk.syncDirectory("/")
            map = try LayerMapFile.create(
                disk: disk, path: path, layer: layer, image: ImageID(rawValue: 3),
                imageSizeBytes: 1000, sequence: SequenceNumber(rawValue: 1))
            try map.file.sync()
            try disk.syncDirectory("/layers")
            ends = [map.endOffset]
        }

        func append(_ random: inout SeededRandom, seal: Bool = false, sync: Bool = true) throws {
            let extents = (0..<1 + random.below(4)).map { _ in
                MapExtent(
                    range: BlockRange(
                        start: UInt64(random.below(5000)), count: UInt64(1 + random.below(9))),
                    state: [.data, .zero, .absent][random.below(3)])
            }
            try map.append(
                extents, imageSizeBytes: UInt64(commits.count) * 4096,
                sequence: SequenceNumber(rawValue: UInt64(commits.count + 1)), isSealed: seal)
            commits.append(extents)
            ends.append(map.endOffset)
            if sync { try map.file.syncData() }
        }

        /// - Returns: the extents that the file has, and the map.
        func open(
            sealed: Bool = false, settled: Bool = false
        ) throws -> (extents: [MapExtent], map: LayerMapFile) {
            var extents: [MapExtent] = []
            let map = try LayerMapFile.open(
                disk: disk, path: path, layer: layer, isSealed: sealed, isSettled: settled
            ) { extents.append($0) }
            return (extents, map)
        }

        func flip(_ offset: UInt64) throws {
            var byte: [UInt8] = [0]
            _ = try byte.withUnsafeMutableBytes { try map.file.read(into: $0, at: offset) }
            byte[0] ^= 0x41
            try byte.withUnsafeBytes { try map.file.write($0, at: offset) }
        }

        func expect(_ count: Int, _ found: (extents: [MapExtent], map: LayerMapFile)) {
            #expect(found.extents == commits[..<count].flatMap { $0 })
            #expect(found.map.endOffset == ends[count - 1])
            #expect(found.map.lastCommit?.epoch == UInt64(count))
            #expect(found.map.lastCommit?.sequence.rawValue == UInt64(count))
        }
    }

    private func expectDamaged(_ written: Written, _ what: String, sealed: Bool = false) {
        do {
            _ = try written.open(sealed: sealed)
            Issue.record("\(what): it opened")
        } catch let error as LayerError {
            guard case .damaged(Self.path, _) = error else {
                Issue.record("\(what): \(error)")
                return
            }
        } catch { Issue.record("\(what): \(error)") }
    }

    @Test func commitsAreThereInTheirOrder() throws {
        var random = SeededRandom(seed: 1)
        let written = try Written()
        for _ in 0..<20 { try written.append(&random) }
        let found = try written.open(settled: true)
        written.expect(21, found)
        #expect(found.map.lastCommit?.imageSizeBytes == 20 * 4096)
        #expect(found.map.tornTailBytes == 0)
        try written.append(&random, seal: true)
        written.expect(22, try written.open(sealed: true))
        #expect(throws: LayerError.self) {
            _ = try LayerMapFile.open(
                disk: written.disk, path: Self.path, layer: LayerID(rawValue: 8), isSealed: true
            ) { _ in }
        }
    }

    /// Power goes before a commit's sync: it is there as a whole or not at all, and what is written
    /// after that open is found by the next.
    @Test(arguments: Seeds.run(30)) func aCommitIsThereWholeOrNotAtAll(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let written = try Written()
        for _ in 0..<4 {
            for _ in 0..<1 + random.below(3) { try written.append(&random) }
            let durable = written.commits.count
            try written.append(&random, sync: false)
            written.disk = written.disk.crash(&random)
            let found = try written.open()
            let count = Int(found.map.lastCommit!.epoch)
            #expect(count == durable || count == durable + 1, "seed \(seed)")
            written.expect(count, found)
            // The tail is gone for good, also where the power goes right now.
            written.disk = written.disk.crash(&random)
            let again = try written.open()
            written.expect(count, again)
            #expect(again.map.tornTailBytes == 0, "seed \(seed)")
            written.commits.removeSubrange(count...)
            written.ends.removeSubrange(count...)
            written.map = again.map
            try written.map.file.sync()
        }
    }

    @Test func aTailIsCutWhereverItIsTorn() throws {
        var random = SeededRandom(seed: 2)
        let written = try Written()
        for _ in 0..<3 { try written.append(&random) }
        let whole = try written.disk.readAll(Self.path)
        let start = Int(written.ends[2])
        for end in start..<whole.count {
            for junk in [0, 13] {
                try written.disk.writeDurably(
                    Self.path, contents: whole[..<end] + [UInt8](repeating: 0x43, count: junk))
                // Of a pool that was closed nothing may be torn.
                if end + junk > start {
                    #expect(throws: LayerError.self) { _ = try written.open(settled: true) }
                }
                let found = try written.open()
                written.expect(3, found)
                #expect(found.map.tornTailBytes == UInt64(end + junk - start))
                #expect(try written.disk.readAll(Self.path).count == start)
            }
        }
    }

    /// M2: bytes of an earlier commit at the place of the next never pass for it.
    @Test func whatIsLeftOfAnotherLifeIsNoCommit() throws {
        var random = SeededRandom(seed: 3)
        let written = try Written()
        for _ in 0..<4 { try written.append(&random) }
        let whole = try written.disk.readAll(Self.path)
        for first in 0..<3 {
            let part = whole[Int(written.ends[first])..<Int(written.ends[first + 1])]
            try written.disk.writeDurably(Self.path, contents: whole + part)
            let found = try written.open()
            written.expect(5, found)
            #expect(found.map.tornTailBytes == UInt64(part.count))
        }
    }

    /// Commits that a slot names were durable: a bit that turns over there is damage, never an older
    /// state. In the last one it cannot be told from a torn write.
    @Test func whatWasDurableIsNeverCut() throws {
        var random = SeededRandom(seed: 4)
        let written = try Written()
        for _ in 0..<3 { try written.append(&random) }
        let last = written.ends[2]
        for offset in LayerMapFile.recordsOffset..<written.ends[3] {
            try written.flip(offset)
            if offset < last {
                expectDamaged(written, "a bit at \(offset)")
            } else {
                #expect(throws: LayerError.self) { _ = try written.open(settled: true) }
                let copy = try written.disk.readAll(Self.path)
                written.expect(3, try written.open())
                try written.disk.writeDurably(Self.path, contents: copy)
                written.map.file = try written.disk.open(Self.path, .readWrite, mode: 0o600)
            }
            try written.flip(offset)
        }
        written.expect(4, try written.open(settled: true))
        for offset in UInt64(0)..<48 {
            try written.flip(offset)
            expectDamaged(written, "the header at \(offset)")
            try written.flip(offset)
        }
    }

    /// M3: a slot is written in place, and the other one is there when the power tears it.
    @Test func oneSlotMayBeTorn() throws {
        var random = SeededRandom(seed: 5)
        let written = try Written()
        for _ in 0..<4 { try written.append(&random) }
        // Named are the third and the fourth of five.
        let first = LayerMapFile.recordsOffset + 8
        for slot in [UInt64(1024), 2048] {
            try written.flip(slot + 9)
            written.expect(5, try written.open(settled: true))
            try written.flip(first)
            expectDamaged(written, "damage, and the slot at \(slot)")
            try written.flip(first)
            try written.flip(slot + 9)
        }
        // A torn one that names nothing, and one that names what never was.
        try written.flip(1024)
        try written.flip(2048)
        written.expect(5, try written.open(settled: true))
    }

    @Test func aSealedMapEndsInItsSeal() throws {
        var random = SeededRandom(seed: 6)
        let written = try Written()
        for _ in 0..<2 { try written.append(&random) }
        expectDamaged(written, "no seal", sealed: true)
        try written.append(&random, seal: true)
        let whole = try written.disk.readAll(Self.path)
        try written.disk.writeDurably(Self.path, contents: whole + [0])
        expectDamaged(written, "a byte behind the seal", sealed: true)
        try written.disk.writeDurably(Self.path, contents: Array(whole.dropLast()))
        expectDamaged(written, "a byte less", sealed: true)
        try written.disk.writeDurably(Self.path, contents: whole)
        written.expect(4, try written.open(sealed: true))
    }

    /// L4: room is found when a change is noted.
    @Test func aFullDiskIsMetByTheNoteAndNotByTheCommit() throws {
        let written = try Written()
        let data = try written.disk.open("/layers/7.data", [.readWrite, .create], mode: 0o600)
        let layer = Layer(
            id: Self.layer, imageID: ImageID(rawValue: 3), data: data, map: written.map,
            isSealed: false, sums: nil)
        written.disk.limitSpace(toBytes: 1 << 20)
        var noted: [BlockRange] = []
        do throws(SystemError) {
            for index in 0..<200_000 {
                if index == 100 { written.disk.limitSpace(toBytes: 0) }
                let range = BlockRange(start: UInt64(index * 2), count: 1)
                try layer.note(range, .data)
                noted.append(range)
            }
            Issue.record("there was room for everything")
        } catch { #expect(error.isNoSpace) }
        #expect(noted.count > 100)
        _ = try layer.commit(
            imageSizeBytes: 1 << 40, sequence: SequenceNumber(rawValue: 9))
        var random = SeededRandom(seed: 1)
        written.disk = written.disk.crash(&random)
        #expect(try written.open().extents.map(\.range) == noted)
    }
}
