import BlockCore
import Pool
import SystemIO

extension Image {
    /// Writes all of the buffer, growing the image where it passes its end.
    package func write(_ buffer: UnsafeRawBufferPointer, at offset: UInt64) throws(VolumeError) {
        _ = try placedWrite(buffer, at: offset)
    }

    /// The same.
    /// - Returns: the write's place in the sequence; zero for nothing at all.
    @inline(__always)
    package func placedWrite(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(VolumeError) -> SequenceNumber {
        guard buffer.count > 0 else { return .zero }
        let length = UInt64(buffer.count)
        guard offset <= Geometry.maxImageSizeBytes, length <= Geometry.maxImageSizeBytes - offset
        else {
            throw VolumeError(.tooLarge, image: id, "an image ends at 64 TiB")
        }
        let blocks = BlockRange(coveringBytesAt: offset, lengthBytes: length)
        try core.admit(length, to: id)
        while true {
            try lockForChange(of: blocks)
            if !tracksBlocks || !needsMerging(blocks, offset: offset, end: offset + length) {
                defer { unlock(blocks) }
                return try writeLocked(buffer, at: offset, blocks: blocks)
            }
            unlock(blocks)
            if let place = try writeMerging(buffer, at: offset, blocks: blocks) { return place }
        }
    }

    // MARK: Locks

    /// Marks the regions, then takes the cut lock shared and the stripes; the marks hold while they
    /// are held.
    func lockForChange(of blocks: BlockRange) throws(VolumeError) {
        guard core.marksActivity else {
            try core.lockForChange()
            stripes.lock(blocks)
            return
        }
        let first = Int(blocks.start / Geometry.blocksPerRegion)
        let last = Int((blocks.end - 1) / Geometry.blocksPerRegion)
        while true {
            if !activity.isActive(first: first, last: last) {
                if core.settlesBehind { activity.waitForRoom(wantsSettling) }
                do throws(SystemError) { try activity.activate(first: first, last: last) } catch {
                    throw VolumeError(error, image: id)
                }
            }
            try core.lockForChange()
            if activity.isActive(first: first, last: last) { break }
            core.cut.unlock()
        }
        activity.touch(first: first, last: last)
        stripes.lock(blocks)
    }

    @inline(__always)
    func unlock(_ blocks: BlockRange) {
        stripes.unlock(blocks)
        core.cut.unlock()
    }

    // MARK: Under the locks

    /// A partly written edge block that is not in the head needs the rest of its content.
    @inline(__always)
    private func needsMerging(_ blocks: BlockRange, offset: UInt64, end: UInt64) -> Bool {
        if offset & 4095 != 0, chain.index.slot(of: blocks.start) != headSlot { return true }
        return end & 4095 != 0 && chain.index.slot(of: blocks.end - 1) != headSlot
    }

    @inline(__always)
    private func writeLocked(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64, blocks: BlockRange
    ) throws(VolumeError) -> SequenceNumber {
        do throws(SystemError) {
            try head.data.write(buffer, at: offset)
            try noteWritten(blocks)
        } catch {
            clearFailedGrowth(from: offset, to: offset + UInt64(buffer.count))
            tellFailed(blocks)
            throw VolumeError(error, image: id)
        }
        grow(to: offset + UInt64(buffer.count))
        noteChange()
        return tellWritten(buffer, at: offset, blocks: blocks)
    }

    /// After the data: a commit that takes the record must find the data written (Layer's L1).
    @inline(__always)
    private func noteWritten(_ blocks: BlockRange) throws(SystemError) {
        guard tracksBlocks, !chain.index.isAll(headSlot, in: blocks) else { return }
        try noteInHead(blocks)
    }

    /// The blocks' data is in the head's file; from here on they are found there (V5).
    @inline(__always)
    func noteInHead(_ blocks: BlockRange) throws(SystemError) {
        // Both maps or none: what the head's alone says would show after the next open.
        try draining?.reserveNotes()
        try head.note(blocks, .data)
        try draining?.note(blocks, .absent)
        chain.index.set(blocks, to: headSlot)
    }

    /// Writes whole blocks to the head. A plain file that is the head has the image's size: zeros
    /// past it (V4) stay unwritten.
    func writeBlocks(
        _ bytes: UnsafeRawBufferPointer, at offset: UInt64, imageEnd: UInt64
    ) throws(SystemError) {
        var count = bytes.count
        if head.map == nil { count = Int(min(UInt64(count), max(imageEnd, offset) - offset)) }
        if count > 0 {
            try head.data.write(UnsafeRawBufferPointer(rebasing: bytes[0..<count]), at: offset)
        }
    }

    // MARK: Merging edges with what lies below

    /// Reads the edges' old content without a lock, then writes whole blocks under the locks.
    /// - Returns: the write's place; nil when an edge changed meanwhile: the caller starts over.
    private func writeMerging(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64, blocks: BlockRange
    ) throws(VolumeError) -> SequenceNumber? {
        var result = Result<SequenceNumber?, VolumeError>.success(nil)
        withUnsafeTemporaryAllocation(byteCount: 8192, alignment: 4096) { scratch in
            result = Result { () throws(VolumeError) in
                try writeMerging(buffer, at: offset, blocks: blocks, scratch: scratch)
            }
        }
        return try result.get()
    }

    private func writeMerging(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64, blocks: BlockRange,
        scratch: UnsafeMutableRawBufferPointer
    ) throws(VolumeError) -> SequenceNumber? {
        let end = offset + UInt64(buffer.count)
        let firstIsPartial = offset & 4095 != 0 || (blocks.count == 1 && end & 4095 != 0)
        let lastIsPartial = end & 4095 != 0 && blocks.count > 1
        // An edge that is in the head already is written in place, like the blocks between.
        let (headSlot, chainBefore) = core.cut.withRead { (self.headSlot, self.chain) }
        let firstSlot =
            firstIsPartial ? try fetch(blocks.start, into: first(of: scratch)) : headSlot
        let lastSlot = lastIsPartial ? try fetch(blocks.end - 1, into: last(of: scratch)) : headSlot
        let hasFirst = firstSlot != headSlot
        let hasLast = lastSlot != headSlot
        let first = first(of: scratch)
        let last = last(of: scratch)

        try lockForChange(of: blocks)
        defer { unlock(blocks) }
        // What was fetched must be what is there still, and the head must be the one meant.
        guard self.headSlot == headSlot, chain === chainBefore,
            !firstIsPartial || chain.index.slot(of: blocks.start) == firstSlot,
            !lastIsPartial || chain.index.slot(of: blocks.end - 1) == lastSlot
        else { return nil }
        do throws(SystemError) {
            var from = 0
            var to = buffer.count
            if hasFirst {
                let inBlock = Int(offset & 4095)
                let count = min(buffer.count, 4096 - inBlock)
                UnsafeMutableRawBufferPointer(rebasing: first[inBlock..<inBlock + count])
                    .copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[0..<count]))
                try writeBlocks(
                    UnsafeRawBufferPointer(first), at: blocks.startByte,
                    imageEnd: max(sizeBytes, end))
                from = count
            }
            if hasLast {
                let count = Int(end & 4095)
                UnsafeMutableRawBufferPointer(rebasing: last[0..<count]).copyMemory(
                    from: UnsafeRawBufferPointer(rebasing: buffer[(buffer.count - count)...]))
                try writeBlocks(
                    UnsafeRawBufferPointer(last), at: (blocks.end - 1) << Geometry.blockShift,
                    imageEnd: max(sizeBytes, end))
                to = buffer.count - count
            }
            if from < to {
                try head.data.write(
                    UnsafeRawBufferPointer(rebasing: buffer[from..<to]), at: offset + UInt64(from))
            }
            try noteInHead(blocks)
        } catch {
            clearFailedGrowth(from: offset, to: end)
            tellFailed(blocks)
            throw VolumeError(error, image: id)
        }
        grow(to: end)
        noteChange()
        return tellWritten(buffer, at: offset, blocks: blocks)
    }

    private func first(of scratch: UnsafeMutableRawBufferPointer) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: scratch[0..<4096])
    }
    private func last(of scratch: UnsafeMutableRawBufferPointer) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: scratch[4096..<8192])
    }

    /// Reads one block as the image shows it.
    /// - Returns: the slot it was found in, which tells later whether it is still the same.
    private func fetch(
        _ block: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(VolumeError) -> LayerSlot {
        let ticket = core.epochs.enter()
        defer { core.epochs.leave(ticket) }
        let chain = self.chain
        let slot = chain.index.slot(of: block)
        do throws(LayerError) {
            if slot == .zero {
                buffer.initializeMemory(as: UInt8.self, repeating: 0)
            } else {
                try chain.withLayer(slot) { layer throws(LayerError) in
                    try layer.read(into: buffer, at: block << Geometry.blockShift)
                }
            }
        } catch { throw VolumeError(error, image: id) }
        return slot
    }
}
