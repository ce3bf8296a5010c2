// `doppel serve` beside a sandbox's pool, on a port of the loopback: what another machine would have. Or on another
// host of a network, where the sandbox's programs run on the first.

import Foundation
import Glibc

package final class MirrorServer {
    private let box: Sandbox
    private let isEncrypted: Bool
    /// The folder that it serves.
    package let root: String
    /// What it is called with, besides.
    private let options: [String]
    private let relay: Relay?
    private let link: NamespacePair?
    private var port = 0
    package private(set) var pid: pid_t?
    private var starts = 0

    /// Runs, with the sandbox's host let in for every pool.
    /// - Parameters:
    ///   - through: a relay that clients go through.
    ///   - across: a link that it is at the other end of.
    package init(
        _ box: Sandbox, root: String? = nil, isEncrypted: Bool = true, through relay: Relay? = nil,
        across link: NamespacePair? = nil, options: [String] = []
    ) throws {
        self.relay = relay
        self.link = link
        if let link { box.network = link.enter(.primary) }
        self.box = box
        self.isEncrypted = isEncrypted
        self.root = root ?? box.folder + "/served"
        self.options = options
        mkdir(self.root, 0o700)
        for host in ["client", "server"] { try configure(host) }
        box.variables["DOPPEL_CONFIG"] = configuration("client")
        try start()
        guard isEncrypted else { return }
        try box.ok(
            "pair", "--config", configuration("server"), "--accept", line("client"), "--pools",
            "vms,db/*")
        try box.ok("pair", "--accept", line("server"), "--host", place)
    }

    deinit { kill() }

    /// Gives the sandbox's host another right than `replicate`.
    package func allow(_ right: String) throws {
        try box.ok(
            "pair", "--config", configuration("server"), "--accept", line("client"), "--pools",
            "vms,db/*", "--right", right)
    }

    package func configure(_ host: String) throws {
        try Data("state-directory = \"\(box.folder)/\(host)\"\n".utf8).write(
            to: URL(fileURLWithPath: configuration(host)))
    }
    /// The settings of one of the two hosts.
    package func configuration(_ host: String) -> String { "\(box.folder)/\(host).toml" }
    /// What one of the two hosts shows, to be pasted on the other.
    package func line(_ host: String) throws -> String {
        try box.ok("pair", "--config", configuration(host), "--name", host)
            .trimmingCharacters(in: .whitespacesAndNewlines)
    }
    /// Where clients connect to.
    package var place: String { "\(host):\(relay?.port ?? port)" }
    private var host: String { link == nil ? "127.0.0.1" : NamespacePair.Host.standby.address }
    package var address: String { "doppel://\(place)/vms" }
    /// The mirror, as the server's machine has it.
    package var mirror: String { root + "/vms" }
    private var log: String {
        "\(box.folder)/serve-\(root.split(separator: "/").last ?? "")\(starts).log"
    }

    /// On the port that it had before.
    package func start() throws {
        starts += 1
        let script = "exec \"$@\" </dev/null >'\(log)' 2>&1"
        let words =
            [
                "/bin/sh", "-c", script, "sh",
            ] + (link?.enter(.standby) ?? []) + [
                Sandbox.binary, "serve", root, "--listen", "\(host):\(port)",
            ]
            + ["--config", configuration("server")] + (isEncrypted ? [] : ["--without-keys"])
            + options
        let argv = words.map { strdup($0) } + [nil]
        defer { for word in argv { free(word) } }
        var started: pid_t = 0
        let result = posix_spawn(&started, "/bin/sh", nil, nil, argv, environ)
        guard result == 0 else { throw Unexpected("cannot start a server: errno \(result)") }
        pid = started
        try box.until("the server listens", seconds: 30) {
            guard Sandbox.isRunning(started) else { throw Unexpected("serve: \(box.read(log))") }
            guard let end = box.read(log).range(of: " at \(host):") else { return false }
            let digits = box.read(log)[end.upperBound...].prefix { $0.isNumber }
            guard let found = Int(digits), box.read(log)[digits.endIndex...].first == "\n" else {
                return false
            }
            port = found
            relay?.lead(to: found)
            return true
        }
    }

    package var words: String { box.read(log) }

    package func signal(_ number: Int32) { if let pid { Glibc.kill(pid, number) } }

    /// SIGKILL.
    package func kill() { _ = try? end(SIGKILL) }
    /// SIGTERM: all that came is done.
    /// - Returns: its exit code.
    @discardableResult
    package func terminate() throws -> Int32 { try end(SIGTERM) }

    private func end(_ signal: Int32) throws -> Int32 {
        guard let pid else { return 0 }
        Glibc.kill(pid, signal)
        Glibc.kill(pid, SIGCONT)
        self.pid = nil
        return try waitForEnd(of: pid)
    }

    /// What the mirror shows is what the pool shows. The server is started again afterwards.
    /// - Parameter look: asked in between, while nobody has the mirror open.
    package func expectSame(_ look: () throws -> Void = {}) throws {
        guard try terminate() == 0 else { throw Unexpected("the server ended badly: \(words)") }
        mkdir(box.look, 0o755)
        let outcome = try box.run("mount", mirror, box.look)
        guard outcome.code == 0 else { throw Unexpected("mount of the mirror: \(outcome)") }
        try box.expectSame(box.mountPoint, box.look)
        try box.lookAway()
        try look()
        try start()
    }
}

extension Sandbox {
    /// A mounted pool with the images named, each of 8 MiB, and a mirror behind a server that is in step.
    package static func withServer(
        _ images: String..., isEncrypted: Bool = true, through relay: Relay? = nil,
        across link: NamespacePair? = nil, options: String = "timeout=700ms",
        body: (Sandbox, MirrorServer) throws -> Void
    ) throws {
        try with { box in
            let server = try MirrorServer(
                box, isEncrypted: isEncrypted, through: relay, across: link)
            defer { server.kill() }
            try box.ok("init", box.pool)
            for image in images { try box.ok("create", box.pool, image, "--size", "8M") }
            try box.mount("--mirror", server.address + "," + options)
            try box.untilInStep(server.address)
            try body(box, server)
        }
    }
}
