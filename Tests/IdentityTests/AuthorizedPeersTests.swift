import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Identity

/// The list of peers while it is edited under a running server.
@Suite struct AuthorizedPeersTests {
    /// Counts what it hears, and waits for more.
    private final class Bell: @unchecked Sendable {  // `count` is under `lock`
        private let lock = Lock()
        private let rung = Condition()
        private var count = 0

        func ring() {
            lock.withLock {
                count += 1
                rung.broadcast()
            }
        }
        /// - Returns: false when 20 s passed.
        func wait(until isThere: () -> Bool) -> Bool {
            lock.lock()
            defer { lock.unlock() }
            let end = Date(timeIntervalSinceNow: 20)
            while true {
                if isThere() { return true }
                if Date() > end { return false }
                _ = rung.wait(lock, timeoutMs: 1000)
            }
        }
        var rings: Int { lock.withLock { count } }
    }

    private let one = PeerListTests.keys[1]
    private let two = PeerListTests.keys[2]

    /// - Parameter checkEveryMs: so long that only what the system tells of is noticed.
    private func withPeers(
        _ text: String?, checkEveryMs: Int32 = 600_000,
        _ body: (String, AuthorizedPeers, Bell, Bell) throws -> Void
    ) throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let path = folder + "/authorized_peers"
        if let text { try text.write(toFile: path, atomically: false, encoding: .utf8) }
        let problems = Bell()
        let peers = try AuthorizedPeers(path: path, checkEveryMs: checkEveryMs) { _ in
            problems.ring()
        }
        defer { peers.close() }
        let changes = Bell()
        peers.onChange { changes.ring() }
        try body(path, peers, changes, problems)
    }

    private func line(_ key: PeerFingerprint, _ name: String) -> String {
        "\(key) pools=web right=replicate host=\(name):7420 \(name)\n"
    }

    @Test func whoIsTakenOutIsOutAtOnce() throws {
        try withPeers(line(one, "a") + line(two, "b")) { path, peers, changes, _ in
            #expect(peers.rights(of: one)?.allows(.replicate, pool: "web") == true)
            #expect(peers.keys(ofServerAt: "B", port: 7420) == [two])
            #expect(peers.keys(ofServerAt: "b", port: 7421).isEmpty)
            #expect(peers.name(of: two) == "b")
            // As an editor does: a new file under the old name.
            try line(two, "b").write(toFile: path, atomically: true, encoding: .utf8)
            #expect(changes.wait { peers.rights(of: one) == nil })
            #expect(peers.rights(of: two) != nil)
            // In place.
            try line(one, "a").write(toFile: path, atomically: false, encoding: .utf8)
            #expect(changes.wait { peers.rights(of: one) != nil && peers.rights(of: two) == nil })
            try FileManager.default.removeItem(atPath: path)
            #expect(changes.wait { peers.rights(of: one) == nil })
        }
    }

    @Test func twoKeysOfOneHostAreBothAccepted() throws {
        try withPeers(line(one, "a") + line(two, "a")) { _, peers, _, _ in
            #expect(peers.keys(ofServerAt: "a", port: 7420) == [one, two])
            #expect(peers.rights(of: one) == peers.rights(of: two))
        }
    }

    @Test func aFileThatComesLaterCounts() throws {
        try withPeers(nil) { path, peers, changes, problems in
            #expect(peers.rights(of: one) == nil)
            #expect(peers.problems.isEmpty)
            try line(one, "a").write(toFile: path, atomically: true, encoding: .utf8)
            #expect(changes.wait { peers.rights(of: one) != nil })
            #expect(problems.rings == 0)
        }
    }

    @Test func aFileThatIsBrokenOnlyTakesAway() throws {
        try withPeers(line(one, "a") + line(two, "b")) { path, peers, changes, problems in
            let broken =
                line(one, "a") + line(two, "b").replacingOccurrences(of: "pools", with: "pool")
            try broken.write(toFile: path, atomically: true, encoding: .utf8)
            #expect(changes.wait { peers.rights(of: two) == nil })
            #expect(peers.rights(of: one) != nil)
            #expect(problems.wait { peers.problems.count == 1 })
            #expect(peers.problems.first?.contains("line 2") == true)
        }
    }

    @Test func whatOthersCanChangeGrantsNothing() throws {
        try withPeers(line(one, "a")) { path, peers, changes, _ in
            chmod(path, 0o666)
            #expect(changes.wait { peers.rights(of: one) == nil })
            #expect(peers.problems.first?.contains("others can change") == true)
            chmod(path, 0o644)
            #expect(changes.wait { peers.rights(of: one) != nil })
            #expect(peers.problems.isEmpty)
        }
    }

    /// A link into a folder that nobody watches: there it is looked at from time to time.
    @Test func whereTheSystemTellsNothingItIsLookedAt() throws {
        let elsewhere = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: elsewhere) }
        let target = elsewhere + "/peers"
        try withPeers(nil, checkEveryMs: 20) { path, peers, changes, _ in
            try line(one, "a").write(toFile: target, atomically: true, encoding: .utf8)
            symlink(target, path)
            #expect(changes.wait { peers.rights(of: one) != nil })
            try "".write(toFile: target, atomically: true, encoding: .utf8)
            #expect(changes.wait { peers.rights(of: one) == nil })
        }
    }
}
