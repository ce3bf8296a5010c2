import Foundation
import TestSupport
import Testing

/// What takes longer than two seconds tells how far it is and how long it takes, on standard error.
/// The other end of a pipe makes it take so long.
@Suite struct ProgressTests {
    @Test func anExportTellsTheTimeLeft() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: 8 << 20)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            let outcome = try box.shell(
                "\"$DOPPEL\" export '\(box.pool)' a.img - --progress"
                    + " | (sleep 2.3; cat) | cmp - '\(raw)'")
            #expect(outcome.code == 0, "\(outcome)")
            let pattern = /exporting: \S+ [KM]iB of 8 MiB, \S+ [KM]?i?B(ytes)?\/s, \d+ s left/
            #expect(outcome.errors.contains(pattern), "\(outcome)")
        }
    }

    @Test(arguments: ["import", "export"]) func whatIsQuickSaysNothing(verb: String) throws {
        try Sandbox.withPool("a.img") { box in
            let raw = try box.makeFile("b.raw", count: 1 << 20)
            let words =
                verb == "import"
                ? ["import", box.pool, raw] : ["export", box.pool, "a.img", box.folder + "/out"]
            let outcome = try box.execute(
                [Sandbox.binary] + words + ["--progress"], input: "/dev/null")
            #expect(outcome.code == 0 && outcome.errors.isEmpty, "\(outcome)")
        }
    }

    /// Nobody knows how long a stream is: how much came, and how fast.
    @Test func anImportOfAStreamTellsHowMuchCame() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: 4 << 20)
            let outcome = try box.shell(
                "(head -c 2M '\(raw)'; sleep 2.3; tail -c 2M '\(raw)') | "
                    + "\"$DOPPEL\" import '\(box.pool)' - --as a.img --progress")
            #expect(outcome.code == 0, "\(outcome)")
            #expect(outcome.errors.contains(/importing: \S+ MiB, \S+ .*\/s/), "\(outcome)")
            #expect(!outcome.errors.contains("left"))
        }
    }

    /// Nothing of it where a program reads, and nothing at all without a terminal.
    @Test func withoutATerminalNothingIsSaid() throws {
        try Sandbox.withPool { box in
            let raw = try box.makeFile("a.raw", count: 8 << 20)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            let outcome = try box.shell(
                "\"$DOPPEL\" export '\(box.pool)' a.img - | (sleep 2.3; cat) | cmp - '\(raw)'")
            #expect(outcome.code == 0 && outcome.errors.isEmpty, "\(outcome)")
        }
    }

    @Test(arguments: ["adopt", "eject", "scrub", "check", "import", "export"])
    func everyLongVerbHasProgress(verb: String) throws {
        try Sandbox.with { box in
            let help = try box.ok(verb, "--help")
            #expect(help.contains("--progress"))
        }
    }
}
