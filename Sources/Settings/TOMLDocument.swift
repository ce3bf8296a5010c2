// TOML 1.0 (toml.io), with the line of every value, so that each mistake in a file of settings can be told with its
// place, all of them at once. Values that no setting can have (dates, numbers with a fraction) are read
// as what they are, so that it can be said that they are not what is wanted.

/// A value and the line that it begins in, from 1.
struct TOMLItem: Sendable, Hashable {
    indirect enum Value: Sendable, Hashable {
        case string(String)
        case integer(Int64)
        case float(String)
        case boolean(Bool)
        case dateTime(String)
        case array([TOMLItem])
        case table([TOMLEntry])
    }
    var value: Value
    var line: Int

    /// What a person calls it.
    var kind: String {
        switch value {
        case .string: "a string"
        case .integer: "a number"
        case .float: "a number with a fraction or beyond 64 bits"
        case .boolean: "true or false"
        case .dateTime: "a date or time"
        case .array: "a list"
        case .table: "a table"
        }
    }
}

struct TOMLEntry: Sendable, Hashable {
    var key: [String]
    var item: TOMLItem
}

package struct SettingsMistake: Sendable, Hashable, CustomStringConvertible {
    package var line: Int
    package var message: String
    package var description: String { "line \(line): \(message)" }
}

/// What a file says: every value with its full key, in the order of the file.
struct TOMLDocument: Sendable {
    private(set) var entries: [TOMLEntry] = []
    /// Tables that were named, also those without a value.
    private(set) var tables: [(key: [String], line: Int)] = []
    private(set) var mistakes: [SettingsMistake] = []

    init(_ bytes: [UInt8]) {
        guard let text = String(validating: bytes, as: UTF8.self) else {
            let good = String(decoding: bytes, as: UTF8.self).split(
                separator: "\u{fffd}", maxSplits: 1, omittingEmptySubsequences: false)[0]
            let line = good.utf8.count { $0 == 0x0a } + 1
            mistakes = [SettingsMistake(line: line, message: "this is not UTF-8")]
            return
        }
        var reader = TOMLReader(text)
        var table: [String]? = []
        // Where each key was given, to name it when it comes again.
        var seen: [[String]: Int] = [:]
        var headers: [[String]: Int] = [:]
        while reader.skipToStatement() {
            let line = reader.line
            do throws(SettingsMistake) {
                if reader.peek == "[" {
                    // Values below a header that cannot be read belong to no table.
                    table = nil
                    let header = try reader.header()
                    if header.isArray {
                        throw reader.mistake("no setting is a list of tables", at: line)
                    }
                    if let before = headers[header.key] {
                        throw reader.mistake(
                            "[\(Self.text(header.key))] was begun in line \(before) already",
                            at: line)
                    }
                    headers[header.key] = line
                    table = header.key
                    tables.append((header.key, line))
                } else {
                    let entry = try reader.keyAndValue()
                    guard let table else { continue }
                    let all = Self.flatten(TOMLEntry(key: table + entry.key, item: entry.item))
                    for each in all {
                        if let before = seen[each.key] {
                            mistakes.append(
                                reader.mistake(
                                    "\(Self.text(each.key)) was given in line \(before) already",
                                    at: each.item.line))
                        } else {
                            seen[each.key] = each.item.line
                            entries.append(each)
                        }
                    }
                }
            } catch {
                mistakes.append(error)
                reader.skipLine()
            }
        }
    }

    /// `a = { b = 1 }` is `a.b = 1`.
    private static func flatten(_ entry: TOMLEntry) -> [TOMLEntry] {
        guard case .table(let inner) = entry.item.value, !inner.isEmpty else { return [entry] }
        return inner.flatMap { flatten(TOMLEntry(key: entry.key + $0.key, item: $0.item)) }
    }

    static func text(_ key: [String]) -> String { key.joined(separator: ".") }
}

extension SettingsMistake: Error {}
