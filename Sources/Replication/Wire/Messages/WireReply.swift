// What a server answers, and what either side says without being asked.

import BlockCore

package enum WireReply: Sendable {
    case flushed(SequenceNumber)
    case done
    case hashes([UInt64])
    case blocks([ImageID: BlockSet])
    /// `data` and `zero` records that cover what was asked for, in order.
    case content(WireContent)
    case shape(PoolShape)
    /// To a ``WireQuery/control(_:)``.
    case answered([UInt8])
    case failed(TargetError)
}

/// Everything up to here, so far as the target is asked for it; none of these ever goes back in a session.
package struct WireAcknowledgement: Sendable, Hashable {
    /// In the server's memory.
    package var received = SequenceNumber.zero
    /// Survives the server's process.
    package var written = SequenceNumber.zero
    /// Survives its machine's power loss.
    package var durable = SequenceNumber.zero
    /// Operations of a staging that are done.
    package var staged: UInt64 = 0
    /// Bytes of frames with records that this connection may have carried in all.
    package var creditBytes: UInt64 = 0
    package init() {}
}

/// A ping, or its pong.
package struct WireBeat: Sendable, Hashable {
    /// When the ping was sent, by the clock of who sent it; the pong gives it back.
    package var sentNs: Int64
    /// Bytes of this connection that who says so has taken: what the other side sent arrives.
    package var takenBytes: UInt64
}

package struct WireGoodbye: Sendable, Hashable {
    package enum Reason: UInt16, Sendable, CaseIterable {
        /// Nothing more is wanted.
        case done = 1
        /// The server ends; it will be back.
        case shuttingDown = 2
        /// A newer session of this pool has begun.
        case superseded = 3
        /// Another connection of the session ended.
        case sessionEnded = 4
    }
    package var reason: Reason
    package var message: String
}

/// Content of blocks as it arrived, or as it is sent.
package struct WireContent: Sendable {
    let buffer: WireBuffer
    /// It is a compressed body: one that is sent.
    let isPacked: Bool

    init(packed buffer: WireBuffer) {
        self.buffer = buffer
        isPacked = true
    }

    /// - Throws: where the body is anything else than sound `data` and `zero` records.
    init(_ buffer: WireBuffer) throws(WireError) {
        self.buffer = buffer
        isPacked = false
        try buffer.withBytes { (bytes) throws(WireError) in
            try Self.forEach(in: bytes) { _, _ in }
        }
    }

    /// Fills `target` with the blocks of `range`.
    /// - Throws: where the records are not of all of them, in order.
    package func fill(
        _ target: UnsafeMutableRawBufferPointer, with range: BlockRange, of image: ImageID
    ) throws(WireError) {
        var next = range.start
        try buffer.withBytes { (bytes) throws(WireError) in
            try Self.forEach(in: bytes) { (record, payload) throws(WireError) in
                guard record.image == image, record.range.start == next,
                    record.range.end <= range.end
                else {
                    throw WireError(
                        .malformed, "content.records", at: 0,
                        "block \(record.range.start) instead of \(next)")
                }
                let start = Int((next - range.start) << Geometry.blockShift)
                let place = UnsafeMutableRawBufferPointer(
                    rebasing: target[start..<start + Int(record.range.lengthBytes)])
                if record.kind == .data {
                    place.copyMemory(from: payload)
                } else {
                    place.initializeMemory(as: UInt8.self, repeating: 0)
                }
                next = record.range.end
            }
        }
        guard next == range.end else {
            throw WireError(
                .length, "content.records", at: buffer.count, "it ends before block \(range.end)")
        }
    }

    private static func forEach(
        in bytes: UnsafeRawBufferPointer,
        _ body: (StreamRecord, UnsafeRawBufferPointer) throws(WireError) -> Void
    ) throws(WireError) {
        try WireRecordReader.forEach(in: bytes, "content.records") {
            (record, payload) throws(WireError) in
            guard record.kind == .data || record.kind == .zero else {
                throw WireError(
                    .malformed, "content.records", at: 0, "a record '\(record.kind)'")
            }
            try body(record, payload)
        }
    }
}

extension WireReply {
    /// - Parameter read: fills the buffer from its beginning; what it leaves is zeros.
    package static func content(
        _ range: BlockRange, of image: ImageID,
        read: (UnsafeMutableRawBufferPointer) throws(TargetError) -> Int
    ) throws(TargetError) -> WireReply {
        let buffer = RecordBuffer(
            capacityBytes: Int(range.lengthBytes) + 2 * StreamRecord.headerBytes)
        try buffer.append(blocks: range, of: image, sizeBytes: 0, at: .zero, read: read)
        do throws(WireError) {
            return .content(try WireContent(WireBuffer(copying: buffer.batch.pieces[0])))
        } catch { throw TargetError(.io, "\(error)") }
    }

    package var kind: WireKind {
        switch self {
        case .flushed: .flushed
        case .done: .done
        case .hashes: .hashes
        case .blocks: .blocks
        case .content: .content
        case .shape: .poolShape
        case .answered: .answered
        case .failed: .failed
        }
    }

    /// Of one without records; those are sent from where they lie.
    package func encoded() throws(WireError) -> WireWriter {
        switch self {
        case .flushed(let sequence):
            var writer = WireWriter("flushed")
            writer.put(sequence.rawValue)
            return writer
        case .done: return WireWriter("done", capacity: 0)
        case .hashes(let hashes):
            var writer = WireWriter("hashes", capacity: 8 + hashes.count * 8)
            try writer.put(count: hashes.count, "count")
            writer.putZeros(4)
            for hash in hashes { writer.put(hash) }
            return writer
        case .blocks(let blocks):
            var writer = WireWriter("blocks", capacity: 4096)
            try writer.put(blocks, "blocks")
            return writer
        case .shape(let shape):
            var writer = WireWriter(
                "poolShape", capacity: 64 + shape.images.count * 24 + shape.names.count)
            try writer.put(shape)
            return writer
        case .answered(let text):
            var writer = WireWriter("answered", capacity: text.count)
            writer.put(bytes: text)
            return writer
        case .content: preconditionFailure("records are sent from where they lie")
        case .failed(let error):
            var writer = WireWriter("failed")
            writer.put(error.kind.wireCode)
            writer.put(UInt8(error.errno == nil ? 0 : 1))
            writer.putZeros(2)
            writer.put(error.errno ?? 0)
            writer.put(cutText: error.message, longestBytes: WireFormat.longestMessageTextBytes)
            return writer
        }
    }

    init(_ frame: WireFrame) throws(WireError) {
        self = try frame.read { (body) throws(WireError) in try Self.decoded(frame, body) }
    }

    private static func decoded(
        _ frame: WireFrame, _ body: UnsafeRawBufferPointer
    ) throws(WireError) -> WireReply {
        let result: WireReply
        switch frame.head.kind {
        case .flushed:
            var reader = WireReader(body, "flushed")
            result = .flushed(try reader.takeSequence("sequence"))
        case .done: result = .done
        case .hashes:
            var reader = WireReader(body, "hashes")
            let count = Int(try reader.take("count", as: UInt32.self))
            try reader.takeZeros(4, "zero")
            guard reader.remaining == count * 8 else {
                throw reader.error(
                    .length, "count", at: 0, "\(count) hashes in \(reader.remaining) bytes")
            }
            var hashes: [UInt64] = []
            hashes.reserveCapacity(count)
            for _ in 0..<count { hashes.append(try reader.take("hash")) }
            result = .hashes(hashes)
        case .blocks:
            var reader = WireReader(body, "blocks")
            result = .blocks(try reader.takeBlocks("blocks"))
            try reader.requireEnd()
        case .content: result = .content(try WireContent(frame.body))
        case .poolShape:
            var reader = WireReader(body, "poolShape")
            result = .shape(try reader.takeShape())
            try reader.requireEnd()
        case .answered: result = .answered(Array(body))
        case .failed: result = .failed(try TargetError(wire: body))
        default:
            throw WireError(.outOfOrder, "frame.kind", at: 4, "'\(frame.head.kind)' is no reply")
        }
        return result
    }
}

extension TargetError {
    init(wire body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "failed")
        guard let kind = Kind(wireCode: try reader.take("kind")) else {
            throw reader.error(.unknown, "kind", at: 0, "no such kind of error")
        }
        let hasErrno = try reader.takeFlags(1, "flags") == 1
        try reader.takeZeros(2, "zero")
        let errno: Int32 = try reader.take("errno")
        guard hasErrno || errno == 0 else {
            throw reader.error(.malformed, "errno", at: 4, "\(errno), and there is none")
        }
        let message = try reader.takeText(
            longestBytes: WireFormat.longestMessageTextBytes, "message")
        try reader.requireEnd()
        self.init(kind, message, errno: hasErrno ? errno : nil)
    }
}

extension TargetError.Kind {
    var wireCode: UInt8 {
        switch self {
        case .absent: 1
        case .fenced: 2
        case .splitBrain: 3
        case .noSpace: 4
        case .io: 5
        case .damaged: 6
        }
    }
    init?(wireCode: UInt8) {
        let all: [Self] = [.absent, .fenced, .splitBrain, .noSpace, .io, .damaged]
        guard (1...all.count).contains(Int(wireCode)) else { return nil }
        self = all[Int(wireCode) - 1]
    }
}
