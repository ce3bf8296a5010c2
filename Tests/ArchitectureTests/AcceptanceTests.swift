// docs/acceptance.md and docs/semantics.md name tests as `Suite/test`: each must exist, and none may
// be one that does not run here.

import Foundation
import Testing

@Suite struct AcceptanceTests {
    /// A test as its source has it.
    struct Found {
        var file: String
        /// The text of its `@Test` attribute and that of its suite.
        var attributes: String
    }

    static let tests: [String: Found] = {
        var tests: [String: Found] = [:]
        for file in Tree.swiftFiles(below: "Tests") {
            guard let text = try? Tree.text(of: file) else { continue }
            for (name, attributes) in declared(in: text) {
                tests[name] = Found(file: file, attributes: attributes)
            }
        }
        return tests
    }()

    @Test(arguments: ["docs/acceptance.md", "docs/semantics.md"])
    func everyTestThatIsNamedExists(page: String) throws {
        let named = Self.named(in: try Tree.text(of: page))
        #expect(!named.isEmpty, "\(page) names no test")
        for name in named where Self.tests[name] == nil {
            Issue.record("\(page) names \(name), which does not exist")
        }
    }

    /// What needs a mount may depend on /dev/fuse; nothing else may keep a named test from running.
    @Test(arguments: ["docs/acceptance.md", "docs/semantics.md"])
    func noTestThatIsNamedIsSwitchedOff(page: String) throws {
        let hasFuse = FileManager.default.fileExists(atPath: "/dev/fuse")
        for name in Self.named(in: try Tree.text(of: page)) {
            guard let found = Self.tests[name] else { continue }
            #expect(
                !found.attributes.contains(".disabled("), "\(name) in \(found.file) is disabled")
            if found.attributes.contains(".enabled("), hasFuse {
                #expect(
                    found.attributes.contains("fuse") || found.attributes.contains("Fuse")
                        || found.attributes.contains("canMount"),
                    "\(name) in \(found.file) runs under a condition other than /dev/fuse")
            }
        }
    }

    @Test func theReaderOfSourcesKnowsATest() {
        let text = """
            @Suite(.serialized) struct OneTests {
                @Test(arguments: [1, 2]) func works(number: Int) {}
                @Test(
                    .disabled("later"))
                func waits() {}
                func helper() {}
            }
            extension OneTests {
                @Test("told") func more() {}
            }
            """
        let found = Self.declared(in: text)
        #expect(Set(found.keys) == ["OneTests/works", "OneTests/waits", "OneTests/more"])
        #expect(found["OneTests/waits"]?.contains(".disabled(") == true)
        #expect(found["OneTests/works"]?.contains(".disabled(") == false)
        #expect(found["OneTests/works"]?.contains(".serialized") == true)
    }

    @Test func theReaderOfPagesKnowsAName() {
        let page = "| x | `OneTests/works`, `OneTests/more` | `db/data.raw` `a/b/c` not yet"
        #expect(Self.named(in: page) == ["OneTests/more", "OneTests/works"])
    }

    // MARK: Reading

    /// `Suite/test` in code marks, where the suite's name ends in Tests.
    private static func named(in page: String) -> [String] {
        var names: Set<String> = []
        for (index, part) in page.components(separatedBy: "`").enumerated() where index % 2 == 1 {
            let words = part.split(separator: "/", omittingEmptySubsequences: false)
            guard words.count == 2, words[0].hasSuffix("Tests"), !words[1].isEmpty else { continue }
            names.insert(part)
        }
        return names.sorted()
    }

    /// The tests of one source file, with the attributes that decide whether they run.
    private static func declared(in text: String) -> [String: String] {
        var tests: [String: String] = [:]
        var suites: [String: String] = [:]
        var suite = ""
        var attribute: String?
        for line in text.split(separator: "\n") {
            if let name = typeName(line) {
                suite = name
                suites[name, default: ""] += (attribute ?? "") + line
                attribute = nil
                continue
            }
            let words = line.trimmingCharacters(in: .whitespaces)
            if words.hasPrefix("@Test") || words.hasPrefix("@Suite") { attribute = "" }
            guard attribute != nil else { continue }
            attribute! += line
            guard let at = words.range(of: "func ") else { continue }
            let name = words[at.upperBound...].prefix { $0.isLetter || $0.isNumber || $0 == "_" }
            tests["\(suite)/\(name)"] = attribute
            attribute = nil
        }
        return tests.reduce(into: [:]) { result, test in
            let suite = String(test.key.prefix { $0 != "/" })
            result[test.key] = (suites[suite] ?? "") + test.value
        }
    }

    /// The name of a type or extension that begins at the left margin.
    private static func typeName(_ line: Substring) -> String? {
        guard line.first.map({ !$0.isWhitespace && $0 != "/" && $0 != "}" }) == true else {
            return nil
        }
        let words = line.split { !($0.isLetter || $0.isNumber || $0 == "_") }
        guard
            let at = words.firstIndex(where: {
                ["struct", "class", "enum", "actor", "extension"].contains($0)
            }), at + 1 < words.count
        else { return nil }
        return String(words[at + 1])
    }
}
