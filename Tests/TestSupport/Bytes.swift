// Runs of bytes beside each other: too long to be printed, and for the standard library's `==`, which goes
// element by element.

import Glibc

// An array's own initializers go element by element, each by a witness, where nothing is optimized; tests fill and copy much.

/// The same bytes in an array of their own, with zeros after them up to a length.
package func copied(_ bytes: ArraySlice<UInt8>, paddedTo length: Int = 0) -> [UInt8] {
    let total = max(bytes.count, length)
    return [UInt8](unsafeUninitializedCapacity: total) { buffer, initialized in
        bytes.withUnsafeBytes { from in
            if !from.isEmpty { memcpy(buffer.baseAddress!, from.baseAddress!, from.count) }
        }
        if total > bytes.count { memset(buffer.baseAddress! + bytes.count, 0, total - bytes.count) }
        initialized = total
    }
}

/// Whether two runs of bytes are equal.
package func sameBytes(_ left: ArraySlice<UInt8>, _ right: ArraySlice<UInt8>) -> Bool {
    left.count == right.count
        && left.withUnsafeBytes { a in
            right.withUnsafeBytes { b in
                a.isEmpty || memcmp(a.baseAddress!, b.baseAddress!, a.count) == 0
            }
        }
}

/// Where the two have different bytes first, counted from their beginnings; nil where one is the other's beginning.
package func firstDifference(_ left: ArraySlice<UInt8>, _ right: ArraySlice<UInt8>) -> Int? {
    let piece = 4096
    let count = min(left.count, right.count)
    for start in stride(from: 0, to: count, by: piece) {
        let end = min(start + piece, count)
        let (one, other) = (
            left.dropFirst(start).prefix(end - start), right.dropFirst(start).prefix(end - start)
        )
        if !sameBytes(one, other) {
            return zip(one, other).enumerated().first { $1.0 != $1.1 }.map { start + $0.offset }
        }
    }
    return nil
}

package func firstDifference(_ left: [UInt8], _ right: [UInt8]) -> Int? {
    firstDifference(left[...], right[...])
}

/// For `#expect(difference(found, from: expected) == nil)`, which prints this and not the bytes.
/// - Returns: where they differ first, and how long they are; nil where they are the same.
package func difference(
    _ found: ArraySlice<UInt8>, from expected: ArraySlice<UInt8>
) -> String? {
    let lengths = "\(found.count) bytes, expected \(expected.count)"
    guard let at = firstDifference(found, expected) else {
        return found.count == expected.count ? nil : "the same as far as both go: \(lengths)"
    }
    let (here, there) = (found[found.startIndex + at], expected[expected.startIndex + at])
    return "first at \(at): \(here), expected \(there); \(lengths)"
}

package func difference(_ found: [UInt8], from expected: [UInt8]) -> String? {
    difference(found[...], from: expected[...])
}
