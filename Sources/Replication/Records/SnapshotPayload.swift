// What a snapshot record carries besides its sequence: when it was made, nanoseconds since 1970 (8
// bytes), the length of its name (4), the name, the length of its origin (4), the origin.

import BlockCore

package enum SnapshotPayload {
    private static let longestBytes = 4096

    package static func encode(_ info: SnapshotInfo) -> [UInt8] {
        var bytes: [UInt8] = []
        func put<T: FixedWidthInteger>(_ value: T) {
            withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
        }
        put(info.createdNs)
        for text in [info.name, info.origin] {
            put(UInt32(text.utf8.count))
            bytes.append(contentsOf: text.utf8)
        }
        return bytes
    }

    /// - Parameter sequence: that of the record.
    /// - Returns: nil for what ``encode(_:)`` does not make.
    package static func decode(
        _ bytes: UnsafeRawBufferPointer, sequence: SequenceNumber
    ) -> SnapshotInfo? {
        guard bytes.count <= longestBytes, bytes.count >= 8 else { return nil }
        var position = 8
        func text() -> String? {
            guard bytes.count - position >= 4 else { return nil }
            let count = Int(
                UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: UInt32.self))
            )
            position += 4
            guard bytes.count - position >= count else { return nil }
            defer { position += count }
            return String(
                validating: UnsafeRawBufferPointer(rebasing: bytes[position..<position + count]),
                as: UTF8.self)
        }
        guard let name = text(), !name.isEmpty, let origin = text(), position == bytes.count else {
            return nil
        }
        return SnapshotInfo(
            name: name,
            createdNs: Int64(littleEndian: bytes.loadUnaligned(fromByteOffset: 0, as: Int64.self)),
            origin: origin, sequence: sequence)
    }
}
