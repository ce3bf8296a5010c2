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

    /// Where the output is a terminal; elsewhere one picture follows the other.
    static func clearTerminal() { if isatty(1) == 1 { print("\u{1b}[H\u{1b}[2J", terminator: "") } }
    static func flush() { fflush(nil) }

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
