import ArgumentParser
import Glibc
import Logging
import Simulation

struct Simulator: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "simulator",
        abstract: "Run a primary and its mirror through crashes, in one thread, from one seed.",
        discussion: """
            EXAMPLES
              swift run simulator --seed 7 --steps 2000
              swift run simulator --seeds 1000 --steps 1000 --jobs 2
              swift run simulator --bug forgetsTrims --seeds 50
            """)
    @Option(help: "The first seed.") var seed: UInt64 = 1
    @Option(help: "How many seeds, one after the other.") var seeds: UInt64 = 1
    @Option(help: "Steps for each seed.") var steps = 1000
    @Option(help: "Processes that share the seeds.") var jobs = 1
    @Option(
        help: """
            'mirrors': one primary and its mirrors; 'roles': a network between them, promotions, handovers, \
            primaries that are cut off, and the way back.
            """) var world = SimulatedWorld.Kind.mirrors
    @Option(help: "A bug that is seeded on purpose.") var bug: SimulatedBug?
    @Flag(help: "Print each step of one seed, instead of looking for those that a violation needs.")
    var trace = false
    @Flag(help: .hidden) var isJob = false

    func validate() throws {
        guard jobs > 0, steps > 0 else { throw ValidationError("there must be something to do") }
        guard !trace || seeds == 1 && jobs == 1 else {
            throw ValidationError("--trace is for one seed")
        }
    }

    func run() throws {
        if trace { return try printSteps() }
        let clock = ContinuousClock()
        let start = clock.now
        let coverage = try jobs > 1 ? share() : work()
        if isJob { return tell(coverage) }
        let done = Int(seeds) * steps
        let (seconds, attoseconds) = (clock.now - start).components
        let elapsed = Double(seconds) + Double(attoseconds) * 1e-18
        print("\(done) steps, \(seeds) seeds from \(seed) on: nothing wrong")
        print("  \(Int(elapsed)) s, \(Int(Double(done) / elapsed)) steps/s")
        for (what, times) in coverage.sorted(by: { $0.key < $1.key }) {
            print("  \(what): \(times)")
        }
    }

    private func printSteps() throws {
        let run = SimulationRun(seed: seed, steps: steps, kind: world, bug: bug)
        guard let violation = run.print() else { return print("nothing wrong") }
        print("VIOLATION with seed \(seed): \(violation)")
        throw ExitCode(1)
    }

    /// One seed after the other, here.
    private func work() throws -> [String: Int] {
        var coverage: [String: Int] = [:]
        for seed in seed..<seed + seeds {
            if isJob { tell("\(JobOutput.seed)\(seed)") }
            let (failure, covered) = SimulationRun(
                seed: seed, steps: steps, kind: world, bug: bug
            ).run()
            coverage.merge(covered, uniquingKeysWith: +)
            guard let failure else { continue }
            print("VIOLATION with seed \(seed): \(failure.violation)")
            print("needs \(failure.steps.count) of \(steps) steps:")
            for line in failure.trace { print("  \(line)") }
            throw ExitCode(1)
        }
        return coverage
    }

    private func share() throws -> [String: Int] {
        let arguments =
            ["--world", world.rawValue] + (bug.map { ["--bug", $0.rawValue] } ?? [])
        do {
            return try Jobs(
                seeds: seed..<seed + seeds, steps: steps, jobs: jobs, arguments: arguments
            ).run(jobs)
        } catch let failure as JobFailure {
            print(failure.text)
            throw ExitCode(1)
        }
    }

    private func tell(_ coverage: [String: Int]) {
        for (what, times) in coverage { tell("\(JobOutput.covered)\(what)\t\(times)") }
    }

    private func tell(_ line: String) {
        print(line)
        fflush(nil)
    }
}

extension SimulatedBug: ExpressibleByArgument {}
extension SimulatedWorld.Kind: ExpressibleByArgument {}

// What the disks do on purpose would fill the screen.
LoggingSystem.bootstrap { _ in SwiftLogNoOpLogHandler() }
Simulator.main()
