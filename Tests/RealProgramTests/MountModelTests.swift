import TestSupport
import Testing

/// Thousands of random operations on a mounted pool and on a model of it, with crashes in between.
/// DOPPEL_SEED=n replays one; DOPPEL_SOAK=n runs more.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct MountModelTests {
    @Test(arguments: Seeds.run(2)) func aMountHoldsWhatItsModelHolds(seed: UInt64) throws {
        print("seed \(seed)")
        try Sandbox.with { box in
            try exercise(MountModel(box, seed: seed), box, steps: 300)
        }
    }

    /// Each crash is a loss of power: of the store only what was synced is left, and a random part
    /// of what was not.
    @Test(arguments: Seeds.run(2)) func aMountHoldsWhatWasFlushedWhenPowerFails(
        seed: UInt64
    ) throws {
        print("seed \(seed)")
        try LossyMount.with { lossy in
            try Sandbox.with(pool: lossy.file("pool")) { box in
                var drops = SeededRandom(seed: seed)
                let model = MountModel(box, seed: seed &+ 7_000_000) {
                    try lossy.tell("drop \(drops.next())")
                }
                try exercise(model, box, steps: 300)
            }
        }
    }

    private func exercise(_ model: MountModel, _ box: Sandbox, steps: Int) throws {
        try box.ok("init", box.pool)
        try box.mount()
        try model.explained {
            for _ in 0..<steps { try model.step() }
            try model.verify("at the end")
        }
        let rare = ["crash", "reopen", "snapshot", "restore", "clone", "resize", "delete snapshot"]
        #expect(rare.allSatisfy { model.counts[$0, default: 0] > 0 }, "\(model.counts)")
        try box.ok("check", box.pool)
    }
}
