import ArgumentParser
import Daemon
import SystemIO

struct Promote: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make a mirror a pool of its own: its primary is lost, or is to be replaced.",
        discussion: """
            What the mirror received is applied, and a new generation begins. The old primary is
            refused from then on; its mount turns read-only when it connects. The mirror must not be
            mounted, and its primary's daemon must not be writing to it: stop it first.

            EXAMPLES
              doppel promote /backup/vms --dry-run
              doppel promote /backup/vms
              doppel mount /backup/vms /mnt/vms
            """)
    @Argument(help: "The mirror's directory.", completion: .directory) var mirror: String
    @Flag(help: "Say what would be done, and what would be lost.") var dryRun = false
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let info = try Promotion.perform(
                path: PoolLocation.find(mirror).poolPath, dryRun: dryRun)
            if output.json { return Output.json(info) }
            print(
                dryRun
                    ? "\(info.path) would become generation \(info.generation)"
                    : "\(info.path) is a primary now, generation \(info.generation)")
            print("  follows      pool \(info.primaryPool)")
            print(
                "  holds        operations up to \(info.checkpointSequence), \(Output.time(info.shownNs))"
            )
            if !dryRun { print("  next         doppel mount \(info.path) MOUNTPOINT") }
        }
    }
}
