import TestSupport
import Testing
import Volume

/// Bugs on purpose: what a volume with the steps in a wrong order would leave after a loss of power is
/// left by a disk or a catalog that takes them in that order. The crash tests must find each of them
/// within a few seeds; docs/testing.md has the list.
@Suite struct SeededBugTests {
    struct Bug: Sendable, CustomTestStringConvertible {
        var testDescription: String
        /// The first is near one that meets what the bug needs, where that is rare.
        var seeds: ClosedRange<UInt64>
        var run: @Sendable (_ seed: UInt64, _ plant: Plant) throws -> Void
        var plant: Plant
        typealias Plant = @Sendable (inout CheckedPool.Options) -> Void

        init(
            _ name: String, from first: UInt64 = 1, within count: UInt64 = 10,
            by run: @escaping @Sendable (UInt64, Plant) throws -> Void = {
                try CrashTests.run(seed: $0, $1)
            },
            _ plant: @escaping Plant
        ) {
            testDescription = name
            seeds = first...first + count - 1
            self.run = run
            self.plant = plant
        }
    }

    static let bugs = [
        Bug("map record before its data") {
            $0.misbehaviour.skipsSync = { $0.hasSuffix(".data") }
        },
        Bug("flush acknowledged before its map record") {
            $0.misbehaviour.skipsSync = { $0.hasSuffix(".map") }
        },
        Bug(
            "head switched before pending", from: 5,
            by: { seed, plant in
                for count in 1...24 {
                    try SyncWalkTests.snapshotWhileOthersWrite.run(
                        seed: seed, powerOffAtSync: count, plant)
                }
            }
        ) { $0.catalogForgets = .switchesOfHeads },
        Bug("mark after the write") {
            $0.misbehaviour.skipsSync = { $0.hasSuffix("/activity") }
        },
        Bug("punch before durable", within: 30) { $0.misbehaviour.punchesWhatIsCopied = true },
        Bug("folder not synced") {
            $0.misbehaviour.skipsSync = { !$0.contains(".") && $0.hasPrefix("/pool/images") }
        },
        Bug("merged layer removed before the catalog knows", within: 30) {
            $0.catalogForgets = .removalsOfLayers
        },
        Bug("catalog commit not synced") { $0.catalogForgets = .everyCommit },
        Bug("checksums named before they are written", from: 20, within: 30) {
            $0.misbehaviour.skipsSync = { $0.hasSuffix(".sums.new") }
        },
    ]

    @Test(arguments: bugs)
    func isFound(bug: Bug) {
        for seed in bug.seeds {
            do { try bug.run(seed, bug.plant) } catch {
                print("seeded bug '\(bug.testDescription)': seed \(seed): \(error)")
                return
            }
        }
        Issue.record("'\(bug.testDescription)' was not found with seeds \(bug.seeds)")
    }
}
