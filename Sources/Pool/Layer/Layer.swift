// One layer: a sparse data file at identity offsets, its block map, its checksums once sealed.
//
// Invariants
//   L1 `commit` takes the pending extents, syncs the data, and only then appends and syncs the map:
//      the order on flush. What is written meanwhile goes to the next commit.
//   L2 A layer without a map is the base of its chain: a hole is zero, its size the file's. A base may
//      have a map, too; then a block that the map does not name is zero (`Layer.nothing` is below it).
//   L3 After a failed sync the layer is suspect: every later commit throws the first failure.
//   L4 Space for map records is found when a write adds the extent, not when a flush commits it.

import BlockCore
import Synchronization
import SystemIO

package final class Layer: @unchecked Sendable {  // fields below are under `lock` or set once
    package let id: LayerID
    package let imageID: ImageID
    package let data: DiskFile
    /// nil for a root layer (L2).
    package let map: LayerMapFile?

    private let lock = Lock()
    private var pending: [MapExtent] = []
    private var punchable: [BlockRange] = []
    private var isSizeDirty = false
    /// Where the map ended after the last commit, and how many extents one under way adds.
    private var mapEndBytes: UInt64
    private var committingExtents = 0
    private var sums: SumsFile?
    private var failure: LayerError?
    private var sealed: Bool
    /// Relaxed mirror of `sums != nil`, so that a read of an uncovered layer costs no lock.
    private let hasSums = Atomic<Bool>(false)

    package init(
        id: LayerID, imageID: ImageID, data: DiskFile, map: LayerMapFile?, isSealed: Bool,
        sums: SumsFile?
    ) {
        self.id = id
        self.imageID = imageID
        self.data = data
        self.map = map
        self.sums = sums
        sealed = isSealed
        mapEndBytes = map?.endOffset ?? 0
        hasSums.store(sums != nil, ordering: .relaxed)
    }

    /// What is below a base with a map: zeros.
    package static func nothing(image: ImageID) -> Layer {
        Layer(
            id: LayerID(rawValue: 0), imageID: image, data: EmptyFile(), map: nil, isSealed: true,
            sums: nil)
    }

    package var isSealed: Bool { lock.withLock { sealed } }
    /// A merge makes the layer its image's head again: it has no checksums from now on (S2).
    package func unseal() {
        setSums(nil)
        lock.withLock { sealed = false }
    }
    package var latchedFailure: LayerError? { lock.withLock { failure } }
    package var coveringSums: SumsFile? { lock.withLock { sums } }
    package func setSums(_ file: SumsFile?) {
        lock.withLock { sums = file }
        hasSums.store(file != nil, ordering: .releasing)
    }

    // MARK: Changing the map (called under the blocks' stripes)

    /// Notes a change of blocks for the next commit.
    /// - Throws: when the disk has no room for its record; the map is unchanged then.
    package func note(_ range: BlockRange, _ state: BlockState) throws(SystemError) {
        guard let map else { return }
        try lock.withLock { () throws(SystemError) in
            if let last = pending.last, last.state == state, last.range.end == range.start {
                pending[pending.count - 1].range.count += range.count
                return
            }
            try map.reserve(
                to: LayerMapFile.bytesNeeded(
                    after: mapEndBytes, extentCount: committingExtents + pending.count + 1))
            pending.append(MapExtent(range: range, state: state))
        }
    }

    /// Room for the records of more changes than can be under way at once: after it ``note(_:_:)``
    /// does not fail for want of space.
    package func reserveNotes() throws(SystemError) {
        guard let map else { return }
        try lock.withLock { () throws(SystemError) in
            try map.reserve(
                to: LayerMapFile.bytesNeeded(
                    after: mapEndBytes, extentCount: committingExtents + pending.count + 256))
        }
    }

    package func noteSize() { lock.withLock { isSizeDirty = true } }

    /// Blocks whose old data may be freed once their new state is durable.
    package func punchAfterCommit(_ range: BlockRange) { lock.withLock { punchable.append(range) } }

    package var hasPending: Bool { lock.withLock { !pending.isEmpty || isSizeDirty } }

    // MARK: Flushing

    /// What the next commit is about to make durable.
    package struct Taken {
        var extents: [MapExtent]
        var punches: [BlockRange]
        var imageSizeBytes: UInt64
        /// There is something for the map.
        package fileprivate(set) var mustCommit: Bool
    }

    /// Takes what was noted so far for a commit.
    /// - Parameter imageSizeBytes: read together with the pending changes: a size that was noted
    ///   with them is committed with them, and no smaller one without what a shrink cut off.
    package func take(
        imageSizeBytes: @autoclosure () -> UInt64, seal: Bool = false
    ) throws(LayerError) -> Taken {
        lock.lock()
        defer { lock.unlock() }
        if let failure { throw failure }
        let taken = Taken(
            extents: pending, punches: punchable, imageSizeBytes: imageSizeBytes(),
            mustCommit: map != nil && (!pending.isEmpty || isSizeDirty || (seal && !sealed)))
        pending = []
        punchable = []
        isSizeDirty = false
        committingExtents = taken.extents.count
        return taken
    }

    /// Makes what was taken durable, in the order of L1. One caller at a time (the image's flush
    /// gate, or the volume's structure lock for a sealed layer).
    /// - Returns: ranges that may now be punched.
    package func commit(
        _ taken: Taken, sequence: SequenceNumber, seal: Bool = false
    ) throws(LayerError) -> [BlockRange] {
        do throws(LayerError) {
            try layered { () throws(SystemError) in try data.syncData() }
            if taken.mustCommit, let map {
                try map.append(
                    taken.extents, imageSizeBytes: taken.imageSizeBytes, sequence: sequence,
                    isSealed: seal)
                try layered { () throws(SystemError) in try map.file.syncData() }
            }
        } catch {
            fail(error)
            throw error
        }
        lock.withLock {
            committingExtents = 0
            mapEndBytes = map?.endOffset ?? 0
            if seal { sealed = true }
        }
        return taken.punches
    }

    /// Makes everything noted and written before the call durable.
    package func commit(
        imageSizeBytes: @autoclosure () -> UInt64, sequence: SequenceNumber, seal: Bool = false
    ) throws(LayerError) -> [BlockRange] {
        try commit(
            try take(imageSizeBytes: imageSizeBytes(), seal: seal), sequence: sequence, seal: seal)
    }

    /// L3: from here on every commit fails.
    package func fail(_ error: LayerError) {
        lock.withLock { if failure == nil { failure = error } }
    }

    /// Bytes of commits in the map, as of the last one; 0 where there is none. From any thread.
    package var mapRecordBytes: UInt64 {
        lock.withLock { max(mapEndBytes, LayerMapFile.recordsOffset) - LayerMapFile.recordsOffset }
    }

    /// Extents that the next commit has.
    package var notedExtents: Int { lock.withLock { pending.count } }

    /// Goes on with a rewritten map that says the same. The caller keeps commits away.
    package func adoptMap(_ rewritten: LayerMapFile) {
        guard let map else { return }
        lock.withLock {
            map.takeOver(rewritten)
            mapEndBytes = map.endOffset
            // L4 for what was noted in this moment, beyond what the rewriting has found room for. The
            // old map's room was as much: a disk that filled up just now is met at the next note.
            try? map.reserve(
                to: LayerMapFile.bytesNeeded(after: mapEndBytes, extentCount: pending.count))
        }
    }

    // MARK: Reading

    /// Reads bytes that the index says lie in this layer; what is past the file's end is zero.
    /// Covered blocks are verified (G7).
    @inline(__always)
    package func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(LayerError) {
        if hasSums.load(ordering: .acquiring), let sums = coveringSums {
            return try readVerified(into: buffer, at: offset, sums: sums)
        }
        try readPlain(into: buffer, at: offset)
    }

    private func readPlain(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(LayerError) {
        let got = try layered { () throws(SystemError) in try data.read(into: buffer, at: offset) }
        if got < buffer.count {
            UnsafeMutableRawBufferPointer(rebasing: buffer[got...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    /// Reads whole blocks, verified where they are covered, and their checksums (0: not covered).
    package func readBlocks(
        _ range: BlockRange, into buffer: UnsafeMutableRawBufferPointer,
        hashes: UnsafeMutableBufferPointer<UInt64>
    ) throws(LayerError) {
        try readPlain(into: buffer, at: range.startByte)
        guard let sums = coveringSums else { return hashes.update(repeating: 0) }
        try sums.hashes(of: range, into: hashes)
        for index in 0..<Int(range.count) where hashes[index] != 0 {
            let bytes = UnsafeRawBufferPointer(rebasing: buffer[index * 4096..<(index + 1) * 4096])
            guard SumsFile.hash(ofBlock: bytes) == hashes[index] else {
                throw .checksumMismatch(path: data.path, block: range.start + UInt64(index))
            }
        }
    }

    private func readVerified(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64, sums: SumsFile
    ) throws(LayerError) {
        var done = 0
        while done < buffer.count {
            let position = offset + UInt64(done)
            let inBlock = Int(position & 4095)
            let left = buffer.count - done
            if inBlock == 0, left >= 4096 {
                let part = UnsafeMutableRawBufferPointer(
                    rebasing: buffer[done..<done + left / 4096 * 4096])
                try readPlain(into: part, at: position)
                try sums.verify(UnsafeRawBufferPointer(part), startingAt: position >> 12)
                done += part.count
                continue
            }
            let length = min(left, 4096 - inBlock)
            var failure: LayerError?
            withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { block in
                do throws(LayerError) {
                    try readPlain(into: block, at: position & ~4095)
                    try sums.verify(UnsafeRawBufferPointer(block), startingAt: position >> 12)
                } catch { failure = error }
                UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + length])
                    .copyMemory(
                        from: UnsafeRawBufferPointer(rebasing: block[inBlock..<inBlock + length]))
            }
            if let failure { throw failure }
            done += length
        }
    }
}
