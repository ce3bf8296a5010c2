// The payload of a snapshot record:
//
//   version    4   1
//   created    8   nanoseconds since 1970
//   sequence   8   of the cut
//   name       4 length, UTF-8
//   origin     4 length, UTF-8
//
// All little-endian. One snapshot has one encoding; anything else is refused.

import BlockCore

package enum SnapshotPayload {
    private static let version: UInt32 = 1
    private static let fixedBytes = 20

    package static func encode(_ info: SnapshotInfo) -> [UInt8] {
        var bytes: [UInt8] = []
        func put<T: FixedWidthInteger>(_ value: T) {
            withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
        }
        put(version)
        put(info.createdNs)
        put(info.sequence.rawValue)
        for text in [info.name, info.origin] {
            put(UInt32(text.utf8.count))
            bytes.append(contentsOf: text.utf8)
        }
        return bytes
    }

    /// - Returns: nil for anything that ``encode(_:)`` does not make.
    package static func decode(_ bytes: UnsafeRawBufferPointer) -> SnapshotInfo? {
        guard bytes.count >= fixedBytes,
            UInt32(littleEndian: bytes.loadUnaligned(as: UInt32.self)) == version
        else { return nil }
        var position = fixedBytes
        func text() -> String? {
            guard bytes.count - position >= 4 else { return nil }
            let count = Int(
                UInt32(
                    littleEndian: bytes.loadUnaligned(
                        fromByteOffset: position, as: UInt32.self)))
            position += 4
            guard count <= bytes.count - position else { return nil }
            defer { position += count }
            return String(validating: bytes[position..<position + count], as: UTF8.self)
        }
        guard let name = text(), let origin = text(), position == bytes.count else { return nil }
        return SnapshotInfo(
            name: name,
            createdNs: Int64(littleEndian: bytes.loadUnaligned(fromByteOffset: 4, as: Int64.self)),
            origin: origin,
            sequence: SequenceNumber(
                rawValue: UInt64(
                    littleEndian: bytes.loadUnaligned(fromByteOffset: 12, as: UInt64.self))))
    }
}
