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

    /// Appends the content of blocks as records: data where there is any, zero where there is none.
    /// - Parameter read: fills the buffer from its beginning; what it leaves is zeros.
    package func append<E: Error>(
        blocks: BlockRange, of image: ImageID, sizeBytes: UInt64, at sequence: SequenceNumber,
        read: (UnsafeMutableRawBufferPointer) throws(E) -> Int
    ) throws(E) {
        let length = Int(blocks.lengthBytes)
        // Two headers for each run of blocks is never more than the zeros between two runs.
        grow(to: count + 2 * StreamRecord.headerBytes + length)
        let start = count + StreamRecord.headerBytes
        let content = UnsafeMutableRawBufferPointer(rebasing: memory[start..<start + length])
        let got = try read(content)
        UnsafeMutableRawBufferPointer(rebasing: content[got...])
            .initializeMemory(as: UInt8.self, repeating: 0)
        var run = blocks
        run.count = 0
        while run.end < blocks.end {
            run = BlockRange(start: run.end, count: 0)
            let isZero = Self.isZero(content, Int(run.start - blocks.start))
            while run.end < blocks.end,
                Self.isZero(content, Int(run.end - blocks.start)) == isZero
            {
                run.count += 1
            }
            // What is read next lies behind what is written: zeros took more room than a header.
            let from = start + Int((run.start - blocks.start) << Geometry.blockShift)
            place(
                StreamRecord(
                    isZero ? .zero : .data, sequence: sequence, image: image, range: run,
                    imageSizeBytes: sizeBytes, payloadBytes: isZero ? 0 : Int(run.lengthBytes)),
                payloadAt: from)
        }
    }

    /// The next record, whose payload is in the buffer already, at its place or behind it.
    private func place(_ record: StreamRecord, payloadAt from: Int) {
        let to = count + StreamRecord.headerBytes
        if record.payloadBytes > 0, from != to {
            (memory.baseAddress! + to).copyMemory(
                from: memory.baseAddress! + from, byteCount: record.payloadBytes)
        }
        record.encodeHeader(into: UnsafeMutableRawBufferPointer(rebasing: memory[count...]))
        if count == 0 { first = record.sequence }
        last = record.sequence
        count += record.totalBytes
    }

    private static func isZero(_ content: UnsafeMutableRawBufferPointer, _ block: Int) -> Bool {
        let size = Int(Geometry.blockSizeBytes)
        let bytes = UnsafeMutableRawBufferPointer(
            rebasing: content[block * size..<(block + 1) * size])
        return bytes.withMemoryRebound(to: UInt64.self) { words in
            for word in words where word != 0 { return false }
            return true
        }
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
