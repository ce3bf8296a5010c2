// What a standing record says of one copy of the pool: flags (8 bytes, bit 0: it is stale), since when in
// nanoseconds since 1970 (8), the sequence that it has everything up to (8), then the UUID of its pool, its
// address and the reason, each with its length (4) before it.
//
// It travels to all other copies before anybody is answered without this one: no survivor takes a copy that
// was left behind for a whole one.

import BlockCore

package struct CopyStanding: Sendable, Hashable {
    package struct Stale: Sendable, Hashable {
        package var sinceNs: Int64
        /// It lacks what came after.
        package var sequence: SequenceNumber
        package var reason: String

        package init(sinceNs: Int64, sequence: SequenceNumber, reason: String) {
            self.sinceNs = sinceNs
            self.sequence = sequence
            self.reason = reason
        }
    }

    package var poolID: String
    /// Empty for one that is no target of the pool any more.
    package var address: String
    /// nil: it is in step.
    package var stale: Stale?

    package init(poolID: String, address: String, stale: Stale?) {
        self.poolID = poolID
        self.address = address
        self.stale = stale
    }
}

package enum StandingPayload {
    private static let longestBytes = 16384
    private static let longestReasonBytes = 2048

    package static func encode(_ standing: CopyStanding) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.put(UInt64(standing.stale == nil ? 0 : 1))
        bytes.put(standing.stale?.sinceNs ?? 0)
        bytes.put(standing.stale?.sequence.rawValue ?? 0)
        // A person reads it: the beginning tells enough.
        let reason = String(
            decoding: (standing.stale?.reason ?? "").utf8.prefix(longestReasonBytes), as: UTF8.self)
        for text in [standing.poolID, standing.address, reason] { bytes.put(text: text) }
        return bytes
    }

    /// - Returns: nil for what ``encode(_:)`` does not make.
    package static func decode(_ bytes: UnsafeRawBufferPointer) -> CopyStanding? {
        guard bytes.count <= longestBytes, bytes.count >= 24 else { return nil }
        func number<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T {
            T(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: T.self))
        }
        var texts = PayloadTexts(bytes, from: 24)
        guard let pool = texts.next(), let address = texts.next(), let reason = texts.next(),
            texts.isAtEnd, number(UInt64.self, at: 16) <= SequenceNumber.highest.rawValue
        else { return nil }
        let stale = CopyStanding.Stale(
            sinceNs: number(Int64.self, at: 8),
            sequence: SequenceNumber(rawValue: number(UInt64.self, at: 16)), reason: reason)
        switch number(UInt64.self, at: 0) {
        case 0:
            guard stale == .init(sinceNs: 0, sequence: .zero, reason: "") else { return nil }
            return CopyStanding(poolID: pool, address: address, stale: nil)
        case 1: return CopyStanding(poolID: pool, address: address, stale: stale)
        default: return nil
        }
    }
}
