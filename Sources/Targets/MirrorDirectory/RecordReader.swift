import BlockCore
import Pool
import Replication

/// Goes through encoded records that may have come from anywhere.
enum RecordReader {
    /// - Throws: `.damaged` at the first bytes that are no record; what `body` throws.
    static func forEach(
        in bytes: UnsafeRawBufferPointer,
        _ body: (StreamRecord, UnsafeRawBufferPointer) throws(TargetError) -> Void
    ) throws(TargetError) {
        var position = 0
        while position < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[position...])
            guard let record = StreamRecord(decoding: rest), record.totalBytes <= rest.count else {
                throw TargetError(.damaged, "what arrived is no stream of records")
            }
            let start = StreamRecord.headerBytes
            try body(
                record,
                UnsafeRawBufferPointer(rebasing: rest[start..<start + record.payloadBytes]))
            position += record.totalBytes
        }
    }

    /// Refuses what could not be replayed: a journal must not keep it.
    static func check(_ batch: RecordBatch) throws(TargetError) {
        guard (1...2).contains(batch.pieces.count) else {
            throw TargetError(.damaged, "a batch has \(batch.pieces.count) pieces")
        }
        var last: SequenceNumber?
        for piece in batch.pieces {
            try forEach(in: piece) { (record, payload) throws(TargetError) in
                guard record.kind != .barrier else {
                    throw TargetError(.damaged, "a barrier cannot be streamed past")
                }
                guard saysSomething(record, payload) else {
                    throw TargetError(
                        .damaged,
                        "operation \(record.sequence.rawValue) says nothing that makes sense")
                }
                guard last.map({ $0 < record.sequence }) ?? (record.sequence == batch.firstSequence)
                else {
                    throw TargetError(
                        .damaged, "operation \(record.sequence.rawValue) is out of its order")
                }
                last = record.sequence
            }
        }
        guard last == batch.lastSequence else {
            throw TargetError(.damaged, "a batch does not end where it says")
        }
    }

    private static func saysSomething(
        _ record: StreamRecord, _ payload: UnsafeRawBufferPointer
    ) -> Bool {
        switch record.kind {
        case .data, .zero, .size, .imageCreated, .imageDeleted, .barrier: true
        case .names: NamesCodec.decode(payload) != nil
        case .standing: StandingPayload.decode(payload) != nil
        case .snapshot:
            SnapshotPayload.decode(payload, sequence: record.sequence)?.name.contains("/") == false
        }
    }
}
