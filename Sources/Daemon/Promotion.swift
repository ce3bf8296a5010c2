import Pool
import Replication
import SystemIO
import Targets

package struct PromotionInfo: Codable, Sendable, Hashable {
    package var path: String
    package var generation: UInt64
    package var primaryPool: String
    /// Everything up to here is in it, and nothing beyond.
    package var checkpointSequence: UInt64
    /// When the last operation in it was made.
    package var shownNs: Int64
}

package enum Promotion {
    /// - Parameter dryRun: says what would be, and changes nothing that opening does not.
    package static func perform(path: String, dryRun: Bool) throws -> PromotionInfo {
        do {
            let store = try PoolStore.open(path: path, disk: LinuxDisk())
            let mirror: RecoveredMirror
            do { mirror = try RecoveredMirror(store: store, runsInBackground: false) } catch {
                try? store.close(clean: false, lastSequence: .zero)
                throw error
            }
            defer { mirror.close() }
            let view = try mirror.newestView()
            var info = PromotionInfo(
                path: path, generation: (mirror.record.generation?.number ?? 0) + 1,
                primaryPool: mirror.record.primaryPoolID,
                checkpointSequence: view.sequence.rawValue, shownNs: view.atNs)
            view.release()
            guard !dryRun else { return info }
            guard mirror.record.incarnationID != nil else {
                throw ControlFailure(
                    .failed, "\(path) never reached a first checkpoint: there is nothing to promote"
                )
            }
            info.generation = try mirror.promote().number
            return info
        } catch { throw PoolSession.failure(error) }
    }
}
