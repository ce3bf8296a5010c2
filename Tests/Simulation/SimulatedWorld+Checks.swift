import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Volume

@testable import Targets

extension SimulatedWorld {
    // MARK: After each step

    func checkInvariants() throws {
        if let seen = seenViolation { throw seen }
        for site in sites {
            try site.checkAnswers()
            guard let primary = site.primary else { continue }
            let last = primary.stream.lastSequence
            for (other, target) in site.targets {
                guard let session = target.driver?.snapshot else { continue }
                guard session.durable <= last else {
                    throw Violation(
                        "\(other.path) holds \(session.durable.rawValue), the primary is at "
                            + "\(last.rawValue)")
                }
                // G4: who counts is in step, or was a moment ago and is held for.
                if session.counts, !target.policy.isWaitedFor {
                    throw Violation("an async target is waited for")
                }
            }
            try checkFenced(site)
        }
    }

    /// Each session that was sent away since it was looked at last. Afterwards the other side may become a mirror
    /// of this one, for a person said so: the session hears of that when it is begun anew.
    private func checkFenced(_ primary: SimulatedSite) throws {
        var fenced: [ObjectIdentifier: Int] = [:]
        for (other, target) in primary.targets {
            guard let driver = target.driver, driver.snapshot.state == .fenced else { continue }
            fenced[ObjectIdentifier(driver)] = other.number
            guard primary.fencedSessions[ObjectIdentifier(driver)] != other.number else { continue }
            try checkFenced(primary, by: other, driver.snapshot)
        }
        primary.fencedSessions = fenced
    }

    /// Only a later generation, or one that went its own way, sends a primary away.
    private func checkFenced(
        _ primary: SimulatedSite, by site: SimulatedSite, _ session: TargetSession
    ) throws {
        let isLater = site.generation.number > primary.generation.number
        let isOther = site.generation.id != primary.generation.id
        guard options.kind == .roles, session.isSplitBrain ? isOther : isLater else {
            throw Violation(
                "\(site.path), in generation \(site.generation.number), sent \(primary.path) away, "
                    + "which is in \(primary.generation.number)")
        }
    }

    // MARK: What a mirror shows

    /// G2: a prefix, and everything that answers promised. Where nothing on its disk changed since it
    /// was looked at, it shows what it did.
    func checkMirror(_ mirror: SimulatedSite) throws {
        guard !mirror.isPrimary else { return }
        try noteContent(mirror)
        guard mirror.pool.disk.changeCount != mirror.checked.change else {
            return try checkFloor(mirror, mirror.checked.sequence, "unchanged,")
        }
        do {
            guard try look(mirror) else { return }
            count("check.mirror")
            mirror.checked.change = mirror.pool.disk.changeCount
        } catch let violation as Violation { throw violation } catch let error as TargetError {
            // A mirror whose disk is full or failing says so, and shows nothing. An image of which a file could
            // not be made durable is set aside as one that is damaged.
            let isSetAside = error.kind == .damaged && mirror.failsSyncs
            guard isSetAside || (error.kind == .io || error.kind == .noSpace) && mirror.isIll else {
                throw Violation("\(mirror.path) cannot be read: \(error.message)")
            }
        }
    }

    /// - Returns: false where nobody can look now.
    private func look(_ mirror: SimulatedSite) throws -> Bool {
        if let target = mirror.target, let pool = target.pool {
            if random.chance(20) {
                let view = try target.newestView()
                defer { view.release() }
                try check(mirror, view, "")
                count("check.view")
            } else {
                try check(mirror, pool)
            }
            if random.chance(30) { try checkSnapshots(mirror, pool) }
            return true
        }
        guard
            options.kind == .roles
                || sites[0].attached(mirror)?.driver?.snapshot.state != .connecting
        else { return false }
        let recovered = try RecoveredMirror(
            store: try mirror.pool.openStore(), runsInBackground: false)
        defer { recovered.close() }
        let view = try recovered.newestView()
        defer { view.release() }
        try check(mirror, view, "opened alone,")
        count("check.alone")
        return true
    }

    /// What a view would be made of, without making one.
    private func check(_ mirror: SimulatedSite, _ pool: MirrorPool) throws {
        try pool.applying.withLock {
            if let staging = pool.state.staging {
                let name = MirrorPool.stagingName(staging.id)
                guard let record = try pool.rows({ try $0.snapshot(named: name) }) else {
                    throw Violation("\(mirror.path) has lost the checkpoint under its staging")
                }
                let shown = try Self.snapshot(record, of: pool)
                return try check(mirror, shown, at: record.sequence, "in a resync,")
            }
            _ = try pool.flush()
            try pool.catchUp()
            var shown = ModelPool()
            for node in try pool.rows({ try $0.nodes() }) {
                shown.names[node.id] = node
                guard let id = node.imageID else { continue }
                let image = try TargetError.volume { () throws(VolumeError) in
                    try pool.volume.image(id)
                }
                shown.images[id] = try SimulatedSite.model(sizeBytes: image.sizeBytes) {
                    try image.read(into: $0, at: 0)
                }
            }
            try check(mirror, shown, at: pool.position, "")
        }
    }

    static func snapshot(
        _ record: SnapshotRecord, of pool: MirrorPool
    ) throws -> ModelPool {
        var shown = ModelPool()
        for node in try pool.rows({ try $0.snapshotNodes(record.id) })
        where !StagingNodes.isUnnamed(node.node) {
            shown.names[node.node.id] = node.node
            guard let id = node.node.imageID, let layer = node.layerID else { continue }
            let view = try pool.volume.openView(layer, sizeBytes: node.sizeBytes)
            shown.images[id] = try SimulatedSite.model(sizeBytes: node.sizeBytes) {
                try view.read(into: $0, at: 0)
            }
        }
        return shown
    }

    private func check(_ mirror: SimulatedSite, _ view: MirrorView, _ how: String) throws {
        var shown = ModelPool()
        for node in view.nodes {
            shown.names[node.node.id] = node.node
            guard let id = node.node.imageID, let content = try view.open(node) else { continue }
            shown.images[id] = try SimulatedSite.model(sizeBytes: node.sizeBytes) {
                try content.read(into: $0, at: 0)
            }
        }
        try check(mirror, shown, at: view.sequence, how)
    }

    private func checkFloor(_ mirror: SimulatedSite, _ sequence: UInt64, _ how: String) throws {
        guard sequence >= mirror.floor else {
            throw Violation(
                "\(mirror.path), \(how) is at \(sequence), and requests were "
                    + "answered for \(mirror.durableFloor), while it has power \(mirror.floor)")
        }
    }

    func check(
        _ mirror: SimulatedSite, _ shown: ModelPool, at place: SequenceNumber, _ how: String
    ) throws {
        let sequence = place.rawValue
        try checkFloor(mirror, sequence, how)
        mirror.checked.sequence = sequence
        // Nothing was ever shipped.
        if sequence == 0, shown.images.isEmpty { return }
        try checkMustKeep(mirror, at: sequence)
        guard let branch = mirror.content else {
            throw Violation("\(mirror.path), \(how) at \(sequence) has what nobody gave it")
        }
        if let text = branch.history.check(shown, at: sequence) {
            throw Violation("\(mirror.path), \(how) at \(sequence) \(text)")
        }
        // Nobody asks for what was before all of them.
        if let oldest = sites.map({ reach(of: $0, in: branch) }).min() {
            branch.history.forget(before: oldest)
        }
    }

    /// How far back a copy may be, or come to be, in a story.
    private func reach(of site: SimulatedSite, in branch: SimulatedBranch) -> UInt64 {
        if site.isPrimary { return site.branch.common(with: branch) }
        guard let content = site.content else { return 0 }
        return min(site.checked.sequence, content.common(with: branch))
    }

    private func checkSnapshots(_ mirror: SimulatedSite, _ pool: MirrorPool) throws {
        guard pool.state.staging == nil else { return }
        for record in try pool.volume.snapshots() where record.isOfWholePool {
            guard let expected = mirror.content?.cut(record, seenAt: pool.position.rawValue) else {
                throw Violation("\(mirror.path) has a snapshot '\(record.name)' that nobody made")
            }
            let shown = try Self.snapshot(record, of: pool)
            if let text = expected.difference(from: shown) {
                throw Violation("snapshot '\(record.name)' on \(mirror.path) \(text)")
            }
            count("check.snapshot")
        }
        try checkKept(mirror, pool)
    }

    // MARK: At the end

    /// All faults over, every mirror comes to hold everything.
    package func settleDown() throws {
        (isNested, isSettling) = (true, true)
        network.endFaults()
        for site in sites {
            site.pool.disk.cancelPowerOff()
            site.endFaults()
        }
        let primary = try options.kind == .roles ? settleRoles() : sites[0]
        if primary.primary == nil { try primary.startPrimary() }
        for site in sites where site !== primary && primary.attached(site) == nil {
            try primary.addTarget(site, SimulatedTargetKind(.flush))
        }
        for (_, target) in primary.targets where target.record.isPaused {
            try primary.primary?.hub.update(target.record.id) { $0.isPaused = false }
        }
        let last = primary.primary!.stream.lastSequence
        for mirror in sites where mirror !== primary {
            try settleDown(mirror, of: primary, until: last)
            try checkMirror(mirror)
        }
        if let seen = seenViolation { throw seen }
    }

    private func settleDown(
        _ mirror: SimulatedSite, of primary: SimulatedSite, until last: SequenceNumber
    ) throws {
        var durable: SequenceNumber {
            primary.attached(mirror).flatMap {
                primary.primary!.stream.standing($0.record.id)?.durable
            } ?? .zero
        }
        trace("all faults are over: \(mirror.path) has to come in step")
        for _ in 0..<20_000 {
            if durable >= last { return }
            let before = primary.attached(mirror)?.driver?.snapshot.state
            let isBusy = primary.attached(mirror)?.driver?.step() ?? false
            noteTransition(mirror, before, primary.attached(mirror)?.driver?.snapshot)
            if !isBusy {
                advance(ns: 500_000_000)
                primary.primary?.hub.keepHouse()
                // One that is shipped to now and then is asked for it.
                primary.attached(mirror)?.driver?.wantFlush(last)
                // What one target is to hold before anybody is answered, others may have to hold.
                for other in sites where other !== mirror {
                    // The first step may only find that it was woken.
                    for _ in 0..<20 {
                        guard primary.attached(other)?.driver?.step() ?? false else { break }
                    }
                }
                if try rebindWhereSplit(mirror, to: primary) { continue }
            }
        }
        let session = primary.attached(mirror)?.driver?.snapshot
        throw Violation(
            "\(mirror.path) does not come in step: \(session?.state.rawValue ?? "no session"), "
                + "\(session?.outage?.reason ?? "")")
    }
}
