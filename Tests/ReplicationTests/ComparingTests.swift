import BlockCore
import Replication
import Testing

@Suite struct ComparingTests {
    /// What is the same as in a snapshot may differ from the head that takes its place as the first leg's end.
    @Test func aSnapshotThatIsDeletedMeanwhileWasNotTheHead() throws {
        let world = DriverWorld(seed: 7)
        world.isBusy = false
        try world.run(steps: 0)
        while !world.snapshots.isEmpty { world.deleteSnapshot() }
        let changed = BlockSet([BlockRange(start: 4, count: 1)])
        world.end(leaving: [DriverWorld.id(1): changed]) {
            world.cut()
            world.write(at: (image: 1, block: 4), count: 1)
        }
        var wasCompared = false
        world.target.whenHashed = {
            wasCompared = true
            world.deleteSnapshot()
        }
        try world.settle()
        #expect(wasCompared && world.snapshots.isEmpty)
    }
}
