// Man pages from what the verbs say of themselves: the same source as --help and the completions.

import ArgumentParser
import Daemon
import Foundation
import SystemIO

struct GenerateManual: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "generate-manual",
        abstract: "Write the man pages into a directory, one a verb.",
        discussion: """
            EXAMPLE
              doppel generate-manual /tmp/man
            """, shouldDisplay: false)
    @Argument(help: "An existing directory.", completion: .directory) var directory: String

    func run() throws {
        try exiting {
            let disk = LinuxDisk()
            for (name, page) in try ManualPages.all() {
                let file = try disk.open(
                    directory + "/" + name, [.readWrite, .create, .truncate], mode: 0o644)
                defer { file.close() }
                try Array(page.utf8).withUnsafeBytes { try file.write($0, at: 0) }
            }
        }
    }
}

enum ManualPages {
    /// - Returns: file names with their contents in man(7)'s language.
    static func all() throws -> [(name: String, page: String)] {
        let tool = try JSONDecoder().decode(Tool.self, from: Data(Doppel._dumpHelp().utf8))
        var root = tool.command
        root.subcommands?.removeAll { $0.commandName == "help" }
        return pages(of: root, [])
    }

    private static func pages(
        of command: Command, _ above: [String]
    ) -> [(name: String, page: String)] {
        let words = above + [command.commandName]
        let shown = (command.subcommands ?? []).filter { $0.shouldDisplay ?? true }
        let page = Page(command: command, words: words, subcommands: shown)
        return [(words.joined(separator: "-") + ".1", page.text)]
            + shown.flatMap { pages(of: $0, words) }
    }

    // MARK: What the argument parser tells

    private struct Tool: Decodable { var command: Command }

    fileprivate struct Command: Decodable {
        var commandName: String
        var abstract: String?
        var discussion: String?
        var shouldDisplay: Bool?
        var subcommands: [Command]?
        var arguments: [Argument]?
    }

    fileprivate struct Argument: Decodable {
        struct Name: Decodable {
            var kind: String
            var name: String
            var text: String { (kind == "short" ? "-" : "--") + name }
        }
        var kind: String
        var abstract: String?
        var names: [Name]?
        var preferredName: Name?
        var valueName: String?
        var defaultValue: String?
        var isOptional: Bool
        var isRepeating: Bool
        var shouldDisplay: Bool

        var value: String { (valueName ?? "value").uppercased() }
        var isPositional: Bool { kind == "positional" }
        var isCommon: Bool { ["help", "version"].contains(preferredName?.name ?? "") }

        /// As it stands on a command line.
        var usage: String {
            if isPositional {
                let text = isRepeating ? value + "..." : value
                return isOptional ? "[\(text)]" : text
            }
            let text = (preferredName?.text ?? "") + (kind == "option" ? " " + value : "")
            let isNeeded = kind == "option" && !isOptional && defaultValue == nil
            return (isNeeded ? text : "[\(text)]") + (isRepeating ? "..." : "")
        }

        var title: String {
            if isPositional { return value }
            return (names ?? []).map { $0.text + (kind == "option" ? " " + value : "") }
                .joined(separator: ", ")
        }
    }
}

private struct Page {
    var command: ManualPages.Command
    var words: [String]
    var subcommands: [ManualPages.Command]

    var text: String {
        let name = words.joined(separator: "-")
        let shown = (command.arguments ?? []).filter(\.shouldDisplay)
        let arguments = shown.filter { !$0.isCommon || words.count == 1 }
        var lines = [
            ".TH \"\(name.uppercased())\" 1 \"\" \"doppel \(Doppel.version)\" \"Doppel manual\"",
            ".SH NAME",
            Self.escape("\(name) - \(Self.withoutStop(command.abstract ?? ""))"),
            ".SH SYNOPSIS",
            ".nh",
            ".B " + Self.escape(words.joined(separator: " ")),
            Self.escape(
                (subcommands.isEmpty ? arguments.map(\.usage) : ["COMMAND", "..."])
                    .joined(separator: " ")),
            ".hy",
            ".SH DESCRIPTION",
            Self.escape(command.abstract ?? ""),
        ]
        let sections = Self.sections(command.discussion ?? "")
        lines += sections.filter { $0.title == nil }.flatMap { [".PP"] + Self.prose($0.lines) }
        if !subcommands.isEmpty {
            lines.append(".SH COMMANDS")
            for each in subcommands {
                let page = (words + [each.commandName]).joined(separator: "-")
                lines += [
                    ".TP", ".B " + Self.escape(page + "(1)"), Self.escape(each.abstract ?? ""),
                ]
            }
        }
        if !arguments.isEmpty {
            lines.append(".SH OPTIONS")
            for each in arguments {
                lines += [".TP", ".B " + Self.escape(each.title)]
                let preset = each.defaultValue.map { " (default: \($0))" } ?? ""
                lines.append(Self.escape((each.abstract ?? "") + preset))
            }
        }
        for section in sections {
            guard let title = section.title, title != "EXIT CODES" else { continue }
            lines += [".SH " + title, ".nf"] + section.lines.map(Self.escape) + [".fi"]
        }
        let own = sections.first { $0.title == "EXIT CODES" }?.lines
        lines += [".SH EXIT STATUS", ".nf"]
        lines += (own ?? ["0 ok   1 failed   2 usage   3 in use   4 degraded   5 damaged"])
            .map(Self.escape)
        lines += [".fi", ".SH SEE ALSO"]
        let others = words.count == 1 ? ["fuse(8)", "mount(8)"] : ["doppel(1)"]
        lines.append(others.map { ".BR " + $0.replacing("(", with: " (") }.joined(separator: "\n"))
        return lines.joined(separator: "\n") + "\n"
    }

    /// Prose, and what stands under a line of capitals.
    private static func sections(_ text: String) -> [(title: String?, lines: [String])] {
        var result: [(title: String?, lines: [String])] = [(nil, [])]
        for line in text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init) {
            if ["EXAMPLE", "EXAMPLES", "EXIT CODES"].contains(line) {
                result.append((line == "EXAMPLE" ? "EXAMPLES" : line, []))
            } else {
                let isUnder = result.last?.title != nil && line.hasPrefix("  ")
                result[result.count - 1].lines.append(isUnder ? String(line.dropFirst(2)) : line)
            }
        }
        return result.map { section in
            var lines = section.lines
            while lines.last?.isEmpty == true { lines.removeLast() }
            return (section.title, lines)
        }.filter { !$0.lines.isEmpty }
    }

    private static func prose(_ lines: [String]) -> [String] {
        lines.map { $0.isEmpty ? ".PP" : escape($0) }
    }

    private static func withoutStop(_ text: String) -> String {
        text.hasSuffix(".") ? String(text.dropLast()) : text
    }

    /// A dot or an apostrophe at the beginning of a line would be a request; a plain hyphen is no minus.
    private static func escape(_ text: String) -> String {
        let escaped = text.replacing("\\", with: "\\e").replacing("-", with: "\\-")
        return escaped.hasPrefix(".") || escaped.hasPrefix("'") ? "\\&" + escaped : escaped
    }
}
