import BlockCore
import Glibc
import TestSupport

/// What one image may hold: its content, and per sector what it held since its last flush.
struct SectorModel {
    static let sectorBytes = 512
    private(set) var content: [UInt8]
    private var older: [Int: [ArraySlice<UInt8>]] = [:]
    private var sizes: ClosedRange<Int>
    /// What was not flushed at a cut that is not complete.
    private var beforeCut: (older: [Int: [ArraySlice<UInt8>]], sizes: ClosedRange<Int>)?
    /// What the activity log's clear regions may be compared with (G3): any of these contents.
    private var settled: [[UInt8]]

    init(content: [UInt8] = []) {
        self.content = content
        sizes = content.count...content.count
        settled = [content]
    }

    private func sector(_ number: Int, of bytes: [UInt8]) -> ArraySlice<UInt8> {
        let start = min(number * Self.sectorBytes, bytes.count)
        let end = min(start + Self.sectorBytes, bytes.count)
        if end - start == Self.sectorBytes { return bytes[start..<end] }
        return copied(bytes[start..<end], paddedTo: Self.sectorBytes)[...]
    }

    private mutating func changing(_ range: Range<Int>, _ body: (inout [UInt8]) -> Void) {
        let sectors =
            range.lowerBound / Self.sectorBytes..<(range.upperBound + Self.sectorBytes - 1)
            / Self.sectorBytes
        // Copies: a slice would keep the whole content of each moment alive.
        for each in sectors where older[each] == nil {
            older[each] = [copied(sector(each, of: content))[...]]
        }
        body(&content)
        for each in sectors { older[each]!.append(copied(sector(each, of: content))[...]) }
        sizes = min(sizes.lowerBound, content.count)...max(sizes.upperBound, content.count)
    }

    mutating func write(_ bytes: [UInt8], at offset: Int) {
        let end = offset + bytes.count
        changing(min(offset, content.count)..<max(end, content.count)) { content in
            if content.count < end { content = copied(content[...], paddedTo: end) }
            content.withUnsafeMutableBytes { into in
                bytes.withUnsafeBytes {
                    UnsafeMutableRawBufferPointer(rebasing: into[offset..<end]).copyMemory(from: $0)
                }
            }
        }
    }

    mutating func zero(_ range: Range<Int>) {
        let range = min(range.lowerBound, content.count)..<min(range.upperBound, content.count)
        if range.isEmpty { return }
        changing(range) { content in
            content.withUnsafeMutableBytes { into in
                _ = memset(into.baseAddress! + range.lowerBound, 0, range.count)
            }
        }
    }

    mutating func resize(to size: Int) {
        let old = content.count
        changing(min(size, old)..<max(size, old)) { content in
            if size < old {
                content.removeSubrange(size...)
            } else {
                content = copied(content[...], paddedTo: size)
            }
        }
    }

    /// A change that failed may have been made in part: takes what the image shows, if every sector
    /// of it is as before or as meant.
    mutating func failed(before: [UInt8], found: [UInt8], _ what: String) throws {
        let low = min(before.count, content.count)
        guard (low...max(before.count, content.count)).contains(found.count) else {
            throw Violation("\(what): size \(found.count) after a failed change")
        }
        for number in 0..<(found.count + Self.sectorBytes - 1) / Self.sectorBytes {
            // Not past the end: what was to be there is not.
            let start = number * Self.sectorBytes
            let now = found[start..<min(start + Self.sectorBytes, found.count)]
            guard
                sameBytes(now, sector(number, of: content).prefix(now.count))
                    || sameBytes(now, sector(number, of: before).prefix(now.count))
            else { throw Violation("\(what): sector \(number) was changed by a failed change") }
        }
        content = found
    }

    /// All of the content is durable.
    mutating func flushed() {
        older = [:]
        sizes = content.count...content.count
        beforeCut = nil
    }

    /// A snapshot took the content as it is now; it will be durable when the snapshot is complete.
    mutating func cut() {
        let before = (older, sizes)
        flushed()
        beforeCut = before
    }
    mutating func cutIsComplete() { beforeCut = nil }
    mutating func cutFailed() {
        guard let before = beforeCut else { return }
        older.merge(before.older) { since, before in before + since }
        sizes =
            min(
                sizes.lowerBound, before.sizes.lowerBound)...max(
                sizes.upperBound, before.sizes.upperBound)
        beforeCut = nil
    }

    mutating func replace(with bytes: [UInt8]) {
        content = bytes
        flushed()
    }

    /// G1: each sector is as it was at the last flush or as it was made since.
    func check(recovered: [UInt8], _ what: String) throws {
        guard sizes.contains(recovered.count) else {
            throw Violation("\(what): size \(recovered.count) is not in \(sizes)")
        }
        if sameBytes(recovered[...], content[...]) { return }
        for number in 0..<(recovered.count + Self.sectorBytes - 1) / Self.sectorBytes {
            let start = number * Self.sectorBytes
            let found = recovered[start..<min(start + Self.sectorBytes, recovered.count)]
            let allowed = older[number] ?? [sector(number, of: content)]
            guard allowed.contains(where: { sameBytes($0.prefix(found.count), found) }) else {
                throw Violation(
                    "\(what): sector \(number) (block \(number / 8)) is none of the "
                        + "\(allowed.count) contents it had since the last flush")
            }
        }
    }

    // MARK: The activity log (G3)

    /// G3: what differs from the last settled content is in an active region. The size is no matter of
    /// regions: a target has it from the catalog or the map, and what growth adds is zero on both sides.
    func check(activeRegions: Set<Int>, _ what: String) throws {
        let bytes = Int(Geometry.regionSizeBytes)
        let longest = max(content.count, settled.map(\.count).max() ?? 0)
        for region in 0..<(longest + bytes - 1) / bytes where !activeRegions.contains(region) {
            let found = Self.region(region, of: content)
            guard settled.contains(where: { Self.isSame(Self.region(region, of: $0), found) })
            else {
                throw Violation("\(what): region \(region) changed and is not in the activity log")
            }
        }
    }

    /// Equal, the shorter one followed by zeros.
    private static func isSame(_ a: ArraySlice<UInt8>, _ b: ArraySlice<UInt8>) -> Bool {
        let common = min(a.count, b.count)
        let rest = a.count > b.count ? a.dropFirst(common) : b.dropFirst(common)
        return sameBytes(a.prefix(common), b.prefix(common)) && isZero(rest)
    }

    private static func isZero(_ bytes: ArraySlice<UInt8>) -> Bool {
        // All bytes equal the one before, and the first is zero.
        bytes.isEmpty || (bytes.first == 0 && sameBytes(bytes.dropFirst(), bytes.dropLast()))
    }

    /// From here on a region's bit may be cleared: it may be compared with today's content, too.
    mutating func settling() { settled.append(content) }

    /// Takes what is settled from now on: the content, where the log is clear.
    mutating func settle(activeRegions: Set<Int>) {
        let bytes = Int(Geometry.regionSizeBytes)
        var next: [UInt8] = []
        let longest = max(content.count, settled[0].count)
        for region in 0..<(longest + bytes - 1) / bytes {
            let source = activeRegions.contains(region) ? settled[0] : content
            let part = Self.region(region, of: source)
            if part.isEmpty { continue }
            next = copied(next[...], paddedTo: region * bytes)
            next.append(contentsOf: part)
        }
        settled = [next]
    }

    private static func region(_ number: Int, of bytes: [UInt8]) -> ArraySlice<UInt8> {
        let size = Int(Geometry.regionSizeBytes)
        return bytes[min(number * size, bytes.count)..<min((number + 1) * size, bytes.count)]
    }
}
