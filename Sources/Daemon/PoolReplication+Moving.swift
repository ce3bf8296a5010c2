// A target that is somewhere else from now on: the same copy, under another address.
//
// The row keeps its id, and with it the dirty file: only what the copy lacks is sent. The row also keeps the UUID of
// the copy's pool, so that another pool at the new address is absent, and is not touched.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets

extension PoolReplication {
    /// - Returns: what the person should know all the same.
    func move(_ target: TargetSpecification, to address: String) throws -> String? {
        let record = try known(target)
        try refuse(address, for: record)
        // Nobody is at the old address any more before somebody is at the new one.
        try hub?.release(record.id)
        let trouble: String?
        do {
            trouble = try look(at: address, record)
            forget(record.id)
            try update(target) {
                $0.take(target)
                $0.address = address
            }
        } catch {
            if hub?.target(record.id)?.driver == nil { hub?.takeBack(record.id) }
            throw error
        }
        try store.catalog.write {
            try $0.addEvent(
                EventRecord(
                    atNs: store.disk.now(), kind: "target-moved", subject: address,
                    message: "it was at \(record.address) before"))
        }
        return trouble.map {
            "\(address) is noted, and is tried again by itself; the first try failed: \($0)"
        }
    }

    /// What cannot be meant.
    private func refuse(_ address: String, for record: TargetRecord) throws {
        let (old, new) = (TargetAddress(record.address), TargetAddress(address))
        if let problem = TargetAddress.problem(address) { throw ControlFailure(.usage, problem) }
        if new.isElsewhere {
            throw ControlFailure(
                .usage,
                "nobody can be connected to at \(address): where it is served is said as "
                    + "doppel://HOST:PORT/POOL")
        }
        guard old.isRaw == new.isRaw else {
            throw ControlFailure(
                .usage,
                "\(old.text) and \(address): plain files and pools do not become one another")
        }
        if hub?.all.contains(where: { $0.record.address == address && $0.record.id != record.id })
            ?? false
        {
            throw ControlFailure(.failed, "\(address) is another target of this pool")
        }
        if new.remote == nil { try MirrorPlace.requireApart(new.path, store) }
    }

    /// - Returns: why the copy cannot be had there now; nil where it can.
    /// - Throws: where something else is for certain.
    private func look(at address: String, _ record: TargetRecord) throws -> String? {
        switch TargetAddress(address) {
        case .remote(let place):
            do throws(TargetError) {
                let replica = try access.replica(place, of: store, record)
                defer { replica.disconnect() }
                _ = try replica.connect(try TargetHub.hello(of: store))
                return nil
            } catch { return error.message }
        case .mirror(let path):
            guard let sight = PoolSight.look(at: path, disk: LinuxDisk()) else {
                return "there is no pool"
            }
            try require(sight.poolID, record, at: path)
        case .raw(let path):
            guard let state = (try? RawFolderState.read(of: path, disk: LinuxDisk())) ?? nil else {
                return "there is no raw mirror"
            }
            try require(state.id, record, at: path)
        }
        return nil
    }

    private func require(_ found: String, _ record: TargetRecord, at path: String) throws {
        guard let expected = record.poolID, expected != found else { return }
        throw ControlFailure(
            .failed,
            "\(path) is pool \(found), and not \(expected), which was at \(record.address): nothing was "
                + "changed")
    }

    /// A pool that was prepared as a new target, and is one already, under an address that nobody can reach.
    /// - Returns: what the person should know; nil where it is a new one.
    func adopt(_ place: MirrorPlace, _ target: TargetSpecification) throws -> String? {
        guard let record = hub?.all.first(where: { $0.record.poolID == place.id })?.record else {
            return nil
        }
        guard TargetAddress(record.address).isElsewhere else {
            throw ControlFailure(
                .failed,
                "\(target.address) is the target \(record.address) already; if that is to be reached "
                    + "there from now on: `doppel target set \(store.path) \(record.address) --address "
                    + "\(target.address)`")
        }
        var known = target
        known.address = record.address
        let trouble = try move(known, to: target.address)
        return
            "\(target.address) is the pool that was known as \(record.address): only what differs is sent"
            + (trouble.map { "\n\($0)" } ?? "")
    }

    static func elsewhere(_ record: TargetRecord, of store: PoolStore) -> TargetError {
        TargetError(
            .absent,
            "\(record.address) is on another machine, and it is not known how it is reached. Where `doppel serve` "
                + "runs there: `doppel target set \(store.path) \(record.address) --address "
                + "doppel://HOST:PORT/POOL`")
    }
}
