// A pool in a temporary folder, served at a mount point by a process of its own.
//
// Nothing stays behind: `Mount.with` takes the mount away also when its body throws, the server
// does it when its input ends (so also when the tests crash), and a server that crashed leaves a
// dead mount that is cleared here.

import Glibc
import MountCalls
import TestSupport
import Testing

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
