// One operation of a pool at its place in the sequence, as the write stream, a target's journal and
// the wire hold it: a header of 64 bytes, then the payload, padded with zeros to a multiple of 8.
//
//   offset  bytes
//        0      4  total length: header, payload and padding
//        4      1  kind
//        5      3  zero
//        8      8  sequence
//       16      8  image (0: none)
//       24      8  first block
//       32      8  number of blocks
//       40      8  size of the image after the operation, bytes
//       48      8  when, nanoseconds since 1970
//       56      4  payload length, bytes
//       60      4  zero
//
// All little-endian. Every record is absolute (it says what is, not what to add), so that applying a
// stretch of records twice leaves what applying it once leaves.

import BlockCore

package enum StreamKind: UInt8, Sendable {
    /// Whole blocks; the payload is their content, zero behind the image's end.
    case data = 1
    /// The blocks read as zeros: trimmed, zeroed, or cut off by a shrink.
    case zero = 2
    /// The image's size. The range holds the blocks that a shrink cuts off, wholly or in part: they
    /// read as zeros when the image grows again.
    case size = 3
    /// Changes of names: `NamesPayload`.
    case names = 4
    case imageCreated = 5
    case imageDeleted = 6
    /// A snapshot's cut: everything before it is in it, nothing after: `SnapshotPayload`.
    case snapshot = 7
    /// Blocks changed that the stream does not carry (a restore, a clone, a write that failed half
    /// way): they are dirty. Never applied: a session goes past it in a staging alone.
    case barrier = 8
    /// How another copy of the pool stands, for whoever takes over: `StandingPayload`.
    case standing = 9
}

package struct StreamRecord: Sendable, Hashable {
    package static let headerBytes = 64
    /// Longest payload: one request's data with a partial block at either end, and room to spare.
    package static let maxPayloadBytes = 4 << 20

    package var kind: StreamKind
    package var sequence: SequenceNumber
    /// 0 where the operation is not of one image.
    package var image: ImageID
    package var range: BlockRange
    package var imageSizeBytes: UInt64
    package var atNs: Int64
    package var payloadBytes: Int

    package init(
        _ kind: StreamKind, sequence: SequenceNumber, image: ImageID = ImageID(rawValue: 0),
        range: BlockRange = BlockRange(start: 0, count: 0), imageSizeBytes: UInt64 = 0,
        atNs: Int64 = 0, payloadBytes: Int = 0
    ) {
        self.kind = kind
        self.sequence = sequence
        self.image = image
        self.range = range
        self.imageSizeBytes = imageSizeBytes
        self.atNs = atNs
        self.payloadBytes = payloadBytes
    }

    package var totalBytes: Int { Self.headerBytes + (payloadBytes + 7) & ~7 }

    /// - Parameter buffer: at least ``headerBytes`` long.
    package func encodeHeader(into buffer: UnsafeMutableRawBufferPointer) {
        func store<T: FixedWidthInteger>(_ value: T, at offset: Int) {
            buffer.storeBytes(of: value.littleEndian, toByteOffset: offset, as: T.self)
        }
        store(UInt32(totalBytes), at: 0)
        store(UInt32(kind.rawValue), at: 4)
        store(sequence.rawValue, at: 8)
        store(image.rawValue, at: 16)
        store(range.start, at: 24)
        store(range.count, at: 32)
        store(imageSizeBytes, at: 40)
        store(atNs, at: 48)
        store(UInt32(payloadBytes), at: 56)
        store(UInt32(0), at: 60)
    }

    /// - Parameter buffer: starts at a record, which need not be there wholly.
    /// - Returns: nil where no record of this format begins.
    package init?(decoding buffer: UnsafeRawBufferPointer) {
        guard buffer.count >= Self.headerBytes else { return nil }
        let kindAndZeros = Self.load(UInt32.self, buffer, at: 4)
        guard let kind = StreamKind(rawValue: UInt8(truncatingIfNeeded: kindAndZeros)),
            kindAndZeros >> 8 == 0, Self.load(UInt32.self, buffer, at: 60) == 0
        else { return nil }
        self.init(kind, buffer)
        guard payloadBytes <= Self.maxPayloadBytes,
            Self.load(UInt32.self, buffer, at: 0) == UInt32(totalBytes), isSound
        else { return nil }
    }

    /// - Parameter buffer: a header that this process encoded; the last word, zero in a record that
    ///   travels, may be in use by whoever holds it.
    package init(encodedHere buffer: UnsafeRawBufferPointer) {
        self.init(StreamKind(rawValue: buffer[4])!, buffer)
    }

    private init(_ kind: StreamKind, _ buffer: UnsafeRawBufferPointer) {
        func load<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T {
            Self.load(type, buffer, at: offset)
        }
        self.init(
            kind, sequence: SequenceNumber(rawValue: load(UInt64.self, at: 8)),
            image: ImageID(rawValue: load(Int64.self, at: 16)),
            range: BlockRange(
                start: load(UInt64.self, at: 24), count: load(UInt64.self, at: 32)),
            imageSizeBytes: load(UInt64.self, at: 40), atNs: load(Int64.self, at: 48),
            payloadBytes: Int(load(UInt32.self, at: 56)))
    }

    private static func load<T: FixedWidthInteger>(
        _ type: T.Type, _ buffer: UnsafeRawBufferPointer, at offset: Int
    ) -> T {
        T(littleEndian: buffer.loadUnaligned(fromByteOffset: offset, as: T.self))
    }

    private var isSound: Bool {
        let blockLimit = Geometry.maxImageSizeBytes >> Geometry.blockShift
        guard sequence <= .highest, imageSizeBytes <= Geometry.maxImageSizeBytes,
            range.start <= blockLimit, range.count <= blockLimit - range.start
        else { return false }
        switch kind {
        case .barrier: return range.isEmpty && payloadBytes == 0
        case .names, .snapshot, .standing: return range.isEmpty && payloadBytes > 0
        case .data, .zero, .size, .imageCreated, .imageDeleted:
            guard image.isPlausible else { return false }
        }
        switch kind {
        case .data: return !range.isEmpty && payloadBytes == Int(range.lengthBytes)
        case .zero: return !range.isEmpty && payloadBytes == 0
        case .size: return payloadBytes == 0
        default: return range.isEmpty && payloadBytes == 0
        }
    }
}
