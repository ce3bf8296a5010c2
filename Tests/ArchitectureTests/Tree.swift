import Foundation

/// The project's own files, found from where this file was compiled.
enum Tree {
    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent().path

    static func text(of file: String) throws -> String {
        try String(contentsOfFile: root + "/" + file, encoding: .utf8)
    }

    /// Paths below the root, sorted.
    static func swiftFiles(below folder: String) -> [String] {
        let all = FileManager.default.enumerator(atPath: root + "/" + folder)
        var files: [String] = []
        while let file = all?.nextObject() as? String {
            if file.hasSuffix(".swift") { files.append(folder + "/" + file) }
        }
        return files.sorted()
    }
}
