/// A moment as people write it, in UTC, without Foundation.
///
/// Days to year, month and day after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
package struct CivilTime: Sendable {
    package let year: Int64
    package let month: Int64
    package let day: Int64
    package let secondOfDay: Int64

    package init(_ ns: Int64) {
        let seconds = ns >= 0 ? ns / 1_000_000_000 : (ns - 999_999_999) / 1_000_000_000
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
}
