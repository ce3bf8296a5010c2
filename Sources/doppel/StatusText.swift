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
        lines += standing(status.replica)
        for target in status.targets { lines += TargetText.lines(target) }
        for problem in status.problems { lines.append("  PROBLEM      \(problem)") }
        return lines
    }

    /// What a mirror knows of its primary, and of other copies.
    private static func standing(_ replica: ReplicaInfo) -> [String] {
        guard replica.primaryPool != nil else { return [] }
        let heard = replica.heardNs.map { ", heard of last at \(Output.time($0))" } ?? ""
        let connection = replica.isConnected == true ? "connected" : "not connected\(heard)"
        var lines = ["  primary      " + connection]
        if replica.isResyncing == true {
            lines.append("  resync       under way: it shows the checkpoint before it")
        }
        for copy in replica.copies ?? [] {
            let since = copy.staleSinceNs.map { "stale since \(Output.time($0))" } ?? "in step"
            lines.append("  copy         \(copy.address): \(since)")
        }
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
