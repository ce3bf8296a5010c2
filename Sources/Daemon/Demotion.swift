import BlockCore
import Pool
import SystemIO
import Targets

package struct DemotionInfo: Codable, Sendable, Hashable {
    package var path: String
    package var primary: String
    package var primaryPool: String
    package var generation: UInt64
    /// What this pool did alone is known block by block; otherwise everything is compared.
    package var isTracked: Bool
}

package enum PoolDemotion {
    /// Makes a pool that nobody uses a mirror of the one that took its place.
    /// - Parameter primary: where that is; nil: the target that fenced the pool.
    package static func perform(path: String, to primary: String?) throws -> DemotionInfo {
        do {
            let address = try primary ?? fencingTarget(of: path)
            let sight = try sight(of: address)
            // What an unclean end left open is written down, and the pool is closed cleanly.
            var options = PoolSession.Options()
            options.connectsTargets = false
            try PoolSession(path: path, options: options).close()
            let store = try PoolStore.open(path: path, disk: LinuxDisk())
            let isSettled = !store.wasUnclean
            let state = try store.catalog.read { try $0.poolState() }
            defer { try? store.close(clean: isSettled, lastSequence: state.lastSequence) }
            let own = try store.catalog.read { try PoolSight($0) }
            try check(own, follows: sight, path, address)
            try Demotion.run(store, to: sight, at: address, isSettled: isSettled)
            let replica = try store.catalog.read { try $0.replica() }
            var isTracked = false
            if case .tracked = replica?.divergence { isTracked = true }
            return DemotionInfo(
                path: path, primary: address, primaryPool: sight.poolID,
                generation: sight.history.current?.number ?? 0, isTracked: isTracked)
        } catch { throw PoolSession.failure(error) }
    }

    private static func fencingTarget(of path: String) throws -> String {
        var address: String?
        _ = PoolSight.look(at: path, disk: LinuxDisk()) { tx in
            guard let id = try tx.setting("fence.target") else { return }
            address = try tx.targets().first { String($0.id.rawValue) == id }?.address
        }
        guard let address else {
            throw ControlFailure(
                .usage, "\(path) was not told who replaced it: say so with --to DIRECTORY")
        }
        return address
    }

    static func sight(of address: String) throws -> PoolSight {
        guard let sight = PoolSight.look(at: address, disk: LinuxDisk()) else {
            throw ControlFailure(
                .failed, "\(address) is not a pool that can be looked into now")
        }
        guard !sight.isReplica else {
            throw ControlFailure(
                .failed,
                "\(address) is a mirror itself: `doppel promote \(address)` makes a primary of it")
        }
        return sight
    }

    private static func check(
        _ own: PoolSight, follows other: PoolSight, _ path: String, _ address: String
    ) throws {
        guard !own.isReplica else {
            throw ControlFailure(.failed, "\(path) is a mirror already")
        }
        switch own.history.relation(to: other.history) {
        case .replacedByOther: return
        case .split:
            throw ControlFailure(
                .failed,
                "split brain: neither of \(path) and \(address) came from the other. `doppel target "
                    + "resolve` says which one goes on")
        case .same, .replacesOther, .unrelated:
            throw ControlFailure(
                .failed, "\(address) was not promoted from \(path), or from what came from it")
        }
    }
}
