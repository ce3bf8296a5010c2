// What a write, trim or resize appends to the write stream. The caller holds the stripes of the blocks
// and the cut lock (shared is enough), so what is read back here is what was just written.

import BlockCore
import Pool
import Replication
import SystemIO

extension VolumeCore {
    /// Waits, before any lock, until targets that hold writers back have room.
    @inline(__always)
    func waitForRoom(_ bytes: UInt64) {
        stream?.waitForRoom(bytes: Self.room(for: bytes))
    }

    @inline(__always)
    static func room(for bytes: UInt64) -> Int {
        Int(min(bytes, UInt64(StreamRecord.maxPayloadBytes))) + 16384
    }
}

extension Image {
    /// A change is not to begin now: a target that the image does not go on without is lost, or has
    /// fallen so far behind that it holds writers back. Asked once before a change, by who can park it:
    /// one that may begin counts as begun. The change itself waits only where the last of the ring is
    /// used up.
    @inline(__always)
    package func mustHold(_ bytes: Int) -> Bool {
        guard let stream = core.stream else { return false }
        if !stream.hasRoom(bytes: VolumeCore.room(for: UInt64(bytes))) { return true }
        return core.gate.mustHold(bytes, of: id, nowNs: core.disk.monotonic())
    }

    /// - Throws: where a target that the image does not go on without is lost.
    package func requireTargets() throws(VolumeError) {
        if core.gate.obstacle(for: id) == .fail { throw VolumeCore.lostTarget(id) }
    }
}

extension Image {
    private static var blockBytes: Int { Int(Geometry.blockSizeBytes) }

    // MARK: What happened

    /// The bytes were written. What else is in their first and last block is in the head, too.
    /// - Returns: their place in the sequence, the last one where they have several.
    @inline(__always)
    func tellWritten(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64, blocks: BlockRange
    ) -> SequenceNumber {
        guard let stream = core.stream else { return core.nextSequence() }
        return append(buffer, at: offset, blocks: blocks, to: stream)
    }

    /// The bytes read as zeros, in blocks of the head.
    func tellZeroed(from start: UInt64, to end: UInt64) {
        guard let stream = core.stream else {
            _ = core.nextSequence()
            return
        }
        var whole = BlockRange(insideBytesAt: start, lengthBytes: end - start)
        let covering = BlockRange(coveringBytesAt: start, lengthBytes: end - start)
        if end >= sizeBytes {
            // Behind the end everything is zero (V4).
            let first = (start + 4095) >> Geometry.blockShift
            whole = BlockRange(start: first, count: covering.end > first ? covering.end - first : 0)
        }
        guard !whole.isEmpty else { return appendAsIs(covering, to: stream) }
        if covering.start < whole.start {
            appendAsIs(
                BlockRange(start: covering.start, count: whole.start - covering.start), to: stream)
        }
        tellZero(whole)
        if whole.end < covering.end {
            appendAsIs(BlockRange(start: whole.end, count: covering.end - whole.end), to: stream)
        }
    }

    /// The blocks read as zeros.
    func tellZero(_ range: BlockRange) {
        guard let stream = core.stream else {
            _ = core.nextSequence()
            return
        }
        stream.append(
            .zero, image: id, range: range, imageSizeBytes: sizeBytes, atNs: modifiedNs)
    }

    /// The size may have changed.
    /// - Parameter cutOff: the blocks that a shrink took, wholly or in part.
    func tellSize(cutOff: BlockRange = BlockRange(start: 0, count: 0)) {
        guard let stream = core.stream else {
            _ = core.nextSequence()
            return
        }
        stream.append(
            .size, image: id, range: cutOff, imageSizeBytes: sizeBytes, atNs: modifiedNs)
    }

    /// A change failed, perhaps after a part of it: the blocks go out as they are.
    func tellFailed(_ blocks: BlockRange) {
        guard let stream = core.stream else { return }
        let end = Geometry.blockCount(sizeBytes: sizeBytes)
        guard blocks.start < end else { return }
        appendAsIs(
            BlockRange(start: blocks.start, count: min(blocks.count, end - blocks.start)),
            to: stream)
    }

    static func cutOff(from oldSize: UInt64, to newSize: UInt64) -> BlockRange {
        guard newSize < oldSize else { return BlockRange(start: 0, count: 0) }
        return BlockRange(coveringBytesAt: newSize, lengthBytes: oldSize - newSize)
    }

    // MARK: Records

    private func append(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64, blocks: BlockRange,
        to stream: WriteStream
    ) -> SequenceNumber {
        let head = Int(offset & 4095)
        let tail = Int(blocks.lengthBytes) - head - buffer.count
        guard head > 0 || tail > 0 else { return appendWhole(buffer, blocks, to: stream) }
        return withUnsafeTemporaryAllocation(byteCount: 2 * Self.blockBytes, alignment: 4096) {
            scratch -> SequenceNumber in
            let first = UnsafeMutableRawBufferPointer(rebasing: scratch[..<Self.blockBytes])
            let last = UnsafeMutableRawBufferPointer(rebasing: scratch[Self.blockBytes...])
            let hasFirst = head > 0 || blocks.count == 1
            let hasLast = tail > 0 && blocks.count > 1
            guard !hasFirst || readBack(BlockRange(start: blocks.start, count: 1), into: first),
                !hasLast || readBack(BlockRange(start: blocks.end - 1, count: 1), into: last)
            else {
                return stream.dirty([id: BlockSet([blocks])])
            }
            var place = SequenceNumber.zero
            // Ends of the buffer that are not in an edge block.
            var middle = buffer
            var range = blocks
            if hasFirst {
                place = appendWhole(
                    UnsafeRawBufferPointer(first), BlockRange(start: range.start, count: 1),
                    to: stream)
                let used = min(middle.count, Self.blockBytes - head)
                middle = UnsafeRawBufferPointer(rebasing: middle[used...])
                range = BlockRange(start: range.start + 1, count: range.count - 1)
            }
            if hasLast {
                let used = Self.blockBytes - tail
                middle = UnsafeRawBufferPointer(rebasing: middle[..<(middle.count - used)])
                range.count -= 1
            }
            if !range.isEmpty { place = appendWhole(middle, range, to: stream) }
            if hasLast {
                place = appendWhole(
                    UnsafeRawBufferPointer(last), BlockRange(start: blocks.end - 1, count: 1),
                    to: stream)
            }
            return place
        }
    }

    /// - Parameter content: of all the blocks.
    /// - Returns: the last record's place.
    @discardableResult
    private func appendWhole(
        _ content: UnsafeRawBufferPointer, _ blocks: BlockRange, to stream: WriteStream
    ) -> SequenceNumber {
        var place = SequenceNumber.zero
        let limit = UInt64(stream.maxPayloadBytes / Self.blockBytes)
        var done: UInt64 = 0
        while done < blocks.count {
            let count = min(limit, blocks.count - done)
            let from = Int(done) * Self.blockBytes
            let piece = UnsafeRawBufferPointer(
                rebasing: content[from..<from + Int(count) * Self.blockBytes])
            place = stream.append(
                .data, image: id, range: BlockRange(start: blocks.start + done, count: count),
                imageSizeBytes: sizeBytes, atNs: modifiedNs, payloadBytes: piece.count
            ) { $0.copyMemory(from: piece) }
            done += count
        }
        return place
    }

    /// What the image shows there; where that cannot be read the blocks are dirty for every target.
    private func appendAsIs(_ blocks: BlockRange, to stream: WriteStream) {
        let limit = min(UInt64(stream.maxPayloadBytes / Self.blockBytes), blocks.count)
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(limit) * Self.blockBytes, alignment: 4096)
        defer { buffer.deallocate() }
        var block = blocks.start
        while block < blocks.end {
            let piece = BlockRange(start: block, count: min(limit, blocks.end - block))
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(piece.lengthBytes)])
            if readBack(piece, into: part) {
                appendWhole(UnsafeRawBufferPointer(part), piece, to: stream)
            } else {
                stream.dirty([id: BlockSet([piece])])
            }
            block = piece.end
        }
    }

    /// - Returns: false when it cannot be read.
    private func readBack(_ range: BlockRange, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
        do throws(VolumeError) {
            let got = try read(into: buffer, at: range.startByte)
            UnsafeMutableRawBufferPointer(rebasing: buffer[got...])
                .initializeMemory(as: UInt8.self, repeating: 0)
            return true
        } catch { return false }
    }
}
