// Takes settings out of a document by name. What nobody took in the end is a setting that nobody knows.

import BlockCore

struct SettingsReader {
    private let document: TOMLDocument
    private var known: Set<[String]> = []
    private(set) var mistakes: [SettingsMistake]

    init(_ document: TOMLDocument) {
        self.document = document
        mistakes = document.mistakes
    }

    private mutating func item(_ key: String) -> TOMLItem? {
        let path = key.split(separator: ".").map(String.init)
        known.insert(path)
        return document.entries.first { $0.key == path }?.item
    }

    mutating func refuse(_ key: String, _ item: TOMLItem, _ wanted: String) {
        mistakes.append(SettingsMistake(line: item.line, message: "\(key) \(wanted)"))
    }

    /// A text that `parse` understands.
    mutating func text<T>(_ key: String, _ wanted: String, _ parse: (String) -> T?) -> T? {
        guard let item = item(key) else { return nil }
        return text(key, item, wanted, parse)
    }

    private mutating func text<T>(
        _ key: String, _ item: TOMLItem, _ wanted: String, _ parse: (String) -> T?
    ) -> T? {
        guard case .string(let text) = item.value else {
            refuse(key, item, "is \(wanted) in quotes, and not \(item.kind)")
            return nil
        }
        if let value = parse(text) { return value }
        refuse(key, item, "is \(wanted), and not \"\(text)\"")
        return nil
    }

    /// One text, or a list of them.
    mutating func texts<T>(_ key: String, _ wanted: String, _ parse: (String) -> T?) -> [T]? {
        guard let item = item(key) else { return nil }
        guard case .array(let items) = item.value else {
            return text(key, item, wanted, parse).map { [$0] }
        }
        if items.isEmpty { refuse(key, item, "has nothing in its list") }
        return items.compactMap { text(key, $0, wanted, parse) }
    }

    mutating func number(_ key: String, in range: ClosedRange<Int>) -> Int? {
        guard let item = item(key) else { return nil }
        guard case .integer(let value) = item.value else {
            refuse(key, item, "is a whole number without quotes, and not \(item.kind)")
            return nil
        }
        guard let number = Int(exactly: value), range.contains(number) else {
            refuse(
                key, item, "is from \(range.lowerBound) to \(range.upperBound), and not \(value)")
            return nil
        }
        return number
    }

    mutating func bytes(
        _ key: String, _ wanted: String, in range: ClosedRange<UInt64>, perSecond: Bool = false
    ) -> UInt64? {
        guard let item = item(key) else { return nil }
        let parse = { perSecond ? ByteSize.perSecond(parsing: $0) : ByteSize(parsing: $0)?.bytes }
        guard let value = text(key, item, wanted, parse) else { return nil }
        guard range.contains(value) else {
            let unit = perSecond ? "/s" : ""
            refuse(
                key, item,
                "is from \(ByteSize(bytes: range.lowerBound))\(unit) to "
                    + "\(ByteSize(bytes: range.upperBound))\(unit), and not "
                    + "\(ByteSize(bytes: value))\(unit)")
            return nil
        }
        return value
    }

    // MARK: What nobody knows

    mutating func finish() -> [SettingsMistake] {
        let tables = Set(known.map { Array($0.dropLast()) })
        for table in document.tables where !tables.contains(table.key) {
            let name = TOMLDocument.text(table.key)
            let near = nearest(name, among: tables.map(TOMLDocument.text).filter { !$0.isEmpty })
            mistakes.append(
                SettingsMistake(
                    line: table.line,
                    message: "there is no [\(name)]" + (near.map { ": is [\($0)] meant?" } ?? "")))
        }
        for entry in document.entries where !known.contains(entry.key) {
            // Of a table that was told already.
            if document.tables.contains(where: { table in
                entry.key.starts(with: table.key) && !tables.contains(table.key)
            }) {
                continue
            }
            let name = TOMLDocument.text(entry.key)
            let all = known.map(TOMLDocument.text)
            // In another table with the same name, or misspelt.
            let elsewhere = known.first { $0.last == entry.key.last }.map(TOMLDocument.text)
            let near = elsewhere ?? nearest(name, among: all)
            mistakes.append(
                SettingsMistake(
                    line: entry.item.line,
                    message: "there is no setting \(name)"
                        + (near.map { ": is \($0) meant?" } ?? "")))
        }
        mistakes.sort { ($0.line, $0.message) < ($1.line, $1.message) }
        return mistakes
    }

    private func nearest(_ word: String, among words: [String]) -> String? {
        let distances = words.sorted().map { (word: $0, distance: Self.distance(word, $0)) }
        guard let best = distances.min(by: { $0.distance < $1.distance }),
            best.distance <= max(2, best.word.count / 3)
        else { return nil }
        return best.word
    }

    /// Letters to insert, remove or change until both are the same.
    static func distance(_ one: String, _ other: String) -> Int {
        let other = Array(other)
        var row = Array(0...other.count)
        for (line, letter) in one.enumerated() {
            var diagonal = row[0]
            row[0] = line + 1
            for column in other.indices {
                let replaced = diagonal + (letter == other[column] ? 0 : 1)
                diagonal = row[column + 1]
                row[column + 1] = min(replaced, diagonal + 1, row[column] + 1)
            }
        }
        return row[other.count]
    }
}
