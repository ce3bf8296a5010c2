import ArgumentParser
import Daemon
import Pool
import SystemIO

struct Failover: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Let a mirror of a pool take over from it.",
        discussion: """
            --planned, with nothing lost: changes are held for a moment while the mirror takes the rest; then it
            is the primary, and this pool its mirror. A mount of this pool is read-only from then on. Stop what
            uses it, or at least what writes to it, unmount it, and mount the other.

            --forced, where the primary is lost: the mirror becomes a primary as it is (`doppel promote`). What may be
            lost is shown first; then --yes is needed, or a `yes` on the terminal. The old primary is refused when it
            comes back.

            Each of the two may be on another machine, behind `doppel serve`, which has to give this host the right
            `admin`. The one that gives up its role has to reach the other at --to.

            EXAMPLES
              doppel failover /srv/vms --to /backup/vms --planned
              doppel failover /srv/vms --to doppel://backup1.example:7420/vms --planned
              doppel failover --to doppel://backup1.example:7420/vms --forced --dry-run
            """)
    @Argument(
        help: "The pool's directory, where it is mounted, or its address; not with --forced.",
        completion: .directory)
    var pool: String?
    @Option(help: "The mirror that takes over.", completion: .directory) var to: String
    @Flag(help: "The primary is well, and gives up its role by itself.") var planned = false
    @Flag(help: "The primary is lost: the mirror goes on with what it has.") var forced = false
    @Flag(help: "With --forced: say what would be done, and what would be lost.") var dryRun = false
    @Flag(help: "With --forced: also where something may be lost.") var yes = false
    @Option(help: "How long to wait for the mirror, such as 30s.") var timeout: String?
    @OptionGroup var output: JSONFlag

    func validate() throws {
        guard planned != forced else {
            throw ValidationError(
                "say --planned, or --forced where the primary is lost: `doppel failover --help`")
        }
        guard forced || !(dryRun || yes) else {
            throw ValidationError("--dry-run and --yes go with --forced")
        }
        guard planned == (pool != nil) else {
            throw ValidationError(
                planned ? "the pool is missing" : "--forced is for a mirror alone: --to says which")
        }
    }

    func run() throws {
        guard planned, let pool else {
            guard !TargetAddress(to).isRaw else {
                throw ValidationError("a raw mirror is promoted by `doppel promote \(to)`")
            }
            return try exiting {
                var promotion = PersonsPromotion(dryRun: dryRun, force: yes, json: output.json)
                promotion.forcing = "--yes"
                try promotion.run(to)
            }
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
            let isHere = TargetAddress(info.to).remote == nil
            print(
                "  next         doppel unmount, if \(info.from) is mounted; doppel mount "
                    + (isHere ? "\(info.to) MOUNTPOINT" : "on the machine that \(info.to) is on"))
        }
    }
}
