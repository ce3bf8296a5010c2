import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO

struct ClonePool: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "clone-pool",
        abstract: "Copy a whole pool from a mirror of it, to seed a new site.",
        discussion: """
            DIR becomes a mirror of the same primary: all images as they are in the source's checkpoint, and
            its snapshots. Every block is read back and held against the source by hash. The source is used on
            meanwhile; its host has to give this one the right `read`.

            Killed or cut off anywhere, the same command goes on from what is durable. Until all of it is
            there, DIR is nothing that can be mounted. Then it can be promoted, or added as a target where
            the primary is: what is alike is compared, and does not travel.

            EXAMPLES
              doppel clone-pool doppel://backup.example:7420/vms /srv/vms
              doppel clone-pool /backup/vms /mnt/usb/vms
            """)
    @Argument(help: "doppel://HOST:PORT/POOL, or the directory of a mirror.") var source: String
    @Argument(help: "A new or empty directory.", completion: .directory) var directory: String
    @Option(help: "How long a silent source is waited for.") var timeout = "10s"
    @OptionGroup var output: JSONFlag
    @OptionGroup var progress: ProgressFlag

    func run() throws {
        guard let timeoutMs = Duration.milliseconds(parsing: timeout), timeoutMs >= 100 else {
            throw ValidationError("--timeout is such as 10s or 500ms, at least 100ms")
        }
        if let problem = TargetAddress.problem(source) { throw ValidationError(problem) }
        if TargetAddress(source).isRaw {
            throw ValidationError("a raw mirror is plain files: any program copies them")
        }
        try exiting {
            let line = Progress("cloning", isForced: progress.progress)
            let path = ProcessControl.realPath(directory) ?? PoolLocation.absolute(directory)
            let info: CloneInfo
            do {
                defer { line.end() }
                info = try PoolClone.perform(source: source, to: path, timeoutMs: timeoutMs) {
                    done, total in line.update(done, of: total)
                }
            }
            if output.json { return Output.json(info) }
            print(
                "\(info.path) is a copy of \(info.source): \(info.images) images, "
                    + "\(info.snapshots.count) snapshots")
            print(
                "  holds        operations up to \(info.sequence), \(Output.time(info.shownNs))")
            print(
                "  copied       \(Output.size(info.copiedBytes))"
                    + (info.wasResumed ? ", beside what was there" : ""))
            print(
                "  verified     \(Output.size(info.verifiedBytes)) read back: every block has the source's hash"
            )
            print(
                "  next         doppel target add POOL \(info.path), where its primary is; or doppel promote "
                    + info.path)
        }
    }
}
