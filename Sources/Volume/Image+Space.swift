// Trim, zero, allocate and resize: changes of what is stored rather than of what it says.

import BlockCore
import Pool
import SystemIO

extension Image {
    /// Bytes handled under one hold of the stripes.
    private static var pieceBytes: UInt64 { 1 << 30 }

    /// The range reads as zeros afterwards, and its space is given back.
    package func trim(at offset: UInt64, length: UInt64) throws(VolumeError) {
        let end = min(offset &+ length < offset ? UInt64.max : offset + length, sizeBytes)
        try forEachPiece(from: offset, to: end) { (start, stop) throws(VolumeError) in
            try zeroPiece(from: start, to: stop, punches: true)
        }
    }

    /// The range reads as zeros afterwards; without `keepSize` the image grows to hold it.
    package func zero(at offset: UInt64, length: UInt64, keepSize: Bool) throws(VolumeError) {
        guard length <= Geometry.maxImageSizeBytes, offset <= Geometry.maxImageSizeBytes - length
        else { throw VolumeError(.tooLarge, image: id, "an image ends at 64 TiB") }
        if !keepSize, offset + length > sizeBytes { try resize(to: offset + length) }
        let end = min(offset + length, sizeBytes)
        try forEachPiece(from: offset, to: end) { (start, stop) throws(VolumeError) in
            try zeroPiece(from: start, to: stop, punches: false)
        }
    }

    /// Finds space for the range now, so that writes into it do not meet a full disk.
    package func allocate(at offset: UInt64, length: UInt64, keepSize: Bool) throws(VolumeError) {
        guard length <= Geometry.maxImageSizeBytes, offset <= Geometry.maxImageSizeBytes - length
        else { throw VolumeError(.tooLarge, image: id, "an image ends at 64 TiB") }
        try forEachPiece(from: offset, to: offset + length) { (start, stop) throws(VolumeError) in
            let blocks = BlockRange(coveringBytesAt: start, lengthBytes: stop - start)
            try core.admit(0, to: id)
            try lockForChange(of: blocks)
            defer { unlock(blocks) }
            try VolumeError.system(id) { () throws(SystemError) in
                try head.data.allocate(
                    at: start, length: stop - start, keepSize: keepSize || head.map != nil)
            }
            if !keepSize { grow(to: stop) }
            noteChange()
            tellSize()
        }
    }

    private func forEachPiece(
        from start: UInt64, to end: UInt64,
        _ body: (UInt64, UInt64) throws(VolumeError) -> Void
    ) throws(VolumeError) {
        var position = start
        while position < end {
            let stop = min(end, (position / Self.pieceBytes + 1) * Self.pieceBytes)
            try body(position, stop)
            position = stop
        }
    }

    private func zeroPiece(from start: UInt64, to end: UInt64, punches: Bool) throws(VolumeError) {
        let covering = BlockRange(coveringBytesAt: start, lengthBytes: end - start)
        try core.admit(0, to: id)
        try lockForChange(of: covering)
        if !tracksBlocks {
            defer { unlock(covering) }
            do throws(SystemError) {
                // The size may have shrunk since the caller looked: neither call grows a file.
                if punches {
                    try head.data.punchHole(at: start, length: end - start)
                } else {
                    try head.data.zeroRange(at: start, length: end - start)
                }
            } catch {
                tellFailed(covering)
                throw VolumeError(error, image: id)
            }
            noteChange()
            tellZeroed(from: start, to: end)
            return
        }
        unlock(covering)
        // The image's last block counts as whole: what is past the end is zero already (V4).
        let endsImage = end >= sizeBytes
        var whole = BlockRange(insideBytesAt: start, lengthBytes: end - start)
        if endsImage, end & 4095 != 0 {
            let first = (start + 4095) >> Geometry.blockShift
            whole = BlockRange(start: first, count: covering.end > first ? covering.end - first : 0)
        }
        if whole.isEmpty { return try writeZeros(from: start, to: end) }
        if start < whole.startByte { try writeZeros(from: start, to: whole.startByte) }
        try zeroBlocks(whole, onlyIfEndsAt: endsImage ? end : nil)
        let wholeEnd = whole.startByte + whole.lengthBytes
        if wholeEnd < end { try writeZeros(from: wholeEnd, to: end) }
    }

    private func writeZeros(from start: UInt64, to end: UInt64) throws(VolumeError) {
        var result = Result<Void, VolumeError>.success(())
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 4096) { zeros in
            zeros.initializeMemory(as: UInt8.self, repeating: 0)
            result = Result { () throws(VolumeError) in
                var position = start
                while position < end {
                    // Block by block: a crash in between leaves every sector as before or zero.
                    let count = Int(min(end - position, 4096 - (position & 4095)))
                    try write(
                        UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(zeros)[0..<count]),
                        at: position)
                    position += UInt64(count)
                }
            }
        }
        try result.get()
    }

    /// - Parameter imageEnd: the size under which the last block was taken as whole; when the
    ///   image has grown past it meanwhile, that block is left to hold what was written.
    private func zeroBlocks(
        _ range: BlockRange, onlyIfEndsAt imageEnd: UInt64?
    ) throws(VolumeError) {
        try core.admit(0, to: id)
        try lockForChange(of: range)
        defer { unlock(range) }
        var range = range
        if let imageEnd, imageEnd & 4095 != 0, sizeBytes > imageEnd { range.count -= 1 }
        guard !range.isEmpty, !chain.index.isAll(.zero, in: range) else { return }
        do throws(SystemError) { try zeroLocked(range) } catch {
            tellFailed(range)
            throw VolumeError(error, image: id)
        }
        noteChange()
        tellZero(range)
    }

    /// Whole blocks become zero; the caller holds their stripes.
    func zeroLocked(_ range: BlockRange) throws(SystemError) {
        // What is changed first must not be all that is changed.
        try draining?.reserveNotes()
        if head.map == nil {
            // A plain file says zero by a hole.
            try head.data.punchHole(at: range.startByte, length: range.lengthBytes)
            guard tracksBlocks else { return }
            try draining?.note(range, .absent)
            chain.index.set(range, to: headSlot)
            return
        }
        try head.note(range, .zero)
        try draining?.note(range, .absent)
        chain.index.set(range, to: .zero)
        head.punchAfterCommit(range)
    }

    /// Grows with zeros, or cuts off. What was cut off reads as zeros should the image grow again.
    package func resize(to newSize: UInt64) throws(VolumeError) {
        guard newSize <= Geometry.maxImageSizeBytes else {
            throw VolumeError(.tooLarge, image: id, "an image ends at 64 TiB")
        }
        try core.admit(0, to: id)
        let high = try lockAll(toResizeTo: newSize)
        defer { unlockAll() }
        let all = BlockRange(
            start: 0, count: max(Geometry.blockCount(sizeBytes: max(high, sizeBytes)), 1))
        let current = sizeBytes
        if tracksBlocks, newSize < current {
            try clearTail(of: newSize)
            let first = Geometry.blockCount(sizeBytes: newSize)
            let cutOff = BlockRange(start: first, count: max(all.end, first) - first)
            if !cutOff.isEmpty {
                do throws(SystemError) { try zeroLocked(cutOff) } catch {
                    tellFailed(cutOff)
                    throw VolumeError(error, image: id)
                }
            }
        }
        if head.map == nil {
            try VolumeError.system(id) { () throws(SystemError) in
                try head.data.truncate(to: newSize)
            }
        }
        storeSize(newSize)
        noteChange()
        tellSize(cutOff: Self.cutOff(from: current, to: newSize))
    }

    /// Takes every stripe with the regions marked that the resize changes: every block between the
    /// two sizes changes for whoever follows this image.
    /// - Returns: the end of what is marked.
    private func lockAll(toResizeTo newSize: UInt64) throws(VolumeError) -> UInt64 {
        while true {
            let old = sizeBytes
            let low = min(old, newSize)
            let high = max(max(old, newSize), low + 1)
            let changed = BlockRange(coveringBytesAt: low, lengthBytes: high - low)
            try lockForChange(of: changed)
            unlock(changed)
            if tracksBlocks, newSize < old, newSize & 4095 != 0 {
                // The tail of the new last block is in the head then, where it can be cleared.
                try writeZeros(from: newSize, to: min((newSize | 4095) + 1, old))
            }
            try core.lockForChange()
            stripes.lockAll()
            // Neither settled nor outgrown meanwhile.
            if sizeBytes <= high, isMarked(changed) { return high }
            unlockAll()
        }
    }

    private func unlockAll() {
        stripes.unlockAll()
        core.cut.unlock()
    }

    private func isMarked(_ blocks: BlockRange) -> Bool {
        !core.marksActivity
            || activity.isActive(
                first: Int(blocks.start / Geometry.blocksPerRegion),
                last: Int((blocks.end - 1) / Geometry.blocksPerRegion))
    }

    /// V4: what is behind the new end in its block, also if it was written a moment ago.
    private func clearTail(of newSize: UInt64) throws(VolumeError) {
        guard newSize & 4095 != 0,
            chain.index.slot(of: newSize >> Geometry.blockShift) == headSlot
        else { return }
        try VolumeError.system(id) { () throws(SystemError) in
            try head.data.punchHole(at: newSize, length: 4096 - (newSize & 4095))
        }
    }

    // MARK: Past the end (V4)

    /// After a crash: what is there of writes past the end whose size was lost. Nobody else has the
    /// image yet. Should this be lost too, the next open does it again.
    func clearPastEnd() throws(VolumeError) {
        guard head.map != nil else { return }
        let modifiedNs = self.modifiedNs
        try VolumeError.system(id) { () throws(SystemError) in
            let end = sizeBytes
            if end & 4095 != 0, chain.index.slot(of: end >> Geometry.blockShift) == headSlot {
                try head.data.punchHole(at: end, length: 4096 - (end & 4095))
            }
            var block = Geometry.blockCount(sizeBytes: end)
            let limit = Geometry.blockCount(sizeBytes: try head.data.status().sizeBytes)
            while block < limit {
                let (slot, count) = chain.index.run(at: block, limit: limit - block)
                let range = BlockRange(start: block, count: count)
                if slot == headSlot {
                    try head.note(range, .zero)
                    chain.index.set(range, to: .zero)
                    head.punchAfterCommit(range)
                }
                block += count
            }
        }
        setModified(ns: modifiedNs)
    }

    /// A write past the end failed, perhaps after a part of it. The caller holds the stripes.
    func clearFailedGrowth(from offset: UInt64, to end: UInt64) {
        let start = max(offset, sizeBytes)
        // On a disk that fails this, too, nothing better can be done.
        if start < end { try? head.data.punchHole(at: start, length: end - start) }
    }
}
