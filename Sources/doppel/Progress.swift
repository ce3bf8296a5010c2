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
    enum Unit {
        case bytes
        /// What is counted, in the plural.
        case things(String)

        func text(_ count: UInt64) -> String {
            switch self {
            case .bytes: Output.size(count)
            case .things(let name): "\(count) \(name)"
            }
        }

        /// - Parameter total: 0 where nobody knows.
        func text(_ count: UInt64, of total: UInt64) -> String {
            guard total > 0 else { return text(count) }
            switch self {
            case .bytes: return "\(text(count)) of \(text(total))"
            case .things: return "\(count) of \(text(total))"
            }
        }
    }

    private let label: String
    private let unit: Unit
    private let disk = LinuxDisk()
    private let isTerminal = isatty(2) == 1
    private let isWanted: Bool
    private let startNs: Int64
    private let lock = Lock()
    private var shownNs: Int64
    private var hasShown = false

    init(_ label: String, unit: Unit = .bytes, isForced: Bool = false) {
        self.label = label
        self.unit = unit
        isWanted = isTerminal || isForced
        startNs = disk.monotonic()
        shownNs = startNs
    }

    /// - Parameter total: 0 where nobody knows.
    func update(_ done: UInt64, of total: UInt64 = 0) {
        guard isWanted else { return }
        let elapsedMs = (disk.monotonic() - startNs) / 1_000_000
        let left = Double(total - min(done, total))
        let etaMs =
            done > 0 && total > 0 ? Int64(Double(elapsedMs) * left / Double(done)) : nil
        show(label, done, total, elapsedMs: elapsedMs, etaMs: etaMs)
    }

    /// What a job of a mounted pool tells.
    func update(_ job: JobInfo) {
        guard isWanted else { return }
        show(
            job.phase, job.doneBytes, job.totalBytes, elapsedMs: job.elapsedMs, etaMs: job.etaMs)
    }

    private func show(
        _ label: String, _ done: UInt64, _ total: UInt64, elapsedMs: Int64, etaMs: Int64?
    ) {
        let now = disk.monotonic()
        let intervalNs: Int64 = isTerminal ? 200_000_000 : 2_000_000_000
        lock.withLock {
            guard elapsedMs > 2000, now - shownNs > intervalNs || !hasShown else { return }
            shownNs = now
            hasShown = true
            let rate = UInt64(Double(done) * 1000 / Double(elapsedMs))
            var line = "\(label): " + unit.text(done, of: total)
            line += ", \(unit.text(rate))/s"
            if let etaMs { line += ", \(Self.duration(seconds: (etaMs + 999) / 1000)) left" }
            Output.raw(isTerminal ? "\r\u{1b}[K\(line)" : line + "\n")
        }
    }

    /// `50 s`, `12 min 5 s`, `3 h 20 min`.
    static func duration(seconds: Int64) -> String {
        switch seconds {
        case ..<60: "\(seconds) s"
        case ..<3600: "\(seconds / 60) min \(seconds % 60) s"
        default: "\(seconds / 3600) h \(seconds % 3600 / 60) min"
        }
    }

    func end() {
        lock.withLock { if hasShown && isTerminal { Output.raw("\r\u{1b}[K") } }
    }
}
