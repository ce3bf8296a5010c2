import ArgumentParser
import Foundation
import TestSupport
import Testing

@testable import doppel

/// Help, man pages, completions and the pages of docs/ say what is true.
@Suite struct ManualTests {
    private static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().path

    /// Every command with a page of its own, as its words after "doppel".
    static let commands: [[String]] = ((try? ManualPages.all()) ?? []).map { page in
        let words = page.name.dropLast(2).split(separator: "-").map(String.init).dropFirst()
        // A verb may have a hyphen of its own.
        let verb = words.joined(separator: "-")
        let isOne = Doppel.configuration.subcommands.contains {
            $0.configuration.commandName == verb
        }
        return isOne ? [verb] : Array(words)
    }.filter { !$0.isEmpty }

    /// The words of the commands in a text: lines that begin with `doppel`, up to a pipe or comment.
    private static func examples(in text: String) -> [[String]] {
        var lines: [String] = []
        for line in text.split(separator: "\n").map({ $0.trimmingCharacters(in: .whitespaces) }) {
            if let last = lines.last, last.hasSuffix("\\") {
                lines[lines.count - 1] = last.dropLast() + " " + line
            } else if let at = line.range(of: #"(^|\| )doppel "#, options: .regularExpression) {
                lines.append(String(line[at.upperBound...]))
            }
        }
        return lines.map { line in
            var words: [String] = []
            var word = ""
            var quote: Character?
            for character in line + " " {
                if let open = quote {
                    if character == open { quote = nil } else { word.append(character) }
                } else if character == "'" || character == "\"" {
                    quote = character
                } else if character == " " {
                    if !word.isEmpty { words.append(word) }
                    word = ""
                } else {
                    word.append(character)
                }
            }
            return Array(
                words.prefix { !["|", "#", ">", "&&"].contains($0) && !$0.hasPrefix("#") })
        }
    }

    private func expectParses(_ words: [String], _ place: String) {
        do {
            let command = try Doppel.parseAsRoot(words)
            #expect("\(type(of: command))" != "HelpCommand", "\(place): \(words)")
        } catch {
            Issue.record("\(place): doppel \(words.joined(separator: " ")): \(error)")
        }
    }

    @Test(arguments: commands) func helpTeachesWithExamplesThatWork(words: [String]) throws {
        try Sandbox.with { box in
            let help = try box.execute([Sandbox.binary] + words + ["--help"], input: "/dev/null")
            #expect(help.code == 0)
            #expect(help.output.contains("EXAMPLE"), "\(words)")
            let after = help.output.components(separatedBy: "EXAMPLE").dropFirst()
                .joined(separator: "EXAMPLE").components(separatedBy: "USAGE:")[0]
            let examples = Self.examples(in: after)
            let own = examples.filter { $0.starts(with: words) }
            #expect(!own.isEmpty || words == ["unmount"], "no example of itself: \(words)")
            for example in examples { expectParses(example, "help of \(words)") }
        }
    }

    /// What the README and the pages tell somebody to type.
    @Test(arguments: ["README.md", "docs/operations.md", "examples/libvirt/README.md"])
    func whatThePagesSayCanBeTyped(page: String) throws {
        let text = try String(contentsOfFile: Self.root + "/" + page, encoding: .utf8)
        let blocks = text.split(separator: "\n").filter { $0.hasPrefix("    ") }
            .joined(separator: "\n")
        var inline: [String] = []
        for (index, part) in text.components(separatedBy: "`").enumerated()
        where index % 2 == 1 && part.hasPrefix("doppel ") {
            // A verb alone only names it.
            let line = part.replacingOccurrences(of: "\n", with: " ")
            let words = line.split(separator: " ").dropFirst().map(String.init)
            if words.count > 1, words[0] != "VERB", !Self.commands.contains(words) {
                inline.append(line)
            }
        }
        let examples = Self.examples(in: blocks) + inline.flatMap(Self.examples)
        #expect(!examples.isEmpty || page != "README.md")
        for example in examples {
            let words = example.map { $0 == "NAME..." ? "NAME" : $0 == "N" ? "1" : $0 }
            expectParses(words, page)
        }
    }

    @Test func manPagesFromTheSameSource() throws {
        try Sandbox.with { box in
            let folder = box.folder + "/man"
            mkdir(folder, 0o755)
            try box.ok("generate-manual", folder)
            let pages = try FileManager.default.contentsOfDirectory(atPath: folder).sorted()
            let expected =
                ["doppel.1"] + Self.commands.map { "doppel-\($0.joined(separator: "-")).1" }
            #expect(pages == expected.sorted())
            for page in pages {
                let text = box.read(folder + "/" + page)
                for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "EXAMPLES"] {
                    #expect(text.contains(".SH \(section)\n"), "\(page) \(section)")
                }
                guard access("/usr/bin/man", X_OK) == 0 else { continue }
                let shown = try box.shell("LC_ALL=C man --warnings -l '\(folder)/\(page)'")
                #expect(shown.code == 0 && shown.errors.isEmpty, "\(page): \(shown.errors)")
            }
            let check = box.read(folder + "/doppel-check.1")
            for word in ["\\-\\-repair", "quarantine", "5  something is damaged"] {
                #expect(check.contains(word), "\(word)")
            }
        }
    }

    @Test(arguments: ["bash", "zsh", "fish"]) func completionsAreScriptsOfTheirShell(shell: String)
        throws
    {
        try Sandbox.with { box in
            let script = box.folder + "/script"
            let text = try box.ok("--generate-completion-script", shell)
            try text.write(toFile: script, atomically: true, encoding: .utf8)
            for words in Self.commands { #expect(text.contains(words.last!)) }
            guard try box.shell("command -v \(shell)").code == 0 else { return }
            #expect(try box.shell("\(shell) -n '\(script)'").code == 0)
            guard shell == "bash" else { return }
            // As bash does it at a press of TAB.
            let pressed = try box.execute(
                [
                    "/bin/bash", "-c",
                    "source '\(script)'; COMP_WORDS=(doppel snap); COMP_CWORD=1; COMP_LINE='doppel snap'; "
                        + "COMP_POINT=11; _doppel doppel snap doppel 2>/dev/null; echo \"${COMPREPLY[@]}\"",
                ], input: "/dev/null")
            #expect(pressed.output == "snapshot\n", "\(pressed)")
        }
    }

    @Test func installPutsEverythingInItsPlace() throws {
        try Sandbox.with { box in
            let made = try box.shell(
                "make -s -C '\(Self.root)' install PREFIX='\(box.folder)/p' BINARY='\(Sandbox.binary)'"
            )
            #expect(made.code == 0, "\(made)")
            for file in [
                "bin/doppel", "share/man/man1/doppel.1", "share/man/man1/doppel-snapshot-create.1",
                "share/man/man8/mount.fuse.doppel.8",
                "share/bash-completion/completions/doppel", "share/zsh/site-functions/_doppel",
                "share/fish/vendor_completions.d/doppel.fish",
            ] {
                #expect(try box.bytes("\(box.folder)/p/\(file)").count > 20, "\(file)")
            }
            for name in ["mount.fuse.doppel", "mount.doppel"] {
                let run = try box.execute(
                    ["\(box.folder)/p/sbin/\(name)", "--help"], input: "/dev/null")
                #expect(run.code == 0 && run.output.contains("doppel mount"), "\(run)")
            }
        }
    }
}
