import BlockCore

extension SessionDriver {
    /// What the target did on its own is replaced with what the pool has there: in the first leg that is
    /// shipped, for the later ones stand on it.
    func enter(_ diverged: Divergence) throws(TargetError) {
        // Where not all is known everything is compared, these too.
        let missing =
            diverged.isComplete
            ? try source.wholeImages().filter { !diverged.images.contains($0.key) } : [:]
        _ = stream.withLegs(id) { legs in
            legs.enterFirst(diverged.blocks)
            legs.enterUnknown(diverged.suspects)
            legs.enterUnknown(missing)
        }
        source.legsChanged(of: id)
        guard diverged.isComplete, diverged.isSomething else { return }
        let (own, open) = (diverged.blocks.blockCount, diverged.suspects.blockCount)
        source.tell(
            id, kind: "target-diverged",
            message:
                "it went its own way after operation \(diverged.common.rawValue): \(own) blocks "
                + "are its own and \(open) are compared; what it had is kept there as a snapshot")
    }
}
