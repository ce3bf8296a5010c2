// What a snapshot record carries besides its sequence: when it was made, nanoseconds since 1970 (8
// bytes), the length of its name (4), the name, the length of its origin (4), the origin.

import BlockCore

package enum SnapshotPayload {
    private static let longestBytes = 4096

    package static func encode(_ info: SnapshotInfo) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.put(info.createdNs)
        for text in [info.name, info.origin] { bytes.put(text: text) }
        return bytes
    }

    /// - Parameter sequence: that of the record.
    /// - Returns: nil for what ``encode(_:)`` does not make.
    package static func decode(
        _ bytes: UnsafeRawBufferPointer, sequence: SequenceNumber
    ) -> SnapshotInfo? {
        guard bytes.count <= longestBytes, bytes.count >= 8 else { return nil }
        var texts = PayloadTexts(bytes, from: 8)
        guard let name = texts.next(), !name.isEmpty, let origin = texts.next(), texts.isAtEnd
        else { return nil }
        return SnapshotInfo(
            name: name,
            createdNs: Int64(littleEndian: bytes.loadUnaligned(fromByteOffset: 0, as: Int64.self)),
            origin: origin, sequence: sequence)
    }
}
