// The activity log of one image, `activity`: one bit a 4 MiB region.
//
// Layout: 4 KiB header (magic, version, hash), then the bits, little-endian, region 0 first.
//
// Invariants (G3)
//   A1 A region's bit is durable before the first write to the region is issued: `activate` returns
//      only after the sync, and writers check `isActive` again under the cut lock.
//   A2 A bit is cleared durably only by `clear`, after the caller made every write to the region
//      durable; in memory it is cleared first, under the exclusive cut lock (`retire`), so that a
//      later writer marks it anew.
//   A3 A bit too many costs a comparison after a crash; a bit too few loses a difference. Every
//      failure therefore leaves bits set.

import BlockCore
import Synchronization
import SystemIO

// Unchecked: bits are atomics, the rest is under `lock`.
package final class ActivityLog: @unchecked Sendable {
    private static let magic: UInt64 = 0x3130_5443_414c_5044  // "DPLACT01"
    private static let bitsOffset: UInt64 = 4096
    private static let regionCount = Int(Geometry.maxImageSizeBytes >> Geometry.regionShift)
    private static let wordCount = regionCount / 64
    /// Regions changed in one group whose bytes are written one by one; a run is written at once.
    private static let chunkBytes = 512

    package let file: DiskFile
    private let memory: LazyMemory
    /// What writers trust: set after the sync, cleared under the cut lock.
    private let active: UnsafeMutablePointer<Atomic<UInt64>>
    /// Regions written since the last `retire`.
    private let touched: UnsafeMutablePointer<Atomic<UInt64>>
    /// What the file says, or is about to say; under `lock`.
    private let onDisk: UnsafeMutablePointer<UInt64>
    private let activeRegions = Atomic<Int>(0)

    private let lock = Lock()
    private let done = Condition()
    private var writing = false
    private var failure: SystemError?

    private init(file: DiskFile) {
        self.file = file
        let bytes = Self.wordCount * 8
        memory = LazyMemory(lengthBytes: 3 * bytes)
        active = memory.base.bindMemory(to: Atomic<UInt64>.self, capacity: Self.wordCount)
        touched = (memory.base + bytes).bindMemory(
            to: Atomic<UInt64>.self, capacity: Self.wordCount)
        onDisk = (memory.base + 2 * bytes).bindMemory(to: UInt64.self, capacity: Self.wordCount)
    }
    deinit { memory.free() }

    /// Why no region can be marked any more: what the file says after a failed sync is not known.
    package var latchedFailure: SystemError? { lock.withLock { failure } }
    package var activeCount: Int { activeRegions.load(ordering: .relaxed) }

    /// - Parameter regions: marked from the start. The log gets its name when all of it is durable:
    ///   one without its bits would say that nothing was written (A3).
    package static func create(
        disk: Disk, path: String, active regions: [Int] = []
    ) throws(SystemError) -> ActivityLog {
        var header = ByteWriter(capacity: 4096)
        header.put(magic)
        header.put(UInt32(1))
        header.put(UInt32(Geometry.regionShift))
        header.seal()
        header.pad(to: Int(bitsOffset))
        var bits = [UInt8](repeating: 0, count: regions.last.map { $0 / 8 + 1 } ?? 0)
        for region in regions { bits[region / 8] |= 1 << UInt8(region % 8) }
        try disk.writeDurably(path, contents: header.bytes + bits)
        let log = ActivityLog(file: try disk.open(path, .readWrite))
        for region in regions { log.load(region) }
        return log
    }

    /// Opens the log; the bits of an unclean end stay set until they are settled. A log that does
    /// not verify is made anew with every region of the image set (A3).
    package static func open(
        disk: Disk, path: String, imageSizeBytes: UInt64
    ) throws(SystemError) -> (log: ActivityLog, wasDamaged: Bool) {
        if try disk.status(path) != nil {
            let bytes = try disk.readAll(path)
            if let regions = parse(bytes) {
                let log = ActivityLog(file: try disk.open(path, .readWrite))
                for region in regions { log.load(region) }
                return (log, false)
            }
        }
        let regions = (imageSizeBytes + Geometry.regionSizeBytes - 1) >> Geometry.regionShift
        return (try create(disk: disk, path: path, active: Array(0..<Int(regions))), true)
    }

    /// The regions marked in a log's bytes; nil when its header does not verify.
    package static func parse(_ bytes: [UInt8]) -> [Int]? {
        guard bytes.count >= 24 else { return nil }
        return bytes.withUnsafeBytes { raw in
            var reader = ByteReader(raw)
            guard reader.take(UInt64.self) == magic else { return nil }
            let hash = blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<16]))
            guard raw.loadUnaligned(fromByteOffset: 16, as: UInt64.self) == hash else { return nil }
            var regions: [Int] = []
            guard raw.count > Int(bitsOffset) else { return regions }
            for offset in Int(bitsOffset)..<min(raw.count, Int(bitsOffset) + wordCount * 8)
            where raw[offset] != 0 {
                for bit in 0..<8 where raw[offset] & (1 << bit) != 0 {
                    regions.append((offset - Int(bitsOffset)) * 8 + bit)
                }
            }
            return regions
        }
    }

    private func load(_ region: Int) {
        onDisk[region >> 6] |= 1 << UInt64(region & 63)
        setActive(region)
    }

    private func setActive(_ region: Int) {
        let bit: UInt64 = 1 << UInt64(region & 63)
        let old = active[region >> 6].bitwiseOr(bit, ordering: .acquiringAndReleasing).oldValue
        if old & bit == 0 { activeRegions.add(1, ordering: .relaxed) }
    }

    /// Those that are marked, ascending.
    package var regions: [Int] {
        var result: [Int] = []
        for word in 0..<Self.wordCount {
            var bits = active[word].load(ordering: .acquiring)
            while bits != 0 {
                result.append(word * 64 + bits.trailingZeroBitCount)
                bits &= bits - 1
            }
        }
        return result
    }

    @inline(__always)
    package func isActive(first: Int, last: Int) -> Bool {
        for region in first...last {
            let word = active[region >> 6].load(ordering: .acquiring)
            if word & (1 << UInt64(region & 63)) == 0 { return false }
        }
        return true
    }

    /// Notes that a region is in use, so that the next `retire` leaves it.
    @inline(__always)
    package func touch(first: Int, last: Int) {
        for region in first...last {
            let bit: UInt64 = 1 << UInt64(region & 63)
            if touched[region >> 6].load(ordering: .relaxed) & bit == 0 {
                touched[region >> 6].bitwiseOr(bit, ordering: .relaxed)
            }
        }
    }

    // MARK: Marking and clearing

    /// Returns when the bits of all these regions are durable. Callers that come while a group is
    /// being written join the next group: one sync for all of them.
    package func activate(first: Int, last: Int) throws(SystemError) {
        lock.lock()
        defer { lock.unlock() }
        while !isActive(first: first, last: last) {
            if let failure { throw failure }
            if writing {
                done.wait(lock)
                continue
            }
            for region in first...last { onDisk[region >> 6] |= 1 << UInt64(region & 63) }
            try writeGroup(firstRegion: first, lastRegion: last)
            for region in first...last { setActive(region) }
        }
    }

    /// The same for any regions, ascending, with one sync.
    package func activate(_ regions: [Int]) throws(SystemError) {
        guard let low = regions.first, let high = regions.last else { return }
        lock.lock()
        defer { lock.unlock() }
        while writing { done.wait(lock) }
        if let failure { throw failure }
        for region in regions { onDisk[region >> 6] |= 1 << UInt64(region & 63) }
        try writeGroup(firstRegion: low, lastRegion: high)
        for region in regions { setActive(region) }
    }

    /// Takes the active regions that were not touched since the last call out of service, and
    /// forgets the touches. The caller holds the cut lock exclusively: no writer is between its
    /// check and its write.
    package func retire(all: Bool) -> [Int] {
        var idle: [Int] = []
        for word in 0..<Self.wordCount {
            let bits = active[word].load(ordering: .relaxed)
            if bits == 0 { continue }
            let keep = all ? 0 : touched[word].exchange(0, ordering: .relaxed)
            let retiring = bits & ~keep
            if retiring == 0 { continue }
            active[word].store(bits & ~retiring, ordering: .releasing)
            activeRegions.subtract(retiring.nonzeroBitCount, ordering: .relaxed)
            for bit in 0..<64 where retiring & (1 << UInt64(bit)) != 0 {
                idle.append(word * 64 + bit)
            }
        }
        return idle
    }

    /// Clears retired regions on disk, but for those that were marked again meanwhile. The caller
    /// has made every write to them durable.
    package func clear(_ regions: [Int]) throws(SystemError) {
        guard let low = regions.first, let high = regions.last else { return }
        lock.lock()
        defer { lock.unlock() }
        while writing { done.wait(lock) }
        if let failure { throw failure }
        for region in regions where !isActive(first: region, last: region) {
            onDisk[region >> 6] &= ~(1 << UInt64(region & 63))
        }
        try writeGroup(firstRegion: low, lastRegion: high)
    }

    /// Called and returns with `lock` held; lets go of it during the I/O.
    private func writeGroup(firstRegion: Int, lastRegion: Int) throws(SystemError) {
        let start = firstRegion / 8 / Self.chunkBytes * Self.chunkBytes
        let end = (lastRegion / 8 / Self.chunkBytes + 1) * Self.chunkBytes
        let bytes = [UInt8](
            UnsafeRawBufferPointer(
                start: UnsafeRawPointer(onDisk) + start,
                count: min(end, Self.wordCount * 8) - start))
        writing = true
        lock.unlock()
        var failed: SystemError?
        do throws(SystemError) {
            try bytes.withTypedBytes { (raw) throws(SystemError) in
                try file.write(raw, at: Self.bitsOffset + UInt64(start))
            }
            try file.syncData()
        } catch { failed = error }
        lock.lock()
        writing = false
        done.broadcast()
        if let failed {
            // A full disk was told before anything was promised; what the file has is a bit too many
            // at most (A3), and the next group writes it again.
            if !failed.isNoSpace { failure = failed }
            throw failed
        }
    }
}
