// The built `doppel` program, driven as a person drives it, in a folder that vanishes.
//
// Nothing stays behind, also when a test fails: what is mounted below the folder is taken away, and
// the daemons that served it are ended by their process ids.

import Foundation
import Glibc

/// Real mounts need the device; everything else runs anywhere.
package let hasFuse = access("/dev/fuse", R_OK | W_OK) == 0
package let isRoot = geteuid() == 0

package struct Outcome: CustomStringConvertible {
    package var code: Int32
    package var output: String
    package var errors: String
    package var description: String { "exit \(code)\n--- output\n\(output)\n--- errors\n\(errors)" }
}

package struct Unexpected: Error, CustomStringConvertible {
    package var description: String
    package init(_ description: String) { self.description = description }
}

package final class Sandbox {
    package let folder: String
    package let pool: String
    /// The pool's mirror, for tests that have one.
    package let mirror: String
    package var mountPoint: String { folder + "/mnt" }
    /// For the programs that it runs.
    package var variables: [String: String] = [:]
    /// What they begin with, for those that run in a network of their own.
    package var network: [String] = []
    private var daemons: Set<pid_t> = []
    private var runs = 0

    private init(pool: String?, mirror: String?) throws {
        folder = try makeTemporaryFolder(in: TestFolders.quick, called: "doppel-cli")
        self.pool = pool ?? folder + "/pool"
        self.mirror = mirror ?? folder + "/mirror"
        mkdir(mountPoint, 0o755)
    }

    /// - Parameters: in the sandbox's own folder unless given.
    package static func with(
        pool: String? = nil, mirror: String? = nil, _ body: (Sandbox) throws -> Void
    ) throws {
        let sandbox = try Sandbox(pool: pool, mirror: mirror)
        defer { sandbox.remove() }
        try body(sandbox)
    }

    /// With a pool that holds the images named, each of 8 MiB.
    package static func withPool(_ images: String..., body: (Sandbox) throws -> Void) throws {
        try with { sandbox in
            try sandbox.ok("init", sandbox.pool)
            for image in images { try sandbox.ok("create", sandbox.pool, image, "--size", "8M") }
            try body(sandbox)
        }
    }

    // MARK: Running

    /// Output goes to files: a daemon that kept a pipe open would otherwise hold us here.
    package func run(_ words: String..., input: String = "/dev/null", as program: String = "doppel")
        throws -> Outcome
    {
        let path = program.hasPrefix("/") ? program : try named(program)
        return try execute([path] + words, input: input)
    }

    @discardableResult
    package func ok(_ words: String..., input: String = "/dev/null") throws -> String {
        let outcome = try execute([Self.binary] + words, input: input)
        guard outcome.code == 0 else {
            throw Unexpected("doppel \(words.joined(separator: " ")): \(outcome)")
        }
        return outcome.output
    }

    package func shell(_ script: String, limitSeconds: Int = 60) throws -> Outcome {
        try execute(["/bin/sh", "-c", script], input: "/dev/null", limitSeconds: limitSeconds)
    }

    package func execute(
        _ words: [String], input: String, limitSeconds: Int = 60
    ) throws -> Outcome {
        runs += 1
        let out = "\(folder)/.out\(runs)"
        let err = "\(folder)/.err\(runs)"
        // posix_spawn and waitpid: Foundation's Process also waits for whoever inherits its pipe.
        // Nothing that hangs may hang the tests.
        let script = "exec timeout -k 10 \(limitSeconds) \"$@\" <'\(input)' >'\(out)' 2>'\(err)'"
        let argv = (["/bin/sh", "-c", script, "sh"] + network + words).map { strdup($0) } + [nil]
        let variables = ProcessInfo.processInfo.environment
            .merging(["DOPPEL": Self.binary]) { $1 }.merging(self.variables) { $1 }
        let environment = variables.map { strdup("\($0.key)=\($0.value)") } + [nil]
        defer { for word in argv + environment { free(word) } }
        var pid: pid_t = 0
        let result = posix_spawn(&pid, "/bin/sh", nil, nil, argv, environment)
        guard result == 0 else { throw Unexpected("cannot run \(words[0]): errno \(result)") }
        let code = try waitForEnd(of: pid, limitSeconds: Double(limitSeconds) + 30)
        defer {
            unlink(out)
            unlink(err)
        }
        let outcome = Outcome(code: code, output: read(out), errors: read(err))
        // Also where a failure is expected: of what hangs nothing is known.
        guard code != 124 else {
            throw Unexpected(
                "\(words.joined(separator: " ")): after \(limitSeconds) s it went on: \(outcome)")
        }
        return outcome
    }

    /// The program under another name: mount(8) calls it so.
    private func named(_ name: String) throws -> String {
        if name == "doppel" { return Self.binary }
        let link = "\(folder)/\(name)"
        if symlink(Self.binary, link) != 0, errno != EEXIST { throw Unexpected("symlink") }
        return link
    }

    // MARK: Mounts

    package func mount(_ options: String...) throws {
        let outcome = try execute(
            [Self.binary, "mount", pool, mountPoint] + options, input: "/dev/null")
        guard outcome.code == 0 else { throw Unexpected("mount: \(outcome)") }
        _ = try daemon()
    }

    package var isMounted: Bool {
        read("/proc/self/mounts").split(separator: "\n").contains {
            $0.split(separator: " ").dropFirst().first.map(String.init) == mountPoint
        }
    }

    /// The process that serves the pool.
    package func daemon() throws -> pid_t {
        // A pool that is degraded is served, too, and told by the exit code.
        let outcome = try run("status", pool, "--json")
        guard let status = try? json(outcome.output, [StatusLine].self) else {
            throw Unexpected("status: \(outcome)")
        }
        // Of a pool that is not mounted, the owner was the program that just ended.
        guard let pid = status.first?.ownerPID, status.first?.mountPoint != nil, isOurs(pid) else {
            throw Unexpected("nobody serves the pool")
        }
        daemons.insert(pid)
        return pid
    }

    package func signalDaemon(_ signal: Int32) throws { kill(try daemon(), signal) }

    /// SIGKILL, and waits until the daemon has let go of everything.
    package func killDaemon() throws {
        let pid = try daemon()
        kill(pid, SIGKILL)
        try until("the daemon's end") { !Self.isRunning(pid) }
    }

    /// Nobody may have asked for the end of a process that is over: then it is a zombie.
    package static func isRunning(_ pid: pid_t) -> Bool {
        guard kill(pid, 0) == 0 || errno == EPERM,
            let status = try? contents("/proc/\(pid)/stat"), let end = status.lastIndex(of: 0x29)
        else { return false }
        return status.dropFirst(end + 2).first != UInt8(ascii: "Z")
    }

    package func until(_ what: String, seconds: Double = 20, _ condition: () throws -> Bool) throws
    {
        let start = Date()
        repeat {
            if try condition() { return }
            usleep(10_000)
        } while Date().timeIntervalSince(start) < seconds
        throw Unexpected("it never came: \(what)")
    }

    private func remove() {
        network = []
        for _ in 0..<3 {
            for place in mounted {
                _ = try? shell("fusermount3 -uz '\(place)' || umount -l '\(place)'")
            }
        }
        daemons.formUnion(servers)
        for pid in daemons where isOurs(pid) { kill(pid, SIGTERM) }
        for _ in 0..<200 where daemons.contains(where: isOurs) { usleep(10_000) }
        for pid in daemons where isOurs(pid) { kill(pid, SIGKILL) }
        try? FileManager.default.removeItem(atPath: folder)
        // A daemon's log outlives it on purpose, in memory where root mounts.
        if isRoot {
            for path in [pool, mirror] {
                unlink("/run/doppel/" + path.split(separator: "/").joined(separator: "-") + ".log")
            }
        }
    }

    /// Places in the folder where something is mounted, the last one first.
    private var mounted: [String] {
        read("/proc/self/mounts").split(separator: "\n").reversed().compactMap {
            let place = $0.split(separator: " ").dropFirst().first.map(String.init)
            return place.flatMap { $0.hasPrefix(folder + "/") ? $0 : nil }
        }
    }

    /// Every process of the program that was started with a path of the folder.
    private var servers: [pid_t] {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []).compactMap(
            pid_t.init
        )
        .filter { pid in
            let command = read("/proc/\(pid)/cmdline")
            return command.contains(folder) && command.contains(Self.binary)
        }
    }

    /// A process id may have been given to another since.
    private func isOurs(_ pid: pid_t) -> Bool {
        read("/proc/\(pid)/cmdline").contains(folder)
    }

    // MARK: Files

    package func read(_ path: String) -> String {
        String(decoding: FileManager.default.contents(atPath: path) ?? Data(), as: UTF8.self)
    }

    package func bytes(_ path: String) throws -> Data {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw Unexpected("cannot read \(path)")
        }
        return data
    }

    /// A file of bytes that cannot be guessed but are the same in every run.
    @discardableResult
    package func makeFile(_ name: String, count: Int, seed: UInt64 = 1) throws -> String {
        var state = seed &* 0x9e37_79b9_7f4a_7c15 | 1
        var data = Data(count: count)
        data.withUnsafeMutableBytes { buffer in
            for index in buffer.indices {
                state ^= state << 13
                state ^= state >> 7
                state ^= state << 17
                buffer[index] = UInt8(truncatingIfNeeded: state >> 24)
            }
        }
        let path = name.hasPrefix("/") ? name : "\(folder)/\(name)"
        try data.write(to: URL(fileURLWithPath: path))
        return path
    }

    package func write(_ text: String, to path: String, at offset: off_t = 0) throws {
        let file = open(path, O_WRONLY | O_CLOEXEC)
        guard file >= 0 else { throw Unexpected("open \(path): errno \(errno)") }
        defer { close(file) }
        let bytes = Array(text.utf8)
        guard pwrite(file, bytes, bytes.count, offset) == bytes.count, fsync(file) == 0 else {
            throw Unexpected("write \(path): errno \(errno)")
        }
    }

    package func text(_ path: String, count: Int, at offset: off_t = 0) throws -> String {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { throw Unexpected("open \(path): errno \(errno)") }
        defer { close(file) }
        var buffer = [UInt8](repeating: 0, count: count)
        let got = pread(file, &buffer, count, offset)
        guard got >= 0 else { throw Unexpected("read \(path): errno \(errno)") }
        return String(decoding: buffer[..<got], as: UTF8.self)
    }

    /// Keeps a file open for writing while `body` runs.
    package func holdingOpen<T>(_ path: String, _ body: () throws -> T) throws -> T {
        let file = open(path, O_RDWR | O_CLOEXEC)
        guard file >= 0 else { throw Unexpected("open \(path): errno \(errno)") }
        defer { close(file) }
        return try body()
    }

    package func json<T: Decodable>(_ text: String, _ type: T.Type) throws -> T {
        try JSONDecoder().decode(type, from: Data(text.utf8))
    }

    /// Beside the test bundle, where the build puts every product.
    package static let products: String = {
        let own =
            (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? ""
        // The runner may be the tool chain's own; its argument is the bundle.
        let bundle = CommandLine.arguments.first { $0.contains(".xctest") } ?? own
        return [own, bundle].map { URL(fileURLWithPath: $0).deletingLastPathComponent().path }
            .first { access($0 + "/doppel", X_OK) == 0 } ?? "."
    }()
    package static let binary = products + "/doppel"
}

// What programs read: declared here anew, so that a renamed field fails a test.

package struct StatusLine: Decodable {
    package var state: String
    package var mountPoint: String?
    package var ownerPID: pid_t?
    package var incarnation: UInt64
    package var images: Int
    package var snapshots: Int
    package var reserveBytes: UInt64
    package var generation: UInt64
    package var problems: [String]
    package var replica: ReplicaLine?
    package var targets: [TargetLine]?
    package var waitingRequests: Int?
}
package struct ImageLine: Decodable {
    package var path: String
    package var kind: String
    package var sizeBytes: UInt64
    package var allocatedBytes: UInt64
}
package struct SnapshotLine: Decodable {
    package var name: String
    package var origin: String
}
package struct DiffLine: Decodable {
    package var path: String
    package var change: String
    package var changedBytes: UInt64
}
