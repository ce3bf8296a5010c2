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

    /// G2: a prefix, and everything that an fsync promised.
    func checkMirror() throws {
        do {
            if let mirror, mirror.pool != nil {
                let view = try mirror.newestView()
                defer { view.release() }
                try check(view, "the mirror")
                if random.chance(30) { try checkSnapshots(mirror) }
            } else if attached?.driver?.snapshot.state != .connecting {
                let recovered = try RecoveredMirror(
                    store: try mirrorPool.openStore(), runsInBackground: false)
                defer { recovered.close() }
                let view = try recovered.newestView()
                defer { view.release() }
                try check(view, "the mirror, opened alone,")
            }
            count("check.mirror")
        } catch let violation as Violation { throw violation } catch let error as TargetError {
            // A mirror whose disk is full or failing says so, and shows nothing.
            guard error.kind == .io || error.kind == .noSpace, isMirrorIll else {
                throw Violation("the mirror cannot be read: \(error.message)")
            }
        }
    }

    private var isMirrorIll: Bool {
        mirrorPool.disk.isPoweredOff || mirrorPool.disk.spaceLeftBytes < 1 << 40 || isLatched
    }

    private func check(_ view: MirrorView, _ who: String) throws {
        let sequence = view.sequence.rawValue
        guard sequence >= mirrorFloor else {
            throw Violation(
                "\(who) is at \(sequence), and an fsync was answered for \(mirrorFloor)")
        }
        var shown = ModelPool()
        for node in view.nodes {
            shown.names[node.node.id] = node.node
            guard let id = node.node.imageID, let content = try view.open(node) else { continue }
            shown.images[id] = try Self.model(sizeBytes: node.sizeBytes) {
                try content.read(into: $0, at: 0)
            }
        }
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
            var shown = ModelPool()
            for node in try pool.rows({ try $0.snapshotNodes(record.id) }) {
                shown.names[node.node.id] = node.node
                guard let id = node.node.imageID, let layer = node.layerID else { continue }
                let view = try pool.volume.openView(layer, sizeBytes: node.sizeBytes)
                shown.images[id] = try Self.model(sizeBytes: node.sizeBytes) {
                    try view.read(into: $0, at: 0)
                }
            }
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
