import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import VirtualFS
import Volume

/// A mirror that was opened while its primary does not run, and the moment of it that is shown.
final class ShownMirror: Sendable {
    let recovered: RecoveredMirror
    let view: MirrorView

    private init(_ recovered: RecoveredMirror, _ view: MirrorView) {
        self.recovered = recovered
        self.view = view
    }

    /// - Returns: nil where the pool is no mirror.
    static func open(_ store: PoolStore, _ options: PoolSession.Options) throws -> ShownMirror? {
        guard try RecoveredMirror.replica(of: store) != nil else {
            guard options.atNs == nil else {
                throw ControlFailure(
                    .usage, "--at looks back in a mirror; a pool has its snapshots for that")
            }
            return nil
        }
        if options.mirror != nil {
            throw ControlFailure(
                .usage, "a mirror has no mirror of its own; `doppel promote` first")
        }
        let recovered = try RecoveredMirror(
            store: store, runsInBackground: options.mountPoint != nil,
            keepsHistory: options.keepsHistory)
        do {
            return ShownMirror(
                recovered, try recovered.view(shownAt: options.atNs))
        } catch {
            recovered.close()
            throw error
        }
    }

    func close() {
        view.release()
        recovered.close()
    }
}

extension RecoveredMirror {
    fileprivate func view(shownAt atNs: Int64?) throws(TargetError) -> MirrorView {
        if let atNs { return try view(atNs: atNs) }
        return try newestView()
    }
}

extension MirrorView {
    var fixedTree: FixedTree {
        FixedTree(nodes) { [self] (node) throws(FSError) in
            do throws(TargetError) { return try open(node) } catch {
                throw FSError(.io, error.message)
            }
        }
    }
}
