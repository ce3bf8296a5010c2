// Persons and their commands: promotions, handovers, the way back, and what to do when two pools that were one both
// are primaries. As the daemon does each, step by step, with the production code that changes a pool.

import BlockCore
import Pool
import Replication
import TestSupport
import Volume

@testable import Targets

extension SimulatedWorld {
    func runRoles() throws {
        let draw = random.below(1000)
        if draw < 12 { return try changeRoles() }
        if draw < 12 + faultsPermille { return try faultOfRoles() }
        if draw < 40 + faultsPermille, let down = anyDown() { return try start(down) }
        guard let site = anyRunning() else {
            guard let down = anyDown() else { return }
            return try start(down)
        }
        switch random.below(900) {
        case ..<300: try site.deliver(to: site.anyOther(), atMost: deliveries)
        case ..<370: try timer()
        case ..<430: try behind(site)
        case ..<480: try checkMirror(sites[random.below(sites.count)])
        case ..<495: try endFaults(sites[random.below(sites.count)])
        default: try site.clientStep()
        }
    }

    private func anyRunning() -> SimulatedSite? {
        let running = runningPrimaries
        return running.isEmpty ? nil : running[random.below(running.count)]
    }

    /// A primary whose process is not there.
    private func anyDown() -> SimulatedSite? {
        let down = sites.filter { $0.isPrimary && $0.primary == nil }
        return down.isEmpty ? nil : down[random.below(down.count)]
    }

    private func anyMirror() -> SimulatedSite? {
        let mirrors = sites.filter { !$0.isPrimary }
        return mirrors.isEmpty ? nil : mirrors[random.below(mirrors.count)]
    }

    // MARK: Faults

    private func faultOfRoles() throws {
        let site = sites[random.below(sites.count)]
        let mirror = anyMirror()
        switch random.below(100) {
        case ..<22:
            trace("the power of \(site.path) goes in a moment")
            site.pool.disk.powerOff(atSync: 1 + random.below(12))
        case ..<30: if let running = anyRunning() { kill(running) }
        case ..<36: losePower(site)
        case ..<40: for each in sites where each === site || random.chance(40) { losePower(each) }
        case ..<46:
            guard let mirror else { return }
            trace("the process that has \(mirror.path) open ends")
            count("fault.mirrorKilled")
            mirror.link?.cut()
            (mirror.link, mirror.target) = (nil, nil)
        case ..<56:
            trace("\(site.path) is cut off")
            count("fault.isolated")
            network.isolate(site.number)
        case ..<64:
            let other = site.anyOther()
            trace("\(site.path) and \(other.path) do not see each other")
            count("fault.partition")
            network.set(site.number, other.number, isCut: true)
        case ..<72:
            trace("the network is whole")
            network.heal()
        case ..<80:
            site.isStopped.toggle()
            trace("\(site.path) \(site.isStopped ? "is stopped" : "goes on")")
            count("fault.stopped")
        case ..<86: if let mirror { worsen(mirror) }
        case ..<91: if let running = anyRunning() { try restartCleanly(running) }
        case ..<96:
            if let running = anyRunning() { try pauseOrResume(running.anyOther(), of: running) }
        default: try endFaults(site)
        }
    }

    // MARK: Commands

    private func changeRoles() throws {
        let leaders = sites.filter(\.isPrimary)
        switch random.below(100) {
        case ..<22:
            guard leaders.count < 3, let mirror = anyMirror() else { return try wayBack(leaders) }
            // Often nobody can reach the old primary.
            if random.chance(50), let old = leaders.first { network.isolate(old.number) }
            try promote(mirror)
            if mirror.isPrimary, mirror.primary == nil { try start(mirror) }
        case ..<42:
            guard let running = anyRunning() else { return }
            try handOver(running, to: running.anyOther())
        case ..<75: try wayBack(leaders)
        default: try addOrChange()
        }
    }

    /// Of two primaries one is to follow the other.
    private func wayBack(_ leaders: [SimulatedSite]) throws {
        guard leaders.count > 1 else { return }
        let first = leaders[random.below(leaders.count)]
        let second = leaders.first { $0 !== first }!
        try bringTogether(first, second)
    }

    private func bringTogether(_ keep: SimulatedSite, _ other: SimulatedSite) throws {
        guard let own = keep.sight, let theirs = other.sight,
            network.reaches(keep.number, other.number), !keep.isStopped, !other.isStopped
        else { return }
        switch own.history.relation(to: theirs.history) {
        case .replacesOther:
            if options.bug == .wrongDirection { return try demote(keep, to: other) }
            try demote(other, to: keep)
        case .replacedByOther: try demote(keep, to: other)
        case .split: try resolve(keep: keep, other)
        case .same, .unrelated:
            throw Violation("\(keep.path) and \(other.path) are primaries of one generation")
        }
    }

    private func addOrChange() throws {
        guard let running = anyRunning() else { return }
        let other = running.anyOther()
        // Also of one that was replaced: then it goes on, on its own.
        if random.chance(10) { return try running.removeTarget(other) }
        guard running.primary?.volume.fenceReason == nil else { return }
        let kind = SimulatedTargetKind.any(&random)
        guard let target = running.attached(other) else {
            trace("\(other.path) is a target of \(running.path)")
            return try running.addTarget(other, kind)
        }
        if random.chance(25) { return try running.changeImage(target) }
        // With an interval, and in adaptive, all images are as one.
        if !target.images.isEmpty, kind.intervalMs != nil || kind.mode == .adaptive { return }
        trace("\(other.path) is \(kind)")
        try running.primary?.hub.update(target.record.id) { kind.set(&$0) }
    }

    // MARK: Promotion

    /// - Parameters:
    ///   - asked: of a handover.
    ///   - expected: what it has to show, and where.
    @discardableResult
    func promote(
        _ site: SimulatedSite, _ asked: NewGeneration = NewGeneration(cause: .forced),
        expecting expected: (state: ModelPool, sequence: SequenceNumber)? = nil
    ) throws -> Bool {
        guard !site.isPrimary, !site.isAway else { return false }
        site.endConnection()
        site.endFaults()
        try noteContent(site)
        guard site.content != nil else { return false }
        trace("promote \(site.path)\(expected == nil ? "" : ", handed over")")
        do {
            let mirror = try RecoveredMirror(
                store: try site.pool.openStore(), runsInBackground: false)
            defer { mirror.close() }
            try prepare(site, mirror, expected)
            _ = try mirror.promote(asked)
            misbehaveAfterPromotion(site)
            count("role.\(asked.cause.rawValue)")
        } catch let violation as Violation { throw violation } catch {
            try readRole(site)
            guard site.pool.disk.isPoweredOff else { throw error }
            throw error
        }
        try readRole(site)
        return site.isPrimary
    }

    /// Notes where the story begins that this promotion is to begin.
    private func prepare(
        _ site: SimulatedSite, _ mirror: RecoveredMirror,
        _ expected: (state: ModelPool, sequence: SequenceNumber)?
    ) throws {
        let view = try mirror.newestView()
        defer { view.release() }
        let shown = try show(view)
        try check(site, shown, at: view.sequence, "to be promoted,")
        if let (state, sequence) = expected {
            guard view.sequence == sequence, mirror.record.staging == nil else {
                throw HandoverFailure()
            }
            if let text = state.difference(from: shown) {
                throw Violation("\(site.path), handed over, \(text)")
            }
        }
        site.heir = SimulatedBranch(
            from: site.content!, at: view.sequence.rawValue, showing: shown)
    }

    private func show(_ view: MirrorView) throws -> ModelPool {
        var shown = ModelPool()
        for node in view.nodes {
            shown.names[node.node.id] = node.node
            guard let id = node.node.imageID, let content = try view.open(node) else { continue }
            shown.images[id] = try SimulatedSite.model(sizeBytes: node.sizeBytes) {
                try content.read(into: $0, at: 0)
            }
        }
        return shown
    }

    func becomePrimary(_ site: SimulatedSite, _ generation: Generation) throws {
        guard let branch = site.heir else {
            throw Violation("\(site.path) is a primary, and nobody promoted it")
        }
        site.heir = nil
        branches[generation.id] = branch
        let state = branch.history.current
        site.branch = branch
        site.content = nil
        site.floorState = state
        site.sinceFloor = [:]
        site.durableNames = state.names
        site.pendingNames = []
        (site.underWay, site.restoring, site.cloning, site.deleted) = (nil, nil, nil, [])
        site.end = .power
        site.isNew = true
        site.answers = []
        let known = state.names.keys.map(\.rawValue).max() ?? 0
        site.nextNode = (max(site.nextNode, known) >> 32 + 1) << 32
        site.snapshots = [:]
        for record in try site.pool.catalog.read({ try $0.snapshots() })
        where record.state == .complete && !record.isInternal && site.kept[record.name] == nil {
            // A cut that reached it is a snapshot for good, although its primary did not complete it.
            let cut = branch.cut(record, seenAt: branch.fork)
            if record.isOfWholePool { branch.cuts[record.sequence.rawValue] = cut }
            site.snapshots[record.name] = (
                record.sequence.rawValue, cut ?? ModelPool(), cut != nil && record.isOfWholePool
            )
        }
        (site.durableFloor, site.liveFloor) = (0, 0)
    }

    // MARK: Handover

    struct HandoverFailure: Error {}

    private func handOver(_ site: SimulatedSite, to other: SimulatedSite) throws {
        guard let primary = site.primary, primary.volume.fenceReason == nil, !other.isPrimary,
            !other.isAway, !other.isStopped, !other.isIll,
            network.reaches(site.number, other.number), let target = site.attached(other),
            let driver = target.driver, driver.snapshot.state == .streaming
        else { return }
        let wasNested = isNested
        isNested = true
        defer { isNested = wasNested }
        nextName += 1
        let note = HandoverRecord(
            poolID: other.pool.id, address: other.path, generationID: "handed over \(nextName)")
        trace("hand \(site.path) over to \(other.path)")
        count("role.handoverBegun")
        var isReleased = false
        do {
            try primary.volume.holdingChanges {
                let sequence = primary.volume.sequence
                guard drain(site, target, driver, sequence) else { throw HandoverFailure() }
                isReleased = true
                try primary.hub.release(target.record.id)
                try site.pool.catalog.write { try $0.setHandover(note) }
                guard
                    try promote(
                        other,
                        NewGeneration(
                            cause: .planned, id: note.generationID, primaryAddress: site.path),
                        expecting: (site.branch.history.current, sequence))
                else { throw HandoverFailure() }
                primary.volume.fence("handed over")
                site.wasToldOfFence = true
            }
        } catch let violation as Violation { throw violation } catch {
            if other.isPrimary, other.sight?.history.contains(note.generationID) ?? false {
                primary.volume.fence("handed over")
                site.wasToldOfFence = true
            } else {
                if try site.pool.catalog.read({ try $0.handover() }) != nil {
                    try site.pool.catalog.write { try $0.setHandover(nil) }
                }
                if isReleased { primary.hub.takeBack(target.record.id) }
            }
            if error is HandoverFailure { return }
            throw error
        }
        try site.commitNames()
        try primary.volume.flushAll()
        try primary.hub.secure(upTo: primary.volume.sequence)
        try becomeMirror(
            site, of: other, primary.store, at: primary.volume.sequence, isSettled: true)
        _ = primary.hub.close()
        try primary.volume.close()
        try primary.store.close(clean: true, lastSequence: primary.volume.sequence)
        site.primary = nil
        site.wasToldOfFence = false
        try start(other)
    }

    /// In the hold nothing may want what is held: only a stream goes on.
    private func drain(
        _ site: SimulatedSite, _ target: AttachedTarget, _ driver: SessionDriver,
        _ sequence: SequenceNumber
    ) -> Bool {
        guard let primary = site.primary else { return false }
        for _ in 0..<400 {
            guard driver.snapshot.state == .streaming else { return false }
            if primary.stream.standing(target.record.id)?.durable ?? .zero >= sequence {
                return true
            }
            driver.wantFlush(sequence)
            if !driver.step() { advance(ns: 50_000_000) }
        }
        return false
    }

    private func becomeMirror(
        _ site: SimulatedSite, of other: SimulatedSite, _ store: PoolStore,
        at sequence: SequenceNumber,
        isSettled: Bool
    ) throws {
        guard let sight = other.sight else { throw HandoverFailure() }
        defer { try? readRole(site) }
        try Demotion.run(
            store, to: sight, at: other.path, sequence: sequence, isSettled: isSettled)
    }

    /// Opens a primary; where a handover was cut off, it asks first how that ended.
    func start(_ site: SimulatedSite) throws {
        guard site.isPrimary, site.primary == nil, !site.isStopped else { return }
        if options.kind == .roles,
            let note = try site.pool.catalog.read({ try $0.handover() })
        {
            guard let other = sites.first(where: { $0.path == note.address }),
                network.reaches(site.number, other.number), !other.isAway, !other.isStopped,
                let sight = other.sight
            else { return count("role.handoverUnknown") }
            if !sight.isReplica, sight.history.contains(note.generationID) {
                trace("\(site.path) finds that it was handed over to \(other.path)")
                count("role.handoverTaken")
                try settle(site) { store, sequence, isSettled in
                    try becomeMirror(site, of: other, store, at: sequence, isSettled: isSettled)
                }
                return
            }
            count("role.handoverUndone")
            try site.pool.catalog.write { try $0.setHandover(nil) }
        }
        try site.startPrimary()
    }

    // MARK: The way back

    /// What an unclean end left open is written down, and the pool is closed; then `body` has its store.
    private func settle(
        _ site: SimulatedSite,
        _ body: (PoolStore, SequenceNumber, Bool) throws -> Void
    ) throws {
        try site.startPrimary(connects: false)
        try site.closePrimary()
        let store = try site.pool.openStore()
        let isSettled = !store.wasUnclean
        let last = try store.catalog.read { try $0.poolState() }.lastSequence
        try body(store, last, isSettled)
        try store.close(clean: isSettled, lastSequence: last)
    }

    /// A primary becomes a mirror of another.
    func demote(_ site: SimulatedSite, to other: SimulatedSite) throws {
        trace("demote \(site.path), to follow \(other.path)")
        if site.primary != nil {
            if random.chance(50) { try site.closePrimary() } else { kill(site) }
        }
        try settle(site) { store, _, isSettled in
            guard let sight = other.sight else { return }
            defer { try? readRole(site) }
            try Demotion.run(store, to: sight, at: other.path, isSettled: isSettled)
        }
        try readRole(site)
        count("role.demoted")
    }

    /// Two went on from the same place: one is kept, what the other had alone is kept there.
    private func resolve(keep: SimulatedSite, _ other: SimulatedSite) throws {
        guard let primary = keep.primary, primary.volume.fenceReason == nil,
            let theirs = other.sight?.history.current
        else { return }
        trace("split brain: \(keep.path) goes on, not \(other.path)")
        if other.primary != nil { kill(other) }
        try primary.hub.beginGeneration(after: theirs.number)
        try readRole(keep)
        count("role.resolved")
        try demote(other, to: keep)
        if let target = keep.attached(other) {
            try primary.hub.update(target.record.id) { $0.isPaused = false }
        } else {
            try keep.addTarget(other, SimulatedTargetKind(.flush))
        }
    }

    /// At the end: a mirror of a pool that was given up, or one that was laid out for another and never got
    /// anything.
    func rebindWhereSplit(_ site: SimulatedSite, to primary: SimulatedSite) throws -> Bool {
        guard let target = primary.attached(site),
            !site.isPrimary, let session = target.driver?.snapshot,
            session.isSplitBrain
                || options.kind == .roles && site.content == nil && session.state == .disconnected,
            let sight = primary.sight
        else { return false }
        trace("\(site.path) is to follow \(primary.path)")
        count("role.rebound")
        site.endConnection()
        let store = try site.pool.openStore()
        let last = try store.catalog.read { try $0.poolState() }.lastSequence
        try Demotion.rebind(store, to: sight, at: primary.path)
        try store.close(clean: !store.wasUnclean, lastSequence: last)
        try primary.primary?.hub.update(target.record.id) { $0.isPaused = false }
        return true
    }

    /// All come to follow one.
    func settleRoles() throws -> SimulatedSite {
        for site in sites {
            guard !site.pool.disk.isPoweredOff else { continue }
            if site.isPrimary, site.primary == nil { try start(site) }
        }
        let leaders = sites.filter(\.isPrimary)
        guard var keep = leaders.max(by: { $0.generation.number < $1.generation.number }) else {
            throw Violation("no machine is a primary any more")
        }
        // One that was fenced once, and is the latest all the same.
        if keep.primary?.volume.fenceReason != nil { try restartCleanly(keep) }
        while let other = sites.first(where: { $0.isPrimary && $0 !== keep }) {
            if keep.primary == nil { try start(keep) }
            try bringTogether(keep, other)
            guard other.isPrimary, keep.isPrimary else {
                if !keep.isPrimary { keep = other }
                continue
            }
            throw Violation(
                "\(keep.path) and \(other.path) stay primaries: "
                    + "\(keep.primary?.volume.fenceReason ?? "not fenced")")
        }
        if keep.primary == nil { try start(keep) }
        return keep
    }
}
