import ArgumentParser
import BlockCore
import Daemon
import FuseFrontend
import Glibc
import Pool
import Settings
import SystemIO
import VirtualFS

enum SnapdirVisibility: String, ExpressibleByArgument, CaseIterable { case hidden, visible }
extension CacheMode: ExpressibleByArgument {}

struct Mount: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Mount a pool: its images become files, its snapshots folders.",
        discussion: """
            Returns when the mount is ready. Mounts by root let other users in, as far as the
            files' permissions do; a user's own mounts do not, unless -o allow_other is given and
            /etc/fuse.conf has user_allow_other.

            EXAMPLES
              doppel mount /srv/vms /mnt/vms
              doppel mount /srv/vms /mnt/vms --read-only
              doppel mount /srv/vms /mnt/vms --mirror /backup/vms,mode=flush
              doppel mount /srv/vms /mnt/vms --mirror /backup/vms,mode=async,interval=15m
              doppel mount /backup/vms /mnt/look --at "2026-03-01 14:30"
              doppel mount /srv/vms /mnt/vms --on-recovery start
              mount -t fuse.doppel /srv/vms /mnt/vms
              /srv/vms /mnt/vms fuse.doppel defaults,_netdev 0 0      (in /etc/fstab)
            """)
    @Argument(help: "The pool's directory.", completion: .directory) var pool: String
    @Argument(help: "An existing directory.", completion: .directory) var mountPoint: String
    @Flag(help: "Refuse every change.") var readOnly = false
    @Option(help: "Whether .snapshots and .doppel are listed: hidden or visible.")
    var snapdir: SnapdirVisibility = .hidden
    @Option(help: "How the kernel caches images: none, read or writeback.") var cache: CacheMode =
        .none
    @Option(help: "Space kept free for recovery: 1%, or a size.") var reserve: String = "1%"
    @Option(
        name: [.customShort("o"), .customLong("options")], help: "Options as mount(8) has them.")
    var options: [String] = []
    @Option(
        help: ArgumentHelp(
            "A mirror to replicate to, from now on.",
            discussion:
                "DIR[,mode=async|flush|semi-sync|sync|adaptive][,latency-budget=5ms][,timeout=5s][,on-timeout=degrade|block|fail]"
                + "[,interval=30s][,rpo=10s|64MiB][,on-rpo=alarm|throttle|stop][,history=1h][,rate=20MiB/s]"
                + "[,compress=auto|on|off]",
            valueName: "target"))
    var mirror: String?
    @Flag(help: "Send nothing to the pool's targets; what they lack is kept track of.")
    var noTargets = false
    @Option(
        help:
            "Of a mirror: how it was at this moment (UTC), such as \"2026-03-01 14:30\", or 10m ago."
    )
    var at: String?
    @Option(
        help: ArgumentHelp(
            "After the machine went down: wait for a target that has what this disk may have lost, or "
                + "start at once.",
            discussion:
                "Default: wait where a target is in mode sync or semi-sync; otherwise ask once.",
            valueName: "wait|start"))
    var onRecovery: OnRecovery?
    @Flag(help: "Stay in the foreground and log to standard error.") var foreground = false
    @Flag(help: .hidden) var sloppy = false
    @Option(help: .hidden) var readyDescriptor: Int32?

    func run() throws {
        let request = try request()
        if foreground || readyDescriptor != nil { return try serve(request) }
        let disk = LinuxDisk()
        let deadlineNs = disk.monotonic() + Self.mirrorPatienceNs
        // Between two tries to be a target a mirror is nobody's, and a moment later its primary's again.
        func mayTryAgain(_ failure: ControlFailure) -> Bool {
            guard disk.monotonic() < deadlineNs else { return false }
            if failure.isMirrorNotOpen { return true }
            guard failure.exitCode == ExitKind.inUse.rawValue else { return false }
            // Gone already, or a daemon that shows what it writes: a server does not.
            guard let owner = PoolStore.readOwner(path: request.poolPath, disk: disk) else {
                return true
            }
            return owner.writesMirror ?? false && owner.socketPath != nil
        }
        try exiting {
            while true {
                do {
                    if try !showThroughPrimary(request) { try startDaemon(request) }
                    return
                } catch let failure as ControlFailure where mayTryAgain(failure) {
                    Pause.microseconds(50_000)
                }
            }
        }
    }

    private static let mirrorPatienceNs: Int64 = 10_000_000_000

    private func startDaemon(_ request: MountRequest) throws {
        let disk = LinuxDisk()
        let directory = try RuntimePaths.directory(disk: disk)
        let log = try RuntimePaths.log(of: request.poolPath, in: directory, disk: disk)
        guard let program = ProcessControl.realPath("/proc/self/exe") else {
            throw ControlFailure(.failed, "cannot find my own program file")
        }
        let word = try ProcessControl.spawnDaemon(
            program: program, logPath: log, whenTold: { Output.error("doppel: \($0)") }
        ) { ready in
            daemonArguments(request, ready: ready)
        }
        let parts = word.split(separator: "|", maxSplits: 1)
        let code = parts.count == 2 ? Int32(parts[0]) : nil
        let kind = code.flatMap(ExitKind.init) ?? (word.isEmpty ? .ok : .failed)
        guard kind == .ok else {
            // What fusermount3 says goes there.
            let more = kind == .failed ? "; \(log) may say more" : ""
            throw ControlFailure(kind, String(parts.last ?? "") + more)
        }
        if let warning = parts.last { Output.error("doppel: \(warning)") }
        if let notice = SharedMmap.notice(
            release: HostSystem.kernelRelease, cache: request.mount.cache)
        {
            Output.error("doppel: \(notice)")
        }
    }

    /// A mirror that its primary writes to is shown by the primary's daemon.
    /// - Returns: false where no primary has it.
    private func showThroughPrimary(_ request: MountRequest) throws -> Bool {
        guard let owner = PoolStore.readOwner(path: request.poolPath, disk: LinuxDisk()),
            owner.writesMirror ?? false, let socket = owner.socketPath,
            let client = try? ControlClient(path: socket)
        else { return false }
        do {
            _ = try client.send(
                ControlRequest(.mirrorMount) {
                    $0.path = request.poolPath
                    $0.mountPoint = request.mountPoint
                    $0.names = options
                    $0.atNs = request.session.atNs
                })
            return true
        } catch is NoAnswer {
            // One that was killed takes along what it showed, if it got so far.
            return false
        }
    }

    private func daemonArguments(_ request: MountRequest, ready: Int32) -> [String] {
        var words = [
            "mount", request.poolPath, request.mountPoint, "--ready-descriptor", "\(ready)",
            "--snapdir", snapdir.rawValue, "--cache", cache.rawValue, "--reserve", reserve,
        ]
        if readOnly { words.append("--read-only") }
        if let mirror { words += ["--mirror", mirror] }
        if noTargets { words.append("--no-targets") }
        if let onRecovery { words += ["--on-recovery", onRecovery.rawValue] }
        if let at { words += ["--at", at] }
        if sloppy { words.append("--sloppy") }
        for each in options { words += ["--options", each] }
        return words
    }

    private func serve(_ request: MountRequest) throws {
        if let readyDescriptor { InheritedFiles.close(except: readyDescriptor) }
        let ready = readyDescriptor.map { ProcessControl.inheritedReadiness(descriptor: $0) }
        do {
            let level = try SettingsFile.load(nil).logLevel
            StandardErrorLog.level.withLock { $0 = level }
            try MountDaemon.run(request) { news in
                if let news { Output.error("doppel: \(news)") }
                return ready?.tell(news ?? "") ?? true
            } whenReady: { warning in
                ready?.report(warning.map { "\(ExitKind.ok.rawValue)|\($0)" } ?? "")
                if ready == nil, let warning { Output.error("doppel: \(warning)") }
            }
        } catch {
            let failure = PoolSession.failure(error)
            ready?.report("\(failure.exitCode)|\(failure.message)")
            Output.error("doppel: \(failure.message)")
            throw ExitCode(failure.exitCode)
        }
    }

    private func request() throws -> MountRequest {
        var mount = MountOptions.defaults(forUser: ProcessControl.userID)
        var session = PoolSession.Options()
        mount.cache = cache
        session.isSnapdirVisible = snapdir == .visible
        session.recovery = .automatic
        var reserveText = reserve
        for word in options.flatMap(MountOptions.split) where !mount.accept(word) {
            // In fstab our own options stand among mount's.
            switch word.split(separator: "=", maxSplits: 1).map(String.init) {
            case ["snapdir", "visible"]: session.isSnapdirVisible = true
            case ["snapdir", "hidden"]: session.isSnapdirVisible = false
            case let pair where pair.count == 2 && pair[0] == "cache":
                guard let mode = CacheMode(rawValue: pair[1]) else {
                    throw ValidationError("cache=\(pair[1]) is none of none, read, writeback")
                }
                mount.cache = mode
            case let pair where pair.count == 2 && pair[0] == "reserve": reserveText = pair[1]
            case let pair where pair.count == 2 && pair[0] == "on-recovery":
                guard let choice = OnRecovery(rawValue: pair[1]) else {
                    throw ValidationError("on-recovery=\(pair[1]) is none of wait, start")
                }
                session.recovery = choice.policy
            case _ where sloppy: break  // mount -s
            default: throw ValidationError("'\(word)' is no mount option that Doppel knows")
            }
        }
        if readOnly { mount.isReadOnly = true }
        session.isReadOnly = mount.isReadOnly
        guard let parsed = Self.reserve(reserveText) else {
            throw ValidationError("--reserve takes a share such as 1% or a size such as 2G")
        }
        session.reserve = parsed
        try fillReplication(&session)
        let path = ProcessControl.realPath(pool) ?? PoolLocation.absolute(pool)
        return MountRequest(
            poolPath: path, mountPoint: PoolLocation.absolute(mountPoint), mount: mount,
            session: session)
    }

    private func fillReplication(_ session: inout PoolSession.Options) throws {
        if let mirror {
            let (target, problem) = TargetSpecification.parse(mirror)
            guard let target else { throw ValidationError("--mirror: \(problem)") }
            session.mirror = target.absolute
        }
        if noTargets {
            guard mirror == nil else {
                throw ValidationError("--mirror and --no-targets exclude each other")
            }
            session.connectsTargets = false
            session.recovery = .start
        }
        if let onRecovery { session.recovery = onRecovery.policy }
        if let at {
            let ago = Duration.milliseconds(parsing: at).map { LinuxDisk().now() - $0 * 1_000_000 }
            guard let ns = ago ?? CivilTime.nanoseconds(parsing: at) else {
                throw ValidationError(
                    "--at takes a time such as \"2026-03-01 14:30:05\", or how long ago: 10m")
            }
            session.atNs = ns
        }
    }

    static func reserve(_ text: String) -> PoolSession.Reserve? {
        if text.hasSuffix("%") {
            guard let percent = Double(text.dropLast()), percent >= 0, percent <= 50 else {
                return nil
            }
            return .percent(percent)
        }
        return ByteSize(parsing: text).map { .bytes($0.bytes) }
    }
}

enum OnRecovery: String, ExpressibleByArgument, CaseIterable {
    case wait, start
    var policy: RecoveryPolicy { self == .wait ? .wait : .start }
}

struct Unmount: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Unmount a pool and wait until all of it is durable.",
        discussion: """
            Refuses, with exit code 3, while files are open. `umount` works as well, and returns
            before all is durable; the next mount waits for that.

            EXAMPLES
              doppel unmount /mnt/vms
              doppel unmount /mnt/vms --force
            """)
    @Argument(help: "Where the pool is mounted.", completion: .directory) var mountPoint: String
    @Flag(help: "Let go of the name at once; open files are served until they are closed.")
    var force = false

    func run() throws {
        try exiting {
            let path = PoolLocation.absolute(mountPoint)
            guard let mount = PoolLocation.mounts().last(where: { $0.mountPoint == path }) else {
                throw ControlFailure(.failed, "no pool is mounted at \(path)")
            }
            let disk = LinuxDisk()
            let owner = PoolStore.readOwner(path: mount.source, disk: disk)
            guard let socket = owner?.socketPath, let client = try? ControlClient(path: socket)
            else {
                // Nobody serves it: all that is left is to take the dead mount point away.
                try MountSession.prepare(mountPoint: path)
                return
            }
            _ = try client.send(
                ControlRequest(.unmount) {
                    $0.force = force
                    $0.mountPoint = path
                })
            // The daemon of a mirror's primary goes on.
            if owner?.writesMirror ?? false { return }
            waitForEnd(of: mount.source, disk: disk, pid: owner?.pid)
        }
    }

    /// The kernel lets go of the owner's lock when the daemon has settled everything. By force, that
    /// may be as late as the last close of an open file.
    private func waitForEnd(of pool: String, disk: Disk, pid: Int32?) {
        let startNs = disk.monotonic()
        while let pid, ProcessControl.isAlive(pid),
            let owner = PoolStore.readOwner(path: pool, disk: disk), owner.pid == pid
        {
            if force, !owner.isDraining, disk.monotonic() - startNs > 500_000_000 {
                Output.error(
                    "doppel: files are open still; process \(pid) serves them until they are closed"
                )
                return
            }
            Pause.microseconds(10_000)
        }
    }
}
