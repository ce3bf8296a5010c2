import ArgumentParser
import Logging
import Simulation

struct Simulator: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "simulator",
        abstract: "Run a primary and its mirror through crashes, in one thread, from one seed.",
        discussion: """
            EXAMPLES
              swift run simulator --seed 7 --steps 2000
              swift run simulator --seeds 1000 --steps 1000
              swift run simulator --bug forgetsTrims --seeds 50
            """)
    @Option(help: "The first seed.") var seed: UInt64 = 1
    @Option(help: "How many seeds, one after the other.") var seeds: UInt64 = 1
    @Option(help: "Steps for each seed.") var steps = 1000
    @Option(help: "A bug that is seeded on purpose.") var bug: SimulatedBug?

    func run() throws {
        var coverage: [String: Int] = [:]
        var done = 0
        for seed in seed..<seed + seeds {
            let (failure, covered) = SimulationRun(seed: seed, steps: steps, bug: bug).run()
            coverage.merge(covered, uniquingKeysWith: +)
            done += steps
            guard let failure else { continue }
            print("VIOLATION with seed \(seed): \(failure.violation)")
            print("needs \(failure.steps.count) of \(steps) steps:")
            for line in failure.trace { print("  \(line)") }
            throw ExitCode(1)
        }
        print("\(done) steps, \(seeds) seeds from \(seed) on: nothing wrong")
        for (what, times) in coverage.sorted(by: { $0.key < $1.key }) {
            print("  \(what): \(times)")
        }
    }
}

extension SimulatedBug: ExpressibleByArgument {}

// What the disks do on purpose would fill the screen.
LoggingSystem.bootstrap { _ in SwiftLogNoOpLogHandler() }
Simulator.main()
