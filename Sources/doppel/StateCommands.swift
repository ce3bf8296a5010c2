import ArgumentParser
import BlockCore
import Daemon
import FuseFrontend
import Glibc
import Pool
import SystemIO

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List a pool's images; without POOL, every mounted pool.",
        discussion: """
            STATE is ok, latched (a sync failed: fsync of the image fails until the pool was mounted
            anew) or damaged (something of it does not verify: it answers EIO; see `doppel check`).

            EXAMPLES
              doppel list
              doppel list /mnt/vms
              doppel list /srv/vms --json | jq -r '.[].path'
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

    private func listPools() {
        let mounts = PoolLocation.mounts()
        if output.json {
            return Output.json(mounts.map { ["pool": $0.source, "mountPoint": $0.mountPoint] })
        }
        Output.table(["POOL", "MOUNTED AT"], mounts.map { [$0.source, $0.mountPoint] })
    }
}

struct Status: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show a pool's state; without POOL, every mounted pool's.",
        discussion: """
            A pool is healthy, degraded (a sync failed and an image is latched, or the catalog takes
            no changes: what is there is served, what is written may not become durable) or damaged
            (an image does not verify and answers EIO; the others are served).

            EXAMPLES
              doppel status
              doppel status /mnt/vms --json

            EXIT CODES
              0  every pool shown is healthy   4  one is degraded   5  one is damaged
            """)
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String?
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            var all: [StatusInfo] = []
            var silent: ControlFailure?
            for path in pool.map({ [$0] }) ?? PoolLocation.mounts().map(\.mountPoint) {
                do {
                    let result = try PoolAccess.perform(ControlRequest(.status), on: path)
                    if let status = result.status { all.append(status) }
                } catch {
                    // One that does not answer hides none of the others.
                    if pool != nil { throw error }
                    let failure = PoolSession.failure(error)
                    Output.error("doppel: \(path): \(failure.message)")
                    silent = silent ?? failure
                }
            }
            if output.json { Output.json(all) } else { for status in all { show(status) } }
            if let silent { throw ExitCode(silent.exitCode) }
            if all.contains(where: { $0.state == "damaged" }) {
                throw ExitCode(ExitKind.damaged.rawValue)
            }
            if all.contains(where: { $0.state != "healthy" }) {
                throw ExitCode(ExitKind.degraded.rawValue)
            }
        }
    }

    private func show(_ status: StatusInfo) {
        print("\(status.pool): \(status.state)")
        print("  mounted at   \(status.mountPoint ?? "nowhere")")
        print("  images       \(status.images), \(Output.size(status.sizeBytes))")
        print("  snapshots    \(status.snapshots)")
        print(
            "  checksums    "
                + (status.uncoveredLayers == 0
                    ? "every sealed layer is covered"
                    : "\(status.uncoveredLayers) sealed layers not covered yet"))
        print(
            "  store        \(Output.size(status.storeFreeBytes)) free, "
                + "\(Output.size(status.reserveBytes)) in reserve")
        if status.pendingMerges > 0 { print("  merging      \(status.pendingMerges) layers") }
        for job in status.jobs {
            print(
                "  job \(job.job)        \(job.kind), \(Output.size(job.doneBytes)) of "
                    + "\(Output.size(job.totalBytes))")
        }
        print("  sequence     \(status.sequence), incarnation \(status.incarnation)")
        for problem in status.problems { print("  PROBLEM      \(problem)") }
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

struct Version: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show the version, and with --host what this machine can do.")
    @Flag(help: "What this machine can do.") var host = false
    @OptionGroup var output: JSONFlag

    private struct Info: Encodable {
        var version: String
        var kernel: String
        var hasFuse: Bool
        var hasDirectMmap: Bool
    }

    func run() throws {
        if output.json { return printJSON() }
        print("doppel \(Doppel.version)")
        guard host else { return }
        let (release, number) = Self.kernel()
        print("kernel              \(release)")
        print("FUSE device         \(Self.hasFuse ? "yes" : "no access")")
        print(
            "shared mmap of images with --cache none   "
                + (number >= 6009
                    ? "yes, at full speed"
                    : number >= 6006 ? "yes (at full speed from Linux 6.9)" : "needs Linux 6.6"))
    }

    private func printJSON() {
        let (release, number) = Self.kernel()
        Output.json(
            Info(
                version: Doppel.version, kernel: release, hasFuse: Self.hasFuse,
                hasDirectMmap: number >= 6006))
    }

    private static var hasFuse: Bool { access("/dev/fuse", R_OK | W_OK) == 0 }

    /// The kernel's release, and its first two numbers as one that can be compared.
    private static func kernel() -> (release: String, number: Int) {
        var name = utsname()
        uname(&name)
        let release = withUnsafeBytes(of: &name.release) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        let parts = release.split(whereSeparator: { !$0.isNumber }).prefix(2).compactMap {
            Int($0)
        }
        return (release, parts.count == 2 ? parts[0] * 1000 + parts[1] : 0)
    }
}
