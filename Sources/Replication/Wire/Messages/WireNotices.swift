// What belongs to no request: acknowledgements, heartbeats, the end.

import BlockCore

extension WireAcknowledgement {
    package func encoded() -> WireWriter {
        var writer = WireWriter("acknowledged")
        writer.put(received.rawValue)
        writer.put(written.rawValue)
        writer.put(durable.rawValue)
        writer.put(staged)
        writer.put(creditBytes)
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "acknowledged")
        received = try reader.takeSequence("received")
        written = try reader.takeSequence("written")
        durable = try reader.takeSequence("durable")
        staged = try reader.take("staged")
        creditBytes = try reader.take("credit")
        guard durable <= written, written <= received else {
            throw reader.error(
                .malformed, "written", at: 8,
                "received \(received.rawValue), written \(written.rawValue), durable "
                    + "\(durable.rawValue)")
        }
    }
}

extension WireBeat {
    package func encoded() -> WireWriter {
        var writer = WireWriter("beat")
        writer.put(sentNs)
        writer.put(takenBytes)
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "beat")
        sentNs = try reader.take("sentNs")
        takenBytes = try reader.take("taken")
    }
}

extension WireGoodbye {
    package func encoded() -> WireWriter {
        var writer = WireWriter("goodbye")
        writer.put(reason.rawValue)
        writer.putZeros(2)
        writer.put(cutText: message, longestBytes: WireFormat.longestMessageTextBytes)
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "goodbye")
        guard let reason = Reason(rawValue: try reader.take("reason")) else {
            throw reader.error(.unknown, "reason", at: 0, "no such reason")
        }
        self.reason = reason
        try reader.takeZeros(2, "zero")
        message = try reader.takeText(
            longestBytes: WireFormat.longestMessageTextBytes, "message")
        try reader.requireEnd()
    }
}

extension WireError {
    package func encoded() -> WireWriter {
        var writer = WireWriter("refused")
        writer.put(kind.rawValue)
        writer.putZeros(2)
        writer.put(UInt64(offset))
        writer.put(cutText: field, longestBytes: 128)
        writer.put(cutText: message, longestBytes: WireFormat.longestMessageTextBytes)
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "refused")
        guard let kind = Kind(rawValue: try reader.take("kind")) else {
            throw reader.error(.unknown, "kind", at: 0, "no such kind of refusal")
        }
        try reader.takeZeros(2, "zero")
        let offset: UInt64 = try reader.take("offset")
        guard offset <= UInt64(UInt32.max) else {
            throw reader.error(.malformed, "offset", at: 4, "\(offset)")
        }
        let field = try reader.takeText(longestBytes: 128, "field")
        let message = try reader.takeText(
            longestBytes: WireFormat.longestMessageTextBytes, "message")
        try reader.requireEnd()
        self.init(kind, field, at: Int(offset), message)
    }
}

/// Goes through encoded records that may have come from anywhere.
enum WireRecordReader {
    /// - Throws: at the first bytes that are no record, or not all of one; what `body` throws.
    static func forEach(
        in bytes: UnsafeRawBufferPointer, _ field: String,
        _ body: (StreamRecord, UnsafeRawBufferPointer) throws(WireError) -> Void
    ) throws(WireError) {
        var position = 0
        while position < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[position...])
            guard let record = StreamRecord(decoding: rest), record.totalBytes <= rest.count,
                record.sequence <= .highestTold
            else {
                throw WireError(.malformed, field, at: position, "this is no record")
            }
            let start = StreamRecord.headerBytes
            try body(
                record,
                UnsafeRawBufferPointer(rebasing: rest[start..<start + record.payloadBytes]))
            position += record.totalBytes
        }
    }

    /// Whether a target may be given them: nothing that calls itself a batch makes one trap.
    static func check(
        _ records: WireRecords, isStream: Bool
    ) throws(TargetError) {
        do throws(WireError) {
            try records.withBatch { (batch) throws(WireError) in
                var last: SequenceNumber?
                try forEach(in: batch.pieces[0], "records") { (record, _) throws(WireError) in
                    if isStream, let last, last >= record.sequence {
                        throw WireError(
                            .malformed, "records", at: 0,
                            "operation \(record.sequence.rawValue) is out of its order")
                    }
                    if last == nil, record.sequence != batch.firstSequence {
                        throw WireError(
                            .malformed, "records", at: 0, "a batch does not begin where it says")
                    }
                    last = record.sequence
                }
                guard last == batch.lastSequence else {
                    throw WireError(
                        .malformed, "records", at: 0, "a batch does not end where it says")
                }
            }
        } catch { throw TargetError(.damaged, "what arrived is no stream of records: \(error)") }
    }
}
