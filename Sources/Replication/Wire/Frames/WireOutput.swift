// What a connection has to send, in order: pieces of memory that a transport writes one after the other. Records
// are not copied: they are sent from where they lie.

import BlockCore

package enum WirePiece {
    case bytes([UInt8])
    /// Valid until the call that gave the records returns: it is sent, or copied, before that.
    case borrowed(UnsafeRawBufferPointer)
    case kept(WireBuffer)

    package var count: Int {
        switch self {
        case .bytes(let bytes): bytes.count
        case .borrowed(let bytes): bytes.count
        case .kept(let buffer): buffer.count
        }
    }

    package func withBytes<T>(_ body: (UnsafeRawBufferPointer) throws -> T) rethrows -> T {
        switch self {
        case .bytes(let bytes): try bytes.withUnsafeBytes(body)
        case .borrowed(let bytes): try body(bytes)
        case .kept(let buffer): try buffer.withBytes(body)
        }
    }
}

package struct WireOutput {
    private var pieces: [WirePiece] = []
    /// Not taken yet.
    package private(set) var waitingBytes = 0
    /// Ever put in.
    package private(set) var totalBytes: UInt64 = 0

    package var isEmpty: Bool { pieces.isEmpty }

    mutating func take() -> [WirePiece] {
        defer {
            pieces.removeAll()
            waitingBytes = 0
        }
        return pieces
    }

    /// Nothing of it will be sent.
    mutating func drop() { _ = take() }

    private mutating func put(_ piece: WirePiece) {
        guard piece.count > 0 else { return }
        pieces.append(piece)
        waitingBytes += piece.count
        totalBytes += UInt64(piece.count)
    }

    /// One frame, or several for a long message of a kind that may go on.
    /// - Throws: `.tooLarge`; then nothing is sent.
    mutating func send(
        _ kind: WireKind, number: UInt64 = 0, _ message: consuming WireWriter,
        longestMessageBytes: Int = WireFormat.longestMessageBytes
    ) throws(WireError) {
        let length = message.bodyBytes
        let mostBytes = kind.mayGoOn ? longestMessageBytes : kind.bodyBytes.upperBound
        guard length <= mostBytes else {
            throw WireError(
                .tooLarge, "frame.length", at: 0,
                "a message '\(kind)' of \(ByteSize(bytes: UInt64(length))) is more than the "
                    + "\(ByteSize(bytes: UInt64(mostBytes))) that can be carried")
        }
        var bytes = message.bytes
        guard length > kind.bodyBytes.upperBound else {
            put(.bytes(Self.sealed(&bytes, kind, number, goesOn: false)))
            return
        }
        var start = WireFormat.headBytes
        while start < bytes.count {
            let end = min(bytes.count, start + WireFormat.longestFragmentBytes)
            var frame = [UInt8](repeating: 0, count: WireFormat.headBytes)
            frame.reserveCapacity(WireFormat.headBytes + end - start)
            frame.append(contentsOf: bytes[start..<end])
            put(.bytes(Self.sealed(&frame, kind, number, goesOn: end < bytes.count)))
            start = end
        }
    }

    /// A frame whose body ends in records.
    /// - Throws: `.tooLarge`; then nothing is sent.
    mutating func send(
        _ kind: WireKind, number: UInt64, _ fields: consuming WireWriter, records: RecordBatch
    ) throws(WireError) {
        let empty = UnsafeRawBufferPointer(start: nil, count: 0)
        let length = fields.bodyBytes + records.lengthBytes
        guard length <= kind.bodyBytes.upperBound, records.pieces.count <= 2 else {
            throw WireError(
                .tooLarge, "frame.length", at: 0,
                "records of \(ByteSize(bytes: UInt64(records.lengthBytes))) in "
                    + "\(records.pieces.count) pieces")
        }
        var bytes = fields.bytes
        let (first, second) = (records.pieces.first ?? empty, records.pieces.dropFirst().first)
        bytes.withUnsafeMutableBytes { raw in
            let body = UnsafeRawBufferPointer(rebasing: raw[WireFormat.headBytes...])
            WireHead(
                kind: kind, number: number, bodyBytes: length,
                bodyCheck: blockHash(body, first, second ?? empty)
            ).encode(into: raw)
        }
        put(.bytes(bytes))
        for piece in records.pieces { put(.borrowed(piece)) }
    }

    /// - Parameter packed: the compressed body; valid until the call that gave it returns.
    mutating func send(_ kind: WireKind, number: UInt64, packed: UnsafeRawBufferPointer) {
        var bytes = [UInt8](repeating: 0, count: WireFormat.headBytes)
        bytes.withUnsafeMutableBytes { raw in
            WireHead(
                kind: kind, number: number, bodyBytes: packed.count, isPacked: true,
                bodyCheck: blockHash(packed)
            ).encode(into: raw)
        }
        put(.bytes(bytes))
        put(.borrowed(packed))
    }

    /// - Parameter isPacked: it is compressed.
    mutating func send(_ kind: WireKind, number: UInt64, _ body: WireBuffer, isPacked: Bool = false)
    {
        var bytes = [UInt8](repeating: 0, count: WireFormat.headBytes)
        bytes.withUnsafeMutableBytes { raw in
            WireHead(
                kind: kind, number: number, bodyBytes: body.count, isPacked: isPacked,
                bodyCheck: body.withBytes { blockHash($0) }
            ).encode(into: raw)
        }
        put(.bytes(bytes))
        put(.kept(body))
    }

    private static func sealed(
        _ bytes: inout [UInt8], _ kind: WireKind, _ number: UInt64, goesOn: Bool
    ) -> [UInt8] {
        bytes.withUnsafeMutableBytes { raw in
            let body = UnsafeRawBufferPointer(rebasing: raw[WireFormat.headBytes...])
            WireHead(
                kind: kind, number: number, bodyBytes: body.count, goesOn: goesOn,
                bodyCheck: blockHash(body)
            ).encode(into: raw)
        }
        return bytes
    }
}
