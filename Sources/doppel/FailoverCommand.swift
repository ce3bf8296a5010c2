import ArgumentParser
import Daemon
import SystemIO

struct Failover: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Hand a pool over to one of its mirrors, with nothing lost.",
        discussion: """
            Changes are held for a moment while the mirror takes the rest; then it is the primary, and
            this pool its mirror. A mount of this pool is read-only from then on. Stop what uses it, or
            at least what writes to it, unmount it, and mount the other.

            For a primary that is lost there is `doppel promote`.

            EXAMPLE
              doppel failover /srv/vms --to /backup/vms --planned
            """)
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String
    @Option(help: "The mirror that takes over.", completion: .directory) var to: String
    @Flag(help: "The primary is well, and gives up its role by itself.") var planned = false
    @Option(help: "How long to wait for the mirror, such as 30s.") var timeout: String?
    @OptionGroup var output: JSONFlag

    func run() throws {
        guard planned else {
            throw ValidationError(
                "say --planned; where the primary is lost, `doppel promote \(to)` takes over")
        }
        var request = ControlRequest(.failover)
        request.arguments?.target = TargetSpecification(address: to).absolute
        if let timeout {
            guard let timeoutMs = Duration.milliseconds(parsing: timeout) else {
                throw ValidationError("--timeout is such as 30s or 2m")
            }
            request.arguments?.timeoutMs = timeoutMs
        }
        let asked = request
        try exiting {
            guard let info = try PoolAccess.perform(asked, on: pool).failover else { return }
            if output.json { return Output.json(info) }
            print("\(info.to) is the primary now, generation \(info.generation)")
            print("  lost         nothing: both hold operations up to \(info.sequence)")
            print("  pause        \(info.pauseMs) ms, in which changes were held")
            print(
                "  next         doppel unmount, if \(info.from) is mounted; doppel mount \(info.to) MOUNTPOINT"
            )
        }
    }
}
