/// A moment as people write it, in UTC, without Foundation.
///
/// Days to year, month and day after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
package struct CivilTime: Sendable {
    package let year: Int64
    package let month: Int64
    package let day: Int64
    package let secondOfDay: Int64

    package init(_ ns: Int64) {
        let seconds = ns / 1_000_000_000 - (ns % 1_000_000_000 < 0 ? 1 : 0)
        var days = seconds / 86_400
        var rest = seconds % 86_400
        if rest < 0 {
            rest += 86_400
            days -= 1
        }
        secondOfDay = rest
        let z = days + 719_468
        let era = (z >= 0 ? z : z - 146_096) / 146_097
        let dayOfEra = z - era * 146_097
        let yearOfEra =
            (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let shifted = (5 * dayOfYear + 2) / 153
        day = dayOfYear - (153 * shifted + 2) / 5 + 1
        month = shifted < 10 ? shifted + 3 : shifted - 9
        year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
    }

    private func two(_ value: Int64) -> String { value < 10 ? "0\(value)" : "\(value)" }

    /// `2026-11-21T031500Z`: sorts by time and is a name on every file system.
    package var compact: String {
        "\(year)-\(two(month))-\(two(day))T\(two(secondOfDay / 3600))"
            + "\(two(secondOfDay / 60 % 60))\(two(secondOfDay % 60))Z"
    }
    /// `2026-11-21 03:15:00`
    package var readable: String {
        "\(year)-\(two(month))-\(two(day)) \(two(secondOfDay / 3600)):"
            + "\(two(secondOfDay / 60 % 60)):\(two(secondOfDay % 60))"
    }

    /// Nanoseconds since 1970 of a time in UTC.
    /// - Parameter text: `2026-11-21`, `2026-11-21 03:15` or `2026-11-21 03:15:00`, with a `T` between
    ///   and a `Z` behind or not.
    /// - Returns: nil for anything else, and for days that no month has.
    package static func nanoseconds(parsing text: String) -> Int64? {
        var fields: [Int64] = []
        var rest = Substring(text)
        if rest.hasSuffix("Z") { rest.removeLast() }
        let separators: [Set<Character>] = [["-"], ["-"], [" ", "T"], [":"], [":"]]
        for allowed in separators {
            guard let end = rest.firstIndex(where: { !$0.isASCII || !$0.isNumber }) else { break }
            guard allowed.contains(rest[end]), let value = Int64(rest[..<end]) else { return nil }
            fields.append(value)
            rest = rest[rest.index(after: end)...]
        }
        guard let last = Int64(rest) else { return nil }
        fields.append(last)
        guard fields.count == 3 || fields.count >= 5, fields.allSatisfy({ $0 >= 0 }) else {
            return nil
        }
        fields += [Int64](repeating: 0, count: 6 - fields.count)
        guard fields[0] >= 1970, fields[0] < 2262, (1...12).contains(fields[1]), fields[3] < 24,
            fields[4] < 60, fields[5] < 60
        else { return nil }
        let seconds =
            days(year: fields[0], month: fields[1], day: fields[2]) * 86_400 + fields[3] * 3600
            + fields[4] * 60 + fields[5]
        let back = CivilTime(seconds * 1_000_000_000)
        guard back.month == fields[1], back.day == fields[2] else { return nil }
        return seconds * 1_000_000_000
    }

    private static func days(year: Int64, month: Int64, day: Int64) -> Int64 {
        let y = month <= 2 ? year - 1 : year
        let era = y / 400
        let yearOfEra = y - era * 400
        let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
            - 719_468
    }
}
