import Foundation
import Glibc
import TestSupport
import Testing

/// The keys of both hosts are changed while a pool is replicated from one to the other.
@Suite(.serialized, .enabled(if: hasFuse)) struct KeyRotationTests {
    @Test func aPoolIsReplicatedWithTheNewKeys() throws {
        try Sandbox.withServer("a.img") { box, server in
            let there = ["--config", server.configuration("server")]
            func ok(_ words: [String]) throws -> String {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                guard outcome.code == 0 else { throw Unexpected("\(words): \(outcome)") }
                return outcome.output
            }
            func key(_ host: String) throws -> String {
                String(try server.line(host).split(separator: " ")[0])
            }
            // The primary's. What is connected goes on with the key that it began with.
            let oldClient = try key("client")
            let newClient = try ok(["pair", "--rotate"]).split(separator: " ")[0]
            _ = try ok(["pair", "--accept", "\(newClient) client", "--second-key"] + there)
            _ = try ok(["pair", "--retire", oldClient])
            try box.write("one", to: box.mountPoint + "/a.img")
            try box.untilInStep(server.address)
            _ = try ok(["pair", "--remove", oldClient] + there)
            try box.write("two", to: box.mountPoint + "/a.img", at: 4096)
            try box.untilInStep(server.address)
            // The server's. It takes the new one by itself, and its sessions go on.
            let oldServer = try key("server")
            let newServer = try ok(["pair", "--rotate"] + there).split(separator: " ")[0]
            _ = try ok(["pair", "--accept", "\(newServer) server", "--second-key"])
            _ = try ok(["pair", "--retire", oldServer] + there)
            try box.until("the new key is taken up") {
                server.words.contains("\(newServer) from now on")
            }
            try box.untilInStep(server.address)
            // Who connects now is shown the new one alone.
            _ = try ok(["pair", "--remove", oldServer])
            #expect(try box.ok("status", server.address).contains("healthy"))
            try box.write("three", to: box.mountPoint + "/a.img", at: 8192)
            try box.untilInStep(server.address)
            try box.ok("wait", box.pool)
            // Settings are read anew when it is told so; with a mistake in them they stay as they were.
            let file = server.configuration("server")
            let settings = box.read(file)
            func change(_ text: String, _ word: String) throws {
                try Data((settings + text).utf8).write(to: URL(fileURLWithPath: file))
                server.signal(SIGHUP)
                try box.until(word) { server.words.contains(word) }
            }
            try change("[serve]\nconnections-per-peer = \"none\"\n", "as they were")
            #expect(try box.ok("status", server.address).contains("healthy"))
            try change("[serve]\nconnections-per-peer = 1\n", "the settings were read")
            let refused = try box.run("status", server.address)
            #expect(refused.errors.contains("as many as the server gives to one"), "\(refused)")
            #expect(try box.target(server.address).isInStep)
            try server.expectSame()
        }
    }
}
