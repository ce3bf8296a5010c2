import ArgumentParser
import Daemon
import FuseFrontend
import SystemIO

struct Version: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show the version, and with --host what this machine can do.",
        discussion: """
            EXAMPLES
              doppel version
              doppel version --host
              doppel version --host --json | jq .sharedMmap
            """)
    @Flag(help: "What this machine can do.") var host = false
    @OptionGroup var output: JSONFlag

    private struct Own: Encodable { var version: String }

    func run() throws {
        if host {
            let facts = HostFacts.gather()
            if output.json { Output.json(facts) } else { show(facts) }
        } else if output.json {
            Output.json(Own(version: Doppel.version))
        } else {
            print("doppel \(Doppel.version)")
        }
    }

    private func show(_ facts: HostFacts) {
        print("doppel \(facts.version)")
        let rows = [
            ("kernel", facts.kernel),
            ("libfuse", facts.libfuse),
            ("/dev/fuse", facts.fuseDevice),
            ("fusermount3", facts.fusermount ?? "missing: only root can mount (install fuse3)"),
            (
                "allow_other",
                facts.usersMayShare
                    ? "also for users' mounts (/etc/fuse.conf has user_allow_other)"
                    : "root's mounts only (/etc/fuse.conf lacks user_allow_other)"
            ),
            ("shared mmap", "with --cache none: \(facts.sharedMmap); with --cache read: yes"),
            (
                "I/O flusher",
                facts.canBeIOFlusher
                    ? "yes"
                    : "no (needs CAP_SYS_RESOURCE): do not swap to an image"
            ),
            ("open files", "\(facts.openFileLimit)"),
        ]
        for (name, value) in rows {
            print(name + String(repeating: " ", count: 14 - name.count) + value)
        }
    }
}

/// Whether programs may map an image shared while the kernel does not cache it.
enum SharedMmap: String {
    case full = "full speed"
    case slow = "yes"
    case missing = "needs Linux 6.6"

    init(release: String) {
        let parts = release.split(whereSeparator: { !$0.isNumber }).prefix(2).compactMap { Int($0) }
        let number = parts.count == 2 ? parts[0] * 1000 + parts[1] : 0
        self = number >= 6009 ? .full : number >= 6006 ? .slow : .missing
    }

    /// What a mount says of it once, where a program would meet it.
    static func notice(release: String, cache: CacheMode) -> String? {
        guard cache == .none, SharedMmap(release: release) == .missing else { return nil }
        return "programs cannot map images shared on Linux \(release) with --cache none (6.6 can); "
            + "mount with --cache read for those that do"
    }
}

/// What this machine offers, as far as looking tells.
private struct HostFacts: Encodable {
    var version: String
    var kernel: String
    var libfuse: String
    /// "usable", "missing" or "no access".
    var fuseDevice: String
    var fusermount: String?
    var usersMayShare: Bool
    /// "full speed", "yes" or "needs Linux 6.6".
    var sharedMmap: String
    var canBeIOFlusher: Bool
    var openFileLimit: UInt64

    static func gather() -> HostFacts {
        let release = HostSystem.kernelRelease
        let device = "/dev/fuse"
        return HostFacts(
            version: Doppel.version, kernel: release, libfuse: FuseLibrary.version,
            fuseDevice: HostSystem.mayReadAndWrite(device)
                ? "usable" : HostSystem.exists(device) ? "no access" : "missing",
            fusermount: HostSystem.program("fusermount3"), usersMayShare: usersMayShare(),
            sharedMmap: SharedMmap(release: release).rawValue,
            canBeIOFlusher: HostSystem.hasCapability(24),  // CAP_SYS_RESOURCE
            openFileLimit: HostSystem.openFileLimit)
    }

    private static func usersMayShare() -> Bool {
        let bytes = (try? LinuxDisk().readSmall("/etc/fuse.conf", limit: 1 << 16)) ?? []
        return String(decoding: bytes, as: UTF8.self).split(separator: "\n")
            .contains { $0.filter { $0 != " " && $0 != "\t" } == "user_allow_other" }
    }
}
