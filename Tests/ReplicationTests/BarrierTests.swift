import BlockCore
import Replication
import Testing

@Suite struct BarrierTests {
    /// Before a barrier is staged, what was sent is flushed; and while that is on its way the ring lets go of a
    /// target that nobody waits for: what it does not know to be there yet enters the legs, cuts and all.
    @Test func whatTheTargetHasIsNoLegWhenTheRingLetsGoOfItMeanwhile() throws {
        let world = DriverWorld(seed: 2)
        world.isBusy = false
        try world.run(steps: 0)
        while !world.snapshots.isEmpty { world.deleteSnapshot() }
        world.write(at: (image: 0, block: 2), count: 1)
        world.cut()
        world.write(at: (image: 0, block: 5), count: 1)
        world.restore()
        var isFull = false
        world.target.whenFlushed = {
            for _ in 0..<60 { world.write(at: (image: 1, block: 8), count: 3) }
            isFull = world.stream.standing(world.id)?.hasOverflowed ?? false
        }
        while world.driver.step() { try world.target.check() }
        #expect(isFull)
        try world.settle()
    }
}
