import Daemon

/// A pool's state, in words.
enum StatusText {
    static func lines(_ status: StatusInfo) -> [String] {
        var lines = [
            "\(status.pool): \(status.state)",
            "  mounted at   \(status.mountPoint ?? "nowhere")",
            "  role         \(role(status))",
            "  images       \(status.images), \(Output.size(status.sizeBytes))",
            "  snapshots    \(status.snapshots)",
            "  checksums    "
                + (status.uncoveredLayers == 0
                    ? "every sealed layer is covered"
                    : "\(status.uncoveredLayers) sealed layers not covered yet"),
            "  store        \(Output.size(status.storeFreeBytes)) free, "
                + "\(Output.size(status.reserveBytes)) in reserve",
        ]
        if status.pendingMerges > 0 {
            lines.append("  merging      \(status.pendingMerges) layers")
        }
        for job in status.jobs {
            lines.append(
                "  job \(job.job)        \(job.kind), \(Output.size(job.doneBytes)) of "
                    + "\(Output.size(job.totalBytes))")
        }
        lines.append("  sequence     \(status.sequence), incarnation \(status.incarnation)")
        for target in status.targets { lines += TargetText.lines(target) }
        for problem in status.problems { lines.append("  PROBLEM      \(problem)") }
        return lines
    }

    private static func role(_ status: StatusInfo) -> String {
        let replica = status.replica
        guard let primary = replica.primaryPool else {
            return "\(replica.role), generation \(status.generation)"
        }
        var text = "mirror of pool \(primary)"
        if let shown = replica.shownNs { text += ", as it was at \(Output.time(shown))" }
        if let reach = replica.reachFromNs {
            text += "; --at reaches back to \(Output.time(reach))"
        }
        return text
    }
}
