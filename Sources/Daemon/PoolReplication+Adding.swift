// A further target: its place is prepared, then it is in the catalog, then a session begins.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import Volume

extension PoolReplication {
    /// Adds a target, or changes one that there is: what `--mirror` asks for.
    func ensure(_ target: TargetSpecification) throws -> String? {
        try changing.withLock {
            if hub?.all.contains(where: { $0.record.address == target.address }) ?? false {
                try update(target) {
                    $0.take(target)
                    $0.isPaused = false
                }
                return nil
            }
            return try add(target)
        }
    }

    /// - Returns: what the person should know all the same.
    func add(_ target: TargetSpecification) throws -> String? {
        if hub?.all.contains(where: { $0.record.address == target.address }) ?? false {
            throw ControlFailure(
                .failed, "\(target.address) is a target already; `doppel target set` changes it")
        }
        try refuseHistory(target)
        try refuseWaiting(
            target.mode.flatMap(TargetRecord.Mode.init(rawValue:)) ?? .flush, target.address)
        var record = TargetRecord(
            address: target.address, mode: .flush, timeoutMs: TargetRecord.defaultTimeoutMs,
            historyMs: TargetRecord.defaultHistoryMs, addedNs: store.disk.now())
        record.take(target)
        try refuseConflict(record)
        let place = try prepare(target)
        if let text = try adopt(place, target) { return text }
        record.poolID = place.id
        if hub == nil {
            try attach()
            if let names = lock.withLock({ names }) { hub?.start(names: names) }
        }
        _ = try hub?.add(record, hasContent: place.hasContent)
        let words = [place.note, MirrorPlace.warning(target.address, for: store)].compactMap { $0 }
        return words.isEmpty ? nil : words.joined(separator: "\n")
    }

    private func prepare(_ target: TargetSpecification) throws -> MirrorPlace {
        let address = TargetAddress(target.address)
        if let remote = address.remote {
            guard !(target.isSeeded ?? false) else {
                throw ControlFailure(
                    .usage,
                    "copies behind a server cannot be taken as they are: make a mirror of them here, carry that "
                        + "into the folder that it serves, and say where it is with `doppel target set --address`"
                )
            }
            return try MirrorPlace.prepare(
                remote, for: store, timeoutMs: target.timeoutMs ?? TargetRecord.defaultTimeoutMs,
                access)
        }
        try MirrorPlace.requireApart(address.path, store)
        guard target.isSeeded ?? false else {
            return try MirrorPlace.prepare(address, for: store)
        }
        let (id, note) = try Seeding.prepare(address, try seedItems(), for: store)
        return MirrorPlace(id: id, hasContent: true, note: note)
    }

    /// Every name as it is now, with its size.
    private func seedItems() throws -> [SeedItem] {
        let captured = lock.withLock { names }?()()
        let nodes = try captured ?? store.catalog.read { try $0.nodes() }
        return try Seeding.paths(of: nodes).map { path, node in
            SeedItem(
                path: path, node: node,
                sizeBytes: try node.imageID.map { try volume.image($0).sizeBytes } ?? 0)
        }
    }

}
