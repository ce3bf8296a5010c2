// What is between a primary and its targets: calls that take their time, that do not arrive, or whose answer does
// not; parts of the network that do not see each other.
//
// While a call is on its way the others go on: clients write, timers run, other sessions have their turn. A
// target whose processes are stopped answers late, or not any more.

import BlockCore
import Replication
import SystemIO
import TestSupport

@testable import Targets

final class SimulatedNetwork {
    private let size: Int
    private var isCut: [Bool]
    /// Of the calls.
    let delayPermille: Int
    private(set) var lossPermille: Int
    let repeatPermille: Int
    /// More is given while something is on its way (SimulatedPipe).
    let isFar: Bool

    init(sites: Int, isPerfect: Bool, _ random: inout SeededRandom) {
        size = sites
        isCut = Array(repeating: false, count: sites * sites)
        guard !isPerfect else {
            (delayPermille, lossPermille, repeatPermille, isFar) = (0, 0, 0, false)
            return
        }
        delayPermille = [0, 20, 60, 150][random.below(4)]
        lossPermille = [0, 1, 5, 20][random.below(4)]
        repeatPermille = [0, 20][random.below(2)]
        isFar = random.chance(50)
    }

    func reaches(_ a: Int, _ b: Int) -> Bool { !isCut[a * size + b] }

    func set(_ a: Int, _ b: Int, isCut cut: Bool) {
        isCut[a * size + b] = cut
        isCut[b * size + a] = cut
    }

    func isolate(_ site: Int) {
        for other in 0..<size where other != site { set(site, other, isCut: true) }
    }
    func heal(_ site: Int) { for other in 0..<size { set(site, other, isCut: false) } }
    func heal() { isCut = Array(repeating: false, count: size * size) }
    /// All faults are over: what is tried once has to go well, such as fetching what a disk lost.
    func endFaults() {
        heal()
        lossPermille = 0
    }
    var isWhole: Bool { !isCut.contains(true) }
}

/// One connection of a session to its target. It also watches who writes there (G6).
final class SimulatedLink: ReplicaTarget, @unchecked Sendable {  // one thread
    private unowned let world: SimulatedWorld
    unowned let from: SimulatedSite
    unowned let site: SimulatedSite
    private let served: MirrorTarget
    private let inner: any ReplicaTarget
    private var isBroken = false
    private var hello: PrimaryHello?

    init(
        _ world: SimulatedWorld, from: SimulatedSite, to site: SimulatedSite,
        _ served: MirrorTarget, _ inner: any ReplicaTarget
    ) {
        self.world = world
        self.from = from
        self.site = site
        self.served = served
        self.inner = inner
    }

    /// Nothing gets through any more; the other side does not know yet.
    func cut() { isBroken = true }

    private func lost() -> TargetError {
        isBroken = true
        world.count("network.lost")
        return TargetError(.io, "\(site.path) does not answer")
    }

    private func passes() -> Bool {
        !isBroken && !site.isAway && !site.isStopped
            && world.network.reaches(from.number, site.number)
    }

    /// - Parameter repeats: what may reach the target twice.
    private func call<T>(
        repeats: Bool = false, _ body: () throws(TargetError) -> T
    ) throws(TargetError) -> T {
        let network = world.network
        if site.isStopped || world.random.below(1000) < network.delayPermille {
            world.count(site.isStopped ? "network.stopped" : "network.delayed")
            world.meanwhile(on: from, callTo: site)
        }
        guard passes() else { throw lost() }
        let fate = world.random.below(1000)
        if fate < network.lossPermille { throw lost() }
        if repeats, world.random.below(1000) < network.repeatPermille {
            world.count("network.repeated")
            _ = try body()
        }
        let result = try body()
        if world.random.below(1000) < network.delayPermille {
            world.count("network.delayedAnswer")
            world.meanwhile(on: from, callTo: site)
        }
        guard passes(), fate < 1000 - network.lossPermille else { throw lost() }
        return result
    }

    private func trace(_ text: @autoclosure () -> String) {
        guard world.options.isPrinting else { return }
        world.trace("\(from.path) to \(site.path): \(text())")
    }

    /// A change that the target takes.
    private func change(_ body: () throws(TargetError) -> Void) throws(TargetError) {
        try call { () throws(TargetError) in
            try body()
            guard let hello else { return }
            world.noteAccepted(hello, at: site)
        }
    }

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        try call { () throws(TargetError) in
            do throws(TargetError) {
                let report = try inner.connect(hello)
                trace("connected, at \(report.checkpoint.rawValue)")
                self.hello = hello
                world.noteConnected(hello, at: site)
                return report
            } catch {
                world.noteFollowed(site)
                world.noteRefused(error, from, hello, at: site)
                throw error
            }
        }
    }

    func append(_ batch: RecordBatch) throws(TargetError) {
        trace("append \(batch.firstSequence.rawValue)...\(batch.lastSequence.rawValue)")
        try change { () throws(TargetError) in try inner.append(batch) }
    }
    /// What came with the last answer.
    var durableThrough: SequenceNumber? { inner.durableThrough }
    func flush() throws(TargetError) -> SequenceNumber {
        let through = try call(repeats: true) { () throws(TargetError) in try inner.flush() }
        trace("flushed \(through.rawValue)")
        return through
    }
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        trace("staging \(id), shape of \(shape.sequence.rawValue)")
        try change { () throws(TargetError) in try inner.beginStaging(id: id, shape: shape) }
    }
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        trace("stage \(batch.firstSequence.rawValue)...\(batch.lastSequence.rawValue)")
        try change { () throws(TargetError) in try inner.stage(batch, number: number) }
    }
    func syncStaging() throws(TargetError) {
        try call(repeats: true) { () throws(TargetError) in try inner.syncStaging() }
    }
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        trace("commit at \(sequence.rawValue) \(snapshot.map { "as \($0.name)" } ?? "")")
        try change { () throws(TargetError) in
            defer { world.noteCommitted(site) }
            try inner.commitStaging(id: id, at: sequence, snapshot: snapshot)
        }
    }
    func blockHashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64] {
        try call(repeats: true) { () throws(TargetError) in
            try inner.blockHashes(of: image, in: range)
        }
    }
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try call(repeats: true) { () throws(TargetError) in try inner.allocatedBlocks() }
    }

    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        try call(repeats: true) { () throws(TargetError) in
            try inner.read(range, of: image, into: buffer)
        }
    }
    func shape() throws(TargetError) -> PoolShape {
        try call(repeats: true) { () throws(TargetError) in try inner.shape() }
    }

    func disconnect() {
        guard passes() else { return isBroken = true }
        inner.disconnect()
        if site.target === served { site.target = nil }
        isBroken = true
    }

    /// The target's own process ends it.
    func end() {
        isBroken = true
        served.disconnect()
    }
}

extension SimulatedSite {
    /// Whoever has it open finds that it is not any more.
    func endConnection() {
        link?.end()
        link = nil
        target = nil
    }
}

extension SimulatedWorld {
    /// A call to `site` is on its way.
    func meanwhile(on primary: SimulatedSite, callTo site: SimulatedSite) {
        guard !isNested else { return }
        isNested = true
        defer { isNested = false }
        for _ in 0..<1 + random.below(site.isStopped ? 12 : 5) {
            do { try stepMeanwhile(primary, site) } catch {
                nestedFailure = nestedFailure ?? error
                return
            }
        }
        // It goes on, or its connection ends.
        if site.isStopped, random.chance(50) { site.isStopped = false }
    }

    private func stepMeanwhile(_ primary: SimulatedSite, _ site: SimulatedSite) throws {
        guard primary.primary != nil else { return }
        switch random.below(10) {
        case ..<5: try primary.clientStep()
        case ..<7:
            advance(ns: Int64(1 + random.below(site.isStopped ? 4000 : 900)) * 1_000_000)
            for each in sites where !each.isStopped { try each.keepHouse() }
        case 7:
            // Not the session that is waiting.
            let other = primary.anyOther()
            if other !== site { try primary.deliver(to: other, atMost: 3) }
        default:
            guard let other = runningPrimaries.first(where: { $0 !== primary }) else { return }
            if random.chance(50) {
                try other.clientStep()
            } else {
                try other.deliver(to: other.anyOther(), atMost: 3)
            }
        }
    }

    var runningPrimaries: [SimulatedSite] {
        sites.filter { $0.primary != nil && !$0.isStopped }
    }
}
