// What is asked of a target, as `target add` and `target set` take it.

import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO

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
        result.timeoutMs = try Self.value(
            timeout, "--timeout is such as 5s or 500ms, at least 100ms"
        ) { Duration.milliseconds(parsing: $0).flatMap { $0 >= 100 ? $0 : nil } }
        result.historyMs = try Self.value(
            history, "--history is such as 1h or 2d", Duration.milliseconds)
        result.latencyBudgetUs = try Self.value(
            latencyBudget, "--latency-budget is such as 5ms or 800us", Duration.microseconds)
        result.intervalMs = try Self.value(
            interval, "--interval is such as 30s or 15m, at least 1s", Duration.interval)
        result.rateBytesPerSecond = try Self.value(
            rate, "--rate is such as 20MiB/s, or 0 for no limit", ByteSize.perSecond)
        for text in rpo {
            guard result.takeRPO(text) else {
                throw ValidationError("--rpo is such as 10s or 64MiB, or 0 for none")
            }
        }
        if let onRPO { result.onRPO = onRPO.rawValue }
        result.compress = compress?.rawValue
        return result
    }

    /// What an option's text means, where it was given.
    private static func value<T>(
        _ text: String?, _ problem: String, _ parse: (String) -> T?
    ) throws -> T? {
        guard let text else { return nil }
        guard let value = parse(text) else { throw ValidationError(problem) }
        return value
    }
}
