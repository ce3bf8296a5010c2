/// A number of bytes as people write it: `20G`, `20GiB` and `20 GiB` are equal, and binary.
public struct ByteSize: Hashable, Sendable, CustomStringConvertible {
    public var bytes: UInt64

    public init(bytes: UInt64) { self.bytes = bytes }

    private static let units: [(letter: Character, shift: UInt64)] = [
        ("k", 10), ("m", 20), ("g", 30), ("t", 40), ("p", 50),
    ]

    /// - Returns: nil for what is no size, or does not fit 64 bits.
    public init?(parsing text: String) {
        let trimmed = text.lowercased().filter { $0 != " " }
        let digits = trimmed.prefix { $0.isNumber || $0 == "." }
        var unit = trimmed.dropFirst(digits.count)
        if unit == "byte" || unit == "bytes" {
            unit = ""
        } else if unit.hasSuffix("ib"), unit.count == 3 {
            unit = unit.dropLast(2)
        } else if unit.hasSuffix("b") {
            unit = unit.dropLast()
        }
        var shift: UInt64 = 0
        if let letter = unit.first {
            guard unit.count == 1, let known = Self.units.first(where: { $0.letter == letter })
            else { return nil }
            shift = known.shift
        }
        if let whole = UInt64(digits) {
            guard whole <= UInt64.max >> shift else { return nil }
            self.init(bytes: whole << shift)
        } else if let value = Double(digits), value >= 0, shift > 0 {
            let bytes = value * Double(UInt64(1) << shift)
            guard bytes < 0x1p63 else { return nil }
            self.init(bytes: UInt64(bytes))
        } else {
            return nil
        }
    }

    /// `20MiB/s`, `20M`.
    public static func perSecond(parsing text: String) -> UInt64? {
        ByteSize(parsing: text.hasSuffix("/s") ? String(text.dropLast(2)) : text)?.bytes
    }

    /// `4 GiB`, `1.5 MiB`, `17 bytes`.
    public var description: String {
        var best: (name: String, shift: UInt64)?
        for unit in Self.units where bytes >= 1 << unit.shift {
            best = ("\(unit.letter.uppercased())iB", unit.shift)
        }
        guard let best else { return bytes == 1 ? "1 byte" : "\(bytes) bytes" }
        let tenths = (Double(bytes) / Double(UInt64(1) << best.shift) * 10).rounded()
        let whole = Int(tenths / 10)
        let fraction = Int(tenths) % 10
        return fraction == 0 ? "\(whole) \(best.name)" : "\(whole).\(fraction) \(best.name)"
    }
}
