import ArgumentParser
import Daemon

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Open a pool, which mends what a crash left, and verify every sealed block.",
        discussion: """
            Prints what is wrong and what was moved to quarantine/. Exit code 4 when the pool is
            degraded, 5 when something is damaged.
            """)
    @OptionGroup var pool: PoolArgument
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let status = try PoolAccess.perform(ControlRequest(.check), on: pool.pool).status
            let scrub = try PoolAccess.perform(ControlRequest(.scrub), on: pool.pool).scrub
            let events = try PoolAccess.perform(
                ControlRequest(.events) { $0.limit = 20 }, on: pool.pool
            ).events
            if output.json {
                var result = ControlResult()
                (result.status, result.scrub, result.events) = (status, scrub, events)
                Output.json(result)
            } else {
                for problem in status?.problems ?? [] { print("PROBLEM: \(problem)") }
                for damage in scrub?.damaged ?? [] { print("DAMAGED: \(damage)") }
                for event in (events ?? []).reversed() {
                    print(
                        "\(Output.time(event.atNs)) \(event.kind) \(event.subject) \(event.message)"
                    )
                }
                print("\(scrub?.blocksCovered ?? 0) of \(scrub?.blocksRead ?? 0) blocks verified")
            }
            if !(scrub?.damaged.isEmpty ?? true) { throw ExitCode(ExitKind.damaged.rawValue) }
            if status?.state != "healthy" { throw ExitCode(ExitKind.degraded.rawValue) }
        }
    }
}
