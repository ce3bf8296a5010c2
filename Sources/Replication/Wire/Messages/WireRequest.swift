// What a client asks of the target behind a server, once it has a session.
//
// `order` gives the operations of a staging one order over all connections of a session: each takes the next
// number, and is done when all before it are. `after` lets a reading request wait for them in the same way.

import BlockCore

package enum WireRequest: Sendable {
    /// - Parameter tellsReceived: wanted when a server has it in memory, besides when it is written.
    case append(WireRecords, tellsReceived: Bool)
    case flush
    case beginStaging(order: UInt64, id: UInt64, PoolShape)
    case stage(order: UInt64, number: UInt64, WireRecords)
    case syncStaging(order: UInt64)
    case commitStaging(order: UInt64, id: UInt64, at: SequenceNumber, snapshot: SnapshotInfo?)
    case blockHashes(after: UInt64, of: ImageID, in: BlockRange)
    case allocatedBlocks(after: UInt64)
    case read(after: UInt64, BlockRange, of: ImageID)
    case shape(after: UInt64)

    package var kind: WireKind {
        switch self {
        case .append: .append
        case .flush: .flush
        case .beginStaging: .beginStaging
        case .stage: .stage
        case .syncStaging: .syncStaging
        case .commitStaging: .commitStaging
        case .blockHashes: .blockHashes
        case .allocatedBlocks: .allocatedBlocks
        case .read: .read
        case .shape: .shape
        }
    }

    /// Of an operation of a staging.
    package var order: UInt64? {
        switch self {
        case .beginStaging(let order, _, _), .stage(let order, _, _), .syncStaging(let order),
            .commitStaging(let order, _, _, _):
            order
        default: nil
        }
    }

    /// Of one that waits for those of a staging.
    package var after: UInt64? {
        switch self {
        case .blockHashes(let after, _, _), .allocatedBlocks(let after), .read(let after, _, _),
            .shape(let after):
            after
        default: nil
        }
    }

    /// It changes nothing.
    package var isRead: Bool { after != nil }

    /// Kinds that a bulk connection carries.
    package static let bulkKinds: [WireKind] = [
        .stage, .blockHashes, .allocatedBlocks, .read, .shape,
    ]
    package static let orderedKinds: [WireKind] =
        bulkKinds + [.append, .flush, .beginStaging, .syncStaging, .commitStaging]
}

/// Records as they arrived, in the memory they arrived in.
package struct WireRecords: Sendable {
    package var first: SequenceNumber
    package var last: SequenceNumber
    private let buffer: WireBuffer
    private let start: Int

    init(first: SequenceNumber, last: SequenceNumber, in buffer: WireBuffer, from start: Int) {
        self.first = first
        self.last = last
        self.buffer = buffer
        self.start = start
    }

    package var lengthBytes: Int { buffer.count - start }

    /// - Parameter body: the batch is valid during the call alone.
    package func withBatch<T, E: Error>(
        _ body: (RecordBatch) throws(E) -> T
    ) throws(E) -> T {
        try buffer.withBytes { (bytes) throws(E) in
            try body(
                RecordBatch(
                    pieces: [UnsafeRawBufferPointer(rebasing: bytes[start...])],
                    firstSequence: first, lastSequence: last))
        }
    }
}

extension WireRequest {
    /// Of one without records; those are sent from where they lie.
    package func encoded() throws(WireError) -> WireWriter {
        switch self {
        case .append, .stage: preconditionFailure("records are sent from where they lie")
        case .flush: return WireWriter("flush", capacity: 0)
        case .beginStaging(let order, let id, let shape):
            var writer = WireWriter(
                "beginStaging", capacity: 64 + shape.images.count * 24 + shape.names.count)
            writer.put(order)
            writer.put(id)
            try writer.put(shape)
            return writer
        case .syncStaging(let order): return Self.one(order, "syncStaging")
        case .commitStaging(let order, let id, let sequence, let snapshot):
            var writer = WireWriter("commitStaging")
            writer.put(order)
            writer.put(id)
            writer.put(sequence.rawValue)
            writer.put(UInt8(snapshot == nil ? 0 : 1))
            if let snapshot { try writer.put(snapshot) }
            return writer
        case .blockHashes(let after, let image, let range):
            return Self.range(after, image, range, "blockHashes")
        case .allocatedBlocks(let after): return Self.one(after, "allocatedBlocks")
        case .read(let after, let range, let image):
            return Self.range(after, image, range, "read")
        case .shape(let after): return Self.one(after, "shape")
        }
    }

    private static func one(_ value: UInt64, _ message: StaticString) -> WireWriter {
        var writer = WireWriter(message)
        writer.put(value)
        return writer
    }

    private static func range(
        _ after: UInt64, _ image: ImageID, _ range: BlockRange, _ message: StaticString
    ) -> WireWriter {
        var writer = WireWriter(message)
        writer.put(after)
        writer.put(image.rawValue)
        writer.put(range: range)
        return writer
    }

    /// What stands before the records of an `append`.
    static func appendFields(_ batch: RecordBatch, tellsReceived: Bool) -> WireWriter {
        var writer = WireWriter("append")
        writer.put(UInt64(tellsReceived ? 1 : 0))
        writer.put(batch.firstSequence.rawValue)
        writer.put(batch.lastSequence.rawValue)
        return writer
    }

    static func stageFields(_ batch: RecordBatch, order: UInt64, number: UInt64) -> WireWriter {
        var writer = WireWriter("stage")
        writer.put(order)
        writer.put(number)
        writer.put(batch.firstSequence.rawValue)
        writer.put(batch.lastSequence.rawValue)
        return writer
    }

    init(_ frame: WireFrame) throws(WireError) {
        self = try frame.read { (body) throws(WireError) in try Self.decoded(frame, body) }
    }

    private static func decoded(
        _ frame: WireFrame, _ body: UnsafeRawBufferPointer
    ) throws(WireError) -> WireRequest {
        let result: WireRequest
        switch frame.head.kind {
        case .append:
            var reader = WireReader(body, "append")
            let flags: UInt64 = try reader.take("flags")
            guard flags <= 1 else {
                throw reader.error(.malformed, "flags", at: 0, "flags \(flags) are not known")
            }
            let records = try reader.takeRecords(in: frame.body)
            result = .append(records, tellsReceived: flags == 1)
        case .flush: result = .flush
        case .stage:
            var reader = WireReader(body, "stage")
            let order = try reader.takeOrder()
            let number: UInt64 = try reader.take("number")
            result = .stage(
                order: order, number: number, try reader.takeRecords(in: frame.body))
        case .beginStaging:
            var reader = WireReader(body, "beginStaging")
            let order = try reader.takeOrder()
            let id: UInt64 = try reader.take("id")
            result = .beginStaging(order: order, id: id, try reader.takeShape())
            try reader.requireEnd()
        case .syncStaging:
            var reader = WireReader(body, "syncStaging")
            result = .syncStaging(order: try reader.takeOrder())
        case .commitStaging:
            var reader = WireReader(body, "commitStaging")
            let order = try reader.takeOrder()
            let id: UInt64 = try reader.take("id")
            let sequence = try reader.takeSequence("sequence")
            let snapshot = try reader.takeFlags(1, "flags") == 0 ? nil : try reader.takeSnapshot()
            try reader.requireEnd()
            result = .commitStaging(order: order, id: id, at: sequence, snapshot: snapshot)
        default: result = try reading(frame, body)
        }
        return result
    }

    private static func reading(
        _ frame: WireFrame, _ body: UnsafeRawBufferPointer
    ) throws(WireError) -> WireRequest {
        switch frame.head.kind {
        case .blockHashes:
            var reader = WireReader(body, "blockHashes")
            let after: UInt64 = try reader.take("after")
            let image = ImageID(rawValue: try reader.take("image"))
            let range = try reader.takeRange(mostBlocks: WireFormat.mostHashedBlocks, "range")
            return .blockHashes(after: after, of: image, in: range)
        case .allocatedBlocks:
            var reader = WireReader(body, "allocatedBlocks")
            return .allocatedBlocks(after: try reader.take("after"))
        case .read:
            var reader = WireReader(body, "read")
            let after: UInt64 = try reader.take("after")
            let image = ImageID(rawValue: try reader.take("image"))
            let range = try reader.takeRange(mostBlocks: WireFormat.mostReadBlocks, "range")
            return .read(after: after, range, of: image)
        case .shape:
            var reader = WireReader(body, "shape")
            return .shape(after: try reader.take("after"))
        default:
            throw WireError(
                .outOfOrder, "frame.kind", at: 4, "'\(frame.head.kind)' is no request")
        }
    }
}

extension WireReader {
    fileprivate mutating func takeOrder() throws(WireError) -> UInt64 {
        let order: UInt64 = try take("order")
        guard order > 0 else { throw error(.malformed, "order", at: 0, "it begins at 1") }
        return order
    }

    fileprivate mutating func takeRecords(in buffer: WireBuffer) throws(WireError) -> WireRecords {
        let first = try takeSequence("first")
        let last = try takeSequence("last")
        let start = position
        _ = takeRest()
        return WireRecords(first: first, last: last, in: buffer, from: start)
    }
}
