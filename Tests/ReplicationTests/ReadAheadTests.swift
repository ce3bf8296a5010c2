import BlockCore
import Replication
import SystemIO
import TestSupport
import Testing

/// Blocks are read while they change, ahead of their turn.
@Suite struct ReadAheadTests {
    @Test(arguments: Seeds.run(150))
    func whatIsCommittedIsWhatThePoolShowed(seed: UInt64) {
        let world = DriverWorld(seed: seed)
        do { try world.run(steps: 400) } catch { Issue.record("seed \(seed): \(error)") }
    }

    /// The ring overflows at any moment, also when all that it held was just sent, and a barrier comes next.
    @Test(arguments: Seeds.run(100))
    func whatTheRingCouldNotHoldIsShipped(seed: UInt64) {
        let world = DriverWorld(seed: seed)
        world.comesInBursts = true
        do { try world.run(steps: 400) } catch { Issue.record("seed \(seed): \(error)") }
    }

    /// Worlds in which a block that the stream had before a cut was read after it. Few do: without
    /// `SessionDriver.stageBlocks` taking such blocks out of what is covered, these fail.
    @Test(arguments: [1644, 1820, 2905] as [UInt64])
    func aCutTakesNoNewerBlockForClean(seed: UInt64) {
        let world = DriverWorld(seed: seed)
        do { try world.run(steps: 400) } catch { Issue.record("seed \(seed): \(error)") }
    }

    /// A cut comes between the read of a block and the leg's end: what was staged may be newer than the cut,
    /// and counts as not staged. Where it does not, that is found.
    @Test func whatIsNewerThanACutAndTakenForCleanIsFound() {
        let found = (UInt64(1)...150).contains { seed in
            let world = DriverWorld(seed: seed)
            world.target.takesNewerForClean = true
            do {
                try world.run(steps: 400)
                return false
            } catch { return error is Violation }
        }
        #expect(found)
    }

    @Test func chunksHoldEveryBlockOnceInOrder() {
        let chunk = BlockChunk(
            image: ImageID(rawValue: 1),
            ranges: [
                BlockRange(start: 3, count: 10), BlockRange(start: 20, count: 1),
                BlockRange(start: 1020, count: 9),
            ])
        for parts in 1...25 {
            let split = chunk.split(into: parts)
            #expect(split.count <= parts)
            #expect(split.allSatisfy { $0.blockCount <= (20 + UInt64(parts) - 1) / UInt64(parts) })
            #expect(
                split.flatMap { $0.ranges.flatMap { $0.start..<$0.end } }
                    == chunk.ranges.flatMap { $0.start..<$0.end })
        }
    }
}
