// Space back at once when a snapshot goes: blocks that nobody can see any more.
//
// The lower layer L is sealed, shown by no snapshot, and U is its one child. Where U has a block, L's is
// hidden from everybody, until the two are one layer.
//
//   flush     U's map is durable (a sealed one is)     crash: nothing was punched
//   grace     readers from before U had them have left
//   punch                                              crash: a hole more or less, nobody reads it
//
// L's map still names these blocks: a disk that is full has no room to say otherwise.

import BlockCore
import Pool
import SystemIO

extension Volume {
    /// Frees what upper layers hide. The caller holds the structure lock.
    func freeHiddenBlocks() throws(VolumeError) {
        for merge in try mergeCandidates(try read { try $0.layers() }) {
            guard let lower = layer(merge.lower.id), let upper = layer(merge.upper.id),
                lower.isSealed, merge.image != nil || upper.isSealed,
                !isPinned(lower, below: upper), !merge.names(stoppedLayers),
                // Its file may name blocks that it does not have durably, and that are read below it.
                upper.latchedFailure == nil, lower.latchedFailure == nil
            else { continue }
            if let image = merge.image {
                // What drains down is hidden by the layer that it leaves.
                guard image.draining == nil else { continue }
                try image.flush()
            }
            let above = try contents(of: merge.upper, layer: upper)
            let below = try contents(of: merge.lower, layer: lower)
            var hidden = below.data
            hidden.subtract(below.visibleData(below: above))
            guard !hidden.isEmpty else { continue }
            core.epochs.synchronize()
            punch(hidden.ranges.map { MapExtent(range: $0, state: .data) }, in: lower)
        }
    }
}
