import BlockCore
import Replication
import Volume

extension RecordBuffer {
    /// Appends blocks of an image as records: data where there is any, zero where there is none, and
    /// nothing of what is behind the image's end.
    /// - Parameter read: bytes at an offset; fewer only at the image's end.
    func append(
        _ range: BlockRange, of image: ImageID, sizeBytes: UInt64, at sequence: SequenceNumber,
        read: (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int
    ) throws(TargetError) {
        let endBlock = (sizeBytes + Geometry.blockSizeBytes - 1) >> Geometry.blockShift
        guard range.start < endBlock else { return }
        let inside = BlockRange(start: range.start, count: min(range.count, endBlock - range.start))
        try TargetError.volume { () throws(VolumeError) in
            try withBlocks(inside, read) { (content) in
                for (run, isZero) in Self.runs(of: content, at: inside.start) {
                    let record = StreamRecord(
                        isZero ? .zero : .data, sequence: sequence, image: image, range: run,
                        imageSizeBytes: sizeBytes, payloadBytes: isZero ? 0 : Int(run.lengthBytes))
                    let start = Int((run.start - inside.start) * Geometry.blockSizeBytes)
                    append(record) { payload in
                        guard !isZero else { return }
                        payload.copyMemory(
                            from: UnsafeRawBufferPointer(
                                rebasing: content[start..<start + Int(run.lengthBytes)]))
                    }
                }
            }
        }
    }

    private func withBlocks(
        _ range: BlockRange,
        _ read: (UnsafeMutableRawBufferPointer, UInt64) throws(VolumeError) -> Int,
        _ body: (UnsafeRawBufferPointer) -> Void
    ) throws(VolumeError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(range.lengthBytes), alignment: 4096)
        defer { buffer.deallocate() }
        let got = try read(buffer, range.startByte)
        UnsafeMutableRawBufferPointer(rebasing: buffer[got...])
            .initializeMemory(as: UInt8.self, repeating: 0)
        body(UnsafeRawBufferPointer(buffer))
    }

    /// Runs of blocks that are all zeros, or none of them is.
    private static func runs(
        of content: UnsafeRawBufferPointer, at start: UInt64
    ) -> [(BlockRange, isZero: Bool)] {
        var runs: [(BlockRange, isZero: Bool)] = []
        let blockBytes = Int(Geometry.blockSizeBytes)
        for index in 0..<content.count / blockBytes {
            let block = content[index * blockBytes..<(index + 1) * blockBytes]
            let isZero = isAllZero(UnsafeRawBufferPointer(rebasing: block))
            if let last = runs.last, last.isZero == isZero {
                runs[runs.count - 1].0 = BlockRange(start: last.0.start, count: last.0.count + 1)
            } else {
                runs.append((BlockRange(start: start + UInt64(index), count: 1), isZero))
            }
        }
        return runs
    }

    private static func isAllZero(_ block: UnsafeRawBufferPointer) -> Bool {
        block.withMemoryRebound(to: UInt64.self) { words in
            for word in words where word != 0 { return false }
            return true
        }
    }
}
