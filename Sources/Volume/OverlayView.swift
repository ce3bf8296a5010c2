import BlockCore
import Pool
import SystemIO

/// A sealed layer with later changes laid over it, in a file that has no name and is gone with the
/// view. It is filled by one thread, and read by any number of others after that.
package final class OverlayView: LayerView, @unchecked Sendable {
    /// Blocks of the overlay's file; what says `root` is below.
    private static let here = LayerSlot(rawValue: 1)

    /// Of its file, as long as that has a name: a crash may leave it.
    package static let namePrefix = "overlay-"

    private let below: LayerView?
    private let file: DiskFile
    private let index = BlockIndex()
    private var lengthBytes: UInt64
    package var modifiedNs: Int64 = 0

    init(below: LayerView?, file: DiskFile, epochs: ReadEpochs) {
        self.below = below
        self.file = file
        lengthBytes = below?.sizeBytes ?? 0
        super.init(
            sizeBytes: lengthBytes, chain: below?.chain ?? LayerChain(epochs: epochs))
    }

    deinit { file.close() }

    package override var sizeBytes: UInt64 { lengthBytes }

    // MARK: Filling

    /// - Parameter bytes: whole blocks, zero behind the image's end.
    package func write(
        _ bytes: UnsafeRawBufferPointer, over range: BlockRange, imageSizeBytes: UInt64
    ) throws(VolumeError) {
        try VolumeError.system { () throws(SystemError) in
            try file.write(bytes, at: range.startByte)
        }
        index.set(range, to: Self.here)
        lengthBytes = max(lengthBytes, min(range.end << Geometry.blockShift, imageSizeBytes))
    }

    package func zero(_ range: BlockRange) { index.set(range, to: .zero) }

    package func resize(to newBytes: UInt64) throws(VolumeError) {
        let oldBytes = lengthBytes
        lengthBytes = newBytes
        guard newBytes < oldBytes else { return }
        let first = Geometry.blockCount(sizeBytes: newBytes)
        let end = Geometry.blockCount(sizeBytes: oldBytes)
        if first < end { index.set(BlockRange(start: first, count: end - first), to: .zero) }
        let kept = Int(newBytes % Geometry.blockSizeBytes)
        guard kept != 0 else { return }
        // What is cut off inside the last block reads as zeros when the image grows again.
        let block = BlockRange(start: first - 1, count: 1)
        let buffer = UnsafeMutableRawBufferPointer.allocate(
            byteCount: Int(Geometry.blockSizeBytes), alignment: 4096)
        defer { buffer.deallocate() }
        try fill(buffer, at: block.startByte)
        UnsafeMutableRawBufferPointer(rebasing: buffer[kept...])
            .initializeMemory(as: UInt8.self, repeating: 0)
        try write(UnsafeRawBufferPointer(buffer), over: block, imageSizeBytes: newBytes)
    }

    // MARK: Reading

    package override func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(VolumeError) -> Int {
        guard offset < sizeBytes, buffer.count > 0 else { return 0 }
        let count = Int(min(UInt64(buffer.count), sizeBytes - offset))
        try fill(UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]), at: offset)
        return count
    }

    private func fill(
        _ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(VolumeError) {
        var done = 0
        while done < buffer.count {
            let position = offset + UInt64(done)
            let (slot, end) = run(at: position, limit: offset + UInt64(buffer.count))
            let part = UnsafeMutableRawBufferPointer(
                rebasing: buffer[done..<Int(end - offset)])
            var got = 0
            switch slot {
            case .zero: break
            case Self.here:
                got = try VolumeError.system { () throws(SystemError) in
                    try file.read(into: part, at: position)
                }
            default: got = try below?.read(into: part, at: position) ?? 0
            }
            UnsafeMutableRawBufferPointer(rebasing: part[got...])
                .initializeMemory(as: UInt8.self, repeating: 0)
            done = Int(end - offset)
        }
    }

    /// Where the blocks from `position` on are found, and where that ends, at most at `limit`.
    private func run(at position: UInt64, limit: UInt64) -> (slot: LayerSlot, end: UInt64) {
        let block = position >> Geometry.blockShift
        let last = (limit - 1) >> Geometry.blockShift
        let (slot, count) = index.run(at: block, limit: last - block + 1)
        return (slot, min(limit, (block + count) << Geometry.blockShift))
    }

    package override func seekData(from offset: UInt64) throws(VolumeError) -> UInt64? {
        var position = offset
        while position < sizeBytes {
            let (slot, end) = run(at: position, limit: sizeBytes)
            if slot == Self.here { return position }
            if slot == .root, let found = try below?.seekData(from: position), found < end {
                return found
            }
            position = end
        }
        return nil
    }

    package override func seekHole(from offset: UInt64) throws(VolumeError) -> UInt64? {
        var position = offset
        while position < sizeBytes {
            let (slot, end) = run(at: position, limit: sizeBytes)
            if slot == .zero { return position }
            if slot == .root {
                guard let found = try below?.seekHole(from: position) else { return position }
                if found < end { return found }
            }
            position = end
        }
        return offset < sizeBytes ? sizeBytes : nil
    }

    package override func allocatedBytes() -> UInt64 {
        let own = (try? file.status())?.allocatedBytes ?? 0
        return min((below?.allocatedBytes() ?? 0) + own, (sizeBytes + 4095) & ~4095)
    }
}

extension Volume {
    /// - Parameter below: nil for an image that begins empty.
    package func openOverlay(on below: LayerView?) throws(VolumeError) -> OverlayView {
        let path = "\(store.path)/\(OverlayView.namePrefix)\(PoolStore.randomID())"
        let file = try VolumeError.system { () throws(SystemError) in
            let file = try disk.open(path, [.readWrite, .create, .exclusive])
            try disk.removeFile(path)
            return file
        }
        return OverlayView(below: below, file: file, epochs: core.epochs)
    }
}
