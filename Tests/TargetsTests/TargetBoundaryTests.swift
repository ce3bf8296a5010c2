import TestSupport
import Testing

/// The power goes at each sync and each commit in turn, of what a target does at its most delicate; the
/// next open is cut short in turn, too. What is there afterwards is a prefix with all that was confirmed,
/// and in a staging the checkpoint that it began on.
@Suite struct TargetBoundaryTests {
    /// - Parameters:
    ///   - prepare: what comes before, undisturbed.
    ///   - work: cut off at one boundary after the other, until it comes to its end.
    private func cutOff(
        _ kind: TargetKind, _ what: String, prepare: (TargetWorld) throws -> Void = { _ in },
        _ work: (TargetWorld) throws -> Void
    ) throws {
        for count in 1...400 {
            let world = try TargetWorld(seed: UInt64(count % 7 + 1), kind)
            for _ in 0..<4 { world.primary.step() }
            for _ in 0..<2 { world.primary.create() }
            try world.connect()
            while world.acknowledged < world.primary.last { try world.goOn() }
            try prepare(world)
            world.fixture.disk.powerOff(atSync: count)
            do { try work(world) } catch {
                guard world.fixture.disk.isPoweredOff else { throw error }
            }
            let isDone = !world.fixture.disk.isPoweredOff
            world.fixture.disk.cancelPowerOff()
            do {
                try world.losePower()
                if world.target == nil { try world.connect() }
                try world.check()
                if !kind.can.contains(.keepsCheckpoint) { try world.converge() }
            } catch { throw Violation("\(what), power off at \(count): \(error)") }
            if isDone {
                #expect(count > 5, "\(what) has its boundaries")
                return
            }
        }
        Issue.record("\(what) does not come to its end")
    }

    private func send(_ world: TargetWorld) throws {
        while world.sent < world.primary.last { try world.goOn() }
        try world.confirm()
    }

    /// An image is unlinked and written on, another is made; a snapshot is cut through it all.
    private func operate(_ world: TargetWorld) {
        let image = world.primary.pool.images.keys.min()!
        world.primary.write(image)
        world.primary.create(sizeBytes: 76_529)
        world.primary.snapshot()
        world.primary.create(sizeBytes: 100_000)
        world.primary.delete(image)
        world.primary.write(world.primary.pool.images.keys.max()!)
    }

    @Test(arguments: TargetKind.inProcess) func streamingAndApplying(kind: TargetKind) throws {
        try cutOff(kind, "streaming") { world in
            operate(world)
            try send(world)
            for _ in 0..<12 { try world.fixture.stepBehind(world.target!) }
            try world.goAway(cleanly: true)
        }
    }

    @Test(arguments: TargetKind.inProcess.filter { $0.can.contains(.keepsCheckpoint) })
    func replaying(kind: TargetKind) throws {
        try cutOff(kind, "replay") { world in
            operate(world)
            try send(world)
            world.fixture.losePower(&world.random)
        } _: { world in
            let shown = try #require(try world.fixture.showAlone())
            guard shown.sequence >= world.acknowledged else {
                throw Violation("\(shown.sequence.rawValue) is shown")
            }
            world.target = nil
        }
    }

    @Test(arguments: TargetKind.inProcess) func stagingAndCommitting(kind: TargetKind) throws {
        try cutOff(kind, "staging") { world in
            world.fixture.losePower(&world.random)
            for _ in 0..<10 { world.primary.step() }
            world.primary.restart()
        } _: { world in
            try world.connect()
            for _ in 0..<30 where world.acknowledged < world.primary.last { try world.goOn() }
        }
    }

    @Test(arguments: TargetKind.inProcess) func aLegThatEndsInASnapshot(kind: TargetKind) throws {
        try cutOff(kind, "a leg") { world in
            try world.startResync()
            operate(world)
            for _ in 0..<30 where world.acknowledged < world.primary.last { try world.goOn() }
        }
    }

    @Test(arguments: TargetKind.inProcess) func puttingBack(kind: TargetKind) throws {
        try cutOff(kind, "putting back") { world in
            operate(world)
            try world.startResync()
            try world.goOn()
        } _: { world in
            try world.startResync()
            try world.goOn()
        }
    }
}
