import BlockCore
import Daemon
import Glibc
import SystemIO
import VirtualFS

/// What people and programs see.
enum Output {
    static func error(_ text: String) { raw(text + "\n") }

    static func raw(_ text: String) {
        let bytes = Array(text.utf8)
        _ = bytes.withUnsafeBytes { write(2, $0.baseAddress, $0.count) }
    }

    static func json(_ value: some Encodable) {
        print(String(decoding: JSONLine.encode(value, pretty: true), as: UTF8.self))
    }

    static func time(_ ns: Int64) -> String { CivilTime(ns).readable }
    static func timeNow() -> String { CivilTime(LinuxDisk().now()).readable }
    static func size(_ bytes: UInt64) -> String { ByteSize(bytes: bytes).description }

    /// Columns as wide as their widest cell; the last is not padded.
    static func table(_ header: [String], _ rows: [[String]]) {
        let all = [header] + rows
        let widths = header.indices.map { column in all.map { $0[column].count }.max() ?? 0 }
        for row in all {
            var line = ""
            for (column, cell) in row.enumerated() {
                line += cell
                if column + 1 < row.count {
                    line += String(repeating: " ", count: widths[column] - cell.count + 2)
                }
            }
            print(line)
        }
    }
}

/// Progress with the time left, on a terminal, for what takes more than two seconds.
final class Progress {
    private let label: String
    private let totalBytes: UInt64
    private let disk = LinuxDisk()
    private let startNs: Int64
    private var shownNs: Int64
    private var hasShown = false
    private let isTerminal = isatty(2) == 1

    init(_ label: String, totalBytes: UInt64) {
        self.label = label
        self.totalBytes = totalBytes
        startNs = disk.monotonic()
        shownNs = startNs
    }

    func update(_ doneBytes: UInt64) {
        let now = disk.monotonic()
        guard isTerminal, now - startNs > 2_000_000_000, now - shownNs > 200_000_000 else { return }
        shownNs = now
        hasShown = true
        let seconds = Double(now - startNs) / 1e9
        let rate = Double(doneBytes) / seconds
        var line = "\r\(label): \(Output.size(doneBytes))"
        if totalBytes > 0 {
            let left = rate > 0 ? Double(totalBytes - min(doneBytes, totalBytes)) / rate : 0
            line += " of \(Output.size(totalBytes)), \(Int(left.rounded(.up))) s left"
        }
        line += ", \(Output.size(UInt64(rate)))/s   "
        Output.raw(line)
    }

    func end() { if hasShown { Output.raw("\n") } }
}
