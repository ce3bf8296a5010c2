import BlockCore
import Replication
import TestSupport
import Testing

/// Whatever a session is in the middle of when it is let go of: nothing is held for its target afterwards (S6), and
/// nobody who writes waits for it.
@Suite struct StreamReleaseTests {
    enum Moment: CaseIterable { case connecting, openingALeg, aLegThatFails }

    /// - Parameter isOnRecord: that it is stale is written down before what was under way is over.
    @Test(arguments: Moment.allCases, [true, false])
    func nothingIsHeldForWhoIsPaused(moment: Moment, isOnRecord: Bool) throws {
        let world = DriverWorld(seed: 1)
        world.isBusy = false
        world.stream.setHoldsWriters(world.id, true)
        world.write(at: (0, 3), count: 2)
        world.driver.start(onThread: false)
        let pause = {
            world.driver.pause()
            if isOnRecord { world.tick() }
        }
        switch moment {
        case .connecting:
            // What it lacks the stream has from the second time on.
            try world.settle()
            world.target.whenConnected = pause
            world.driver.connectAnew("another address")
            world.write(at: (1, 5), count: 1)
        case .openingALeg: world.target.whenStaging = pause
        case .aLegThatFails:
            world.target.whenStaging = {
                pause()
                world.target.failsNext = true
            }
        }
        while world.driver.step() {}
        world.tick()
        while world.driver.step() {}
        #expect(world.driver.snapshot.state == .paused)
        let standing = try #require(world.stream.standing(world.id))
        #expect(!standing.isStreaming)
        #expect(!standing.isClean, "what it lacks is known")
        #expect(world.stream.hasRoom(bytes: 1 << 30))
        world.driver.resume()
        try world.settle()
    }
}
