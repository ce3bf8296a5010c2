import TestSupport
import Testing

/// Random work with a target of each kind, and the power going at random syncs: it shows what its
/// primary showed at its checkpoint (G2), which is never before what it confirmed, and in a staging it
/// is the one that the staging began on.
@Suite struct TargetCrashTests {
    /// A kind has more to show the more it promises.
    private static let cases = TargetKind.allCases.flatMap { kind in
        let seeds = kind.can.contains(.keepsCheckpoint) ? 14 : 6
        return Seeds.run(kind.isRemote ? seeds / 3 : seeds).map { (kind, $0) }
    }

    @Test(arguments: cases)
    func aTargetShowsAPrefixAlways(kind: TargetKind, seed: UInt64) {
        do {
            let world = try TargetWorld(seed: seed, kind)
            for _ in 0..<6 {
                try world.run(toPowerOffAtSync: 1 + world.random.below(90), stepLimit: 120)
            }
            try world.converge()
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    @Test(arguments: TargetKind.allCases, Seeds.run(2))
    func withoutACrashItKeepsUp(kind: TargetKind, seed: UInt64) {
        do {
            let world = try TargetWorld(seed: seed, kind)
            for _ in 0..<300 { try world.step() }
            try world.goAway(cleanly: true)
        } catch { Issue.record("seed \(seed): \(error)") }
    }
}
