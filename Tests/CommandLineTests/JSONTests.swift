import Foundation
import TestSupport
import Testing

/// What programs read: every key that comes out is in docs/operations.md, and every key that is there
/// comes out. `?` marks those that are only there when they have something to say.
@Suite struct JSONTests {
    private static let documented: [String: (keys: Set<String>, optional: Set<String>)] = {
        let page = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
            .deletingLastPathComponent().deletingLastPathComponent()
            .appendingPathComponent("docs/operations.md")
        var result: [String: (keys: Set<String>, optional: Set<String>)] = [:]
        let text = (try? String(contentsOf: page, encoding: .utf8)) ?? ""
        for line in text.split(separator: "\n") {
            let cells = line.split(separator: "|").map { $0.trimmingCharacters(in: .whitespaces) }
            guard cells.count == 3, cells[0].hasPrefix("`"),
                cells[1] == "object" || cells[1] == "array"
            else { continue }
            let words = cells[2].split(whereSeparator: { ", `".contains($0) }).map(String.init)
            result[cells[0].replacingOccurrences(of: "`", with: "")] = (
                Set(words.filter { !$0.hasSuffix("?") }),
                Set(words.filter { $0.hasSuffix("?") }.map { String($0.dropLast()) })
            )
        }
        return result
    }()

    private func compare(_ name: String, _ text: String) throws {
        let parsed = try JSONSerialization.jsonObject(with: Data(text.utf8))
        var objects = parsed as? [[String: Any]] ?? []
        if let object = parsed as? [String: Any] { objects.append(object) }
        #expect(!objects.isEmpty, "\(name) printed nothing to look at")
        let (keys, optional) = try #require(Self.documented[name], "\(name) is not documented")
        for object in objects {
            let found = Set(object.keys)
            #expect(keys.subtracting(found).isEmpty, "\(name) lacks keys: \(text)")
            #expect(
                found.subtracting(keys).subtracting(optional).isEmpty,
                "\(name) has keys that docs/operations.md does not: \(text)")
        }
    }

    @Test func everyKeyIsDocumented() throws {
        try Sandbox.with { box in
            let vms = box.folder + "/vms"
            mkdir(vms, 0o755)
            try box.makeFile(vms + "/a.img", count: 1 << 20)
            try compare("adopt", box.ok("adopt", vms, "--dry-run", "--json"))
            try compare("adopt", box.ok("adopt", vms, "--json"))
            try compare("list POOL", box.ok("list", vms, "--json"))
            try compare("snapshot create", box.ok("snapshot", "create", vms, "one", "--json"))
            try compare("snapshot list", box.ok("snapshot", "list", vms, "--json"))
            try box.ok("resize", vms, "a.img", "2M")
            try compare("snapshot diff", box.ok("snapshot", "diff", vms, "one", "--json"))
            let restore = ["restore", vms, "a.img", "--snapshot", "one", "--json"]
            for words in [restore + ["--dry-run"], restore, restore + ["--as", "b.img"]] {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                try compare("restore", outcome.output)
            }
            try compare("scrub", box.ok("scrub", vms, "--json"))
            try compare("check", box.ok("check", vms, "--json"))
            try compare("events", box.ok("events", vms, "--json"))
            try compare("status", box.ok("status", vms, "--json"))
            for flag in ["--dry-run", "--force"] {
                try compare("delete", box.ok("delete", vms, "b.img", "--json", flag))
            }
            let left = try box.json(box.ok("snapshot", "list", vms, "--json"), [SnapshotLine].self)
            for name in left.map(\.name) {
                try compare("snapshot delete", box.ok("snapshot", "delete", vms, name, "--json"))
            }
            try compare("eject", box.ok("eject", vms, "--dry-run", "--json"))
            try compare("eject", box.ok("eject", vms, "--json"))
            try compare("version", box.ok("version", "--json"))
            try compare("version --host", box.ok("version", "--host", "--json"))
        }
    }

    @Test func theKeysOfPairingAreDocumented() throws {
        try Sandbox.with { box in
            let file = box.folder + "/doppel.toml"
            try "state-directory = \"\(box.folder)/state\"\n".write(
                toFile: file, atomically: true, encoding: .utf8)
            let line = try box.ok("pair", "--name", "a", "--config", file)
            for more in [["--host", "a:1"], ["--pools", "web"]] {
                let words = ["pair", "--accept", line, "--config", file] + more
                _ = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                let listed = try box.ok("pair", "--list", "--json", "--config", file)
                try compare("pair --list", listed)
                let parsed = try JSONSerialization.jsonObject(with: Data(listed.utf8))
                let peers = try #require((parsed as? [String: Any])?["peers"])
                let text = try JSONSerialization.data(withJSONObject: peers)
                try compare("pair --list, a peer", String(decoding: text, as: UTF8.self))
            }
            try compare("events --host", box.ok("events", "--host", "--json", "--config", file))
            try "x = 1\n".write(toFile: file, atomically: true, encoding: .utf8)
            try compare("config check", box.run("config", "check", "--json", file).output)
        }
    }

    @Test func aFindingsKeysAreDocumented() throws {
        try Sandbox.withPool("a.img") { box in
            let stray = try box.shell("echo x > '\(box.pool)'/images/1/stray.data")
            #expect(stray.code == 0)
            let report = try box.run("check", box.pool, "--json").output
            let parsed = try JSONSerialization.jsonObject(with: Data(report.utf8)) as? [String: Any]
            let findings = try #require(parsed?["findings"] as? [[String: Any]])
            let text = try JSONSerialization.data(withJSONObject: findings)
            try compare("check, a finding", String(decoding: text, as: UTF8.self))
        }
    }

    @Test(.enabled(if: hasFuse)) func theKeysOfAMountedPoolAreTheSame() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            try compare("list", box.ok("list", "--json"))
            try compare("list POOL", box.ok("list", box.mountPoint, "--json"))
            try compare("status", box.ok("status", box.mountPoint, "--json"))
            try compare("status", box.read(box.mountPoint + "/.doppel/status.json"))
            #expect(try box.ok("jobs", box.mountPoint, "--json") == "[\n\n]\n")
        }
    }

    @Test(.enabled(if: hasFuse)) func aTargetsKeysAreDocumented() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            try box.ok("target", "add", box.pool, box.folder + "/mirror")
            try compare("target list", box.ok("target", "list", box.pool, "--json"))
            let status = try box.run("status", box.pool, "--json").output
            let parsed = try JSONSerialization.jsonObject(with: Data(status.utf8))
            let pool = try #require((parsed as? [[String: Any]])?.first)
            for (key, name) in [("targets", "target list"), ("replica", "status, replica")] {
                let part = try JSONSerialization.data(withJSONObject: #require(pool[key]))
                try compare(name, String(decoding: part, as: UTF8.self))
            }
        }
    }

    @Test func everyCommandThatPrintsDataHasJSON() throws {
        try Sandbox.with { box in
            for words in [
                ["adopt"], ["eject"], ["list"], ["status"], ["scrub"], ["check"], ["events"],
                ["jobs"], ["version"], ["restore"], ["delete"], ["snapshot", "create"],
                ["snapshot", "list"], ["snapshot", "diff"], ["snapshot", "delete"],
                ["target", "list"], ["promote"], ["pair"], ["config", "check"],
            ] {
                let help = try box.execute(
                    [Sandbox.binary] + words + ["--help"], input: "/dev/null")
                #expect(help.output.contains("--json"), "\(words)")
                #expect(
                    Self.documented.keys.contains { $0.hasPrefix(words.joined(separator: " ")) },
                    "\(words)")
            }
        }
    }
}
