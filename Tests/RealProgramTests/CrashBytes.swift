import TestSupport

/// What a file may hold: its bytes, and for each sector what it held since the last flush. After a
/// crash a sector may be any of these, as on a disk; what was flushed has one content only.
struct CrashBytes {
    static let sectorBytes = 512
    private(set) var bytes: [UInt8] = []
    private var older: [Int: [ArraySlice<UInt8>]] = [:]
    private var olderSizes: Set<Int> = []

    init(_ bytes: [UInt8] = []) { self.bytes = bytes }

    var count: Int { bytes.count }

    mutating func write(_ new: ArraySlice<UInt8>, at offset: Int) {
        let end = offset + new.count
        if end > bytes.count { resize(to: end) }
        keep(offset..<end)
        bytes.replaceSubrange(offset..<end, with: new)
    }

    mutating func zero(_ range: Range<Int>) {
        let range = range.clamped(to: 0..<bytes.count)
        guard !range.isEmpty else { return }
        keep(range)
        bytes.replaceSubrange(range, with: repeatElement(0, count: range.count))
    }

    mutating func resize(to size: Int) {
        guard size != bytes.count else { return }
        olderSizes.insert(bytes.count)
        if size < bytes.count {
            keep(size..<bytes.count)
            bytes.removeSubrange(size...)
        } else {
            keep(bytes.count..<size)
            bytes += [UInt8](repeating: 0, count: size - bytes.count)
        }
    }

    /// A new content that is durable at once.
    mutating func replace(with new: [UInt8]) { self = CrashBytes(new) }

    mutating func flushed() {
        older = [:]
        olderSizes = []
    }

    private mutating func keep(_ range: Range<Int>) {
        for number in range.lowerBound / Self.sectorBytes...(range.upperBound - 1)
            / Self.sectorBytes
        {
            older[number, default: []].append(sector(number))
        }
    }

    /// Past the end there are zeros.
    private func sector(_ number: Int) -> ArraySlice<UInt8> {
        let start = min(number * Self.sectorBytes, bytes.count)
        let end = min(start + Self.sectorBytes, bytes.count)
        if end - start == Self.sectorBytes { return bytes[start..<end] }
        return bytes[start..<end]
            + [UInt8](repeating: 0, count: Self.sectorBytes - (end - start))
    }

    /// - Returns: nil where `found` is what a crash may leave, else what is wrong with it.
    func objection(to found: [UInt8], afterCrash: Bool) -> String? {
        if found == bytes { return nil }
        guard found.count == bytes.count || (afterCrash && olderSizes.contains(found.count)) else {
            return "it has \(found.count) bytes instead of \(bytes.count)"
        }
        for start in stride(from: 0, to: found.count, by: Self.sectorBytes) {
            let number = start / Self.sectorBytes
            let part = found[start..<min(start + Self.sectorBytes, found.count)]
            let allowed = [sector(number)] + (afterCrash ? older[number] ?? [] : [])
            if !allowed.contains(where: { $0.prefix(part.count).elementsEqual(part) }) {
                let wrong = zip(part, allowed[0]).prefix { $0 == $1 }.count
                return "from byte \(start + wrong) on it is none of \(allowed.count) contents"
                    + (part.allSatisfy { $0 == 0 } ? ", it is zeros" : "")
            }
        }
        return nil
    }
}

/// Bytes that cannot be guessed, made once: filling buffers byte by byte would be the longest part
/// of an unoptimised test.
struct NoiseSource {
    private static let pool: [UInt8] = {
        var random = SeededRandom(seed: 0xd0bb_e100)
        return random.bytes(2 << 20)
    }()

    static func slice(_ count: Int, _ random: inout SeededRandom) -> ArraySlice<UInt8> {
        let start = random.below(pool.count - count)
        return pool[start..<start + count]
    }
}
