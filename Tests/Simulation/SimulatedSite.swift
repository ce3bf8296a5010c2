// One machine with a copy of the pool: its disk, what the model knows of what is there, and what runs on it,
// a primary with its clients, or a mirror that a primary elsewhere has open.

import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Volume

@testable import Targets

final class SimulatedSite: @unchecked Sendable {  // one thread
    /// What runs on a primary's machine.
    struct Primary {
        let store: PoolStore
        let volume: Volume
        let stream: WriteStream
        let hub: TargetHub
        let keeper: any TargetKeeper
    }

    unowned let world: SimulatedWorld
    let number: Int
    let pool: SimulatedPool
    var path: String { pool.path }

    // The machine.
    var isAway = false
    /// Its processes do nothing until they are let go on.
    var isStopped = false
    var failsSyncs = false
    /// How often it lost power.
    private(set) var powerLosses = 0

    // As a mirror.
    /// While a session has it open.
    var target: MirrorTarget?
    /// The session's way to it.
    var link: SimulatedLink?
    /// A sync failed, or may have, since it was opened: it stays out until it is opened anew.
    var isLatched = false
    /// What it holds whatever becomes of its machine: answers were given for that.
    var durableFloor: UInt64 = 0
    /// What it holds as long as its machine has power.
    var liveFloor: UInt64 = 0
    var floor: UInt64 { max(durableFloor, liveFloor) }
    /// What it showed when it was looked at last, and its disk's changes then.
    var checked: (change: Int, sequence: UInt64) = (-1, 0)
    /// The story that its content is of; nil where it has none yet.
    var content: SimulatedBranch?
    /// The story that a promotion under way begins.
    var heir: SimulatedBranch?
    /// Snapshots of what it had and its primary had not: they stay.
    var kept: [String: SimulatedKept] = [:]
    /// Its primary went on without what it may have had beyond it: that is to be kept here, when it follows
    /// a story that has what that primary did then.
    var mustKeep: SimulatedDebt?
    /// The oldest that may write here: what it followed, or began, last.
    var generation: (number: UInt64, id: String) = (0, "")

    // As a primary.
    var primary: Primary?
    /// What it makes, while it is one.
    var branch: SimulatedBranch
    /// As the catalog has it.
    var isPrimary: Bool
    var targetIDs: [TargetID?] = []
    /// A target told it that it was replaced.
    var wasToldOfFence = false
    /// Sessions that were sent away, when they were looked at last, and by whom.
    var fencedSessions: [ObjectIdentifier: Int] = [:]
    /// By the snapshot's name: what it shows.
    var snapshots: [String: (cut: UInt64, state: ModelPool, isWhole: Bool)] = [:]
    /// What must be there after a loss of power: each sector one of these.
    var floorState = ModelPool()
    var sinceFloor: [ImageID: [ModelImage]] = [:]
    /// Up to where it was told that an image is durable.
    var answered: [ImageID: UInt64] = [:]
    /// Names that are not in the catalog yet.
    var pendingNames: [NameChange] = []
    var pendingSequence = SequenceNumber.zero
    var durableNames: [NodeID: NodeRecord] = [:]
    /// A snapshot, a restore, a clone on its way when the power goes.
    var underWay: (name: String, state: ModelPool)?
    var restoring: (id: ImageID, source: ModelImage, keepAs: String)?
    var cloning: ModelImage?
    /// Its machine went down, and what a target has is being fetched, or was.
    var recovery = SimulatedPull()
    /// Of those that it went on without: how far their promises went then. They are of before.
    var goneOnWithout: [Int: UInt64] = [:]
    var deleted: Set<ImageID> = []
    /// It was promoted, and not opened since.
    var isNew = false
    /// How the primary ended the last time.
    enum End { case clean, killed, power }
    var end = End.clean
    /// Writes and fsyncs that were answered in this step.
    var answers: [SimulatedAnswer] = []
    var nextNode: UInt64 = 2
    var nextName: Int {
        get { world.nextName }
        set { world.nextName = newValue }
    }

    init(
        _ world: SimulatedWorld, number: Int, pool: SimulatedPool, branch: SimulatedBranch,
        isPrimary: Bool
    ) {
        self.world = world
        self.number = number
        self.pool = pool
        self.branch = branch
        self.isPrimary = isPrimary
        floorState = branch.history.current
        durableNames = floorState.names
    }

    var random: SeededRandom {
        get { world.random }
        _modify { yield &world.random }
    }
    func trace(_ text: @autoclosure () -> String) { world.trace(text()) }
    func count(_ what: String) { world.count(what) }

    // MARK: Targets

    func attached(_ other: SimulatedSite) -> AttachedTarget? {
        guard let hub = primary?.hub, other.number < targetIDs.count,
            let id = targetIDs[other.number]
        else { return nil }
        return hub.target(id)
    }

    /// Those that it is to replicate to, in the order of the machines.
    var targets: [(site: SimulatedSite, target: AttachedTarget)] {
        world.sites.compactMap { site in attached(site).map { (site, $0) } }
    }

    private func readTargets() {
        targetIDs = world.sites.map { _ in nil }
        for target in primary?.hub.all ?? [] {
            guard let site = world.sites.first(where: { $0.path == target.record.address }) else {
                continue
            }
            targetIDs[site.number] = target.record.id
        }
    }

    func addTarget(_ site: SimulatedSite, _ kind: SimulatedTargetKind) throws {
        var record = TargetRecord(
            address: site.path, poolID: site.pool.id, mode: .async, timeoutMs: 5000, addedNs: 0)
        kind.set(&record)
        _ = try primary!.hub.add(record)
        readTargets()
        count("target.\(kind)")
    }

    /// What it has stays there; added again, it is found to have something.
    func removeTarget(_ site: SimulatedSite) throws {
        guard let hub = primary?.hub, let target = attached(site) else { return }
        let (detaches, driver) = (random.chance(40), target.driver)
        trace("\(site.path) is no target of \(path) any more\(detaches ? ", at once" : "")")
        let before = driver?.snapshot.state
        try hub.remove(target.record.id, detaches: detaches)
        // Its thread was left to itself, and ends when the target lets it.
        while driver?.step() ?? false {}
        world.noteTransition(site, before, driver?.snapshot)
        readTargets()
        count("target.removed")
    }

    /// One of the other machines.
    func anyOther() -> SimulatedSite {
        let index = random.below(world.sites.count - 1)
        return world.sites[index < number ? index : index + 1]
    }

    // MARK: As a primary

    /// - Parameter connects: otherwise it only writes down what targets lack.
    func startPrimary(connects: Bool = true) throws {
        trace("open the primary\(number == 0 ? "" : " \(path)")")
        let store = try pool.openStore()
        guard try takeBack(store, connects: connects) else { return }
        let volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        let stream = volume.attachStream(capacityBytes: world.options.ringBytes)
        var hubOptions = HubOptions()
        hubOptions.runsInBackground = false
        hubOptions.connects = connects
        hubOptions.session.chunkBlocks = 4
        hubOptions.session.blocksPerSync = 12
        let hub = try TargetHub(
            volume: volume, stream: stream, suspects: volume.suspects(), options: hubOptions
        ) { [unowned self] (record) throws(TargetError) in try world.open(record, for: self) }
        let keeper: any TargetKeeper =
            world.options.bug == .clearsMarksEarly ? CarelessKeeper(hub) : hub
        volume.attach(keeper)
        try recoverModel(volume, wasUnclean: store.wasUnclean)
        primary = Primary(
            store: store, volume: volume, stream: stream, hub: hub, keeper: keeper)
        readTargets()
        hub.start(names: { [unowned self] in
            let nodes = Array(branch.history.current.names.values)
            return { nodes }
        })
    }

    func closePrimary() throws {
        guard let primary else { return }
        try commitNames()
        let isSound = primary.hub.close()
        try primary.volume.close()
        guard isSound else {
            let what = "what mirrors lack cannot be written down"
            // It is not closed cleanly then, and the next open finds a loss of power.
            if pool.disk.isPoweredOff { throw TargetError(.io, what) }
            throw Violation(what)
        }
        try primary.store.close(clean: true, lastSequence: primary.volume.sequence)
        try checkAnswers()
        self.primary = nil
        end = .clean
        wasToldOfFence = false
    }

    /// The process ends, whatever it was doing.
    func dropPrimary(_ end: End) {
        primary?.volume.abandon()
        primary = nil
        self.end = end
        wasToldOfFence = false
        world.connectionsEnd(of: self)
    }

    /// A session's turn.
    func deliver(to site: SimulatedSite, atMost limit: Int) throws {
        guard let driver = attached(site)?.driver else { return }
        for _ in 0..<1 + random.below(limit) {
            let before = driver.snapshot.state
            guard driver.step() else { break }
            world.noteTransition(site, before, driver.snapshot)
            // Who counts now may not count after the next.
            try checkAnswers()
        }
    }

    /// What the hub's thread does.
    func keepHouse() throws {
        try checkAnswers()
        let before = world.sites.map { attached($0)?.driver?.snapshot.state }
        primary?.hub.keepHouse()
        for (site, before) in zip(world.sites, before) {
            world.noteTransition(site, before, attached(site)?.driver?.snapshot)
        }
    }

    func settle() throws {
        guard let volume = primary?.volume else { return }
        for id in volume.imageIDs.sorted() {
            try volume.settle(try volume.image(id), all: random.chance(50))
        }
        count("settle")
    }

    // MARK: As a mirror

    /// An answer was given that it was waited for.
    /// - Parameter powerLosses: when the request came: what it lost while others were waited for was
    ///   never promised.
    func promise(
        _ sequence: UInt64, _ mode: ReplicationMode, isFlush: Bool, powerLosses: Int
    ) {
        switch mode {
        case .async: return
        case .flush, .sync:
            if isFlush { durableFloor = max(durableFloor, sequence) }
        case .semiSync: break
        }
        // What it acknowledged before it lost power, and nobody knows of that yet, it did not promise to keep.
        guard target != nil else { return }
        // A disk whose syncs fail forgets what it was asked to keep.
        guard mode != .flush, powerLosses == self.powerLosses, !failsSyncs, !isLatched else {
            return
        }
        liveFloor = max(liveFloor, sequence)
    }

    func forgetPower() {
        liveFloor = 0
        // What it showed last may have been in its memory alone.
        checked.sequence = min(checked.sequence, durableFloor)
        mustKeep = nil
        recovery.isOwed = true
        powerLosses += 1
        pool.losePower(&random)
    }

    func failSyncs(below part: String) {
        pool.disk.failSyncs { $0.contains(part) }
        failsSyncs = true
        isLatched = true
        liveFloor = 0
    }

    func endFaults() {
        pool.disk.failSyncs { _ in false }
        pool.disk.limitSpace(toBytes: .max)
        failsSyncs = false
        isAway = false
        isStopped = false
    }

    /// It may fail to show anything.
    var isIll: Bool {
        pool.disk.isPoweredOff || pool.disk.spaceLeftBytes < 1 << 40 || isLatched
    }

    var sight: PoolSight? {
        guard var sight = try? pool.catalog.read({ try PoolSight($0) }) else { return nil }
        sight.isInUse = primary != nil || target?.pool != nil
        return sight
    }
}
