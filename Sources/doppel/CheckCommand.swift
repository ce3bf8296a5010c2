import ArgumentParser
import Daemon
import Pool
import SystemIO

struct Check: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Find what is wrong with a pool, and with --repair put it right.",
        discussion: """
            Holds the catalog, every layer's data, map and checksums, and every sealed block against
            each other, and says for each finding to which image or snapshot it belongs, what it
            means, and what --repair would do. Without --repair nothing is changed. A mounted pool
            is checked through its daemon, as far as that is possible while it is written: unmount
            it for the whole check and for --repair.

            --repair destroys nothing: what it replaces or takes out of use goes to the pool's
            quarantine/ folder, and `doppel events` tells of it. An image of which something is
            missing is saved as far as it can be read, under its name with "-salvaged".

            EXAMPLES
              doppel check /srv/vms
              doppel check /srv/vms --repair --dry-run
              doppel check /srv/vms --repair
              doppel check /srv/vms --json | jq '.findings[] | select(.severity == "damaged")'

            EXIT CODES
              0  nothing is wrong, or only notes   4  degraded: nothing is lost
              3  the pool is in use                5  something is damaged
            """)
    @OptionGroup var pool: PoolArgument
    @Flag(help: "Put right what can be put right.") var repair = false
    @Flag(help: "With --repair: say what it would do, and do nothing.") var dryRun = false
    @OptionGroup var progress: ProgressFlag
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let line = Progress("verifying", isForced: progress.progress)
            let report = try report(line)
            line.end()
            if output.json { Output.json(report) } else { show(report) }
            switch report.worst {
            case .damaged: throw ExitCode(ExitKind.damaged.rawValue)
            case .degraded: throw ExitCode(ExitKind.degraded.rawValue)
            default: break
            }
        }
    }

    private func report(_ line: Progress) throws -> CheckReport {
        let disk = LinuxDisk()
        let real = ProcessControl.realPath(pool.pool) ?? PoolLocation.absolute(pool.pool)
        let isMountPoint = PoolLocation.mounts().contains { $0.mountPoint == real }
        // A pool without a catalog, or half adopted, is none to others; check says why.
        let path =
            !isMountPoint && PoolCheck.isCheckable(real, disk: disk)
            ? real : try PoolLocation.find(pool.pool).poolPath
        if let owner = PoolStore.readOwner(path: path, disk: disk), owner.socketPath != nil,
            PoolLocation.mounts().contains(where: { $0.source == path })
        {
            if repair, !dryRun {
                throw ControlFailure(
                    .inUse,
                    "\(path) is mounted at \(owner.mountPoint ?? "?") by \(owner.summary): unmount it, "
                        + "then repair")
            }
            let result = try PoolAccess.perform(ControlRequest(.check), on: path) {
                line.update($0)
            }
            return result.check ?? CheckReport(pool: path, isMounted: true)
        }
        return try PoolCheck.run(path: path, disk: disk, repairs: repair && !dryRun) {
            line.update($0 * 4096, of: $1 * 4096)
            return true
        }
    }

    private func show(_ report: CheckReport) {
        for finding in report.findings {
            print("\(finding.severity.rawValue.uppercased()): \(finding.subject)")
            if let file = finding.file { print("  file     \(file)") }
            print("  problem  \(finding.problem)")
            print("  meaning  \(finding.meaning)")
            if let text = finding.repair {
                print("  \(repair ? "repair   " : "--repair ")\(text)")
            }
        }
        for line in report.repaired { print("REPAIRED: \(line)") }
        let count = { (severity: Finding.Severity) in
            report.findings.filter { $0.severity == severity }.count
        }
        print(
            "\(report.pool)\(report.isMounted ? " (mounted: sealed layers alone)" : ""): "
                + "\(report.layersChecked) layers checked, \(report.blocksVerified) of "
                + "\(report.blocksRead) covered blocks verified; \(count(.damaged)) damaged, "
                + "\(count(.degraded)) degraded, \(count(.note)) notes")
    }
}
