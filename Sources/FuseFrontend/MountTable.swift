// What is mounted where, from /proc/self/mountinfo: asking the file systems themselves would block
// on one that does not answer.

import Glibc

/// One line of /proc/self/mountinfo.
struct MountedPlace: Sendable, Hashable {
    /// The device number as "major:minor"; for FUSE the minor is the connection's number.
    var device: String
    var path: String
    var type: String
    var source: String

    var isFuse: Bool { type == "fuse" || type.hasPrefix("fuse.") }
    var connection: String { String(device.drop { $0 != ":" }.dropFirst()) }
}

enum MountTable {
    /// Every mount this process sees; later ones lie on top of earlier ones.
    static func read() -> [MountedPlace] {
        guard let file = fopen("/proc/self/mountinfo", "re") else { return [] }
        defer { fclose(file) }
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        var places: [MountedPlace] = []
        while getline(&line, &capacity, file) > 0 {
            if let line, let place = parse(String(cString: line)) { places.append(place) }
        }
        return places
    }

    /// What lies on top at exactly this path.
    static func top(at path: String) -> MountedPlace? { read().last { $0.path == path } }

    /// `36 35 98:0 /root /mount/point options [tags] - type source superoptions`
    static func parse(_ line: String) -> MountedPlace? {
        let fields = line.split(separator: " ", omittingEmptySubsequences: true)
        guard let dash = fields.firstIndex(of: "-"), dash >= 6, fields.count >= dash + 3 else {
            return nil
        }
        return MountedPlace(
            device: String(fields[2]), path: unescape(fields[4]),
            type: unescape(fields[dash + 1]), source: unescape(fields[dash + 2]))
    }

    /// The kernel writes blanks, tabs, line feeds and backslashes as three octal digits.
    static func unescape(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        let input = Array(text.utf8)
        var index = 0
        while index < input.count {
            if input[index] == 0x5c, index + 3 < input.count,
                let value = UInt8(
                    String(decoding: input[index + 1...index + 3], as: UTF8.self), radix: 8)
            {
                bytes.append(value)
                index += 4
            } else {
                bytes.append(input[index])
                index += 1
            }
        }
        while bytes.last == 0x0a { bytes.removeLast() }
        return String(decoding: bytes, as: UTF8.self)
    }
}
