import Replication
import TestSupport
import Testing

/// A target fails in every way at every operation, under a pool that changes all the while: the session goes
/// on, shows nothing that never was, and the target is in the end what the pool is.
@Suite struct TargetFaultTests {
    static let faults: [TargetFault] = TargetFault.Kind.allCases.flatMap { kind in
        TargetFault.Operation.allCases.flatMap { operation in
            [1, 2, 5].map { TargetFault(kind: kind, operation: operation, number: $0) }
        }
    }.filter(\.isPossible)

    @Test(arguments: faults) func theTargetIsInTheEndWhatThePoolIs(fault: TargetFault) {
        for seed in Seeds.run(3) {
            let world = DriverWorld(seed: seed &* 7919, fault: fault)
            do { try world.run(steps: 250) } catch {
                Issue.record("seed \(seed), \(fault.testDescription): \(error)")
            }
        }
    }

    /// A fault that strikes in no run shows nothing.
    @Test func everyFaultStrikes() {
        var struck: Set<TargetFault> = []
        for fault in Self.faults where fault.number == 1 {
            for seed in 1...40 where !struck.contains(fault) {
                let world = DriverWorld(seed: UInt64(seed) &* 7919, fault: fault)
                try? world.run(steps: 250)
                if world.hasStruck { struck.insert(fault) }
            }
        }
        let missing = Self.faults.filter { $0.number == 1 && !struck.contains($0) }
        #expect(missing.isEmpty, "\(missing.map(\.testDescription))")
    }
}
