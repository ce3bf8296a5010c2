import Foundation
import TestSupport
import Testing

/// What every verb has in common: exit codes, help, completions.
@Suite struct SurfaceTests {
    static let verbs = [
        "init", "adopt", "eject", "create", "resize", "rename", "delete", "import", "export",
        "mount", "unmount", "list", "status", "snapshot", "restore", "clone", "scrub", "check",
        "version", "pair", "config", "clone-pool",
    ]

    @Test(arguments: verbs) func everyVerbExplainsItself(verb: String) throws {
        try Sandbox.with { box in
            let help = try box.ok(verb, "--help")
            #expect(help.contains("OVERVIEW"))
            #expect(help.contains("doppel \(verb)"))
        }
    }

    @Test func aCommandLineThatIsWrongGivesTwo() throws {
        try Sandbox.withPool { box in
            for words in [
                ["bogus"], ["create"], ["create", box.pool, "a.img"],
                ["create", box.pool, "a.img", "--size", "much"], ["list", "--bogus"],
                ["mount", box.pool], ["mount", box.pool, "/none/at/all"],
            ] {
                let outcome = try box.execute([Sandbox.binary] + words, input: "/dev/null")
                #expect(outcome.code == 2, "\(words): \(outcome)")
                #expect(!outcome.errors.isEmpty)
                #expect(outcome.output.isEmpty)
            }
        }
    }

    @Test func whatIsNoPoolIsSaid() throws {
        try Sandbox.with { box in
            for verb in ["list", "status", "scrub", "check"] {
                let missing = try box.run(verb, box.folder + "/none")
                #expect(missing.code == 1, "\(missing)")
                let other = try box.run(verb, box.folder)
                #expect(other.code == 1, "\(other)")
                #expect(other.errors.contains("doppel init"))
            }
            #expect(try box.run("unmount", box.folder).code == 1)
        }
    }

    @Test func versionAndHost() throws {
        try Sandbox.with { box in
            let version = try box.ok("version")
            #expect(version.hasPrefix("doppel "))
            #expect(try box.ok("version", "--host").contains("kernel"))
        }
    }

    @Test(arguments: ["bash", "zsh", "fish"]) func completions(shell: String) throws {
        try Sandbox.with { box in
            let script = try box.ok("--generate-completion-script", shell)
            for verb in Self.verbs { #expect(script.contains(verb)) }
        }
    }
}
