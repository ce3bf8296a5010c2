// The bytes of a journal; docs/disk-format.md has every one.
//
//   journal/<number>   4 KiB header, then frames, each at a multiple of 8
//   journal/next       what becomes the next segment: new, or a freed one
//
// A frame's hash is seeded with its segment's nonce, which is new each time a file becomes a segment,
// and covers the hash of the frame before: neither leftovers of the file's earlier life nor frames out
// of their order verify.

import BlockCore
import SystemIO

package struct JournalOptions: Sendable {
    package var segmentBytes: UInt64 = 64 << 20
    package init(segmentBytes: UInt64 = 64 << 20) { self.segmentBytes = segmentBytes }
}

package enum JournalError: Error, CustomStringConvertible, Sendable {
    case system(SystemError)
    /// Something known durable does not verify: never opened silently.
    case damaged(path: String, reason: String)
    /// An earlier sync failed: nobody knows what the disk has.
    case latched(SystemError)
    case outOfOrder(SequenceNumber, after: SequenceNumber)

    package var description: String {
        switch self {
        case .system(let error): error.description
        case .damaged(let path, let reason):
            "\(path) is damaged: \(reason). What it held is on the primary still: attach the mirror "
                + "anew"
        case .latched(let error):
            "an earlier sync of the journal failed (\(error)); check the disk"
        case .outOfOrder(let sequence, let last):
            "operation \(sequence.rawValue) came after \(last.rawValue), which the journal has"
        }
    }
}

struct JournalSegmentHeader: Equatable {
    static let bytes: UInt64 = 4096
    private static let magic: UInt64 = 0x3130_4c4e_4a4c_5044  // "DPLJNL01"
    private static let version: UInt32 = 1
    private static let encodedBytes = 64

    var number: UInt64
    /// Seeds the hashes of this segment's frames.
    var nonce: UInt64
    /// The chain at the end of the segment before; 0 where the journal begins, also anew.
    var previousChain: UInt64
    /// The last sequence before the segment.
    var startSequence: SequenceNumber
    var createdNs: Int64

    /// - Returns: the header's bytes, and its hash, the first link of the chain.
    func encoded() -> (bytes: [UInt8], chain: UInt64) {
        var writer = ByteWriter(capacity: Int(Self.bytes))
        writer.put(Self.magic)
        writer.put(Self.version)
        writer.put(UInt32(0))
        writer.put(number)
        writer.put(nonce)
        writer.put(previousChain)
        writer.put(startSequence.rawValue)
        writer.put(createdNs)
        let chain = writer.seal()
        writer.pad(to: Int(Self.bytes))
        return (writer.bytes, chain)
    }

    /// - Returns: nil where no header of this format is.
    static func decode(
        _ raw: UnsafeRawBufferPointer
    ) -> (header: JournalSegmentHeader, chain: UInt64)? {
        guard raw.count >= encodedBytes else { return nil }
        var reader = ByteReader(raw)
        guard reader.take(UInt64.self) == magic, reader.take(UInt32.self) == version,
            reader.take(UInt32.self) == 0
        else { return nil }
        let header = JournalSegmentHeader(
            number: reader.take(), nonce: reader.take(), previousChain: reader.take(),
            startSequence: SequenceNumber(rawValue: reader.take()), createdNs: reader.take())
        let hash = blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<encodedBytes - 8]))
        return reader.take(UInt64.self) == hash ? (header, hash) : nil
    }
}

struct JournalFrameHeader: Equatable {
    static let bytes = 80
    static let magic: UInt64 = 0x3130_4d52_464c_5044  // "DPLFRM01"

    var payloadBytes: UInt64
    /// Where the second of the payload's two pieces begins; `payloadBytes` when there is one.
    var splitBytes: UInt64
    var first: SequenceNumber
    var last: SequenceNumber
    var atNs: Int64
    /// Where the part of this segment ended that was known durable when the frame was written.
    var durableEnd: UInt64
    /// The hash of the frame before, or of the segment's header.
    var chain: UInt64
    var payloadHash: UInt64

    /// Header, payload, and what is left free up to the next multiple of 8.
    var totalBytes: UInt64 { UInt64(Self.bytes) + (payloadBytes + 7) & ~7 }

    static func hash(of pieces: [UnsafeRawBufferPointer], chain: UInt64) -> UInt64 {
        pieces.reduce(chain) { blockHash($1, seed: $0) }
    }

    func encoded(nonce: UInt64) -> (bytes: [UInt8], chain: UInt64) {
        var writer = ByteWriter(capacity: Self.bytes)
        writer.put(Self.magic)
        writer.put(payloadBytes)
        writer.put(splitBytes)
        writer.put(first.rawValue)
        writer.put(last.rawValue)
        writer.put(atNs)
        writer.put(durableEnd)
        writer.put(chain)
        writer.put(payloadHash)
        let hash = writer.seal(seed: nonce)
        return (writer.bytes, hash)
    }

    /// - Returns: nil where no frame of the segment with this nonce begins.
    static func decode(
        _ raw: UnsafeRawBufferPointer, nonce: UInt64
    ) -> (header: JournalFrameHeader, chain: UInt64)? {
        guard raw.count >= bytes else { return nil }
        var reader = ByteReader(raw)
        guard reader.take(UInt64.self) == magic else { return nil }
        let header = JournalFrameHeader(
            payloadBytes: reader.take(), splitBytes: reader.take(),
            first: SequenceNumber(rawValue: reader.take()),
            last: SequenceNumber(rawValue: reader.take()), atNs: reader.take(),
            durableEnd: reader.take(), chain: reader.take(), payloadHash: reader.take())
        let hash = blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<bytes - 8]), seed: nonce)
        guard reader.take(UInt64.self) == hash, header.splitBytes <= header.payloadBytes else {
            return nil
        }
        return (header, hash)
    }

    func matches(_ payload: UnsafeRawBufferPointer) -> Bool {
        let split = Int(splitBytes)
        var pieces = [UnsafeRawBufferPointer(rebasing: payload[0..<split])]
        if split < payload.count {
            pieces.append(UnsafeRawBufferPointer(rebasing: payload[split...]))
        }
        return Self.hash(of: pieces, chain: chain) == payloadHash
    }
}

/// A batch of records as the journal has it. The payload is valid until the reader's next call.
package struct JournalFrame {
    package var first: SequenceNumber
    package var last: SequenceNumber
    package var atNs: Int64
    package var payload: UnsafeRawBufferPointer
}
