// Machines with copies of one pool, the network between them, a clock and clients, in one thread and from one
// seed: production code all of it but the disks, the clock and the names' tree.
//
//   client ─► Volume ─► WriteStream ─► SessionDriver ─► network ─► MirrorTarget ─► Volume
//               │           TargetHub ─┘                                │
//          this machine's disk                                 that machine's disk
//
// Of two kinds: in `mirrors` the first machine is the primary all the time; in `roles` mirrors are promoted, with
// their primary's help or without it, primaries are cut off and go on, and rejoin what replaced them.
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
    package enum Kind: String, CaseIterable, Sendable { case mirrors, roles }

    package struct Options: Sendable {
        package var kind = Kind.mirrors
        package var bug: SimulatedBug?
        package var isTracing = false
        /// What is traced is printed as it comes.
        package var isPrinting = false
        /// Small, so that it overflows now and then.
        package var ringBytes = 128 << 10
        package init() {}
    }

    let options: Options
    let seed: UInt64
    var random: SeededRandom
    /// Of the steps: where they are few, a session gets far; where they are many, one meets the other.
    let faultsPermille: Int
    /// What a session does at most while its turn lasts.
    let deliveries: Int
    private(set) var sites: [SimulatedSite] = []
    let network: SimulatedNetwork
    /// The stories by the generations that are in them.
    var branches: [String: SimulatedBranch] = [:]
    var nextName = 0
    /// Others go on while a call is on its way; not while one such call waits already.
    var isNested = false
    /// All faults are over, and persons wait for nothing.
    var isSettling = false
    /// What failed meanwhile.
    var nestedFailure: (any Error)?
    /// Noted where nothing can be thrown.
    var seenViolation: Violation?

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
        let primary = try SimulatedPool(
            path: "/primary", id: "primary", disk: SimulatedDisk(misbehaviour: misbehaviour))
        var mirrors: [(SimulatedPool, SimulatedTargetKind)] = []
        for number in 0..<[1, 1, 2, 3][random.below(4)] {
            let kind = SimulatedTargetKind.any(&random)
            let name = "mirror\(number)"
            let pool = try SimulatedPool(path: "/" + name, id: name, disk: SimulatedDisk()) {
                try $0.setReplica(ReplicaRecord(primaryPoolID: "primary"))
                // As a mirror is laid out: what led to its content is not there yet.
                if options.kind == .roles { try $0.setHistory(GenerationHistory()) }
            }
            mirrors.append((pool, kind))
        }
        network = SimulatedNetwork(
            sites: mirrors.count + 1, isPerfect: options.kind == .mirrors, &random)
        var state = ModelPool()
        state.names[.root] = SimulatedPool.root
        let branch = SimulatedBranch(state)
        sites = [
            SimulatedSite(self, number: 0, pool: primary, branch: branch, isPrimary: true)
        ]
        for (index, (pool, _)) in mirrors.enumerated() {
            sites.append(
                SimulatedSite(
                    self, number: index + 1, pool: pool, branch: branch, isPrimary: false))
        }
        try noteGeneration(of: sites[0], branch)
        try sites[0].startPrimary()
        for (index, (_, kind)) in mirrors.enumerated() {
            try sites[0].addTarget(sites[index + 1], kind)
        }
    }

    // MARK: Steps

    /// One client operation, delivery, timer or fault.
    package func step(_ number: Int) throws {
        stepNumber = number
        random = SeededRandom(seed: seed &* 0x9e37_79b9_7f4a_7c15 &+ UInt64(number))
        do {
            switch options.kind {
            case .mirrors: try run()
            case .roles: try runRoles()
            }
            if let failure = nestedFailure {
                nestedFailure = nil
                throw failure
            }
        } catch let violation as Violation { throw violation } catch {
            nestedFailure = nil
            // What fails without power fails for a reason.
            guard sites.contains(where: { $0.pool.disk.isPoweredOff }) else {
                throw Violation("an operation failed: \(error)")
            }
            count("power.failedOperation")
        }
        misbehave()
        try comeBack()
        try checkInvariants()
    }

    private func run() throws {
        let site = sites[0]
        guard site.primary != nil else {
            // A pool may wait for who has what it lost.
            if random.chance(30) {
                for other in sites where other !== site { try endFaults(other) }
            }
            return try site.startPrimary()
        }
        switch random.below(1000) {
        case ..<300: try site.deliver(to: site.anyOther(), atMost: deliveries)
        case ..<380: try timer()
        case ..<450: try behind(site)
        case ..<500: try checkMirror(site.anyOther())
        case ..<510: try endFaults(site.anyOther())
        case ..<(510 + faultsPermille): try fault()
        default: try site.clientStep()
        }
    }

    func trace(_ text: @autoclosure () -> String) {
        guard options.isTracing else { return }
        let line = "\(stepNumber): \(text())"
        guard options.isPrinting else { return traceLines.append(line) }
        print(line)
    }
    func count(_ what: String) { coverage[what, default: 0] += 1 }

    func noteTransition(
        _ site: SimulatedSite, _ from: TargetSession.State?, _ session: TargetSession?
    ) {
        guard let from, let session, from != session.state else { return }
        count("\(from.rawValue) → \(session.state.rawValue)")
        let reason = session.state == .disconnected ? session.outage.map { ": \($0.reason)" } : nil
        trace("\(site.path): \(from.rawValue) → \(session.state.rawValue)\(reason ?? "")")
    }

    /// Nothing holds any of it any more: connections know both ends.
    package func end() {
        for site in sites { (site.link, site.target, site.primary) = (nil, nil, nil) }
    }

    // MARK: Timers, and what the machines do when nobody asks them

    func timer() throws {
        let ms = random.chance(20) ? 1000 + random.below(8000) : 1 + random.below(300)
        advance(ns: Int64(ms) * 1_000_000)
        for site in sites where !site.isStopped { try site.keepHouse() }
    }

    func advance(ns: Int64) { for site in sites { site.pool.disk.advance(ns: ns) } }

    func behind(_ site: SimulatedSite) throws {
        switch random.below(7) {
        case 0: _ = try site.primary?.volume.mergeStep()
        case 1: _ = try site.primary?.volume.coverNextLayer()
        case 2: try site.settle()
        case 3: try site.commitNames()
        case 4: _ = try? site.anyOther().target?.applyStep()
        case 5: _ = site.anyOther().target?.syncStep()
        default: _ = try? site.anyOther().target?.pool?.volume.mergeStep()
        }
    }

    // MARK: Targets

    /// What a primary's session talks to.
    func open(
        _ record: TargetRecord, for primary: SimulatedSite
    ) throws(TargetError) -> any ReplicaTarget {
        guard let site = sites.first(where: { $0.path == record.address }), !site.isAway,
            network.reaches(primary.number, site.number), !site.isStopped
        else {
            throw TargetError(.absent, "\(record.address) is not mounted")
        }
        var mirrorOptions = MirrorOptions()
        mirrorOptions.runsInBackground = false
        mirrorOptions.historyMs = nil
        mirrorOptions.journal = JournalOptions(segmentBytes: 64 << 10)
        mirrorOptions.settleBytes = 128 << 10
        let pool = site.pool
        let hasRoles = options.kind == .roles
        // Who connects anew is served; who had it open before finds that it is not.
        if hasRoles { site.endConnection() }
        var look: (@Sendable () -> PoolSight?)?
        if hasRoles { look = { [unowned site] in site.sight } }
        let opened = MirrorTarget(
            path: site.path, primaryPoolID: primary.pool.id, poolID: record.poolID,
            disk: pool.disk, options: mirrorOptions,
            look: look
        ) { () throws(PoolError) in try pool.openStore() }
        if !site.isPrimary { site.target = opened }
        site.isLatched = site.failsSyncs
        var target: any ReplicaTarget = opened
        if let bug = options.bug { target = BuggyTarget(opened, bug, primary) }
        guard hasRoles else { return target }
        let link = SimulatedLink(self, from: primary, to: site, opened, target)
        site.link = link
        return network.isFar ? SimulatedPipe(self, link) : link
    }

    /// A primary's process is gone.
    func connectionsEnd(of primary: SimulatedSite) {
        for site in sites where site !== primary {
            guard options.kind == .roles else {
                // They were open in the same process.
                site.target = nil
                continue
            }
            guard let link = site.link, link.from === primary else { continue }
            // The other side hears of it at once, or when somebody else comes.
            if random.chance(50) { site.endConnection() } else { link.cut() }
        }
    }
}
