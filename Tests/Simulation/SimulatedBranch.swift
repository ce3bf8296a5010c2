// The story of one pool's content. Where a mirror is promoted, a new one begins: both went the same way up to
// there, and each on its own from then on.

import BlockCore
import Pool

struct UnfinishedCut {
    var state: ModelPool
    var after: UInt64
    /// Where its primary went on without it: who has more than that knows that it is none.
    var through = UInt64.max
}

final class SimulatedBranch {
    var history: History
    /// All cuts that a mirror may show.
    var cuts: [UInt64: ModelPool]
    /// By name, of snapshots that power went in the middle of: their cuts may be on mirrors.
    var unfinished: [String: UnfinishedCut]
    let parent: SimulatedBranch?
    /// Where it left its parent.
    let fork: UInt64

    init(_ state: ModelPool) {
        history = History(state, at: 0)
        cuts = [:]
        unfinished = [:]
        parent = nil
        fork = 0
    }

    /// - Parameter shown: what is there at `fork`, which may be inside an operation.
    init(from parent: SimulatedBranch, at fork: UInt64, showing shown: ModelPool) {
        history = parent.history.forked(at: fork, showing: shown)
        cuts = parent.cuts.filter { $0.key <= fork }
        unfinished = parent.unfinished.filter { $0.value.after < fork }
        self.parent = parent
        self.fork = fork
    }

    /// What a snapshot shows, of who is at a place of the story.
    func cut(_ record: SnapshotRecord, seenAt place: UInt64) -> ModelPool? {
        let sequence = record.sequence.rawValue
        if let cut = cuts[sequence] { return cut }
        guard let cut = unfinished[record.name], sequence > cut.after, sequence <= cut.through,
            place <= cut.through
        else { return nil }
        return cut.state
    }

    /// How much of it another has, too: `.max` of itself.
    func common(with other: SimulatedBranch) -> UInt64 {
        var (mine, bound) = (Optional(self), UInt64.max)
        while let branch = mine {
            if let shared = other.bound(of: branch) { return min(bound, shared) }
            bound = min(bound, branch.fork)
            mine = branch.parent
        }
        return 0
    }

    /// How much of `ancestor` it has; nil where it did not come from there.
    private func bound(of ancestor: SimulatedBranch) -> UInt64? {
        var (mine, bound) = (Optional(self), UInt64.max)
        while let branch = mine {
            if branch === ancestor { return bound }
            bound = min(bound, branch.fork)
            mine = branch.parent
        }
        return nil
    }
}

extension History {
    fileprivate func forked(at sequence: UInt64, showing shown: ModelPool) -> History {
        var result = self
        result.cut(after: sequence, showing: shown)
        return result
    }
}
