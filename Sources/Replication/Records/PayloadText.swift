// Texts in the payload of a record: each with its length (4 bytes) before it.

/// Reads the texts of a payload, one after the other.
struct PayloadTexts {
    private let bytes: UnsafeRawBufferPointer
    private var position: Int

    /// - Parameter start: at most the payload's length.
    init(_ bytes: UnsafeRawBufferPointer, from start: Int) {
        self.bytes = bytes
        position = start
    }

    var isAtEnd: Bool { position == bytes.count }

    /// - Returns: nil where there is none.
    mutating func next() -> String? {
        guard bytes.count - position >= 4 else { return nil }
        let count = Int(
            UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: UInt32.self)))
        position += 4
        guard bytes.count - position >= count else { return nil }
        defer { position += count }
        return String(
            validating: UnsafeRawBufferPointer(rebasing: bytes[position..<position + count]),
            as: UTF8.self)
    }
}

extension [UInt8] {
    mutating func put<T: FixedWidthInteger>(_ value: T) {
        Swift.withUnsafeBytes(of: value.littleEndian) { append(contentsOf: $0) }
    }

    mutating func put(text: String) {
        put(UInt32(text.utf8.count))
        append(contentsOf: text.utf8)
    }
}
