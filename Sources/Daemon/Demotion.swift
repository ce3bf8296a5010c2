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
    /// - Parameters:
    ///   - primary: where that is; nil: the target that fenced the pool.
    ///   - isResolving: also where both went on from the same place, each on its own.
    package static func perform(
        path: String, to primary: String?, isResolving: Bool = false
    ) throws -> DemotionInfo {
        do {
            if PoolSight.look(at: path, disk: LinuxDisk())?.isReplica ?? false {
                throw ControlFailure(.failed, "\(path) is a mirror already")
            }
            // A raw mirror that was promoted is a pool by now.
            let place = TargetAddress(try primary ?? fencingTarget(of: path))
            let address = place.path
            let sight = try sight(of: address)
            return try follow(path, sight, at: address) { own in
                try check(own, follows: sight, path, address, isResolving)
            }
        } catch { throw PoolSession.failure(error) }
    }

    /// - Parameter check: whether it may; it is settled by then, and a primary still.
    static func follow(
        _ path: String, _ sight: PoolSight, at address: String, _ check: (PoolSight) throws -> Void
    ) throws -> DemotionInfo {
        // What an unclean end left open is written down, and the pool is closed cleanly.
        var options = PoolSession.Options()
        options.connectsTargets = false
        options.recovery = .start
        options.isToFollow = true
        try PoolSession(path: path, options: options).close()
        let store = try PoolStore.open(path: path, disk: LinuxDisk())
        let isSettled = !store.wasUnclean
        let state = try store.catalog.read { try $0.poolState() }
        defer { try? store.close(clean: isSettled, lastSequence: state.lastSequence) }
        try check(try store.catalog.read { try PoolSight($0) })
        try Demotion.run(store, to: sight, at: address, isSettled: isSettled)
        let replica = try store.catalog.read { try $0.replica() }
        var isTracked = false
        if case .tracked = replica?.divergence { isTracked = true }
        return DemotionInfo(
            path: path, primary: address, primaryPool: sight.poolID,
            generation: sight.history.current?.number ?? 0, isTracked: isTracked)
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
        guard let sight = try RemotePool.look(at: address) else {
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
        _ own: PoolSight, follows other: PoolSight, _ path: String, _ address: String,
        _ isResolving: Bool
    ) throws {
        guard !own.isReplica else {
            throw ControlFailure(.failed, "\(path) is a mirror already")
        }
        switch own.history.relation(to: other.history) {
        case .replacedByOther: return
        case .split where isResolving, .replacesOther where isResolving: return
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
