import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO

struct Target: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Add, change and list the places that a pool is replicated to.",
        discussion: """
            A target belongs to its pool: every later mount replicates to it. A mirror directory is
            a pool of its own, which `doppel mount` shows read-only, also while it is being written.
            A raw mirror, raw:DIR, is a folder of plain files that any program can read; it keeps no
            snapshots, and is torn when its machine goes down while it is being written. A remote one,
            doppel://HOST:PORT/POOL, is a mirror directory on another machine, where `doppel serve` runs.

            EXAMPLES
              doppel target add /srv/vms /mnt/usb/vms-mirror
              doppel target add /srv/vms raw:/mnt/usb/vms-plain
              doppel target add /srv/vms doppel://backup.example:7420/vms --mode semi-sync
              doppel target add /srv/vms /backup/vms --mode async --interval 15m
              doppel target set /srv/vms /backup/vms --mode flush --timeout 10s
              doppel target list /srv/vms
              doppel wait /srv/vms
            """,
        subcommands: [
            TargetAdd.self, TargetSet.self, TargetList.self, TargetPause.self, TargetResume.self,
            TargetRemove.self, TargetResolve.self,
        ])
}

enum TimeoutChoice: String, ExpressibleByArgument, CaseIterable { case degrade, block, fail }

enum CompressChoice: String, ExpressibleByArgument, CaseIterable { case auto, on, off }

enum RPOChoice: String, ExpressibleByArgument, CaseIterable { case alarm, throttle, stop }

enum TargetMode: String, ExpressibleByArgument, CaseIterable {
    case async, flush
    case semiSync = "semi-sync"
    case sync, adaptive
}

struct TargetSettings: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "What is waited for: async, flush, semi-sync, sync or adaptive.",
            discussion: """
                async: this machine. flush: an fsync, until the target has it durably. semi-sync: every \
                write, until the target has received it. sync: every write, until it is in the \
                target's journal, and an fsync, until it is durable there. adaptive: the first of sync, \
                semi-sync and async that the target answers quickly enough for.
                """,
            valueName: "mode"))
    var mode: TargetMode?
    @Option(help: "With adaptive: how late answers may be, such as 5ms (the default) or 800us.")
    var latencyBudget: String?
    @Option(help: "How long a silent target is waited for before the pool goes on without it.")
    var timeout: String?
    @Option(
        help: ArgumentHelp(
            "What happens after the timeout: degrade, block or fail.",
            discussion: """
                degrade: the pool goes on, and the target is brought in step later. block: writes are \
                held until the target is there again. fail: they get EIO until then.
                """))
    var onTimeout: TimeoutChoice?
    @Option(help: "How long it can be mounted as it was, such as 1h or 2d; 0s for not at all.")
    var history: String?
    @Option(
        help: ArgumentHelp(
            "With async: ships what changed once in so long, such as 30s or 15m.",
            discussion: """
                Between two runs a block that is written often is shipped once. `doppel wait` and a clean \
                unmount begin a run at once. 0s: what changes is sent as it comes.
                """))
    var interval: String?
    @Option(
        help: ArgumentHelp(
            "With async: what may be at risk at most, such as 10s or 64MiB; may be given twice.",
            discussion: """
                Age of the oldest change that the target lacks, and bytes. 0 takes both away.
                """))
    var rpo: [String] = []
    @Option(
        name: .customLong("on-rpo"),
        help: ArgumentHelp(
            "What happens beyond the rpo: alarm, throttle or stop.",
            discussion: """
                alarm: an event, and status is degraded. throttle: writers are slowed to what the target \
                takes, before it comes so far. stop: writes are held until less is at risk.
                """))
    var onRPO: RPOChoice?
    @Option(
        help: "What a resync is held to, such as 20MiB/s; 0 for no limit. Holds at once.")
    var rate: String?
    @Option(
        help: ArgumentHelp(
            "Whether what goes to another machine is compressed: auto, on or off. Holds at once.",
            discussion: """
                auto (the default): where the line is slower than compressing, and it makes things smaller. \
                Both are measured as it goes.
                """))
    var compress: CompressChoice?

    func specification(_ address: String) throws -> TargetSpecification {
        if let problem = TargetAddress.problem(address) { throw ValidationError(problem) }
        var result = TargetSpecification(address: address, mode: mode?.rawValue)
        result.onTimeout = onTimeout?.rawValue
        if let timeout {
            guard let timeoutMs = Duration.milliseconds(parsing: timeout), timeoutMs >= 100 else {
                throw ValidationError("--timeout is such as 5s or 500ms, at least 100ms")
            }
            result.timeoutMs = timeoutMs
        }
        if let history {
            guard let historyMs = Duration.milliseconds(parsing: history) else {
                throw ValidationError("--history is such as 1h or 2d")
            }
            result.historyMs = historyMs
        }
        if let latencyBudget {
            guard let budgetUs = Duration.microseconds(parsing: latencyBudget) else {
                throw ValidationError("--latency-budget is such as 5ms or 800us")
            }
            result.latencyBudgetUs = budgetUs
        }
        for text in rpo {
            guard result.takeRPO(text) else {
                throw ValidationError("--rpo is such as 10s or 64MiB, or 0 for none")
            }
        }
        if let onRPO { result.onRPO = onRPO.rawValue }
        if let interval {
            guard let intervalMs = Duration.interval(parsing: interval) else {
                throw ValidationError("--interval is such as 30s or 15m, at least 1s")
            }
            result.intervalMs = intervalMs
        }
        if let rate {
            guard let bytes = ByteSize.perSecond(parsing: rate) else {
                throw ValidationError("--rate is such as 20MiB/s, or 0 for no limit")
            }
            result.rateBytesPerSecond = bytes
        }
        result.compress = compress?.rawValue
        return result
    }
}

struct TargetArguments: ParsableArguments {
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String
    @Argument(
        help: "The mirror's directory, raw:DIR, or doppel://HOST:PORT/POOL.", completion: .directory
    )
    var target: String
}

struct TargetAdd: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "add", abstract: "Replicate a pool to a further place.",
        discussion: """
            The directory must be new, empty, or a mirror of this pool already. What is in the pool is
            copied behind, while it is used.

            With --seed, the directory holds copies of the images, carried there by hand: plain files of
            the same names and sizes, or a pool that `doppel adopt` made of them. They are compared by hash.
            A mirror keeps what it had as a snapshot, diverged-...; a raw mirror keeps nothing.

            EXAMPLES
              doppel target add /srv/vms /mnt/usb/vms-mirror
              doppel target add /srv/vms raw:/mnt/usb/vms-plain --mode async
              doppel target add /srv/vms /mnt/usb/carried-over --seed
            """)
    @OptionGroup var place: TargetArguments
    @OptionGroup var settings: TargetSettings
    @Flag(
        help:
            "Copies of the images are there already: they are compared, and only what differs is sent."
    )
    var seed = false

    func run() throws {
        try exiting {
            var request = ControlRequest(.targetAdd)
            var wanted = try settings.specification(place.target).absolute
            wanted.isSeeded = seed
            request.arguments?.target = wanted
            let result = try PoolAccess.perform(request, on: place.pool)
            if let warning = result.text { Output.error("doppel: \(warning)") }
        }
    }
}

struct TargetSet: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "set", abstract: "Change how a target is waited for.",
        discussion: """
            With --image, for one image alone: only its --mode and --on-timeout can differ. Who waits for
            the target while it is away is let go of by any change.

            With --address, the same target is somewhere else from now on: its disk was carried to another machine,
            its server has another name, or it was promoted from and nobody here knows how it is reached
            (`web1:/srv/vms`). What it lacks is known as before, and nothing else is sent. Another pool at the
            new address is not touched.

            EXAMPLES
              doppel target set /srv/vms /backup/vms --mode async --interval 30s
              doppel target set /srv/vms /backup/vms --mode adaptive --latency-budget 3ms
              doppel target set /srv/vms /backup/vms --rpo 10s --on-rpo throttle
              doppel target set /srv/vms doppel://backup.example:7420/vms --compress off
              doppel target set /srv/vms /backup/vms --image db.raw --mode sync --on-timeout block
              doppel target set /srv/vms /backup/vms --image db.raw --inherit
              doppel target set /srv/mirrors/vms web1:/srv/vms \\
                --address doppel://web1.example/vms
            """)
    @OptionGroup var place: TargetArguments
    @OptionGroup var settings: TargetSettings
    @Option(help: "Only this image of the pool.") var image: String?
    @Flag(help: "The image is as the others again.") var inherit = false
    @Option(
        help: "Where the target is from now on: a directory, or doppel://HOST:PORT/POOL.",
        completion: .directory)
    var address: String?

    func validate() throws {
        if inherit, image == nil { throw ValidationError("--inherit goes with --image") }
        if address != nil, image != nil { throw ValidationError("--address is of a whole target") }
        if image != nil,
            settings.timeout ?? settings.history ?? settings.interval ?? settings.rpo.first
                ?? settings.latencyBudget ?? settings.rate ?? settings.compress?.rawValue != nil
                || settings.onRPO != nil
        {
            throw ValidationError("--image goes with --mode, --on-timeout and --inherit alone")
        }
    }

    func run() throws {
        try exiting {
            var request = ControlRequest(.targetSet)
            var wanted = try settings.specification(place.target).absolute
            wanted.image = image
            wanted.inherits = inherit
            if let address {
                if let problem = TargetAddress.problem(address) { throw ValidationError(problem) }
                wanted.newAddress = TargetSpecification(address: address).absolute.address
            }
            request.arguments?.target = wanted
            let result = try PoolAccess.perform(request, on: place.pool)
            if let warning = result.text { Output.error("doppel: \(warning)") }
        }
    }
}

struct TargetPause: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pause",
        abstract: "Stop replicating to a target; what it lacks is kept track of.",
        discussion: "EXAMPLE\n  doppel target pause /srv/vms /mnt/usb/vms-mirror")
    @OptionGroup var place: TargetArguments
    func run() throws { try exiting { try place.send(.targetPause) } }
}

struct TargetResume: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "resume", abstract: "Go on replicating to a target that was paused.",
        discussion: "EXAMPLE\n  doppel target resume /srv/vms /mnt/usb/vms-mirror")
    @OptionGroup var place: TargetArguments
    func run() throws { try exiting { try place.send(.targetResume) } }
}

struct TargetRemove: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "remove", abstract: "Forget a target. What it holds stays as it is.",
        discussion: """
            EXAMPLES
              doppel target remove /srv/vms /mnt/usb/vms-mirror
              doppel target remove /srv/vms /mnt/usb/vms-mirror --detach
            """)
    @OptionGroup var place: TargetArguments
    @Flag(help: "At once, also where the target hangs: nobody waits for it any more.")
    var detach = false
    func run() throws {
        try exiting { try place.send(.targetRemove) { $0.force = detach } }
    }
}

extension TargetArguments {
    func send(
        _ command: ControlCommand, _ fill: (inout ControlArguments) -> Void = { _ in }
    ) throws {
        var request = ControlRequest(command, fill)
        request.arguments?.target = TargetSpecification(address: target).absolute
        _ = try PoolAccess.perform(request, on: pool)
    }
}

extension TargetSpecification {
    /// The daemon has another working directory.
    var absolute: TargetSpecification {
        var result = self
        let place = TargetAddress(address)
        if place.remote != nil {
            result.address = place.text
            return result
        }
        if place.isElsewhere, ProcessControl.realPath(place.path) == nil { return result }
        result.address =
            place.at(ProcessControl.realPath(place.path) ?? PoolLocation.absolute(place.path)).text
        return result
    }
}

struct TargetList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "Show a pool's targets and how they stand.",
        discussion: "EXAMPLE\n  doppel target list /srv/vms --json")
    @OptionGroup var pool: PoolArgument
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            let targets =
                try PoolAccess.perform(ControlRequest(.targetList), on: pool.pool).targets ?? []
            if output.json { return Output.json(targets) }
            Output.table(
                ["TARGET", "KIND", "MODE", "STATE", "LAG", "DIRTY"],
                targets.map {
                    [
                        $0.address, $0.kind, $0.mode, TargetText.state($0),
                        Output.size($0.lagBytes),
                        Output.size($0.dirtyBytes),
                    ]
                })
        }
    }
}

struct Wait: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Wait until targets hold everything that was written before.",
        discussion: """
            Returns when every target holds, durably, what was acknowledged before the call. Exit
            code 4 when the time passes first.

            EXAMPLES
              doppel wait /srv/vms
              doppel wait /srv/vms --target /mnt/usb/vms-mirror --timeout 10m
            """)
    @OptionGroup var pool: PoolArgument
    @Option(help: "One target; without it, all of them.", completion: .directory)
    var target: String?
    @Option(help: "How long to wait, such as 30s or 10m; without it, as long as it takes.")
    var timeout: String?

    func run() throws {
        var request = ControlRequest(.wait)
        if let timeout {
            guard let timeoutMs = Duration.milliseconds(parsing: timeout) else {
                throw ValidationError("--timeout is such as 30s or 10m")
            }
            request.arguments?.timeoutMs = timeoutMs
        }
        if let target {
            request.arguments?.target = TargetSpecification(address: target).absolute
        }
        let asked = request
        try exiting { _ = try PoolAccess.perform(asked, on: pool.pool) }
    }
}

/// How a target stands, in words.
enum TargetText {
    static func state(_ target: TargetInfo) -> String {
        switch target.state {
        case "streaming": return "in step"
        case "scheduled": return "at a checkpoint"
        case "level": return "nothing is missing"
        case "idle": return "nothing is sent"
        case "resyncing":
            guard let done = target.resyncDoneBytes, let total = target.resyncTotalBytes, total > 0
            else { return "resyncing" }
            return "resyncing \(done * 100 / total)%"
        default: return target.state
        }
    }

    static func lines(_ target: TargetInfo) -> [String] {
        var lines = ["  target       \(target.address): \(state(target)), mode \(target.mode)"]
        if let intervalMs = target.intervalMs {
            var line = "               every \(interval(intervalMs))"
            if let next = target.nextRunNs { line += ", next at \(Output.time(next))" }
            lines.append(line)
        }
        if target.kind == "raw" { lines.append("               \(raw(target))") }
        if target.modeInForce != target.mode {
            lines.append("               in force: \(target.modeInForce)")
        }
        lines += recovery(target)
        if let since = target.stoppedSinceNs {
            let what = target.onTimeout == "fail" && target.onRPO == nil ? "fail" : "are held"
            lines.append("               WRITES \(what) since \(Output.time(since))")
        }
        for image in target.images {
            lines.append(
                "               \(image.path): mode \(image.mode), on timeout \(image.onTimeout)")
        }
        if let since = target.staleSinceNs {
            lines.append(
                "               behind since \(Output.time(since)): \(target.reason ?? "")")
        }
        lines.append(
            "               lag \(Output.size(target.lagBytes)), \(seconds(target.lagMs)); differs "
                + "in \(Output.size(target.dirtyBytes)); at risk \(Output.size(target.atRiskBytes))"
        )
        if target.suspectBytes > 0 {
            lines.append(
                "               to be compared after an unclean end: up to "
                    + Output.size(target.suspectBytes))
        }
        if let compress = target.compress {
            lines.append("               \(line(target, compress))")
        }
        if target.comparedBytes > 0 {
            lines.append(
                "               compared \(Output.size(target.comparedBytes)), sent "
                    + "\(Output.size(target.resyncedBytes)) in resyncs since the pool was opened")
        }
        if let checkpoint = target.checkpointNs {
            var line = "               holds everything up to \(Output.time(checkpoint))"
            if let reach = target.reachFromNs {
                line += ", and from \(Output.time(reach)) on any moment"
            }
            lines.append(line)
        }
        if let eta = target.etaMs, target.resyncTotalBytes != nil {
            lines.append(
                "               \(Output.size(target.rateBytesPerSecond))/s, done in \(seconds(eta))"
            )
        }
        return lines
    }

    private static func line(_ target: TargetInfo, _ compress: String) -> String {
        var line = "compress \(compress): \(target.isCompressing ?? false ? "" : "not ")in use"
        let (raw, sent) = (target.lineRawBytes ?? 0, target.lineSentBytes ?? 0)
        if sent < raw {
            line += "; \(Output.size(raw)) went as \(Output.size(sent)) since the pool was opened"
        }
        return line
    }

    private static func recovery(_ target: TargetInfo) -> [String] {
        guard let reaction = target.onRPO else { return [] }
        var line =
            "               rpo "
            + [target.rpoMs.map(interval), target.rpoBytes.map { Output.size(UInt64($0)) }]
            .compactMap(\.self).joined(separator: " and ") + ", on-rpo \(reaction)"
        if let rate = target.slowedToBytesPerSecond {
            line += "; writers are slowed to \(Output.size(rate))/s"
        }
        guard let since = target.rpoPassedSinceNs else { return [line] }
        return [line, "               MORE IS AT RISK since \(Output.time(since))"]
    }

    /// As it is given.
    static func interval(_ ms: Int64) -> String {
        for (unit, factor) in [
            ("d", Int64(86_400_000)), ("h", 3_600_000), ("m", 60_000), ("s", 1000),
        ]
        where ms % factor == 0 { return "\(ms / factor)\(unit)" }
        return "\(ms)ms"
    }

    private static func raw(_ target: TargetInfo) -> String {
        switch (target.content, target.tornSinceNs) {
        case ("clean", _):
            return "raw mirror, clean: its files are what the pool was at its checkpoint"
        case ("torn", let since?) where target.isInStep:
            return
                "raw mirror, being written since \(Output.time(since)): torn if this machine goes down"
        case ("torn", let since?):
            return "raw mirror, TORN since \(Output.time(since)), until it is in step again"
        case ("torn", _): return "raw mirror, TORN until it is in step"
        default: return "raw mirror, not looked into yet"
        }
    }

    static func seconds(_ ms: Int64) -> String {
        if ms < 60_000 { return "\(ms / 1000).\(ms % 1000 / 100) s" }
        let minutes = ms / 60_000
        return minutes < 60 ? "\(minutes) min" : "\(minutes / 60) h \(minutes % 60) min"
    }
}
