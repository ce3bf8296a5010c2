import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List a pool's images; without POOL, every mounted pool.",
        discussion: """
            Without POOL, STATE is served, dead (the daemon is gone: see `doppel mount`), or unknown (a
            pool of another user). Of an image it is ok, latched (a sync failed: fsync of the image fails until the pool was mounted
            anew) or damaged (something of it does not verify: it answers EIO; see `doppel check`).

            EXAMPLES
              doppel list
              doppel list /mnt/vms
              doppel list /srv/vms --json | jq -r '.[].path'
              doppel list doppel://backup1.example:7420/vms
            """)
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String?
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            guard let pool else { return listPools() }
            let images = try PoolAccess.perform(ControlRequest(.list), on: pool).images ?? []
            if output.json { return Output.json(images) }
            Output.table(
                ["IMAGE", "SIZE", "USED", "MODIFIED", "STATE"],
                images.filter { $0.kind == "file" }.map {
                    [
                        $0.path, Output.size($0.sizeBytes), Output.size($0.allocatedBytes),
                        Output.time($0.modifiedNs), $0.state,
                    ]
                })
        }
    }

    private struct MountLine: Encodable {
        var pool: String
        var mountPoint: String
        var state: PoolLocation.MountState
    }

    private func listPools() {
        let lines = PoolLocation.mounts().map {
            MountLine(pool: $0.source, mountPoint: $0.mountPoint, state: $0.state)
        }
        if output.json { return Output.json(lines) }
        Output.table(
            ["POOL", "MOUNTED AT", "STATE"],
            lines.map { [$0.pool, $0.mountPoint, $0.state.rawValue] })
    }
}

struct Status: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show a pool's state; without POOL, every mounted pool's.",
        discussion: """
            A pool is healthy, degraded (a sync failed and an image is latched, or the catalog takes
            no changes: what is there is served, what is written may not become durable; or a mount
            of it is dead) or damaged
            (an image does not verify and answers EIO; the others are served). It is degraded, too,
            while a target is not in step: "at risk" is what would be lost with this machine.

            EXAMPLES
              doppel status
              doppel status /mnt/vms --json
              doppel status /mnt/vms --watch
              doppel status doppel://backup1.example:7420/vms

            EXIT CODES
              0  every pool shown is healthy   4  one is degraded   5  one is damaged
            """)
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String?
    @Flag(help: "Show it anew each second until interrupted; with --json, an object a line.")
    var watch = false
    @OptionGroup var output: JSONFlag

    func run() throws {
        if watch { while true { watchOnce() } }
        try exiting {
            let (all, silent) = try gather()
            if output.json {
                Output.json(all)
            } else {
                for status in all { StatusText.lines(status).forEach { print($0) } }
            }
            if let silent { throw ExitCode(silent.exitCode) }
            if all.contains(where: { $0.state == "damaged" }) {
                throw ExitCode(ExitKind.damaged.rawValue)
            }
            if all.contains(where: { $0.state != "healthy" }) {
                throw ExitCode(ExitKind.degraded.rawValue)
            }
        }
    }

    /// The pool itself may be whole while those who use the mount get errors.
    private static func withDeadMounts(_ status: StatusInfo) -> StatusInfo {
        var status = status
        for mount in PoolLocation.mounts()
        where mount.source == status.pool && mount.mountPoint != status.mountPoint {
            status.problems.append(
                "the mount at \(mount.mountPoint) is dead, its daemon is gone: `doppel mount "
                    + "\(status.pool) \(mount.mountPoint)` brings it back, `doppel unmount "
                    + "\(mount.mountPoint)` takes it away")
            if status.state == "healthy" { status.state = "degraded" }
        }
        return status
    }

    /// - Returns: what answered, and why the first did not that did not.
    private func gather() throws -> ([StatusInfo], ControlFailure?) {
        var all: [StatusInfo] = []
        var silent: ControlFailure?
        for path in pool.map({ [$0] }) ?? PoolLocation.mounts().map(\.mountPoint) {
            do {
                let result = try PoolAccess.perform(ControlRequest(.status), on: path)
                if let status = result.status { all.append(Self.withDeadMounts(status)) }
            } catch {
                // One that does not answer hides none of the others.
                if pool != nil { throw error }
                let failure = PoolSession.failure(error)
                Output.error("doppel: \(path): \(failure.message)")
                silent = silent ?? failure
            }
        }
        return (all, silent)
    }

    /// A pool that does not answer now may do so later: it is being mounted, or unmounted.
    private func watchOnce() {
        do {
            let (all, _) = try gather()
            if output.json {
                for status in all {
                    print(String(decoding: JSONLine.encode(status), as: UTF8.self))
                }
            } else {
                Output.clearTerminal()
                print(Output.timeNow())
                for status in all { StatusText.lines(status).forEach { print($0) } }
            }
        } catch { Output.error("doppel: \(PoolSession.failure(error).message)") }
        Output.flush()
        Pause.microseconds(1_000_000)
    }
}

struct Scrub: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Read every sealed block and hold it against its checksum.",
        discussion: """
            Blocks that have no checksum yet get one first. A mounted pool goes on being used;
            `doppel jobs` shows the scrub and stops it.

            EXAMPLES
              doppel scrub /mnt/vms
              doppel scrub /srv/vms --json

            EXIT CODES
              0  every block is what it was   5  a block is damaged
            """)
    @OptionGroup var pool: PoolArgument
    @OptionGroup var progress: ProgressFlag
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let line = Progress("verifying", isForced: progress.progress)
            let result = try PoolAccess.perform(ControlRequest(.scrub), on: pool.pool) {
                line.update($0)
            }
            line.end()
            guard let scrub = result.scrub else { return }
            if output.json {
                Output.json(scrub)
            } else {
                print("\(scrub.blocksRead) blocks read, \(scrub.blocksCovered) verified")
                for damage in scrub.damaged { print("DAMAGED: \(damage)") }
            }
            if !scrub.damaged.isEmpty { throw ExitCode(ExitKind.damaged.rawValue) }
        }
    }
}
