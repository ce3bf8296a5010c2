import Foundation
import TestSupport
import Testing

/// Two hosts that pair, as people do it: each with settings and a state directory of its own.
@Suite struct PairTests {
    private struct Peer: Decodable {
        var name: String
        var fingerprint: String
        var pools: [String]
        var right: String?
        var hosts: [String]
    }
    private struct Report: Decodable {
        var fingerprint: String?
        var nextFingerprint: String?
        var peers: [Peer]
        var problems: [String]
    }
    private struct Event: Decodable {
        var kind: String
        var subject: String
        var message: String
    }

    private struct Host {
        var box: Sandbox
        var name: String
        var folder: String { "\(box.folder)/\(name)" }
        var peers: String { folder + "/state/authorized_peers" }

        init(_ box: Sandbox, _ name: String) throws {
            self.box = box
            self.name = name
            mkdir("\(box.folder)/\(name)", 0o755)
            try "state-directory = \"\(box.folder)/\(name)/state\"\n"
                .write(toFile: folder + "/doppel.toml", atomically: true, encoding: .utf8)
        }

        func run(_ words: String...) throws -> Outcome {
            try box.execute(
                [Sandbox.binary] + words + ["--config", folder + "/doppel.toml"], input: "/dev/null"
            )
        }
        func ok(_ words: String...) throws -> String {
            let outcome = try box.execute(
                [Sandbox.binary] + words + ["--config", folder + "/doppel.toml"], input: "/dev/null"
            )
            guard outcome.code == 0 else { throw Unexpected("\(words): \(outcome)") }
            return outcome.output
        }
        func line() throws -> String {
            String(try ok("pair", "--name", name).dropLast())
        }
        func report() throws -> Report { try box.json(ok("pair", "--list", "--json"), Report.self) }
        func events() throws -> [Event] {
            try box.json(ok("events", "--host", "--json"), [Event].self)
        }
    }

    @Test func eachAcceptsTheOther() throws {
        try Sandbox.with { box in
            let (web, backup) = (try Host(box, "web1"), try Host(box, "backup1"))
            let line = try web.line()
            #expect(line.wholeMatch(of: /SHA256:[A-Za-z0-9+\/]{43} web1/) != nil)
            #expect(try web.line() == line, "the key is made once")
            let told = try backup.ok("pair", "--accept", line, "--pools", "web,db-*")
            #expect(told.hasPrefix("web1 may replicate web,db-* ("))
            _ = try web.ok("pair", "--accept", backup.line(), "--host", "10.0.0.2:7420")
            let found = try backup.report()
            #expect(found.peers.map(\.name) == ["web1"])
            #expect(found.peers[0].right == "replicate")
            #expect(found.peers[0].pools == ["web", "db-*"] && found.peers[0].hosts.isEmpty)
            #expect("\(found.peers[0].fingerprint) web1" == line)
            #expect(try web.report().peers[0].right == nil)
            #expect(try web.report().peers[0].hosts == ["10.0.0.2:7420"])
            // What is not said stays as it was.
            _ = try backup.ok("pair", "--accept", line, "--right", "read")
            _ = try backup.ok("pair", "--accept", line, "--host", "web1.example")
            let both = try backup.report().peers[0]
            #expect(both.right == "read" && both.pools == ["web", "db-*"])
            #expect(both.hosts == ["web1.example"])
            #expect(try backup.ok("pair", "--remove", "web1").contains("authorized_peers.old"))
            #expect(try backup.report().peers.isEmpty)
            #expect(box.read(backup.peers + ".old").contains(" web1\n"))
            #expect(try backup.run("pair", "--remove", "web1").code == 1)
            #expect(
                try backup.events().map(\.kind) == ["paired", "paired", "paired", "unpaired"])
            #expect(try backup.ok("events", "--host").contains("may replicate web,db-*"))
        }
    }

    @Test func aLineBringsNoRightsOfItsOwn() throws {
        try Sandbox.with { box in
            let (web, backup) = (try Host(box, "web1"), try Host(box, "backup1"))
            let line = try web.line()
            let key = line.dropLast(5)
            for words in [
                [line], ["\(key) pools=* right=admin web1", "--pools", "a"],
                ["nonsense", "--pools", "a"],
                ["\(key)", "--pools", "a"], [line, "--pools", "a/../b"], [line, "--host", "a:b"],
                [line, "--pools", "a", "--name", "a b"],
                [line, "--right", "write", "--pools", "a"],
                [line, "--pools", "a", "--second-key"], ["", "--pools", "a"],
            ] {
                let outcome = try box.execute(
                    [
                        Sandbox.binary, "pair", "--config", backup.folder + "/doppel.toml",
                        "--accept",
                    ]
                        + words, input: "/dev/null")
                #expect(outcome.code == 2, "\(words): \(outcome)")
            }
            #expect(!FileManager.default.fileExists(atPath: backup.peers))
            // A name that somebody has already gives nothing by itself.
            _ = try backup.ok("pair", "--accept", line, "--pools", "web")
            let other = try Host(box, "other").line().replacingOccurrences(
                of: " other", with: " web1")
            let refused = try backup.run("pair", "--accept", other, "--pools", "web")
            #expect(refused.code == 1 && refused.errors.contains("--second-key"), "\(refused)")
            #expect(try backup.run("pair", "--accept", line, "--second-key").code == 1)
        }
    }

    @Test func aKeyIsChangedWithBothAcceptedMeanwhile() throws {
        try Sandbox.with { box in
            let (web, backup) = (try Host(box, "web1"), try Host(box, "backup1"))
            let old = try web.line()
            _ = try backup.ok(
                "pair", "--accept", old, "--pools", "web", "--right", "admin", "--host", "web1")
            let new = String(try web.ok("pair", "--rotate").split(separator: " ")[0])
            #expect(try web.run("pair", "--rotate").code == 1, "two are enough")
            #expect(try web.report().nextFingerprint == new)
            #expect(try web.ok("pair").split(separator: "\n").count == 2)
            _ = try backup.ok("pair", "--accept", "\(new) web1", "--second-key")
            let both = try backup.report().peers
            #expect(both.map(\.right) == ["admin", "admin"])
            #expect(both.map(\.hosts) == [["web1"], ["web1"]])
            let key = String(old.split(separator: " ")[0])
            #expect(try web.run("pair", "--retire", "SHA256:none").code == 2)
            _ = try web.ok("pair", "--retire", key)
            #expect(try web.line() == "\(new) web1")
            _ = try backup.ok("pair", "--remove", key)
            #expect(try backup.report().peers.map(\.fingerprint) == [new])
            #expect(try web.events().map(\.kind) == ["key-rotated", "key-retired"])
        }
    }

    @Test func aListWithMistakesIsSaidToBe() throws {
        try Sandbox.with { box in
            let host = try Host(box, "backup1")
            _ = try host.ok("pair", "--accept", Host(box, "web1").line(), "--pools", "web")
            let text = box.read(host.peers)
            try (text + "nonsense\n").write(toFile: host.peers, atomically: true, encoding: .utf8)
            chmod(host.peers, 0o644)
            let listed = try host.run("pair", "--list")
            #expect(listed.code == 4 && listed.output.contains("web1"))
            #expect(listed.errors.contains("line 2"))
            let checked = try box.run("config", "check", host.folder + "/doppel.toml")
            #expect(
                checked.code == 1 && checked.output.contains("authorized_peers:2: "), "\(checked)")
            chmod(host.peers, 0o666)
            #expect(try host.run("pair", "--list").errors.contains("chmod 644"))
        }
    }

    @Test func settingsAreCheckedWithTheirLines() throws {
        try Sandbox.with { box in
            let host = try Host(box, "web1")
            #expect(
                try box.ok("config", "check", host.folder + "/doppel.toml").contains("no mistakes"))
            let file = box.folder + "/broken.toml"
            try "\n[serve]\nconections = 5\npools = \"x\"\n".write(
                toFile: file, atomically: true, encoding: .utf8)
            let outcome = try box.run("config", "check", file)
            #expect(outcome.code == 1)
            let lines = outcome.output.split(separator: "\n")
            #expect(lines.count == 2)
            #expect(
                lines.first
                    == "\(file):3: there is no setting serve.conections: is serve.connections meant?"
            )
            #expect(lines.last?.hasPrefix("\(file):4: ") == true)
            // Nothing starts with half of what was wanted.
            let pair = try box.run("pair", "--config", file)
            #expect(pair.code == 1 && pair.errors.contains(":3: "))
            #expect(try box.run("config", "check", box.folder + "/none.toml").code == 1)
        }
    }

    /// A server that cannot listen where it is told to has read who its peers are before.
    @Test func theLogSaysAsMuchAsTheSettingsWant() throws {
        try Sandbox.with { box in
            let host = try Host(box, "backup1")
            _ = try host.ok("pair", "--accept", Host(box, "web1").line(), "--pools", "web")
            let file = try #require(FileHandle(forWritingAtPath: host.peers))
            file.seekToEndOfFile()
            file.write(Data("nonsense\n".utf8))
            try file.close()
            let settings = box.read(host.folder + "/doppel.toml")
            for (level, isSaid) in [("warning", true), ("error", false)] {
                try (settings + "log-level = \"\(level)\"\n").write(
                    toFile: host.folder + "/doppel.toml", atomically: true, encoding: .utf8)
                // An address of nobody (RFC 5737).
                let outcome = try host.run("serve", host.folder, "--listen", "192.0.2.1:7420")
                #expect(outcome.code == 1, "\(outcome)")
                #expect(outcome.errors.contains("line 2") == isSaid, "\(outcome)")
            }
        }
    }
}
