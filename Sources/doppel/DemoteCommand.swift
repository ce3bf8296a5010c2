import ArgumentParser
import Daemon

struct Demote: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make an old primary a mirror of the pool that took its place.",
        discussion: """
            For a pool that was replaced: its mirror was promoted. Nothing of its images changes until
            the new primary is mounted and finds it: what either side changed since they parted is
            shipped then, and what this pool had alone is kept in it as a snapshot `diverged-...`. The
            pool must not be mounted.

            EXAMPLES
              doppel demote /srv/vms
              doppel demote /srv/vms --to /backup/vms
            """)
    @Argument(help: "The old primary's directory.", completion: .directory) var pool: String
    @Option(
        help: "The pool that took its place; without it, the target that refused this one.",
        completion: .directory)
    var to: String?
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let location = try PoolLocation.find(pool)
            let info = try PoolDemotion.perform(
                path: location.poolPath, to: try to.map { try PoolLocation.find($0).poolPath })
            if output.json { return Output.json(info) }
            print("\(info.path) is a mirror now, of \(info.primary), generation \(info.generation)")
            if !info.isTracked {
                print("  what it did alone is not known: everything will be compared")
            }
            print("  next         doppel mount \(info.primary) MOUNTPOINT, unless it is mounted")
        }
    }
}
