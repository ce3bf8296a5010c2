// A pool in a temporary folder, served at a mount point by a process of its own.
//
// Nothing stays behind: `Mount.with` takes the mount away also when its body throws, the server
// does it when its input ends (so also when the tests crash), and a server that crashed leaves a
// dead mount that is cleared here.

import Glibc
import MountCalls
import Testing

struct Failure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// The tests of this module run where FUSE can.
let hasFuse = access("/dev/fuse", R_OK | W_OK) == 0

final class Mount: @unchecked Sendable {  // used by one test
    let folder: String
    let pool: String
    var path: String { folder + "/mnt" }
    private var server: Server

    private init(_ pool: String?, _ cache: String, _ options: [String]) throws {
        folder = try makeTemporaryFolder()
        self.pool = pool ?? folder + "/pool"
        mkdir(folder + "/mnt", 0o755)
        server = try Server("MountFixture", [self.pool, folder + "/mnt", cache] + options)
    }

    /// - Parameter pool: made where it is missing; in a temporary folder of its own unless given.
    static func with(
        pool: String? = nil, cache: String = "none", options: [String] = [],
        _ body: (Mount) throws -> Void
    ) throws {
        let mount = try Mount(pool, cache, options)
        defer { mount.remove() }
        try mount.server.expectReady()
        try body(mount)
    }

    func file(_ name: String) -> String { path + "/" + name }

    /// - Returns: what the server answered after `ok`.
    @discardableResult
    func tell(_ command: String) throws -> String { try server.tell(command) }

    /// What the server refused, or nil when it did not.
    func refusal(_ command: String) -> String? {
        do {
            try server.tell(command)
            return nil
        } catch { return "\(error)" }
    }

    /// Serves the pool again after ``kill()``.
    func serveAgain() throws {
        server.end()
        server = try Server("MountFixture", [pool, path, "none"])
        try server.expectReady()
    }

    /// Unmounts, waits for the pool to be closed, and serves it again.
    func remount(cache: String = "none", options: [String] = []) throws {
        try tell("stop")
        try server.waitForEnd()
        server.end()
        server = try Server("MountFixture", [pool, path, cache] + options)
        try server.expectReady()
    }

    func kill() { server.kill() }
    func waitForEnd() throws { try server.waitForEnd() }
    var serverPID: pid_t { server.pid }

    private func remove() {
        server.end()
        // A server that crashed leaves its mount.
        _ = try? run(["fusermount3", "-uz", path])
        _ = try? run(["rm", "-rf", "--one-file-system", folder])
    }
}

func makeTemporaryFolder() throws -> String {
    let template = (getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp") + "/doppel-XXXXXX"
    var name = Array(template.utf8CString)
    guard mkdtemp(&name) != nil else { throw Failure("mkdtemp: errno \(errno)") }
    return name.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
}

/// The child process, and the lines to and from it.
final class Server {
    let pid: pid_t
    private let input: Int32
    private let output: Int32
    private var pending: [UInt8] = []
    private var isReaped = false

    init(_ program: String, _ arguments: [String]) throws {
        var down: [Int32] = [0, 0]
        var up: [Int32] = [0, 0]
        guard mc_pipe(&down) == 0, mc_pipe(&up) == 0 else { throw Failure("pipe") }
        pid = try spawn([Self.folder + "/" + program] + arguments, input: down[0], output: up[1])
        close(down[0])
        close(up[1])
        input = down[1]
        output = up[0]
    }

    /// Beside the test bundle, where the build puts every product.
    private static var folder: String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let count = readlink("/proc/self/exe", &buffer, buffer.count - 1)
        let own = String(
            decoding: buffer[..<max(count, 0)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
        let folder = String(own[..<(own.lastIndex(of: "/") ?? own.endIndex)])
        if access("\(folder)/MountFixture", X_OK) == 0 { return folder }
        // The runner is the tool chain's own; its argument is the bundle.
        let bundle = CommandLine.arguments.first { $0.contains(".xctest") } ?? ""
        return String(bundle[..<(bundle.lastIndex(of: "/") ?? bundle.endIndex)])
    }

    func expectReady() throws {
        let line = try readLine(timeoutMs: 30_000)
        guard line == "ready" else { throw Failure("the server says: \(line)") }
    }

    @discardableResult
    func tell(_ command: String) throws -> String {
        let bytes = Array((command + "\n").utf8)
        guard write(input, bytes, bytes.count) == bytes.count else {
            throw Failure("the server is gone")
        }
        let line = try readLine(timeoutMs: 30_000)
        guard line.hasPrefix("ok") else { throw Failure(line) }
        return String(line.dropFirst(3))
    }

    func waitForEnd() throws {
        let line = try readLine(timeoutMs: 30_000)
        guard line == "closed" else { throw Failure("the server says: \(line)") }
        reap()
    }

    func kill() {
        Glibc.kill(pid, SIGKILL)
        reap()
    }

    /// Without input the server takes its mount away and ends; if not, it is made to.
    func end() {
        close(input)
        for _ in 0..<100 where !isReaped {
            var status: Int32 = 0
            if waitpid(pid, &status, WNOHANG) == pid { isReaped = true } else { usleep(50_000) }
        }
        if !isReaped { kill() }
        close(output)
    }

    private func reap() {
        var status: Int32 = 0
        while !isReaped, waitpid(pid, &status, 0) < 0, errno == EINTR {}
        isReaped = true
    }

    private func readLine(timeoutMs: Int32) throws -> String {
        while true {
            if let end = pending.firstIndex(of: 10) {
                defer { pending.removeFirst(end + 1) }
                return String(decoding: pending[..<end], as: UTF8.self)
            }
            var wait = pollfd(fd: output, events: Int16(POLLIN), revents: 0)
            guard poll(&wait, 1, timeoutMs) > 0 else { throw Failure("the server says nothing") }
            var buffer = [UInt8](repeating: 0, count: 4096)
            let count = read(output, &buffer, buffer.count)
            guard count > 0 else { throw Failure("the server ended") }
            pending += buffer[..<count]
        }
    }
}

// MARK: Processes

private func spawn(_ arguments: [String], input: Int32, output: Int32) throws -> pid_t {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_adddup2(&actions, input, 0)
    posix_spawn_file_actions_adddup2(&actions, output, 1)
    var words: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    var pid: pid_t = 0
    let result = posix_spawnp(&pid, arguments[0], &actions, nil, &words, environ)
    guard result == 0 else { throw Failure("cannot run \(arguments[0]): errno \(result)") }
    return pid
}

/// Runs a program to its end.
/// - Returns: its exit code, and what it said on either stream.
@discardableResult
func run(_ arguments: [String]) throws -> (code: Int32, output: String) {
    var ends: [Int32] = [0, 0]
    guard mc_pipe(&ends) == 0 else { throw Failure("pipe") }
    let shell = ["sh", "-c", "exec \"$@\" 2>&1 </dev/null", "sh"] + arguments
    let pid = try spawn(shell, input: 0, output: ends[1])
    close(ends[1])
    var output: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
        let count = read(ends[0], &buffer, buffer.count)
        if count > 0 { output += buffer[..<count] } else { break }
    }
    close(ends[0])
    var status: Int32 = 0
    while waitpid(pid, &status, 0) < 0, errno == EINTR {}
    return ((status >> 8) & 0xff | status & 0x7f, String(decoding: output, as: UTF8.self))
}

// MARK: Files

/// An open file that closes itself.
final class TestFile {
    let fd: Int32

    init(
        _ path: String, _ flags: Int32 = O_RDWR | O_CREAT, mode: Int32 = 0o644, direct: Bool = false
    )
        throws
    {
        fd = mc_open(path, flags, mode, direct ? Int32(MC_DIRECT) : 0)
        if fd < 0 { throw Failure("open \(path): errno \(-fd)") }
    }
    deinit { if fd >= 0 { close(fd) } }

    func write(_ bytes: [UInt8], at offset: Int) throws {
        let count = pwrite(fd, bytes, bytes.count, offset)
        guard count == bytes.count else { throw Failure("pwrite: \(count), errno \(errno)") }
    }
    func read(_ count: Int, at offset: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: count)
        let got = pread(fd, &bytes, count, offset)
        guard got >= 0 else { throw Failure("pread: errno \(errno)") }
        return Array(bytes[..<got])
    }
    func sync() throws { guard fsync(fd) == 0 else { throw Failure("fsync: errno \(errno)") } }
    var size: Int {
        var status = stat()
        return fstat(fd, &status) == 0 ? status.st_size : -1
    }
}

/// The errno an attempt to open gives; 0 when it opens.
func openError(_ path: String, _ flags: Int32, mode: Int32 = 0o644) -> Int32 {
    let fd = mc_open(path, flags, mode, 0)
    if fd >= 0 {
        close(fd)
        return 0
    }
    return -fd
}

/// The errno of a call that says -1.
func error(_ result: Int32) -> Int32 { result == 0 ? 0 : errno }

func status(_ path: String) throws -> stat {
    var status = stat()
    guard lstat(path, &status) == 0 else { throw Failure("lstat \(path): errno \(errno)") }
    return status
}

func names(in path: String) throws -> [String] {
    guard let folder = opendir(path) else { throw Failure("opendir \(path): errno \(errno)") }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
}

func contents(_ path: String) throws -> [UInt8] {
    let file = try TestFile(path, O_RDONLY)
    return try file.read(max(file.size, 4096), at: 0)
}

/// Bytes that tell where they belong.
func pattern(_ count: Int, seed: UInt8 = 1) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) ^ seed }
}
