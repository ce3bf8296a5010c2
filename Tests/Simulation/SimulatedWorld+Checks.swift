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
        try checkAnswers()
        guard let primary else { return }
        let last = primary.stream.lastSequence
        for mirror in mirrors {
            guard let session = attached(mirror)?.driver?.snapshot else { continue }
            guard session.durable <= last else {
                throw Violation(
                    "\(mirror.path) holds \(session.durable.rawValue), the primary is at "
                        + "\(last.rawValue)")
            }
            // G4: who counts is in step, or was a moment ago and is held for.
            if session.counts, mirror.mode == .async {
                throw Violation("an async target is waited for")
            }
            if session.state == .fenced {
                throw Violation("\(mirror.path) fenced its only primary")
            }
        }
    }

    // MARK: What a mirror shows

    /// G2: a prefix, and everything that answers promised. Where nothing on its disk changed since it
    /// was looked at, it shows what it did.
    func checkMirror(_ mirror: SimulatedMirror) throws {
        guard mirror.pool.disk.changeCount != mirror.checked.change else {
            return try checkFloor(mirror, mirror.checked.sequence, "unchanged,")
        }
        do {
            guard try look(mirror) else { return }
            count("check.mirror")
            mirror.checked.change = mirror.pool.disk.changeCount
        } catch let violation as Violation { throw violation } catch let error as TargetError {
            // A mirror whose disk is full or failing says so, and shows nothing.
            guard error.kind == .io || error.kind == .noSpace, mirror.isIll else {
                throw Violation("\(mirror.path) cannot be read: \(error.message)")
            }
        }
    }

    /// - Returns: false where nobody can look now.
    private func look(_ mirror: SimulatedMirror) throws -> Bool {
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
        guard attached(mirror)?.driver?.snapshot.state != .connecting else { return false }
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
    private func check(_ mirror: SimulatedMirror, _ pool: MirrorPool) throws {
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
                shown.images[id] = try Self.model(sizeBytes: image.sizeBytes) {
                    try image.read(into: $0, at: 0)
                }
            }
            try check(mirror, shown, at: pool.position, "")
        }
    }

    private static func snapshot(
        _ record: SnapshotRecord, of pool: MirrorPool
    ) throws -> ModelPool {
        var shown = ModelPool()
        for node in try pool.rows({ try $0.snapshotNodes(record.id) })
        where !StagingNodes.isUnnamed(node.node) {
            shown.names[node.node.id] = node.node
            guard let id = node.node.imageID, let layer = node.layerID else { continue }
            let view = try pool.volume.openView(layer, sizeBytes: node.sizeBytes)
            shown.images[id] = try Self.model(sizeBytes: node.sizeBytes) {
                try view.read(into: $0, at: 0)
            }
        }
        return shown
    }

    private func check(_ mirror: SimulatedMirror, _ view: MirrorView, _ how: String) throws {
        var shown = ModelPool()
        for node in view.nodes {
            shown.names[node.node.id] = node.node
            guard let id = node.node.imageID, let content = try view.open(node) else { continue }
            shown.images[id] = try Self.model(sizeBytes: node.sizeBytes) {
                try content.read(into: $0, at: 0)
            }
        }
        try check(mirror, shown, at: view.sequence, how)
    }

    private func checkFloor(_ mirror: SimulatedMirror, _ sequence: UInt64, _ how: String) throws {
        guard sequence >= mirror.floor else {
            throw Violation(
                "\(mirror.path) (\(mirror.mode.rawValue)), \(how) is at \(sequence), and requests were "
                    + "answered for \(mirror.durableFloor), while it has power \(mirror.floor)")
        }
    }

    private func check(
        _ mirror: SimulatedMirror, _ shown: ModelPool, at place: SequenceNumber, _ how: String
    ) throws {
        let sequence = place.rawValue
        try checkFloor(mirror, sequence, how)
        mirror.checked.sequence = sequence
        // Nothing was ever shipped.
        if sequence == 0, shown.images.isEmpty { return }
        if let text = history.check(shown, at: sequence) {
            throw Violation("\(mirror.path), \(how) at \(sequence) \(text)")
        }
        // Nobody asks for what was before all of them.
        if let oldest = mirrors.map(\.checked.sequence).min() { history.forget(before: oldest) }
    }

    private func checkSnapshots(_ mirror: SimulatedMirror, _ pool: MirrorPool) throws {
        guard pool.state.staging == nil else { return }
        for record in try pool.volume.snapshots() where record.isOfWholePool {
            guard let expected = cuts[record.sequence.rawValue] else {
                throw Violation("\(mirror.path) has a snapshot '\(record.name)' that nobody made")
            }
            let shown = try Self.snapshot(record, of: pool)
            if let text = expected.difference(from: shown) {
                throw Violation("snapshot '\(record.name)' on \(mirror.path) \(text)")
            }
            count("check.snapshot")
        }
    }

    // MARK: At the end

    /// All faults over, every mirror comes to hold everything.
    package func settleDown() throws {
        primaryPool.disk.cancelPowerOff()
        for mirror in mirrors {
            mirror.endFaults()
            mirror.pool.disk.cancelPowerOff()
        }
        if primary == nil { try startPrimary() }
        for mirror in mirrors where attached(mirror)?.record.isPaused ?? false {
            try primary?.hub.update(mirror.id) { $0.isPaused = false }
        }
        let last = primary!.stream.lastSequence
        for mirror in mirrors {
            try settleDown(mirror, until: last)
            try checkMirror(mirror)
        }
    }

    private func settleDown(_ mirror: SimulatedMirror, until last: SequenceNumber) throws {
        var durable: SequenceNumber { primary!.stream.standing(mirror.id)?.durable ?? .zero }
        trace("all faults are over: \(mirror.path) has to come in step")
        for _ in 0..<200_000 {
            if durable >= last { return }
            let before = attached(mirror)?.driver?.snapshot.state
            let isBusy = attached(mirror)?.driver?.step() ?? false
            if let before, let after = attached(mirror)?.driver?.snapshot.state {
                noteTransition(mirror, before, after)
            }
            if !isBusy {
                advance(ns: 500_000_000)
                primary?.hub.keepHouse()
            }
        }
        let session = attached(mirror)?.driver?.snapshot
        throw Violation(
            "\(mirror.path) does not come in step: \(session?.state.rawValue ?? "no session"), "
                + "\(session?.outage?.reason ?? "")")
    }
}
