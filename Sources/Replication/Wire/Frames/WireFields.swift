// Fields of a message's body, one by one. A reader believes nothing: every length and count is held against
// what is there before anything is made of it, and a body has to end where its last field ends.

import BlockCore

package struct WireReader {
    private let bytes: UnsafeRawBufferPointer
    private let message: StaticString
    private(set) var position = 0

    init(_ bytes: UnsafeRawBufferPointer, _ message: StaticString) {
        self.bytes = bytes
        self.message = message
    }

    var remaining: Int { bytes.count - position }

    func error(
        _ kind: WireError.Kind, _ field: StaticString, at offset: Int? = nil, _ text: String
    ) -> WireError {
        WireError(kind, "\(message).\(field)", at: offset ?? position, text)
    }

    private func require(_ count: Int, _ field: StaticString) throws(WireError) {
        guard remaining >= count else {
            throw error(.length, field, "needs \(count) bytes, \(remaining) are left")
        }
    }

    mutating func take<T: FixedWidthInteger>(
        _ field: StaticString, as type: T.Type = T.self
    ) throws(WireError) -> T {
        let size = MemoryLayout<T>.size
        try require(size, field)
        defer { position += size }
        return T(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: T.self))
    }

    /// - Returns: as many bytes; valid as long as the body is.
    mutating func take(_ count: Int, _ field: StaticString) throws(WireError)
        -> UnsafeRawBufferPointer
    {
        try require(count, field)
        defer { position += count }
        return UnsafeRawBufferPointer(rebasing: bytes[position..<position + count])
    }

    /// All that is left.
    mutating func takeRest() -> UnsafeRawBufferPointer {
        defer { position = bytes.count }
        return UnsafeRawBufferPointer(rebasing: bytes[position...])
    }

    mutating func takeZeros(_ count: Int, _ field: StaticString) throws(WireError) {
        let start = position
        for byte in try take(count, field) where byte != 0 {
            throw error(.malformed, field, at: start, "it is not zero")
        }
    }

    /// A byte of flags, of which only these may be set.
    mutating func takeFlags(_ allowed: UInt8, _ field: StaticString) throws(WireError) -> UInt8 {
        let start = position
        let flags: UInt8 = try take(field)
        guard flags & ~allowed == 0 else {
            throw error(.malformed, field, at: start, "flags \(flags) are not known")
        }
        return flags
    }

    mutating func takeText(longestBytes: Int, _ field: StaticString) throws(WireError) -> String {
        let start = position
        let count = Int(try take(field, as: UInt32.self))
        guard count <= longestBytes else {
            throw error(.length, field, at: start, "\(count) bytes; it has \(longestBytes) at most")
        }
        let utf8 = try take(count, field)
        guard let text = String(validating: utf8, as: UTF8.self) else {
            throw error(.malformed, field, at: start, "it is no UTF-8")
        }
        return text
    }

    /// - Parameter elementBytes: what each one takes at the least: more than fit in what is left are a lie.
    mutating func takeCount(elementBytes: Int, _ field: StaticString) throws(WireError) -> Int {
        let start = position
        let count = Int(try take(field, as: UInt32.self))
        guard count <= remaining / elementBytes else {
            throw error(
                .length, field, at: start,
                "\(count) of \(elementBytes) bytes, \(remaining) are left")
        }
        return count
    }

    /// `count` blocks, 1 at the least, of an image that may be.
    mutating func takeRange(mostBlocks: Int, _ field: StaticString) throws(WireError) -> BlockRange
    {
        let at = position
        let start: UInt64 = try take(field)
        let count: UInt64 = try take(field)
        let limit = Geometry.maxImageSizeBytes >> Geometry.blockShift
        guard count > 0, count <= UInt64(mostBlocks), start <= limit, count <= limit - start else {
            throw error(.length, field, at: at, "\(count) blocks from block \(start)")
        }
        return BlockRange(start: start, count: count)
    }

    func requireEnd() throws(WireError) {
        guard remaining == 0 else {
            throw error(.length, "end", "\(remaining) bytes are left over")
        }
    }
}

/// A message's body, with room for the frame's head before it.
package struct WireWriter {
    private(set) var bytes: [UInt8]
    private let message: StaticString

    init(_ message: StaticString, capacity: Int = 64) {
        self.message = message
        bytes = []
        bytes.reserveCapacity(WireFormat.headBytes + capacity)
        bytes.append(contentsOf: repeatElement(0, count: WireFormat.headBytes))
    }

    var bodyBytes: Int { bytes.count - WireFormat.headBytes }

    func withBody<T>(_ body: (UnsafeRawBufferPointer) -> T) -> T {
        bytes.withUnsafeBytes {
            body(UnsafeRawBufferPointer(rebasing: $0[WireFormat.headBytes...]))
        }
    }

    mutating func put<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }
    mutating func putZeros(_ count: Int) {
        bytes.append(contentsOf: repeatElement(0, count: count))
    }
    mutating func put(bytes more: some Collection<UInt8>) { bytes.append(contentsOf: more) }

    mutating func put(range: BlockRange) {
        put(range.start)
        put(range.count)
    }

    /// - Throws: `.tooLarge`: what the other side would refuse is not sent.
    mutating func put(
        text: String, longestBytes: Int, _ field: StaticString
    ) throws(WireError) {
        guard text.utf8.count <= longestBytes else {
            throw WireError(
                .tooLarge, "\(message).\(field)", at: bodyBytes,
                "\(text.utf8.count) bytes; \(longestBytes) can be carried")
        }
        put(UInt32(text.utf8.count))
        bytes.append(contentsOf: text.utf8)
    }

    /// A text for people: its beginning tells enough.
    mutating func put(cutText text: String, longestBytes: Int) {
        var kept = text.utf8.prefix(longestBytes)
        // Not in the middle of a character.
        while kept.endIndex < text.utf8.endIndex, text.utf8[kept.endIndex] & 0xc0 == 0x80 {
            kept = kept.dropLast()
        }
        put(UInt32(kept.count))
        bytes.append(contentsOf: kept)
    }

    mutating func put(count: Int, _ field: StaticString) throws(WireError) {
        guard let short = UInt32(exactly: count) else {
            throw WireError(.tooLarge, "\(message).\(field)", at: bodyBytes, "\(count) of them")
        }
        put(short)
    }
}
