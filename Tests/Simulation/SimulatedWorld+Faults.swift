import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Volume

@testable import Targets

extension SimulatedWorld {
    // MARK: Faults

    func fault() throws {
        let (primary, mirror) = (sites[0], sites[0].anyOther())
        switch random.below(100) {
        case ..<12:
            trace("the primary's power goes in a moment")
            primary.pool.disk.powerOff(atSync: 1 + random.below(12))
        case ..<24:
            trace("the power of \(mirror.path) goes in a moment")
            mirror.pool.disk.powerOff(atSync: 1 + random.below(12))
        case ..<32: kill(primary)
        case ..<40: losePower(mirror)
        case ..<44:
            for each in sites.dropFirst() where each === mirror || random.chance(50) {
                losePower(each)
            }
            losePower(primary)
        case ..<56:
            mirror.isAway.toggle()
            trace("\(mirror.path) is \(mirror.isAway ? "away" : "back")")
            if mirror.isAway { losePower(mirror) }
        case ..<66: worsen(mirror)
        case ..<78: try restartCleanly(primary)
        case ..<86: try pauseOrResume(mirror, of: primary)
        case ..<90: if let target = primary.attached(mirror) { try primary.changeImage(target) }
        case ..<94:
            guard primary.attached(mirror) != nil else {
                let kind = SimulatedTargetKind.any(&random)
                trace("\(mirror.path) is a target again, as \(kind)")
                return try primary.addTarget(mirror, kind)
            }
            try primary.removeTarget(mirror)
        default: try endFaults(mirror)
        }
    }

    func worsen(_ mirror: SimulatedSite) {
        count("fault.mirrorDisk")
        if random.chance(50) {
            let part = random.chance(50) ? "/journal" : "/images"
            trace("syncs of \(mirror.path)\(part) fail")
            mirror.failSyncs(below: part)
        } else {
            trace("the disk of \(mirror.path) is nearly full")
            mirror.pool.disk.limitSpace(toBytes: random.below(40) * 4096)
        }
    }

    func endFaults(_ site: SimulatedSite) throws {
        site.endFaults()
        network.heal(site.number)
        for primary in runningPrimaries where primary.attached(site)?.record.isPaused ?? false {
            try pauseOrResume(site, of: primary)
        }
    }

    func pauseOrResume(_ mirror: SimulatedSite, of primary: SimulatedSite) throws {
        guard let hub = primary.primary?.hub, let target = primary.attached(mirror) else { return }
        trace("\(target.record.isPaused ? "resume" : "pause") \(mirror.path)")
        let before = target.driver?.snapshot.state ?? .paused
        try hub.update(target.record.id) { $0.isPaused.toggle() }
        noteTransition(mirror, before, primary.attached(mirror)?.driver?.snapshot)
    }

    /// The process ends; what it wrote is in the machine's memory.
    func kill(_ primary: SimulatedSite) {
        guard primary.primary != nil else { return }
        trace("\(primary.number == 0 ? "the primary" : primary.path) is killed")
        count("fault.primaryKilled")
        primary.dropPrimary(.killed)
    }

    func losePower(_ site: SimulatedSite) {
        trace("\(site.number == 0 ? "the primary" : site.path) loses power")
        site.isStopped = false
        // One that is a mirror by now may not have closed what it was.
        if site.isPrimary || site.primary != nil {
            count("fault.primaryPower")
            site.dropPrimary(.power)
        }
        if !site.isPrimary {
            count("fault.mirrorPower")
            // Whoever has it open finds that nothing works any more.
            site.pool.disk.powerOff(atSync: 1)
            try? site.pool.disk.commit("power")
            site.target?.disconnect()
            site.link?.cut()
            site.link = nil
            site.target = nil
        }
        site.forgetPower()
    }

    func restartCleanly(_ site: SimulatedSite) throws {
        guard let primary = site.primary else { return }
        trace("close and open the primary\(site.number == 0 ? "" : " \(site.path)")")
        count("restart")
        let wasNested = isNested
        isNested = true
        defer { isNested = wasNested }
        try site.commitNames()
        // What is on its way arrives, or is written down.
        for _ in 0..<random.below(400) {
            primary.hub.keepHouse()
            var didAnything = false
            for other in sites where site.attached(other)?.driver?.step() ?? false {
                didAnything = true
            }
            guard didAnything else { break }
        }
        try site.closePrimary()
        if options.kind == .mirrors { for mirror in sites.dropFirst() { mirror.target = nil } }
        try start(site)
    }

    /// Machines whose power went get it back.
    func comeBack() throws {
        for site in sites where site.pool.disk.isPoweredOff {
            losePower(site)
            if options.kind == .roles { try readRole(site) }
            if !site.isPrimary, random.chance(50) { try checkMirror(site) }
        }
    }
}
