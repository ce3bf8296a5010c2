import BlockCore
import Daemon
import Pool
import SystemIO

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
