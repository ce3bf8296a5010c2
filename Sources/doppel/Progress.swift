import ArgumentParser
import Daemon
import Glibc
import SystemIO

struct ProgressFlag: ParsableArguments {
    @Flag(help: "Show progress also where standard error is no terminal.") var progress = false
}

/// Progress with the time left, for what takes more than two seconds: on standard error, never among
/// what programs read. On a terminal one line that is written over; else a line every few seconds.
final class Progress: @unchecked Sendable {  // fields are under `lock`
    private let label: String
    private let totalBytes: UInt64
    private let disk = LinuxDisk()
    private let isTerminal = isatty(2) == 1
    private let isWanted: Bool
    private let startNs: Int64
    private let lock = Lock()
    private var shownNs: Int64
    private var hasShown = false

    init(_ label: String, totalBytes: UInt64 = 0, isForced: Bool = false) {
        self.label = label
        self.totalBytes = totalBytes
        isWanted = isTerminal || isForced
        startNs = disk.monotonic()
        shownNs = startNs
    }

    func update(_ doneBytes: UInt64) { update(doneBytes, of: totalBytes) }

    func update(_ doneBytes: UInt64, of totalBytes: UInt64) {
        guard isWanted else { return }
        let elapsedMs = (disk.monotonic() - startNs) / 1_000_000
        let left = Double(totalBytes - min(doneBytes, totalBytes))
        let etaMs =
            doneBytes > 0 && totalBytes > 0
            ? Int64(Double(elapsedMs) * left / Double(doneBytes)) : nil
        show(label, doneBytes, totalBytes, elapsedMs: elapsedMs, etaMs: etaMs)
    }

    /// What a job of a mounted pool tells.
    func update(_ job: JobInfo) {
        guard isWanted else { return }
        show(
            job.phase, job.doneBytes, job.totalBytes, elapsedMs: job.elapsedMs, etaMs: job.etaMs)
    }

    private func show(
        _ label: String, _ doneBytes: UInt64, _ totalBytes: UInt64, elapsedMs: Int64, etaMs: Int64?
    ) {
        let now = disk.monotonic()
        let intervalNs: Int64 = isTerminal ? 200_000_000 : 2_000_000_000
        lock.withLock {
            guard elapsedMs > 2000, now - shownNs > intervalNs || !hasShown else { return }
            shownNs = now
            hasShown = true
            let rate = Double(doneBytes) * 1000 / Double(elapsedMs)
            var line = "\(label): \(Output.size(doneBytes))"
            if totalBytes > 0 { line += " of \(Output.size(totalBytes))" }
            line += ", \(Output.size(UInt64(rate)))/s"
            if let etaMs { line += ", \((etaMs + 999) / 1000) s left" }
            Output.raw(isTerminal ? "\r\u{1b}[K\(line)" : line + "\n")
        }
    }

    func end() {
        lock.withLock { if hasShown && isTerminal { Output.raw("\r\u{1b}[K") } }
    }
}
