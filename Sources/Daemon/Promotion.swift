import BlockCore
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
    /// What the old primary may have, and the mirror has not.
    package var loss: LossPreview
    /// Copies that could be taken instead, and hold more.
    package var better: [String]
    package var isPromoted = false
}

package enum PoolPromotion {
    /// - Parameters:
    ///   - dryRun: says what would be, and changes nothing that opening does not.
    ///   - accept: asked where something may be lost; false leaves the mirror as it is.
    package static func perform(
        path: String, dryRun: Bool, accept: (PromotionInfo) throws -> Bool
    ) throws -> PromotionInfo {
        do {
            let store = try PoolStore.open(path: path, disk: LinuxDisk())
            let mirror: RecoveredMirror
            do { mirror = try RecoveredMirror(store: store, runsInBackground: false) } catch {
                try? store.close(clean: false, lastSequence: .zero)
                throw error
            }
            defer { mirror.close() }
            let view = try mirror.newestView()
            let checkpoint = view.sequence
            let shownNs = LossPreview.lastChange(of: mirror, view)
            view.release()
            var info = PromotionInfo(
                path: path, generation: (mirror.record.generation?.number ?? 0) + 1,
                primaryPool: mirror.record.primaryPoolID,
                checkpointSequence: checkpoint.rawValue, shownNs: shownNs,
                loss: try LossPreview.make(mirror, own: store.identity.id, path),
                better: [])
            let others = try OtherCopies.ask(mirror, checkpoint, store)
            info.better = others.ahead
            info.loss.add(others.stale)
            guard mirror.record.incarnationID != nil else {
                throw ControlFailure(
                    .failed, "\(path) never reached a first checkpoint: there is nothing to promote"
                )
            }
            guard !dryRun else { return info }
            let isSure = info.loss.isNothing && info.better.isEmpty
            guard try isSure || accept(info) else { return info }
            info.generation = try mirror.promote(
                NewGeneration(cause: isSure ? .promoted : .forced)
            ).number
            info.isPromoted = true
            return info
        } catch { throw PoolSession.failure(error) }
    }
}
