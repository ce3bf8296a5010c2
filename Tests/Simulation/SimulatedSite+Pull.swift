// A primary's machine went down: what its disk lost, and a target has, is fetched from there before the pool is
// served, as the daemon does it, with the production code for it. And what has to be there then: all that was
// promised by those who are asked.

import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Volume

@testable import Targets

/// What a mirror, or a pool whose machine went down, keeps of what leaves the story.
struct SimulatedKept {
    var sequence: UInt64
    /// What was there.
    var entry: History.Entry

    /// - Returns: what is wrong; nil where nothing is.
    func check(_ shown: ModelPool) -> String? { entry.check(shown, at: sequence) }
}

/// What a mirror had when its primary went on without it.
struct SimulatedDebt {
    /// Where it was, at least.
    var sequence: UInt64
    /// Where its primary went on, in this story.
    var until: UInt64
    var branch: SimulatedBranch
    /// That primary had not all of it; otherwise nobody knows but that primary.
    var isLost: Bool
}

/// One recovery of a primary's machine.
struct SimulatedPull {
    /// Names that the one it was fetched from has.
    var names: [NodeID: NodeRecord]?
    /// Those that promised more than flushes, and since when everything must be there.
    var promises: [Promise] = []
    /// Targets that it goes on without.
    var skipped: [Int] = []
    /// Power was lost, and nothing was served since.
    var isOwed = false

    struct Promise {
        var address: String
        var sequence: UInt64
        var policy: TargetPolicy
    }
}

extension SimulatedSite {
    /// - Returns: false where the pool has to wait for a target.
    func takeBack(_ store: PoolStore, connects: Bool) throws -> Bool {
        (recovery.promises, recovery.skipped) = ([], [])
        if recovery.isOwed { try notePromises(store) }
        guard let pull = try RecoveryPull(store) else { return true }
        if pull.sources.isEmpty || world.options.bug == .skipsPull {
            try pull.goOn()
            return true
        }
        guard connects else {
            try goOn(without: pull)
            return true
        }
        if random.chance(15), !world.isSettling {
            trace("the power of \(path) goes in a moment")
            pool.disk.powerOff(atSync: 1 + random.below(30))
        }
        var ahead: [RecoveryPull.Asked] = []
        defer { for each in ahead { leave(each.record, each.target) } }
        var silent: [TargetRecord] = []
        for record in pull.sources {
            guard let opened = try? world.open(record, for: self) else {
                silent.append(record)
                continue
            }
            let target = PatientTarget(
                opened, limitMs: 600_000, disk: LinuxDisk(), isCancelled: { false })
            switch pull.ask(record, target) {
            case .ahead(let target, let report): ahead.append((record, target, report))
            case .nothing(let reason): trace("\(record.address) has nothing: \(reason)")
            case .silent(let reason):
                trace("\(record.address) is silent: \(reason)")
                silent.append(record)
            }
        }
        let sources = ahead.map { ($0.record, $0.report) }
        if let index = pull.best(of: sources, silent: silent) {
            if !pull.others(of: sources, beside: index).isEmpty { count("recovery.pulledBeside") }
            return try take(pull, ahead, index)
        }
        if silent.isEmpty {
            try pull.goOn()
        } else if pull.promisesWrites, !world.isSettling, random.chance(80) {
            count("recovery.waits")
            return false
        } else {
            try goOn(without: pull)
        }
        return true
    }

    private func leave(_ record: TargetRecord, _ target: PatientTarget) {
        target.disconnect()
        guard world.options.kind == .mirrors else { return }
        world.sites.first { $0.path == record.address }?.target = nil
    }

    private func take(
        _ pull: RecoveryPull, _ ahead: [RecoveryPull.Asked], _ index: Int
    ) throws -> Bool {
        let best = ahead[index]
        trace(
            "\(path) takes back what \(best.record.address) has at "
                + "\(best.report.checkpoint.rawValue)")
        recovery.names = branch.history.state(at: best.report.checkpoint.rawValue)?.names
        do {
            let summary = try pull.pull(from: ahead, best: index) { _, _ in }
            count(summary.keptSnapshot == nil ? "recovery.level" : "recovery.pulled")
            if summary.hasNames { count("recovery.names") }
            return true
        } catch {
            guard !pool.disk.isPoweredOff else { throw error }
            // It is asked again, or gone on without.
            count("recovery.failed")
            guard world.isSettling else { return false }
            throw Violation("\(best.record.address) does not give back what it has: \(error)")
        }
    }

    private func goOn(without pull: RecoveryPull) throws {
        trace("\(path) goes on without what its targets may have")
        count("recovery.skipped")
        try pull.goOnWithout("nobody answers")
        recovery.promises = []
        let skipped = pull.sources.compactMap { record in
            world.sites.first { $0.path == record.address }
        }
        recovery.skipped = skipped.map(\.number)
        for site in skipped { goneOnWithout[site.number] = site.liveFloor }
    }

    /// A target that nothing was answered without, and that has had power since, has all that it answered for.
    private func notePromises(_ store: PoolStore) throws {
        let (records, images) = try store.catalog.read {
            (try $0.targets(), try $0.targetImages())
        }
        for record in records where record.isWhole && record.stale == nil {
            let rows = images.filter { $0.targetID == record.id }
            let policy = record.policy(
                Dictionary(rows.map { ($0.imageID, $0) }, uniquingKeysWith: { $1 }))
            guard policy.hearsOfWrites,
                let site = world.sites.first(where: { $0.path == record.address }),
                site.content === branch, site.liveFloor > goneOnWithout[site.number] ?? 0,
                world.options.kind == .mirrors || site.generation.id == generation.id
            else { continue }
            recovery.promises.append(
                SimulatedPull.Promise(
                    address: record.address, sequence: site.liveFloor, policy: policy))
        }
    }

    // MARK: What the model makes of it

    /// What was fetched is from before an fsync that nobody heard of, maybe, and never from before one that
    /// was answered.
    func checkAnswered(_ id: ImageID, _ found: ModelImage, restored: ModelImage?) throws {
        var states = branch.history.images(id, since: answered[id] ?? 0)
        states += [floorState.images[id], restored, cloning].compactMap { $0 }
        states += sinceFloor[id] ?? []
        try check(id, found, among: states)
    }

    /// What a target answered for is there.
    func checkPromised(_ id: ImageID, _ found: ModelImage, restored: ModelImage?) throws {
        for promise in recovery.promises
        where promise.policy.policy(for: id).mode.flushPoint != nil {
            // What was under way when the power went may be there, too.
            var states = branch.history.images(id, since: promise.sequence)
            states += [restored, cloning, sinceFloor[id]?.last].compactMap { $0 }
            do { try check(id, found, among: states) } catch {
                throw Violation("\(error) [\(promise.address) answered for \(promise.sequence)]")
            }
            count("recovery.checked")
        }
    }

    /// What the disk had is kept where anything was fetched.
    func findPulled(_ record: SnapshotRecord, _ volume: Volume) throws {
        guard recovery.isOwed, record.origin == SnapshotRecord.divergedOrigin else {
            throw Violation("there is a snapshot \(record.name) that nobody made")
        }
        var shown = ModelPool()
        for node in try pool.catalog.read({ try $0.snapshotNodes(record.id) }) {
            shown.names[node.node.id] = node.node
            guard let id = node.node.imageID, let layer = node.layerID else { continue }
            let view = try volume.openView(layer, sizeBytes: node.sizeBytes)
            let image = try Self.model(sizeBytes: node.sizeBytes) { try view.read(into: $0, at: 0) }
            shown.images[id] = image
            if !deleted.contains(id) { try check(id, image) }
        }
        let sequence = record.sequence.rawValue
        kept[record.name] = SimulatedKept(
            sequence: sequence,
            entry: History.Entry(first: sequence, last: sequence, state: shown, before: shown))
        count("recovery.kept")
    }

    /// It is served: what those that it went on without have beyond it is to be kept there.
    func endRecovery(_ state: ModelPool, at sequence: UInt64) {
        for number in recovery.skipped {
            let mirror = world.sites[number]
            let known = max(mirror.floor, mirror.checked.sequence)
            guard mirror.content === branch, let had = branch.history.state(at: known),
                had.difference(from: state) != nil
            else { continue }
            mirror.mustKeep = SimulatedDebt(
                sequence: known, until: sequence, branch: branch,
                isLost: branch.history.hasLost(had, at: known, in: state))
        }
        recovery = SimulatedPull()
    }
}

extension History {
    /// Whether something that was there at a place is not in what was found after a crash, nor anything that
    /// came after it in its place.
    func hasLost(_ had: ModelPool, at sequence: UInt64, in found: ModelPool) -> Bool {
        let later = entries.filter { $0.last > sequence }.map(\.state)
        guard ([had] + later).contains(where: { $0.namesDifference(from: found) == nil }) else {
            return true
        }
        for id in had.names.values.compactMap(\.imageID) {
            guard let found = found.images[id], let had = had.images[id] else { continue }
            let states = [had] + later.compactMap { $0.images[id] }
            for index in 0..<min(found.blockCount, had.blockCount) {
                let content = found.block(index)
                if states.contains(where: { $0.holds(content[...], inBlock: index) }) { continue }
                let known = states.map { $0.block(index) }
                if !content.indices.allSatisfy({ at in known.contains { $0[at] == content[at] } }) {
                    return true
                }
            }
        }
        return false
    }

    /// What an image was at a place, and since.
    func images(_ id: ImageID, since sequence: UInt64) -> [ModelImage] {
        // Nobody has what was forgotten.
        let first = state(at: sequence) ?? entries[0].before
        var result = [first.images[id] ?? ModelImage()]
        for entry in entries where entry.last >= sequence {
            result.append(entry.state.images[id] ?? ModelImage())
        }
        return result
    }
}
