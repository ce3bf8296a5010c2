import BlockCore

/// Encoded records in one piece of memory that is used again and again.
package final class RecordBuffer {
    private var memory: UnsafeMutableRawBufferPointer
    private var count = 0
    private var first = SequenceNumber.zero
    private var last = SequenceNumber.zero

    package init(capacityBytes: Int) {
        memory = .allocate(byteCount: capacityBytes, alignment: 4096)
    }
    deinit { memory.deallocate() }

    package func clear() { count = 0 }
    package var isEmpty: Bool { count == 0 }

    /// Appends one record.
    /// - Parameter fill: writes the payload.
    package func append<E: Error>(
        _ record: StreamRecord, fill: (UnsafeMutableRawBufferPointer) throws(E) -> Void
    ) throws(E) {
        grow(to: count + record.totalBytes)
        let place = UnsafeMutableRawBufferPointer(
            rebasing: memory[count..<count + record.totalBytes])
        record.encodeHeader(into: place)
        let end = StreamRecord.headerBytes + record.payloadBytes
        try fill(
            UnsafeMutableRawBufferPointer(rebasing: place[StreamRecord.headerBytes..<end]))
        for index in end..<record.totalBytes { place[index] = 0 }
        if count == 0 { first = record.sequence }
        last = record.sequence
        count += record.totalBytes
    }

    private func grow(to bytes: Int) {
        guard bytes > memory.count else { return }
        let larger = UnsafeMutableRawBufferPointer.allocate(
            byteCount: max(bytes, memory.count * 2), alignment: 4096)
        larger.copyMemory(from: UnsafeRawBufferPointer(rebasing: memory[0..<count]))
        memory.deallocate()
        memory = larger
    }

    /// Valid until the buffer is changed.
    package var batch: RecordBatch {
        RecordBatch(
            pieces: [UnsafeRawBufferPointer(rebasing: memory[0..<count])], firstSequence: first,
            lastSequence: last)
    }
}

extension RecordBatch {
    /// Calls `body` with each record and its payload.
    package func forEach<E: Error>(
        _ body: (StreamRecord, UnsafeRawBufferPointer) throws(E) -> Void
    ) throws(E) {
        for piece in pieces {
            var rest = piece[...]
            while !rest.isEmpty {
                let bytes = UnsafeRawBufferPointer(rebasing: rest)
                guard let record = StreamRecord(decoding: bytes) else {
                    preconditionFailure("a batch holds whole records")
                }
                let start = StreamRecord.headerBytes
                try body(
                    record,
                    UnsafeRawBufferPointer(rebasing: bytes[start..<start + record.payloadBytes]))
                rest = rest.dropFirst(record.totalBytes)
            }
        }
    }
}
