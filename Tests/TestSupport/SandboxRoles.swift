// Which of several pools is the primary, what each has, and what changes of roles say.

import Foundation
import Glibc

/// What `promote`, and a forced `failover`, say.
package struct PromotionLine: Decodable {
    package struct Loss: Decodable {
        package struct File: Decodable {
            package var path: String
            package var change: String
            package var ranges: Int
            package var bytes: UInt64
        }
        package var knowledge: String
        package var reason: String
        package var images: [File]
        package var bytes: UInt64
        package var fromNs: Int64
        package var throughNs: Int64?
        package var staleSinceNs: Int64?
        package var staleReason: String?
        package var staleToldBy: String?
        package var heardNs: Int64?
    }
    package var path: String
    package var generation: UInt64
    package var checkpointSequence: UInt64
    package var isPromoted: Bool
    package var loss: Loss
    package var better: [String]
}

/// What a planned `failover` says.
package struct HandoverLine: Decodable {
    package var to: String
    package var generation: UInt64
    package var pauseMs: Int64
    package var sequence: UInt64
}

extension Sandbox {
    /// A new pool with the image a.img, and all of it at a target.
    /// - Returns: the file with what the image has.
    package func makeReplicated(to address: String, count: Int) throws -> String {
        try ok("init", pool)
        let file = try makeFile("source.raw", count: count)
        try ok("import", pool, file, "--as", "a.img")
        try ok("target", "add", pool, address)
        try ok("wait", pool, "--timeout", "50s")
        return file
    }

    /// Which of the pool and its mirror takes changes: such as a new image.
    package func primaries(
        creating name: String, mirror other: String? = nil
    ) throws -> [String] {
        try [pool, other ?? mirror].filter {
            try run("create", $0, name, "--size", "1M").code == 0
        }
    }

    /// Everything in a pool or a mirror, by name; folders have nothing in them.
    package func content(of path: String, at place: String? = nil) throws -> [String: Data] {
        let place = place ?? mountPoint
        mkdir(place, 0o755)
        try ok("mount", path, place, "--read-only")
        defer { _ = try? run("unmount", place) }
        var result: [String: Data] = [:]
        for name in try names(in: place) { result[name] = try bytes(place + "/" + name) }
        return result
    }
}

/// Writes ever higher numbers to an image of a sandbox's mount, each with an fsync, until one does not go through.
package final class NumberWriter {
    private let box: Sandbox
    private let image: String
    private let shell: BackgroundShell
    /// The last number that was answered for.
    private let note: String

    /// Returns when something was written.
    package init(_ box: Sandbox, _ image: String) throws {
        self.box = box
        self.image = image
        note = box.folder + "/last"
        let script = """
            i=0
            while printf '%08d' $i | dd of="$1" bs=4096 seek=$((i % 500)) conv=notrunc,fsync \
                status=none 2>/dev/null; do echo $i > "$2"; i=$((i + 1)); done
            """
        shell = try BackgroundShell(script, [box.mountPoint + "/" + image, note])
        try box.until("something was written") { access(note, F_OK) == 0 }
    }

    package var isRunning: Bool { shell.isRunning }
    package func kill() { shell.kill() }

    /// Once it ended.
    /// - Throws: where the folder does not have what was answered for last.
    package func expectLast(in folder: String) throws {
        let said = box.read(note).trimmingCharacters(in: .whitespacesAndNewlines)
        guard let number = Int(said) else { throw Unexpected("'\(said)' is no number") }
        let found = try box.text(
            folder + "/" + image, count: 8, at: off_t(number % 500 * 4096))
        guard Int(found) == number else {
            throw Unexpected("\(folder) has '\(found)' where \(number) was answered for")
        }
    }
}
