// The direction of dependencies, as the table of modules in docs/architecture.md and DESIGN §10 has
// it: arrows point down, never up; only SystemIO and FuseFrontend call C.

import Foundation
import Testing

@Suite struct ImportTests {
    /// Every module with what it may import: what stands below it, and the libraries it is there
    /// to use.
    static let allowed: [String: Set<String>] = [
        "BlockCore": ["CXXHash", "CZstd"],
        "SystemIO": ["BlockCore", "CLinux", "Glibc", "Synchronization"],
        "Pool": [
            "BlockCore", "SystemIO", "GRDB", "Foundation", "Logging", "Synchronization",
        ],
        "Replication": ["BlockCore", "SystemIO", "Synchronization"],
        "Identity": [
            "BlockCore", "SystemIO", "Crypto", "Foundation", "Logging", "Synchronization",
        ],
        "Transport": [
            "BlockCore", "SystemIO", "Identity", "Replication", "NIOCore", "NIOPosix", "NIOSSL",
            "NIOTLS", "Synchronization",
        ],
        "Settings": ["BlockCore", "SystemIO", "Identity", "Logging"],
        "Volume": [
            "BlockCore", "SystemIO", "Pool", "Replication", "Logging", "Synchronization",
        ],
        "Targets": [
            "BlockCore", "SystemIO", "Pool", "Replication", "Volume", "Logging", "Synchronization",
        ],
        "VirtualFS": ["BlockCore", "SystemIO", "Pool", "Volume", "Synchronization"],
        "FuseFrontend": [
            "BlockCore", "SystemIO", "Pool", "Volume", "VirtualFS", "CFuse", "Glibc", "Logging",
            "Synchronization",
        ],
        "Daemon": [
            "BlockCore", "SystemIO", "Identity", "Settings", "Pool", "Replication", "Transport",
            "Volume", "Targets", "VirtualFS", "FuseFrontend", "Foundation", "Logging",
            "Synchronization",
        ],
        "doppel": [
            "BlockCore", "SystemIO", "Identity", "Settings", "Pool", "Volume", "VirtualFS",
            "FuseFrontend", "Daemon", "ArgumentParser", "Foundation", "Logging", "Synchronization",
            // The program's end: exit codes and standard streams, no files.
            "Glibc",
        ],
    ]

    static let modules: [String] = {
        let found = try? FileManager.default.contentsOfDirectory(atPath: Tree.root + "/Sources")
        return (found ?? []).filter { !Tree.swiftFiles(below: "Sources/\($0)").isEmpty }.sorted()
    }()

    @Test func everyModuleHasItsPlace() {
        #expect(Set(Self.modules) == Set(Self.allowed.keys))
    }

    @Test(arguments: modules)
    func aModuleImportsOnlyWhatIsBelowIt(module: String) throws {
        let allowed = try #require(Self.allowed[module])
        for file in Tree.swiftFiles(below: "Sources/\(module)") {
            for name in try Self.imports(of: file) where !allowed.contains(name) {
                Issue.record("\(file) imports \(name), which \(module) may not")
            }
        }
    }

    /// One place that calls libfuse, one that turns errors into its errnos, one that hashes, one that
    /// compresses.
    @Test(arguments: [
        ("CXXHash", "Sources/BlockCore/BlockHash.swift"), ("CZstd", "Sources/BlockCore/Zstd.swift"),
    ])
    func aLibraryHasOneUser(library: String, file: String) throws {
        for each in Tree.swiftFiles(below: "Sources") where each != file {
            let imports = try Self.imports(of: each)
            #expect(!imports.contains(library), "\(each) imports \(library); \(file) is for that")
        }
    }

    @Test func attributesAndSubmodulesAreSeenThrough() {
        let text = """
            @testable import A
            import struct B.C
            @preconcurrency package import D
              import E // why
            // import F
            let important = 1
            """
        #expect(Self.imports(in: text) == ["A", "B", "D", "E"])
    }

    private static func imports(of file: String) throws -> Set<String> {
        imports(in: try Tree.text(of: file))
    }

    private static func imports(in text: String) -> Set<String> {
        let kinds: Set<Substring> = [
            "struct", "class", "enum", "protocol", "typealias", "func", "let", "var",
        ]
        let access: Set<Substring> = ["public", "package", "internal", "fileprivate", "private"]
        var names: Set<String> = []
        for line in text.split(separator: "\n") {
            var words = line.split(whereSeparator: \.isWhitespace)[...]
            while let word = words.first, word.hasPrefix("@") || access.contains(word) {
                words = words.dropFirst()
            }
            guard words.first == "import" else { continue }
            words = words.dropFirst()
            if let kind = words.first, kinds.contains(kind) { words = words.dropFirst() }
            if let name = words.first?.split(separator: ".").first { names.insert(String(name)) }
        }
        return names
    }
}
