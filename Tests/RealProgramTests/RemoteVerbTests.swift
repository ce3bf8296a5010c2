import Foundation
import TestSupport
import Testing

/// What can be asked of a pool behind a server by who is not its primary.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct RemoteVerbTests {
    private struct Seen: Decodable {
        struct Replica: Decodable {
            var role: String
            var primaryPool: String?
            var checkpointSequence: UInt64?
            var isConnected: Bool?
            var copies: [Copy]?
        }
        struct Copy: Decodable { var address: String }
        var pool: String
        var state: String
        var generation: UInt64
        var images: Int
        var snapshots: Int
        var sizeBytes: UInt64
        var replica: Replica
    }
    private struct Named: Decodable, Hashable {
        var path: String
        var kind: String
        var sizeBytes: UInt64
    }
    private struct Cut: Decodable, Hashable {
        var name: String
        var createdNs: Int64
        var sequence: UInt64
    }

    private func status(_ box: Sandbox, _ place: String) throws -> Seen {
        let all = try box.json(box.ok("status", place, "--json"), [Seen].self)
        try #require(all.count == 1)
        return all[0]
    }

    @Test func aMirrorIsAskedWhileItsPrimaryWrites() throws {
        try Sandbox.withServer("a.img", "b.img") { box, server in
            try box.ok("snapshot", "create", box.pool, "one")
            try box.ok("create", box.pool, "db.img", "--size", "3M")
            try box.settle()
            // Beside the session, which hears nothing of it.
            let writer = try BackgroundShell(
                "while [ ! -e '\(box.folder)/enough' ]; do dd if=/dev/urandom of='\(box.mountPoint)/b.img' "
                    + "bs=64k count=8 conv=notrunc,fsync 2>/dev/null || exit 1; done")
            for _ in 0..<5 {
                let seen = try status(box, server.address)
                #expect(seen.pool == server.address && seen.state == "healthy")
                #expect(seen.images == 3 && seen.snapshots == 1 && seen.sizeBytes == 19 << 20)
                #expect(seen.generation == 1 && seen.replica.role == "replica")
                #expect(seen.replica.isConnected == true)
                #expect(seen.replica.checkpointSequence ?? 0 > 0)
                #expect(try box.target(server.address).isInStep)
            }
            #expect(FileManager.default.createFile(atPath: box.folder + "/enough", contents: nil))
            #expect(try writer.wait() == 0)
            try box.settle()
            func list(_ place: String) throws -> [Named] {
                try box.json(box.ok("list", place, "--json"), [Named].self)
            }
            func cuts(_ place: String) throws -> [Cut] {
                try box.json(box.ok("snapshot", "list", place, "--json"), [Cut].self)
            }
            #expect(try list(server.address) == list(box.pool))
            #expect(try cuts(server.address) == cuts(box.pool))
            #expect(try cuts(server.address).map(\.name) == ["one"])
            // Nobody is connected: the same.
            let names = try list(box.pool)
            try box.ok("unmount", box.mountPoint)
            #expect(try list(server.address) == names)
            let idle = try status(box, server.address)
            #expect(idle.replica.isConnected == nil && idle.replica.role == "replica")
            #expect(idle.images == 3 && idle.snapshots == 1)
            // And a primary that comes meanwhile is let in.
            try box.mount()
            try box.untilInStep(server.address)
        }
    }

    @Test func whoMayNotReadIsToldNothing() throws {
        try Sandbox.withServer("a.img") { box, server in
            let there = server.configuration("server")
            let other = try box.run("status", "doppel://\(server.place)/other")
            #expect(other.code == 1 && other.errors.contains("may not read"), "\(other)")
            let none = try box.run("list", "doppel://\(server.place)/db/none")
            #expect(none.code == 1 && none.errors.contains("there is no pool"), "\(none)")
            for odd in [
                try box.run("create", server.address, "x.img", "--size", "1M"),
                try box.run("scrub", server.address),
            ] { #expect(odd.code == 2 && odd.errors.contains("on another machine"), "\(odd)") }
            // One who may read may not write.
            try box.ok(
                "pair", "--config", there, "--accept", server.line("client"), "--pools", "vms",
                "--right", "read")
            try box.until("the session has ended") { try !box.target(server.address).isInStep }
            #expect(try status(box, server.address).images == 1)
            // It connects again, and hears why.
            try box.until("it says why") {
                try box.target(server.address).reason?.contains("may not replicate") ?? false
            }
            // Who may do nothing any more is not even let in.
            try box.ok("pair", "--config", there, "--remove", "client")
            try box.until("it is refused") {
                try box.run("status", server.address).errors.contains("take this host's key")
            }
        }
    }
}
