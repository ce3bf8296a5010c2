// The primary's power goes, and goes again at every sync and commit of what is done about it. In the end the
// pool is what its mirror has at its checkpoint, with everything that was flushed; what the disk had is kept.

import BlockCore
import Replication
import SystemIO
import TestSupport
import Testing

@testable import Pool
@testable import Targets
@testable import Volume

@Suite struct RecoveryPullTests {
    private static let target = RecoveryPair.first

    private final class Answer: @unchecked Sendable {  // used by one thread
        private(set) var value: Int32?
        func set(_ errno: Int32) { value = errno }
    }

    private func write(_ pair: RecoveryPair, _ random: inout SeededRandom) throws {
        let image = pair.images[random.below(2)]
        let offset = random.below(2048 * 4096 - 20_000)
        let bytes = pattern(1 + random.below(20_000), seed: UInt8(random.below(256)))
        try bytes.withUnsafeBytes { try image.write($0, at: UInt64(offset)) }
        if random.chance(15) { try image.trim(at: UInt64(offset / 2), length: 30_000) }
        if random.chance(10) { try image.flush() }
    }

    /// One that is waited for since its session began, and was never behind, is asked after a loss of power, too.
    @Test func whoCountsFromTheFirstMomentComesToBeWhole() throws {
        let pair = try RecoveryPair(mode: .async)
        try pair.untilLevel()
        try pair.hub.update(Self.target) { $0.mode = .sync }
        #expect(!pair.hub.all[0].record.isWhole, "it was waited for less until now")
        try pair.goOn { $0.hub.all[0].record.isWhole }
        #expect(pair.hub.all[0].record.stale == nil)
    }

    /// Who is asked after a loss of power is on record before anybody relies on it.
    @Test func aWriteIsAnsweredWhenItIsOnRecordWhoHasIt() throws {
        let pair = try RecoveryPair(mode: .async)
        try pair.hub.update(Self.target) { $0.mode = .sync }
        let driver = try #require(pair.hub.all[0].driver)
        for _ in 0..<100 where driver.snapshot.state != .streaming {
            driver.tick()
            while driver.step() {}
        }
        #expect(driver.snapshot.counts)
        let image = pair.images[0]
        let bytes = pattern(4096, seed: 3)
        _ = try bytes.withUnsafeBytes { try image.write($0, at: 8192) }
        let answer = Answer()
        let last = pair.hub.stream.lastSequence
        pair.volume.gate.finishWrite(last, of: image.id, PendingReply { answer.set($0) })
        // The session goes on, and nobody writes down anything.
        driver.wantFlush(last)
        while driver.step() {}
        #expect(pair.hub.stream.standing(Self.target)?.durable == last)
        #expect(answer.value == nil)
        #expect(try !pair.catalog.read { try $0.targets() }[0].isWhole)
        pair.hub.keepHouse()
        #expect(answer.value == 0)
        #expect(try pair.catalog.read { try $0.targets() }[0].isWhole)
    }

    @Test(arguments: Seeds.run(2), [false, true])
    func powerGoesAnywhereAndAllComesBack(seed: UInt64, isRemote: Bool) throws {
        var random = SeededRandom(seed: seed)
        let pair = try RecoveryPair(mode: .sync) {
            isRemote ? SocketFixture($0) as any TargetFixture : $0
        }
        for _ in 0..<20 { try write(pair, &random) }
        if random.chance(50) {
            try pair.images[0].resize(to: UInt64(1 + random.below(2048)) * 4096 - 100)
        }
        try pair.untilLevel()
        let expected = try pair.contents()
        // What comes after is in the ring alone: nobody promised it.
        if random.chance(50) { try write(pair, &random) }
        pair.losePower(&random)
        var (isDone, wasOwed) = (false, false)
        var count = 0
        while !isDone, count < 400 {
            // Each time a server is started for it; which syncs are tried is another seed's to vary.
            count += isRemote ? 1 + random.below(12) : 1
            pair.disk.powerOff(atSync: count)
            do { _ = try pair.recover() } catch {
                guard pair.disk.isPoweredOff else { throw error }
            }
            pair.disk.cancelPowerOff()
            let isOwed = try pair.catalog.read { try $0.lostPower() != nil }
            isDone = wasOwed && !isOwed
            wasOwed = isOwed
            if pair.disk.isPoweredOff || random.chance(50) { pair.losePower(&random) }
        }
        try #require(isDone, "seed \(seed): it never came to its end")
        try pair.open()
        for (id, bytes) in try pair.contents() {
            let there = try #require(expected[id])
            #expect(
                difference(bytes, from: there) == nil, "seed \(seed): image \(id.rawValue)")
        }
        // It was made once at most, and nobody is sent it.
        let kept = try pair.catalog.read { try $0.snapshots() }.filter {
            $0.origin == SnapshotRecord.divergedOrigin
        }
        #expect(kept.count <= 1)
        // The mirror has all of it: nothing is shipped.
        try pair.goOn { $0.hub.all[0].driver?.snapshot.state == .streaming }
        #expect(try pair.mirror.catalog.read { try $0.snapshots() }.allSatisfy { $0.isInternal })
        try pair.untilLevel()
    }

    /// What is durable here beyond the mirror's checkpoint is not taken away.
    @Test func whatIsNewerHereStays() throws {
        var random = SeededRandom(seed: 5)
        let pair = try RecoveryPair(mode: .flush)
        // With a cut the images have maps, which tell how far they are durable.
        _ = try pair.volume.createSnapshot(name: "cut") { { [] } }
        for _ in 0..<5 { try write(pair, &random) }
        try pair.untilLevel()
        let later = pattern(50_000, seed: 9)
        try later.withUnsafeBytes { try pair.images[0].write($0, at: 4096) }
        try pair.images[0].flush()
        pair.losePower(&random)
        let summary = try #require(try pair.recover())
        try pair.open()
        let bytes = try #require(try pair.contents()[pair.images[0].id])
        #expect(difference(bytes[4096..<54_096], from: later[...]) == nil, "\(summary)")
    }

    /// A restore is no part of the stream: a mirror that has not got it yet does not undo it.
    ///
    /// - Parameter cutShortAt: nothing in the catalog tells of it any more, and the crash comes into a later cut: at
    ///   this sync of it.
    @Test(arguments: [nil] + (1...9).map(Optional.some))
    func whatWasRestoredStays(cutShortAt: Int?) throws {
        var random = SeededRandom(seed: 6)
        let pair = try RecoveryPair(mode: .sync)
        let image = pair.images[0]
        try pattern(40_000, seed: 1).withUnsafeBytes { try image.write($0, at: 0) }
        let nodes = try pair.catalog.read { try $0.nodes() }
        let snapshot = try pair.volume.createSnapshot(name: "before") { { nodes } }
        try pattern(40_000, seed: 2).withUnsafeBytes { try image.write($0, at: 0) }
        try pair.untilLevel()
        let node = try #require(
            try pair.catalog.read { try $0.snapshotNodes(snapshot.id) }.first {
                $0.node.imageID == image.id
            })
        try pair.volume.restore(
            image: image.id, to: try #require(node.layerID), sizeBytes: node.sizeBytes,
            keepAs: "kept", nodes: nodes)
        if let cutShortAt {
            try pair.volume.deleteSnapshot(name: "kept")
            try pattern(100, seed: 3).withUnsafeBytes { try image.write($0, at: 45_056) }
            try image.flush()
            pair.disk.powerOff(atSync: cutShortAt)
            _ = try? pair.volume.createSnapshot(name: "later") { { nodes } }
        }
        pair.losePower(&random)
        _ = try #require(try pair.recover())
        try pair.open()
        let bytes = try #require(try pair.contents()[image.id])
        #expect(difference(bytes[..<40_000], from: pattern(40_000, seed: 1)[...]) == nil)
    }

    /// However soon after the pool is closed: the next open takes no change either.
    @Test func whoWasToldThatItWasReplacedKnowsItWhenItIsOpenedAgain() throws {
        let pair = try RecoveryPair(mode: .flush)
        pair.hub.fence(RecoveryPair.first, reason: "another took over")
        #expect(pair.hub.close())
        #expect(try pair.catalog.read { try $0.fence() } != nil)
    }

    /// A handover that the power cuts short leaves a primary, whose mirror holds what was written and not flushed here.
    @Test func whoWasToTakeOverIsAskedAllTheSame() throws {
        var random = SeededRandom(seed: 8)
        let pair = try RecoveryPair(mode: .sync)
        let bytes = pattern(50_000, seed: 9)
        try bytes.withUnsafeBytes { try pair.images[0].write($0, at: 4096) }
        try pair.untilLevel()
        try pair.hub.release(RecoveryPair.first)
        pair.hub.keepHouse()
        #expect(pair.hub.all[0].record.isWhole && pair.hub.all[0].record.stale == nil)
        pair.losePower(&random)
        _ = try #require(try pair.recover())
        try pair.open()
        let there = try #require(try pair.contents()[pair.images[0].id])
        #expect(difference(there[4096..<54_096], from: bytes[...]) == nil)
    }

    /// Semi-sync promises what the mirror's machine holds: one that went down with the primary may lack
    /// what was flushed.
    @Test func aMirrorThatLostSomethingItselfIsNotTakenFrom() throws {
        var random = SeededRandom(seed: 7)
        let pair = try RecoveryPair(mode: .semiSync)
        try pair.untilLevel()
        let flushed = pattern(50_000, seed: 9)
        try flushed.withUnsafeBytes { try pair.images[0].write($0, at: 4096) }
        // Received, and not durable there.
        try pair.goOn { $0.hub.all[0].driver.map { !($0.step()) } ?? false }
        try pair.images[0].flush()
        pair.losePower(&random)
        pair.mirror.losePower(&random)
        _ = try #require(try pair.recover())
        try pair.open()
        let bytes = try #require(try pair.contents()[pair.images[0].id])
        #expect(difference(bytes[4096..<54_096], from: flushed[...]) == nil)
    }

    /// What it lost it has lost until it was given all of it again, not only until somebody connects.
    @Test func whoLostSomethingIsTrustedWhenItHasItAgain() throws {
        var random = SeededRandom(seed: 13)
        let pair = try RecoveryPair(mode: .semiSync)
        try pair.untilLevel()
        _ = try pattern(50_000, seed: 9).withUnsafeBytes { try pair.images[0].write($0, at: 4096) }
        try pair.goOn { $0.hub.all[0].driver.map { !($0.step()) } ?? false }
        pair.mirror.losePower(&random)
        var hello = pair.hub.source.hello(for: Self.target, having: nil)
        hello.givenThrough = pair.hub.stream.lastSequence
        func keptAll() throws -> Bool {
            let target = pair.mirror.open()
            defer { target.disconnect() }
            return try target.connect(hello).keptAllReceived
        }
        let driver = try #require(pair.hub.all[0].driver)
        driver.pause()
        try pair.goOn { _ in driver.snapshot.state == .paused }
        for _ in 0..<2 { #expect(try !keptAll()) }
        driver.resume()
        for _ in 0..<100 where !pair.hub.all[0].isWithheld {
            driver.tick()
            driver.step()
        }
        #expect(pair.hub.all[0].isWithheld, "no write is answered for it")
        try pair.untilLevel()
        #expect(!pair.hub.all[0].isWithheld)
        driver.pause()
        try pair.goOn { _ in driver.snapshot.state == .paused }
        #expect(try keptAll())
    }

    /// A process that is killed leaves its writes to the machine. What goes down with that before the mirror
    /// is in step again is on the mirror.
    @Test func whatAKilledProcessWroteComesBack() throws {
        var random = SeededRandom(seed: 8)
        let pair = try RecoveryPair(mode: .sync)
        for _ in 0..<20 { try write(pair, &random) }
        try pair.untilLevel()
        let expected = try pair.contents()
        for _ in 0..<2 {
            pair.volume.abandon()
            try pair.open()
        }
        pair.losePower(&random)
        let summary = try #require(try pair.recover())
        #expect(summary.blocks > 0, "something was lost")
        try pair.open()
        for (id, bytes) in try pair.contents() {
            #expect(
                difference(bytes, from: try #require(expected[id])) == nil, "image \(id.rawValue)")
        }
    }

    /// After a loss of power a clock may say what it said at the one before.
    @Test func eachTimeWhatTheDiskHadIsKept() throws {
        var random = SeededRandom(seed: 9)
        let pair = try RecoveryPair(mode: .sync)
        let startNs = pair.disk.now()
        for _ in 0..<2 {
            try pair.goOn { $0.hub.all[0].driver?.snapshot.state == .streaming }
            for _ in 0..<20 { try write(pair, &random) }
            try pair.untilLevel()
            // After a crash it is waited for again when it was in step for a while.
            try pair.goOn {
                $0.disk.advance(ns: 1_000_000_000)
                return try $0.catalog.read { try $0.targets() }.first?.isWhole ?? false
            }
            pair.losePower(&random)
            pair.disk.advance(ns: startNs - pair.disk.now())
            #expect(try #require(try pair.recover()).keptSnapshot != nil)
            try pair.open()
        }
        let kept = try pair.catalog.read { try $0.snapshots() }.filter {
            $0.origin == SnapshotRecord.divergedOrigin
        }
        #expect(kept.count == 2)
    }

    /// A mirror that was promoted says so when it is asked: from then on nothing is changed here.
    @Test func whoWasReplacedServesNobody() throws {
        var random = SeededRandom(seed: 10)
        let pair = try RecoveryPair(mode: .sync)
        try write(pair, &random)
        try pair.untilLevel()
        pair.losePower(&random)
        let promoted = try RecoveredMirror(
            store: try pair.mirror.openStore(), runsInBackground: false)
        _ = try promoted.promote(NewGeneration(cause: .forced))
        promoted.close()
        let pull = try #require(try RecoveryPull(try pair.openStore()))
        let record = try #require(pull.sources.first)
        guard case .nothing = pull.ask(record, pair.source()) else {
            throw Violation("there is something to take")
        }
        try pull.goOn()
        try pair.open()
        #expect(pair.volume.fenceReason != nil)
    }

    /// A mirror whose machine went down, too, is further, and lacks what it had in memory: another that has
    /// all of it is taken from, or waited for.
    @Test func whoKeptWhatItHadInMemoryIsTakenFrom() throws {
        var random = SeededRandom(seed: 11)
        let pair = try RecoveryPair(mode: .semiSync)
        pair.losePower(&random)
        let pull = try #require(try RecoveryPull(try pair.openStore()))
        let record = try #require(pull.sources.first)
        func source(at sequence: UInt64, keptAll: Bool) -> RecoveryPull.Source {
            var report = ReplicaReport(
                incarnationID: "i", generation: nil, checkpoint: SequenceNumber(rawValue: sequence),
                snapshots: [], staging: nil)
            report.keptAllReceived = keptAll
            return (record, report)
        }
        let (torn, whole) = (source(at: 9, keptAll: false), source(at: 5, keptAll: true))
        #expect(pull.best(of: [torn, whole], silent: []) == 1)
        #expect(pull.best(of: [torn], silent: [record]) == nil)
        #expect(pull.best(of: [torn], silent: []) == 0)
        #expect(pull.best(of: [whole], silent: [record]) == 0)
    }

    /// What one mirror promised more of is taken from there, and what another has does not undo it.
    @Test func whatCameFromOneIsNotUndoneByAnother() throws {
        var random = SeededRandom(seed: 12)
        let pair = try RecoveryPair(mode: .flush, beside: .async)
        let image = pair.images[0].id
        try pair.hub.update(
            TargetImageRecord(
                targetID: RecoveryPair.second, imageID: image, mode: "semi-sync", onTimeout: nil))
        try pair.goOn { $0.hub.all.allSatisfy(\.record.isWhole) }
        for image in pair.images {
            let bytes = pattern(9000, seed: 7)
            _ = try bytes.withUnsafeBytes { try image.write($0, at: 40_000) }
        }
        // The first hears of what is flushed, the second of all.
        try pair.untilLevel(RecoveryPair.second)
        let had = try pair.contents()
        pair.losePower(&random)
        _ = try #require(try pair.recover())
        try pair.open()
        let has = try #require(try pair.contents()[image])
        #expect(difference(has, from: try #require(had[image])) == nil)
        let other = try #require(pair.images.last)
        let isAsBefore = try pair.contents()[other.id] != had[other.id]
        #expect(isAsBefore, "nobody promised anything of what was not flushed")
    }
}
