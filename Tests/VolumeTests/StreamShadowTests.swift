// Whatever happens to a volume, what its stream carries and what its targets' legs name is enough to
// make each target equal to it.

import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Testing
import Volume

/// A checked pool with targets beside it.
private final class ShadowedPool {
    let keeper: ShadowKeeper
    let pool: CheckedPool
    private var random: SeededRandom

    init(
        seed: UInt64, capacityBytes: Int, maxBytes: Int = 300_000,
        change: (inout CheckedPool.Options) -> Void = { _ in }
    ) throws {
        let keeper = ShadowKeeper(count: 2, capacityBytes: capacityBytes)
        self.keeper = keeper
        var options = CheckedPool.Options(maxBytes: maxBytes)
        options.opened = { try keeper.attach($0, $1) }
        change(&options)
        random = SeededRandom(seed: seed ^ 0x5eed)
        pool = try CheckedPool(seed: seed, options: options)
    }

    func step() throws {
        guard random.chance(30) else { return try pool.step() }
        let shadow = keeper.shadows[random.below(keeper.shadows.count)]
        let stream = keeper.stream!
        switch random.below(10) {
        case 0..<5:
            if try !shadow.take(stream, limitBytes: 1 + random.below(60_000)),
                stream.waitForRecords(shadow.id, timeoutMs: 0) == .barrier
            {
                try level(shadow)
            }
        case 5..<7:
            if stream.standing(shadow.id)!.isStreaming {
                stream.acknowledge(shadow.id, durable: shadow.checkpoint)
            }
        case 7: stream.stopStreaming(shadow.id)
        case 8:
            if !stream.standing(shadow.id)!.isStreaming {
                _ = stream.beginStreaming(shadow.id, from: shadow.checkpoint)
            }
        default: try level(shadow)
        }
    }

    /// Brings one target in step, and compares.
    func level(_ shadow: ShadowTarget) throws {
        try shadow.compareUnknown(pool.volume, keeper.stream)
        try shadow.resync(pool.volume, keeper.stream)
        guard Set(shadow.content.keys) == Set(pool.images.keys) else {
            throw Violation("the target has other images")
        }
        for (id, model) in pool.images { try equal(shadow.content[id], model.content, id) }
        for (name, images) in pool.snapshots {
            guard let found = shadow.snapshots[name] else { continue }
            for (id, bytes) in images { try equal(found[id], bytes, id, " in \(name)") }
        }
    }

    private func equal(
        _ found: [UInt8]?, _ expected: [UInt8], _ id: ImageID, _ place: String = ""
    ) throws {
        guard let found, found.count == expected.count else {
            throw Violation(
                "image \(id.rawValue)\(place) of the target has \(found?.count ?? -1) bytes, not "
                    + "\(expected.count)")
        }
        guard let at = firstDifference(found, expected) else { return }
        throw Violation("image \(id.rawValue)\(place) of the target differs at byte \(at)")
    }

    func levelAll() throws { for shadow in keeper.shadows { try level(shadow) } }
}

@Suite struct StreamShadowTests {
    @Test(arguments: Seeds.run(4))
    func aTargetThatFollowsEqualsThePool(seed: UInt64) {
        do {
            // A ring that is full now and then, and one that is not.
            let shadowed = try ShadowedPool(
                seed: seed, capacityBytes: seed % 2 == 0 ? 256 << 10 : 16 << 20)
            for number in 1...500 {
                try shadowed.step()
                if number % 125 == 0 {
                    try shadowed.levelAll()
                    try shadowed.pool.reopenCleanly()
                    for shadow in shadowed.keeper.shadows {
                        #expect(
                            shadowed.keeper.stream.standing(shadow.id)?.isClean == true,
                            "seed \(seed): a clean end left something open")
                    }
                }
            }
            try shadowed.levelAll()
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    private static func crash(seed: UInt64, rounds: Int = 5, forgetsFile: Bool = false) throws {
        let shadowed = try ShadowedPool(
            seed: seed, capacityBytes: seed % 2 == 0 ? 256 << 10 : 16 << 20,
            maxBytes: seed % 8 == 0 ? 9 << 20 : 200_000)
        shadowed.keeper.forgetsFile = forgetsFile
        let pool = shadowed.pool
        for _ in 0..<rounds {
            _ = try pool.run(toCrashAtSync: 1 + pool.random.below(80)) {
                for _ in 0..<80 { try shadowed.step() }
            }
            // Not each time: what is open adds up over several crashes.
            if pool.random.chance(60) { try shadowed.levelAll() }
        }
        try shadowed.levelAll()
    }

    /// G3: whatever a crash takes, the dirty file and the active regions together name it.
    @Test(arguments: Seeds.run(6))
    func afterACrashTheFileAndTheActiveRegionsNameAllThatDiffers(seed: UInt64) {
        do { try Self.crash(seed: seed) } catch { Issue.record("seed \(seed): \(error)") }
    }

    @Test func marksThatAreClearedBeforeTheFileHasThemAreFound() {
        let found = (1...60).contains { seed in
            do {
                try Self.crash(seed: UInt64(seed), forgetsFile: true)
                return false
            } catch { return true }
        }
        #expect(found)
    }

    /// Changes that fail for want of space, wholly or after a part.
    @Test(arguments: Seeds.run(3))
    func whatAFailedChangeLeavesReachesTheTarget(seed: UInt64) {
        do {
            let shadowed = try ShadowedPool(seed: seed, capacityBytes: 16 << 20) {
                $0.expectsNoSpace = true
            }
            let pool = shadowed.pool
            try pool.snapshot()
            for number in 1...200 {
                if number % 20 == 0 {
                    pool.disk.limitSpace(toBytes: pool.random.below(60_000))
                } else if number % 20 == 10 {
                    pool.disk.limitSpace(toBytes: .max)
                    try shadowed.levelAll()
                }
                pool.random.chance(70) ? try pool.write() : try pool.trim()
            }
            pool.disk.limitSpace(toBytes: .max)
            try shadowed.levelAll()
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    @Test func aNumberIsNeverGivenTwice() throws {
        let shadowed = try ShadowedPool(seed: 1, capacityBytes: 1 << 20)
        let pool = shadowed.pool
        var last = SequenceNumber.zero
        for _ in 0..<4 {
            let id = try pool.anyImage()
            try pool.write(id, at: 0, length: 10)
            #expect(pool.volume.sequence > last)
            last = pool.volume.sequence
            // Nothing of it was ever durable here.
            _ = try pool.run(toCrashAtSync: 1) { try pool.flush(id) }
            #expect(pool.volume.sequence > last)
            #expect(pool.volume.sequence.rawValue >> 40 > last.rawValue >> 40)
        }
    }

    /// Many threads write, one follows and falls behind now and then, one cuts.
    @Test(arguments: Seeds.run(4))
    func aTargetFollowsManyWriters(seed: UInt64) throws {
        let shadowed = try ShadowedPool(
            seed: seed, capacityBytes: [128 << 10, 1 << 20, 16 << 20][Int(seed % 3)])
        let volume = shadowed.pool.volume
        let images = try volume.imageIDs.map { try volume.image($0) }
        let (shadow, stream) = (shadowed.keeper.shadows[0], shadowed.keeper.stream!)
        stream.setHoldsWriters(shadow.id, seed % 2 == 0)
        try shadow.resync(volume, stream)
        let nodes = images.map { image in
            NodeRecord(
                id: NodeID(rawValue: UInt64(image.id.rawValue) + 1), parentID: .root, name: [1],
                kind: .file, mode: 0, uid: 0, gid: 0, accessNs: 0, modifyNs: 0, changeNs: 0,
                imageID: image.id)
        }
        let writers = (0..<4).map { number in
            TestThread {
                var random = SeededRandom(seed: seed * 16 + UInt64(number))
                for _ in 0..<150 {
                    let image = images[random.below(images.count)]
                    let offset = UInt64(random.below(120_000))
                    let length = 1 + random.below(random.chance(10) ? 90_000 : 9000)
                    switch random.below(20) {
                    case 0: try image.trim(at: offset, length: UInt64(length))
                    case 1: try image.zero(at: offset, length: UInt64(length), keepSize: false)
                    case 2: try image.resize(to: offset)
                    case 3: try image.flush()
                    case 4: try volume.settle(image, all: false)
                    default:
                        let bytes = random.bytes(length)
                        try bytes.withUnsafeBytes { try image.write($0, at: offset) }
                    }
                }
            }
        }
        let cutter = TestThread {
            for number in 0..<4 {
                _ = try volume.createSnapshot(name: "cut \(number)") { { nodes } }
                if number > 1 { try volume.deleteSnapshot(name: "cut \(number - 2)") }
            }
        }
        let done = Flag()
        // The thread's alone until it is joined.
        nonisolated(unsafe) let follower = shadow
        let follow = TestThread {
            var random = SeededRandom(seed: seed)
            while !done.isSet {
                if try !follower.take(stream, limitBytes: 1 + random.below(100_000)) {
                    if stream.waitForRecords(follower.id, timeoutMs: 5) == .notStreaming { return }
                }
                if random.chance(70) {
                    stream.acknowledge(follower.id, durable: follower.checkpoint)
                }
            }
        }
        for writer in writers { try writer.join() }
        try cutter.join()
        done.set()
        try follow.join()
        if seed % 2 == 0, seed % 3 == 2 {
            #expect(stream.standing(shadow.id)?.isStreaming == true, "it was waited for")
        }
        for each in shadowed.keeper.shadows {
            try each.resync(volume, stream)
            for image in images {
                var bytes = [UInt8](repeating: 0, count: Int(image.sizeBytes))
                _ = try bytes.withUnsafeMutableBytes { try image.read(into: $0, at: 0) }
                #expect(each.content[image.id] == bytes, "seed \(seed), target \(each.id.rawValue)")
            }
        }
    }
}

private final class Flag: Sendable {
    private let lock = Lock()
    nonisolated(unsafe) private var value = false  // under `lock`
    var isSet: Bool { lock.withLock { value } }
    func set() { lock.withLock { value = true } }
}
