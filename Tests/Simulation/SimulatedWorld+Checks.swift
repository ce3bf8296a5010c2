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
        guard let driver = attached?.driver, let primary else { return }
        let session = driver.snapshot
        let last = primary.stream.lastSequence
        guard session.durable <= last else {
            throw Violation(
                "the mirror holds \(session.durable.rawValue), the primary is at \(last.rawValue)")
        }
        // G4: who counts is in step, or was a moment ago and is held for.
        if session.counts, attached?.record.mode == .async {
            throw Violation("an async target is waited for")
        }
        if session.state == .fenced { throw Violation("the mirror fenced its only primary") }
    }

    // MARK: What the mirror shows

    /// G2: a prefix, and everything that an fsync promised. Where nothing on its disk changed since it
    /// was looked at, it shows what it did.
    func checkMirror() throws {
        guard mirrorPool.disk.changeCount != checked.change else {
            return try checkFloor(checked.sequence, "the mirror, unchanged,")
        }
        do {
            guard try look() else { return }
            count("check.mirror")
            checked.change = mirrorPool.disk.changeCount
        } catch let violation as Violation { throw violation } catch let error as TargetError {
            // A mirror whose disk is full or failing says so, and shows nothing.
            guard error.kind == .io || error.kind == .noSpace, isMirrorIll else {
                throw Violation("the mirror cannot be read: \(error.message)")
            }
        }
    }

    /// - Returns: false where nobody can look now.
    private func look() throws -> Bool {
        if let mirror, let pool = mirror.pool {
            if random.chance(20) {
                let view = try mirror.newestView()
                defer { view.release() }
                try check(view, "the mirror")
                count("check.view")
            } else {
                try check(pool)
            }
            if random.chance(30) { try checkSnapshots(mirror) }
            return true
        }
        guard attached?.driver?.snapshot.state != .connecting else { return false }
        let recovered = try RecoveredMirror(
            store: try mirrorPool.openStore(), runsInBackground: false)
        defer { recovered.close() }
        let view = try recovered.newestView()
        defer { view.release() }
        try check(view, "the mirror, opened alone,")
        count("check.alone")
        return true
    }

    private var isMirrorIll: Bool {
        mirrorPool.disk.isPoweredOff || mirrorPool.disk.spaceLeftBytes < 1 << 40 || isLatched
    }

    /// What a view would be made of, without making one.
    private func check(_ pool: MirrorPool) throws {
        try pool.applying.withLock {
            if let staging = pool.state.staging {
                let name = MirrorPool.stagingName(staging.id)
                guard let record = try pool.rows({ try $0.snapshot(named: name) }) else {
                    throw Violation("the mirror has lost the checkpoint under its staging")
                }
                let shown = try Self.snapshot(record, of: pool)
                return try check(shown, at: record.sequence, "the mirror, in a resync,")
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
            try check(shown, at: pool.position, "the mirror")
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

    private func check(_ view: MirrorView, _ who: String) throws {
        var shown = ModelPool()
        for node in view.nodes {
            shown.names[node.node.id] = node.node
            guard let id = node.node.imageID, let content = try view.open(node) else { continue }
            shown.images[id] = try Self.model(sizeBytes: node.sizeBytes) {
                try content.read(into: $0, at: 0)
            }
        }
        try check(shown, at: view.sequence, who)
    }

    private func checkFloor(_ sequence: UInt64, _ who: String) throws {
        guard sequence >= mirrorFloor else {
            throw Violation(
                "\(who) is at \(sequence), and an fsync was answered for \(mirrorFloor)")
        }
    }

    private func check(_ shown: ModelPool, at place: SequenceNumber, _ who: String) throws {
        let sequence = place.rawValue
        try checkFloor(sequence, who)
        checked.sequence = sequence
        // Nothing was ever shipped.
        if sequence == 0, shown.images.isEmpty { return }
        if let text = history.check(shown, at: sequence) {
            throw Violation("\(who) at \(sequence) \(text)")
        }
        history.forget(before: sequence)
    }

    private func checkSnapshots(_ mirror: MirrorTarget) throws {
        guard let pool = mirror.pool, pool.state.staging == nil else { return }
        for record in try pool.volume.snapshots() where record.isOfWholePool {
            guard let expected = cuts[record.sequence.rawValue] else {
                throw Violation("the mirror has a snapshot '\(record.name)' that nobody made")
            }
            let shown = try Self.snapshot(record, of: pool)
            if let text = expected.difference(from: shown) {
                throw Violation("snapshot '\(record.name)' on the mirror \(text)")
            }
            count("check.snapshot")
        }
    }

    // MARK: At the end

    /// All faults over, the mirror comes to hold everything.
    package func settleDown() throws {
        mirrorPool.disk.failSyncs { _ in false }
        mirrorPool.disk.limitSpace(toBytes: .max)
        primaryPool.disk.cancelPowerOff()
        mirrorPool.disk.cancelPowerOff()
        failsSyncs = false
        isMirrorAway = false
        if primary == nil { try startPrimary() }
        if attached?.record.isPaused ?? false {
            try primary?.hub.update(targetID) { $0.isPaused = false }
        }
        let last = primary!.stream.lastSequence
        for _ in 0..<20_000 {
            if !(attached?.driver?.step() ?? false) {
                primaryPool.disk.advance(ns: 500_000_000)
                primary?.hub.keepHouse()
            }
            if primary!.stream.standing(targetID)?.durable ?? .zero >= last { break }
        }
        guard primary!.stream.standing(targetID)?.durable ?? .zero >= last else {
            let state = attached?.driver?.snapshot
            throw Violation(
                "the mirror does not come in step: \(state?.state.rawValue ?? "no session"), "
                    + "\(state?.outage?.reason ?? "")")
        }
        try checkMirror()
    }
}
