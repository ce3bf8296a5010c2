import ArgumentParser
import Daemon
import Pool
import SystemIO

struct Demote: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make an old primary a mirror of the pool that took its place.",
        discussion: """
            For a pool that was replaced: its mirror was promoted. Nothing of its images changes until
            the new primary is mounted and finds it: what either side changed since they parted is
            shipped then, and what this pool had alone is kept in it as a snapshot `diverged-...`. The
            pool must not be mounted. Where the new primary is on another machine, it connects to this one as to
            any mirror behind a server: `doppel serve` here, `doppel target set ... --address` there.

            EXAMPLES
              doppel demote /srv/vms
              doppel demote /srv/vms --to /backup/vms
              doppel demote /srv/vms --to doppel://backup1.example:7420/vms
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
                path: location.poolPath, to: try to.map(Self.address))
            if output.json { return Output.json(info) }
            let isRemote = TargetAddress(info.primary).remote != nil
            print("\(info.path) is a mirror now, of \(info.primary), generation \(info.generation)")
            if !info.isTracked {
                print("  what it did alone is not known: everything will be compared")
            }
            guard isRemote else {
                print(
                    "  next         doppel mount \(info.primary) MOUNTPOINT, unless it is mounted")
                return
            }
            print("  next         doppel serve, for the folder that it is in, unless that runs")
            print(
                "               there, unless it is known: doppel target set POOL "
                    + "\(HostSystem.hostName):\(info.path) --address doppel://HOST:PORT/NAME")
        }
    }

    /// Of a pool of this machine, its directory.
    private static func address(_ text: String) throws -> String {
        if let problem = TargetAddress.problem(text) { throw ValidationError(problem) }
        if let remote = TargetAddress(text).remote { return remote.text }
        return try PoolLocation.find(text).poolPath
    }
}
