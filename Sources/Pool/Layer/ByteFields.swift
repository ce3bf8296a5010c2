import BlockCore

/// Little-endian fields, one by one: no struct is ever read straight from disk bytes.
package struct ByteWriter {
    package private(set) var bytes: [UInt8] = []

    package init(capacity: Int = 64) { bytes.reserveCapacity(capacity) }

    package mutating func put<T: FixedWidthInteger>(_ value: T) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }
    package mutating func append(_ more: some Collection<UInt8>) { bytes.append(contentsOf: more) }
    package mutating func pad(to count: Int) {
        if bytes.count < count {
            // An array is filled and copied as a whole; a repeated element goes byte by byte where nothing is optimized.
            bytes.append(contentsOf: [UInt8](repeating: 0, count: count - bytes.count))
        }
    }
    /// Appends the hash of everything so far, and returns it.
    @discardableResult
    package mutating func seal(seed: UInt64 = 0) -> UInt64 {
        let hash = bytes.withUnsafeBytes { blockHash($0, seed: seed) }
        put(hash)
        return hash
    }
}

package struct ByteReader {
    private let bytes: UnsafeRawBufferPointer
    package private(set) var position: Int

    package init(_ bytes: UnsafeRawBufferPointer, at position: Int = 0) {
        self.bytes = bytes
        self.position = position
    }

    package var remaining: Int { bytes.count - position }

    package mutating func skip(_ count: Int) { position += count }

    package mutating func take<T: FixedWidthInteger>(_ type: T.Type = T.self) -> T {
        let value = bytes.loadUnaligned(fromByteOffset: position, as: T.self)
        position += MemoryLayout<T>.size
        return T(littleEndian: value)
    }
}
