// A primary, its mirror, their disks, a clock and a client, in one thread and from one seed: production
// code all of it but the disks, the clock and the names' tree.
//
//   client ─► Volume ─► WriteStream ─► SessionDriver ─► MirrorTarget ─► Volume
//               │           TargetHub ─┘                     │
//          primary's disk                               mirror's disk
//
// Every step draws from a generator of its own, so that a run without some of its steps is still a run:
// what a violation does not need is left out of its trace.

import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Volume

@testable import Targets

package final class SimulatedWorld: @unchecked Sendable {  // one thread
    package struct Options: Sendable {
        package var bug: SimulatedBug?
        package var isTracing = false
        /// Small, so that it overflows now and then.
        package var ringBytes = 128 << 10
        package init() {}
    }

    /// What runs on the primary's machine.
    struct Primary {
        let store: PoolStore
        let volume: Volume
        let stream: WriteStream
        let hub: TargetHub
        let keeper: any TargetKeeper
    }

    let options: Options
    let seed: UInt64
    var random: SeededRandom
    /// Of the steps: where they are few, a session gets far; where they are many, one meets the other.
    private let faultsPermille: Int
    /// What a session does at most while its turn lasts.
    private let deliveries: Int
    let primaryPool: SimulatedPool
    let mirrors: [SimulatedMirror]
    var primary: Primary?

    // The model.
    var history: History
    /// By the snapshot's cut: what it shows.
    var snapshots: [String: (cut: UInt64, state: ModelPool, isWhole: Bool)] = [:]
    /// What the primary must have after a loss of power: each sector one of these.
    var floor = ModelPool()
    var sinceFloor: [ImageID: [ModelImage]] = [:]
    /// Names that are not in the catalog yet.
    var pendingNames: [NameChange] = []
    var pendingSequence = SequenceNumber.zero
    var durableNames: [NodeID: NodeRecord] = [:]
    /// All cuts that a mirror may show.
    var cuts: [UInt64: ModelPool] = [:]
    /// A snapshot, a restore on its way when the power goes.
    var underWay: (name: String, state: ModelPool)?
    var restoring: (id: ImageID, source: ModelImage, keepAs: String)?
    var cloning: ModelImage?
    var deleted: Set<ImageID> = []
    /// How the primary ended the last time.
    enum End { case clean, killed, power }
    var end = End.clean
    /// Writes and fsyncs that were answered in this step.
    var answers: [Answer] = []
    struct Answer {
        var sequence: SequenceNumber?
        var isFlush: Bool
        /// Of each mirror, when the request came.
        var powerLosses: [Int]
        var errno: Int32
    }
    var nextNode: UInt64 = 2
    var nextName = 0

    // What was seen.
    package private(set) var traceLines: [String] = []
    package internal(set) var coverage: [String: Int] = [:]
    private var stepNumber = 0

    package init(seed: UInt64, options: Options = Options()) throws {
        self.options = options
        self.seed = seed
        random = SeededRandom(seed: seed)
        faultsPermille = [4, 12, 30, 60][random.below(4)]
        deliveries = [3, 8, 24][random.below(3)]
        var misbehaviour = SimulatedDisk.Misbehaviour()
        if options.bug == .dirtyFileUnsynced {
            misbehaviour.skipsSync = { $0.contains("/targets/") }
        }
        primaryPool = try SimulatedPool(
            path: "/primary", id: "primary", disk: SimulatedDisk(misbehaviour: misbehaviour))
        let modes: [TargetRecord.Mode] = [.flush, .async, .sync, .semiSync, .flush]
        var mirrors: [SimulatedMirror] = []
        for number in 0..<[1, 1, 2, 3][random.below(4)] {
            mirrors.append(
                try SimulatedMirror(number: number, mode: modes[random.below(modes.count)]))
        }
        self.mirrors = mirrors
        var state = ModelPool()
        state.names[.root] = SimulatedPool.root
        history = History(state, at: 0)
        floor = state
        durableNames = state.names
        try startPrimary()
        for mirror in mirrors { try addTarget(mirror) }
    }

    // MARK: Steps

    /// One client operation, delivery, timer or fault.
    package func step(_ number: Int) throws {
        stepNumber = number
        random = SeededRandom(seed: seed &* 0x9e37_79b9_7f4a_7c15 &+ UInt64(number))
        do { try run() } catch let violation as Violation { throw violation } catch {
            // What fails without power fails for a reason.
            guard
                primaryPool.disk.isPoweredOff
                    || mirrors.contains(where: { $0.pool.disk.isPoweredOff })
            else {
                throw Violation("an operation failed: \(error)")
            }
            count("power.failedOperation")
        }
        misbehave()
        try comeBack()
        try checkInvariants()
    }

    /// Bugs that are not in what production code is given.
    private func misbehave() {
        guard let primary, options.bug != nil else { return }
        for target in primary.hub.all {
            switch options.bug {
            case .skipsDirtyMarks where target.driver?.snapshot.state == .disconnected:
                _ = primary.stream.withLegs(target.record.id) { $0.takeFirst() }
            case .staleUnrecorded where target.staleWork != nil:
                target.clearStaleWork()
                target.driver?.staleRecorded()
            default: break
            }
        }
    }

    private func run() throws {
        guard primary != nil else { return try startPrimary() }
        switch random.below(1000) {
        case ..<300: try deliver()
        case ..<380: try timer()
        case ..<450: try behind()
        case ..<500: try checkMirror(anyMirror())
        case ..<510: try endFaults(anyMirror())
        case ..<(510 + faultsPermille): try fault()
        default: try clientStep()
        }
    }

    func trace(_ text: @autoclosure () -> String) {
        guard options.isTracing else { return }
        traceLines.append("\(stepNumber): \(text())")
    }
    func count(_ what: String) { coverage[what, default: 0] += 1 }

    // MARK: Deliveries and timers

    func attached(_ mirror: SimulatedMirror) -> AttachedTarget? { primary?.hub.target(mirror.id) }
    func anyMirror() -> SimulatedMirror { mirrors[random.below(mirrors.count)] }

    private func deliver() throws {
        let mirror = anyMirror()
        guard let driver = attached(mirror)?.driver else { return }
        for _ in 0..<1 + random.below(deliveries) {
            let before = driver.snapshot.state
            guard driver.step() else { break }
            noteTransition(mirror, before, driver.snapshot.state)
        }
    }

    func noteTransition(
        _ mirror: SimulatedMirror, _ from: TargetSession.State, _ to: TargetSession.State
    ) {
        guard from != to else { return }
        count("\(from.rawValue) → \(to.rawValue)")
        trace("\(mirror.path): \(from.rawValue) → \(to.rawValue)")
    }

    private func timer() throws {
        let ms = random.chance(20) ? 1000 + random.below(8000) : 1 + random.below(300)
        advance(ns: Int64(ms) * 1_000_000)
        let before = mirrors.map { attached($0)?.driver?.snapshot.state }
        primary?.hub.keepHouse()
        for (mirror, before) in zip(mirrors, before) {
            if let before, let after = attached(mirror)?.driver?.snapshot.state {
                noteTransition(mirror, before, after)
            }
        }
    }

    func advance(ns: Int64) {
        primaryPool.disk.advance(ns: ns)
        for mirror in mirrors { mirror.pool.disk.advance(ns: ns) }
    }

    /// What the machines do when nobody asks them.
    private func behind() throws {
        switch random.below(6) {
        case 0: _ = try primary?.volume.mergeStep()
        case 1: _ = try primary?.volume.coverNextLayer()
        case 2: try settle()
        case 3: try commitNames()
        case 4: _ = try? anyMirror().target?.applyStep()
        default: _ = try? anyMirror().target?.pool?.volume.mergeStep()
        }
    }

    private func settle() throws {
        guard let volume = primary?.volume else { return }
        for id in volume.imageIDs.sorted() {
            try volume.settle(try volume.image(id), all: random.chance(50))
        }
        count("settle")
    }

    // MARK: The primary's machine

    func startPrimary() throws {
        trace("open the primary")
        let store = try primaryPool.openStore()
        let volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        let stream = volume.attachStream(capacityBytes: options.ringBytes)
        var hubOptions = HubOptions()
        hubOptions.runsInBackground = false
        hubOptions.session.chunkBlocks = 4
        hubOptions.session.chunksPerSync = 3
        let hub = try TargetHub(
            volume: volume, stream: stream, suspects: volume.suspects(), options: hubOptions
        ) { [unowned self] (record) throws(TargetError) in try openMirror(record) }
        let keeper: any TargetKeeper =
            options.bug == .clearsMarksEarly ? CarelessKeeper(hub) : hub
        volume.attach(keeper)
        try recoverModel(volume, wasUnclean: store.wasUnclean)
        primary = Primary(
            store: store, volume: volume, stream: stream, hub: hub, keeper: keeper)
        hub.start(names: { [unowned self] in
            let nodes = Array(history.current.names.values)
            return { nodes }
        })
    }

    private func addTarget(_ mirror: SimulatedMirror) throws {
        let record = TargetRecord(
            address: mirror.path, poolID: mirror.pool.id, mode: mirror.mode,
            timeoutMs: 5000, addedNs: 0)
        mirror.id = try primary!.hub.add(record).id
        count("target.\(mirror.mode.rawValue)")
    }

    private func openMirror(
        _ record: TargetRecord
    ) throws(TargetError) -> any ReplicaTarget {
        guard let mirror = mirrors.first(where: { $0.path == record.address }), !mirror.isAway
        else {
            throw TargetError(.absent, "\(record.address) is not mounted")
        }
        var mirrorOptions = MirrorOptions()
        mirrorOptions.runsInBackground = false
        mirrorOptions.historyMs = nil
        mirrorOptions.journal = JournalOptions(segmentBytes: 64 << 10)
        let pool = mirror.pool
        let opened = MirrorTarget(
            path: mirror.path, primaryPoolID: "primary", poolID: record.poolID, disk: pool.disk,
            options: mirrorOptions
        ) { () throws(PoolError) in try pool.openStore() }
        mirror.target = opened
        mirror.isLatched = mirror.failsSyncs
        guard let bug = options.bug else { return opened }
        return BuggyTarget(opened, bug)
    }
}
