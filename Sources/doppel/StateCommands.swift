import ArgumentParser
import BlockCore
import Daemon
import FuseFrontend
import Glibc
import Pool
import SystemIO

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List a pool's images; without POOL, every mounted pool.")
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String?
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            guard let pool else { return listPools() }
            let images = try PoolAccess.perform(ControlRequest(.list), on: pool).images ?? []
            if output.json { return Output.json(images) }
            Output.table(
                ["IMAGE", "SIZE", "USED", "MODIFIED"],
                images.filter { $0.kind == "file" }.map {
                    [
                        $0.path, Output.size($0.sizeBytes), Output.size($0.allocatedBytes),
                        Output.time($0.modifiedNs),
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
        discussion: "Exit code 4 when a pool is degraded.")
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
        print("  sequence     \(status.sequence), incarnation \(status.incarnation)")
        for problem in status.problems { print("  PROBLEM      \(problem)") }
    }
}

struct Events: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what happened to a pool: recoveries, deletions, quarantine.")
    @OptionGroup var pool: PoolArgument
    @Option(help: "How many, the newest first.") var limit = 20
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let events =
                try PoolAccess.perform(ControlRequest(.events) { $0.limit = limit }, on: pool.pool)
                .events ?? []
            if output.json { return Output.json(events) }
            Output.table(
                ["TIME", "KIND", "SUBJECT", "MESSAGE"],
                events.map { [Output.time($0.atNs), $0.kind, $0.subject, $0.message] })
        }
    }
}

struct Scrub: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Read every sealed block and hold it against its checksum.",
        discussion: "Exit code 5 when a block is damaged.")
    @OptionGroup var pool: PoolArgument
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            guard let scrub = try PoolAccess.perform(ControlRequest(.scrub), on: pool.pool).scrub
            else { return }
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

    func run() throws {
        print("doppel \(Doppel.version)")
        guard host else { return }
        var name = utsname()
        uname(&name)
        let release = withUnsafeBytes(of: &name.release) {
            String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        print("kernel              \(release)")
        let parts = release.split(whereSeparator: { !$0.isNumber }).prefix(2).compactMap {
            Int($0)
        }
        let number = parts.count == 2 ? parts[0] * 1000 + parts[1] : 0
        print("FUSE device         \(access("/dev/fuse", R_OK | W_OK) == 0 ? "yes" : "no access")")
        print(
            "shared mmap of images with --cache none   "
                + (number >= 6009
                    ? "yes, at full speed"
                    : number >= 6006 ? "yes (at full speed from Linux 6.9)" : "needs Linux 6.6"))
    }
}
