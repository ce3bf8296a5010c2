// The dirty file on a disk that forgets, beside the whole of what it should hold.

import BlockCore
import SystemIO
import TestSupport
import Testing

@testable import Pool

private struct DirtyViolation: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

private let target = TargetID(rawValue: 7)
private let path = "/pool/targets/7/dirty"

private final class CheckedDirtyFile {
    var random: SeededRandom
    var disk: SimulatedDisk
    var file: DirtyFile?
    /// What it holds for certain; nil: there may be none.
    var durable: DirtyFileState?
    /// What it holds when the change under way is kept.
    var wanted: DirtyFileState
    private var nextNumber: UInt64 = 1

    init(seed: UInt64, misbehaviour: SimulatedDisk.Misbehaviour = .init()) throws {
        random = SeededRandom(seed: seed)
        disk = SimulatedDisk(misbehaviour: misbehaviour)
        try disk.createDirectory("/pool", mode: 0o700)
        try disk.syncDirectory("/")
        wanted = DirtyFileState(acknowledged: .zero, incarnation: 1, legs: [])
    }

    private func number() -> UInt64 {
        nextNumber += 1
        return nextNumber
    }

    private func blocks() -> [ImageID: BlockSet] {
        var result: [ImageID: BlockSet] = [:]
        for _ in 0..<random.below(5) {
            let image = ImageID(rawValue: Int64(1 + random.below(3)))
            let start = UInt64(random.below(20_000))
            // Whole regions, runs of them, single blocks.
            let count = random.chance(30) ? 1024 * UInt64(1 + random.below(4)) : 1
            result.insert(BlockRange(start: start, count: count), of: image)
        }
        if random.below(800) == 0 {
            // More than a frame takes.
            for region in 0..<7000 as Range<UInt64> {
                result.insert(
                    BlockRange(start: region << 10 + 5, count: 1), of: ImageID(rawValue: 9))
            }
        }
        return result
    }

    /// One change, as legs make it: new blocks, a cut, a commit, suspects found or resolved.
    func change() throws {
        var next = wanted
        next.acknowledged = SequenceNumber(rawValue: next.acknowledged.rawValue + 1)
        if random.chance(5) { next.incarnation += 1 }
        if random.chance(30) { next.legs.append(DirtyLegState(number: number())) }
        if random.chance(20), !next.legs.isEmpty {
            next.legs[random.below(next.legs.count)].cut = next.acknowledged
        }
        if random.chance(20), !next.legs.isEmpty { next.legs.removeFirst() }
        if random.chance(10) { next.legs.append(DirtyLegState(number: number(), isUnknown: true)) }
        var added = next
        for index in next.legs.indices {
            added.legs[index].blocks = random.chance(50) ? blocks() : [:]
            if random.chance(10) { added.legs[index].hasNameChanges = true }
            next.legs[index].hasNameChanges = added.legs[index].hasNameChanges
            next.legs[index].blocks.formUnion(added.legs[index].blocks)
        }
        wanted = next
        if let file {
            if file.wantsRewrite || random.chance(8) {
                try file.rewrite(next)
            } else {
                try file.append(added)
            }
        } else {
            file = try DirtyFile.create(disk: disk, path: path, target: target, next)
        }
        durable = next
    }

    func open() throws {
        let opened = try DirtyFile.open(disk: disk, path: path, target: target)
        file = opened?.file
        guard let found = opened?.state else {
            if let durable { throw DirtyViolation("\(durable.acknowledged) was durable; no file") }
            return
        }
        guard found == durable || found == wanted else {
            throw DirtyViolation(
                "\(found.acknowledged) is there; \(durable?.acknowledged ?? .zero) was durable, "
                    + "\(wanted.acknowledged) was under way")
        }
        durable = found
        wanted = found
    }

    func runToCrash(atSync count: Int) throws {
        disk.powerOff(atSync: count)
        do {
            for _ in 0..<40 { try change() }
            disk.cancelPowerOff()
        } catch {
            guard disk.isPoweredOff else { throw error }
        }
        repeat {
            disk = disk.crash(&random)
            if random.chance(30) { disk.powerOff(atSync: 1) }
            do { try open() } catch {
                guard disk.isPoweredOff else { throw error }
            }
        } while disk.isPoweredOff
        disk.cancelPowerOff()
        if file == nil { wanted = durable ?? wanted }
    }
}

@Suite struct DirtyFileTests {
    @Test(arguments: Seeds.run(4)) func aCrashLeavesTheLastChangeOrTheOneUnderWay(
        seed: UInt64
    ) throws {
        do {
            let file = try CheckedDirtyFile(seed: seed)
            // Each boundary once, from the first sync on.
            for count in 1...24 { try file.runToCrash(atSync: count) }
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    @Test func skippedSyncsAreFound() throws {
        var misbehaviour = SimulatedDisk.Misbehaviour()
        misbehaviour.skipsSync = { $0.contains("/targets/") }
        let found = (1...40).contains { seed in
            do {
                let file = try CheckedDirtyFile(seed: UInt64(seed), misbehaviour: misbehaviour)
                for count in 1...24 { try file.runToCrash(atSync: count) }
                return false
            } catch { return true }
        }
        #expect(found)
    }

    private func filled() throws -> CheckedDirtyFile {
        let file = try CheckedDirtyFile(seed: 3)
        for _ in 0..<6 { try file.change() }
        return file
    }

    private func flip(_ disk: Disk, at offset: UInt64) throws {
        let file = try disk.open(path, .readWrite)
        var byte: [UInt8] = [0]
        _ = try byte.withUnsafeMutableBytes { try file.read(into: $0, at: offset) }
        byte[0] ^= 1
        try byte.withUnsafeBytes { try file.write($0, at: offset) }
    }

    @Test func damageOfWhatWasDurableIsAnErrorAndNeverLess() throws {
        for offset in [20, 4096, 4096 + 10, 4096 + 50, 4096 + 60, 4096 + 80] as [UInt64] {
            let file = try filled()
            try flip(file.disk, at: offset)
            #expect(throws: DirtyFileError.self, "at \(offset)") { try file.open() }
        }
        let other = try filled()
        #expect(throws: DirtyFileError.self, "another target's") {
            try DirtyFile.open(disk: other.disk, path: path, target: TargetID(rawValue: 8))
        }
    }

    @Test func afterAFailureOnlyTheWholeIsTaken() throws {
        let file = try filled()
        let whole = file.wanted
        file.disk.failSyncs { $0.hasSuffix("/dirty") }
        #expect(throws: DirtyFileError.self) { try file.file!.append(whole) }
        file.disk.failSyncs { _ in false }
        #expect(file.file!.wantsRewrite)
        #expect(throws: DirtyFileError.self) { try file.file!.append(whole) }
        try file.file!.rewrite(whole)
        try file.file!.append(
            DirtyFileState(acknowledged: whole.acknowledged, incarnation: 1, legs: []))
        file.wanted = DirtyFileState(
            acknowledged: whole.acknowledged, incarnation: 1, legs: [])
        file.durable = file.wanted
        try file.open()
    }

    /// At most 66 MiB for each TiB and target: a block dirty in every region is the dearest.
    @Test func itStaysSmallHoweverOftenItIsWritten() throws {
        let disk = SimulatedDisk()
        try disk.createDirectory("/pool", mode: 0o700)
        var legs = [DirtyLegState(number: 1)]
        for region in 0..<4096 as Range<UInt64> {
            legs[0].blocks.insert(
                BlockRange(start: region << 10, count: 1), of: ImageID(rawValue: 1))
        }
        let state = DirtyFileState(acknowledged: .zero, incarnation: 1, legs: legs)
        let file = try DirtyFile.create(disk: disk, path: path, target: target, state)
        // 1/64 TiB.
        #expect(file.lengthBytes <= 66 << 20 / 64)
        for _ in 0..<40 {
            if file.wantsRewrite { try file.rewrite(state) } else { try file.append(state) }
            #expect(file.lengthBytes <= 3 * (66 << 20 / 64) + 9 << 20)
        }
        let found = try #require(try DirtyFile.open(disk: disk, path: path, target: target))
        #expect(found.state == state)
        try DirtyFile.remove(disk: disk, path: path)
        #expect(try disk.status("/pool/targets/7") == nil)
    }
}
