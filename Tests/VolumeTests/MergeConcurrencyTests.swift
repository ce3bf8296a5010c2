import BlockCore
import Pool
import Synchronization
import SystemIO
import TestSupport
import Testing
import Volume

/// Guests write, trim, read and flush while snapshots come and go, heads merge with what is below them and
/// maps are rewritten.
@Suite struct MergeConcurrencyTests {
    /// One guest has every n-th block to itself: what it reads there is what it wrote last.
    private final class Guest: @unchecked Sendable {  // used by one thread at a time
        static let count = 3
        let number: Int
        let image: Image
        let blocks: Int
        var random: SeededRandom
        var content: [Int: [UInt8]] = [:]
        var operations = 0

        init(number: Int, image: Image, blocks: Int, seed: UInt64) {
            self.number = number
            self.image = image
            self.blocks = blocks
            random = SeededRandom(seed: seed &* 31 &+ UInt64(number))
        }

        func step() throws {
            let block = random.below(blocks / Self.count) * Self.count + number
            let zeros = [UInt8](repeating: 0, count: 4096)
            operations += 1
            switch random.below(12) {
            case 0..<4: try write(block, at: 0, random.bytes(4096))
            case 4..<7:
                let start = random.below(4095)
                try write(block, at: start, random.bytes(1 + random.below(4096 - start)))
            case 7..<8:
                try image.trim(at: UInt64(block) * 4096, length: 4096)
                content[block] = zeros
            case 8..<9: if random.chance(20) { try image.flush() }
            default: try check(block)
            }
        }

        private func write(_ block: Int, at start: Int, _ bytes: [UInt8]) throws {
            try bytes.withUnsafeBytes { try image.write($0, at: UInt64(block * 4096 + start)) }
            var whole = content[block] ?? [UInt8](repeating: 0, count: 4096)
            whole.replaceSubrange(start..<start + bytes.count, with: bytes)
            content[block] = whole
        }

        private func check(_ block: Int) throws {
            var bytes = [UInt8](repeating: 0xee, count: 4096)
            _ = try bytes.withUnsafeMutableBytes {
                try image.read(into: $0, at: UInt64(block) * 4096)
            }
            guard bytes == content[block] ?? [UInt8](repeating: 0, count: 4096) else {
                throw Violation("guest \(number): block \(block) is not what was written to it")
            }
        }

        func checkAll() throws { for block in content.keys.sorted() { try check(block) } }
    }

    private static func merges(
        seed: UInt64, rounds: Int, pool: CheckedPool, image: Image
    ) throws -> Set<MergeRecord.Direction> {
        var random = SeededRandom(seed: seed &+ 77)
        var seen: Set<MergeRecord.Direction> = []
        for round in 0..<rounds {
            let name = "r\(round)"
            _ = try pool.volume.createSnapshot(name: name) { { [] } }
            // How much the guests write above it decides the direction.
            let until = pool.volume.sequence.rawValue + UInt64(round % 2 == 0 ? 4 : 4000)
            while pool.volume.sequence.rawValue < until { Pause.microseconds(200) }
            try pool.volume.deleteSnapshot(name: name)
            while try pool.volume.mergeStep() {
                for merge in try pool.catalog.read({ try $0.merges() }) {
                    seen.insert(merge.direction)
                }
                if random.chance(30) { _ = try pool.volume.rewriteNextMap() }
            }
            guard try pool.layerCount == 1 else {
                throw Violation("round \(round): \(try pool.layerCount) layers are left")
            }
        }
        return seen
    }

    @Test(arguments: Seeds.run(3))
    func guestsSeeTheirOwnWritesThroughEveryMerge(seed: UInt64) throws {
        var options = CheckedPool.Options(imageCount: 1)
        options.volume.mergeBatchBlocks = 40
        let pool = try CheckedPool(seed: seed, options: options)
        let id = try pool.anyImage()
        let image = try pool.volume.image(id)
        let blocks = 1200
        try image.resize(to: UInt64(blocks) * 4096)
        let guests = (0..<Guest.count).map {
            Guest(number: $0, image: image, blocks: blocks, seed: seed)
        }
        let end = Flag()
        do {
            let threads = guests.map { guest in
                TestThread<Void> {
                    while !end.isSet.load(ordering: .acquiring) { try guest.step() }
                }
            }
            let seen = Result {
                try Self.merges(seed: seed, rounds: 8, pool: pool, image: image)
            }
            end.isSet.store(true, ordering: .releasing)
            for thread in threads { try thread.join() }
            #expect(try seen.get() == [.up, .down], "seed \(seed)")
            for guest in guests {
                try guest.checkAll()
                #expect(guest.operations > 100)
            }
            // All of it was flushed: a loss of power takes nothing.
            try image.flush()
            try pool.losePower()
            try pool.openAgain()
            let again = try pool.volume.image(id)
            for guest in guests {
                let reader = Guest(number: guest.number, image: again, blocks: blocks, seed: seed)
                reader.content = guest.content
                try reader.checkAll()
            }
        } catch { Issue.record("seed \(seed): \(error)") }
    }
}

private final class Flag: Sendable {
    let isSet = Atomic(false)
}
