// What the world notes of who writes where, and holds roles to: G5 (nothing is destroyed without a retained branch)
// and G6 (one writer, never an older one).

import BlockCore
import Pool
import Replication
import TestSupport

@testable import Targets

extension SimulatedWorld {
    // MARK: One writer (G6)

    func noteConnected(_ hello: PrimaryHello, at site: SimulatedSite) {
        let new = (number: hello.generation.number, id: hello.generation.id)
        guard new.number >= site.generation.number,
            new.number > site.generation.number || new.id == site.generation.id
        else {
            return see(
                "\(site.path) took generation \(new.number) of \(hello.poolID) after generation "
                    + "\(site.generation.number)")
        }
        site.generation = new
        // A person has just said that this one goes on.
        if branches[new.id] == nil {
            branches[new.id] = sites.first { $0.isPrimary && $0.pool.id == hello.poolID }?.branch
        }
        noteCommitted(site)
    }

    /// It may follow who connects from now on, also where connecting failed after that.
    func noteFollowed(_ site: SimulatedSite) {
        guard !site.isPrimary,
            let now = try? site.pool.catalog.read({ try $0.replica()?.generation }),
            now.number != site.generation.number || now.id != site.generation.id
        else { return }
        guard now.number > site.generation.number else {
            return see("\(site.path) went back to generation \(now.number)")
        }
        site.generation = (now.number, now.id)
    }

    func noteAccepted(_ hello: PrimaryHello, at site: SimulatedSite) {
        guard !site.isPrimary, site.generation.id == hello.generation.id else {
            return see(
                "\(site.path) took a change from \(hello.poolID) in generation "
                    + "\(hello.generation.number), and is in \(site.generation.number)")
        }
    }

    func noteRefused(
        _ error: TargetError, _ primary: SimulatedSite, _ hello: PrimaryHello,
        at site: SimulatedSite
    ) {
        guard error.kind == .fenced else { return }
        count("role.fenced")
        trace("\(site.path) tells \(primary.path) that it was replaced")
        primary.wasToldOfFence = true
    }

    /// A person says who goes on, or a promotion, a demotion was done or cut off: what the catalog says.
    func readRole(_ site: SimulatedSite) throws {
        let (replica, state) = try site.pool.catalog.read {
            (try $0.replica(), try $0.poolState())
        }
        let isPrimary = replica.map { $0.role == .primary } ?? true
        let now = isPrimary ? state.generation : replica?.generation
        defer { site.isPrimary = isPrimary }
        if let now {
            guard now.number >= site.generation.number else {
                throw Violation(
                    "\(site.path) is in generation \(now.number), and was in "
                        + "\(site.generation.number)")
            }
            site.generation = (now.number, now.id)
        }
        switch (site.isPrimary, isPrimary) {
        case (false, true): try becomePrimary(site, state.generation)
        case (true, false): try becomeMirror(site, replica!)
        case (true, true): branches[state.generation.id] = site.branch
        case (false, false): break
        }
    }

    func noteGeneration(of site: SimulatedSite, _ branch: SimulatedBranch) throws {
        let state = try site.pool.catalog.read { try $0.poolState() }
        branches[state.generation.id] = branch
        site.generation = (state.generation.number, state.generation.id)
    }

    private func becomeMirror(_ site: SimulatedSite, _ replica: ReplicaRecord) throws {
        site.content = site.branch
        let sequence = replica.appliedSequence.rawValue
        site.checked = (-1, sequence)
        // It was closed: all of it is there.
        (site.durableFloor, site.liveFloor) = (sequence, 0)
        site.answers = []
    }

    // MARK: Nothing is destroyed (G5)

    /// It may have got content of another story.
    func noteCommitted(_ site: SimulatedSite) {
        do { try noteContent(site) } catch {
            seenViolation = seenViolation ?? error as? Violation ?? Violation("\(error)")
        }
    }

    func noteContent(_ site: SimulatedSite) throws {
        guard !site.isPrimary else { return }
        let id = try site.pool.catalog.read { try $0.replica()?.contentGenerationID }
        guard let id else { return }
        guard let new = branches[id] else {
            throw Violation(
                "\(site.path) has content of generation \(id), which nobody began")
        }
        // What it had already, where nobody has looked yet, is of the story that it follows now.
        let kept = try noteKept(site, of: site.content ?? new)
        guard let old = site.content, old !== new else { return site.content = new }
        let common = old.common(with: new)
        let known = max(site.floor, site.checked.sequence)
        if let record = kept.last {
            guard record.sequence.rawValue >= known else {
                throw Violation(
                    "\(site.path) kept what it had at \(record.sequence.rawValue), and was at \(known)"
                )
            }
        } else if known > common {
            let (had, shared) = (old.history.state(at: known), old.history.state(at: common))
            let lost = had.flatMap { had in shared.flatMap { had.difference(from: $0) } }
            guard lost == nil else {
                throw Violation(
                    "\(site.path) was at \(known), which is no part of what it follows now from "
                        + "\(common) on, and keeps nothing of it")
            }
        }
        site.content = new
        site.durableFloor = min(site.durableFloor, common)
        site.liveFloor = min(site.liveFloor, common)
        site.checked = (-1, min(site.checked.sequence, common))
    }

    /// What it kept since it was looked at last.
    private func noteKept(
        _ site: SimulatedSite, of story: SimulatedBranch
    ) throws -> [SnapshotRecord] {
        let new = try site.pool.catalog.read { try $0.snapshots() }.filter {
            $0.name.hasPrefix("diverged-") && site.kept[$0.name] == nil
        }
        for record in new {
            count("role.diverged")
            trace("\(site.path) keeps what it had alone as \(record.name)")
            let sequence = record.sequence.rawValue
            guard let entry = story.history.entry(at: sequence) else {
                throw Violation("\(site.path) keeps what it never had as \(record.name)")
            }
            site.kept[record.name] = SimulatedKept(sequence: sequence, entry: entry)
            if let must = site.mustKeep, sequence >= must.sequence { site.mustKeep = nil }
        }
        return new
    }

    /// Its primary went on without it: what it had is kept when it goes on as well.
    func checkMustKeep(_ site: SimulatedSite, at sequence: UInt64) throws {
        guard let must = site.mustKeep, let content = site.content,
            must.isLost || content === must.branch,
            min(sequence, content.common(with: must.branch)) >= must.until
        else { return }
        throw Violation(
            "\(site.path) was at \(must.sequence) when its primary went on without that, is at "
                + "\(sequence), and keeps nothing of it")
    }

    /// What was kept is there, as it was.
    func checkKept(_ site: SimulatedSite, _ pool: MirrorPool) throws {
        guard !site.kept.isEmpty else { return }
        let found = Dictionary(
            try pool.volume.snapshots().map { ($0.name, $0) }, uniquingKeysWith: { a, _ in a })
        for (name, kept) in site.kept {
            guard let record = found[name] else {
                throw Violation("\(site.path) has lost what it kept as \(name)")
            }
            let shown = try Self.snapshot(record, of: pool)
            if let text = kept.check(shown) {
                throw Violation("\(name) on \(site.path), of \(kept.sequence), \(text)")
            }
            count("check.diverged")
        }
    }

    func see(_ text: String) { seenViolation = seenViolation ?? Violation(text) }
}
