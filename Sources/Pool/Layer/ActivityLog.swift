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
//   A4 At most `regionLimit` regions are marked, so that a comparison after a crash ends: who wants
//      one more waits for a `retire` and `clear` of those longest unused. Where that fails or takes
//      long, a mark too many is the lesser evil (A3).

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
    package static let regionLimit = 1024
    /// Retired at once, when room is needed.
    private static let retireCount = 256
    private static let longestWaitMs: Int64 = 100

    package let file: DiskFile
    private let memory: LazyMemory
    /// What writers trust: set after the sync, cleared under the cut lock.
    private let active: UnsafeMutablePointer<Atomic<UInt64>>
    /// Regions written since the last `retire`.
    private let touched: UnsafeMutablePointer<Atomic<UInt64>>
    /// What the file says, or is about to say; under `lock`.
    private let onDisk: UnsafeMutablePointer<UInt64>
    private let activeRegions = Atomic<Int>(0)
    /// Words from here on were never marked.
    private let wordEnd = Atomic<Int>(0)

    private let lock = Lock()
    private let done = Condition()
    private var writing = false
    private var failure: SystemError?
    /// Bits in `onDisk`.
    private var markedCount = 0
    private var settlings = 0
    private let settled = Condition()
    /// Where the next `retire` begins to look; of its caller.
    private var hand = 0

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
        mark(region)
        setActive(region)
    }

    /// Under `lock`, as the next.
    private func mark(_ region: Int) {
        let bit: UInt64 = 1 << UInt64(region & 63)
        if onDisk[region >> 6] & bit == 0 { markedCount += 1 }
        onDisk[region >> 6] |= bit
        if region >> 6 >= wordEnd.load(ordering: .relaxed) {
            wordEnd.store(region >> 6 + 1, ordering: .releasing)
        }
    }

    private func unmark(_ region: Int) {
        let bit: UInt64 = 1 << UInt64(region & 63)
        if onDisk[region >> 6] & bit != 0 { markedCount -= 1 }
        onDisk[region >> 6] &= ~bit
    }

    private func setActive(_ region: Int) {
        let bit: UInt64 = 1 << UInt64(region & 63)
        let old = active[region >> 6].bitwiseOr(bit, ordering: .acquiringAndReleasing).oldValue
        if old & bit == 0 { activeRegions.add(1, ordering: .relaxed) }
    }

    /// Those that are marked, ascending.
    package var regions: [Int] {
        var result: [Int] = []
        for word in 0..<wordEnd.load(ordering: .acquiring) {
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
            for region in first...last { mark(region) }
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
        for region in regions { mark(region) }
        try writeGroup(firstRegion: low, lastRegion: high)
        for region in regions { setActive(region) }
    }

    /// Takes active regions out of service, all of them or those that were not touched since the last
    /// call, a bounded number at a time; where room is needed and too few are idle, others too. Forgets
    /// the touches. The caller holds the cut lock exclusively: no writer is between its check and its
    /// write.
    package func retire(all: Bool) -> [Int] {
        lock.lock()
        defer { lock.unlock() }
        let end = wordEnd.load(ordering: .acquiring)
        if all {
            // What a failed settling left stays: clearing it may need room that a full disk has not.
            return (0..<end).flatMap { retire($0, keeping: 0, others: 0, limit: 64) }
        }
        var retired: [Int] = []
        let order = (0..<end).map { (hand + $0) % end }
        for word in order where retired.count < Self.retireCount {
            let keep = touched[word].exchange(0, ordering: .relaxed)
            retired += retire(
                word, keeping: keep, others: .max, limit: Self.retireCount - retired.count)
            hand = word
        }
        guard markedCount >= Self.regionLimit else { return retired.sorted() }
        for word in order where retired.count < Self.retireCount {
            retired += retire(
                word, keeping: 0, others: .max, limit: Self.retireCount - retired.count)
        }
        return Set(retired).sorted()
    }

    /// - Parameter others: of the marks that are not in service, for a settling failed after it had
    ///   retired them, those to take along.
    private func retire(_ word: Int, keeping keep: UInt64, others: UInt64, limit: Int) -> [Int] {
        let inService = active[word].load(ordering: .relaxed)
        var bits = inService & ~keep | onDisk[word] & ~inService & others
        var retired: [Int] = []
        var taken: UInt64 = 0
        while bits != 0, retired.count < limit {
            retired.append(word * 64 + bits.trailingZeroBitCount)
            taken |= bits & ~(bits - 1)
            bits &= bits - 1
        }
        guard taken & inService != 0 else { return retired }
        active[word].bitwiseAnd(~taken, ordering: .releasing)
        activeRegions.subtract((taken & inService).nonzeroBitCount, ordering: .relaxed)
        return retired
    }

    // MARK: Room

    /// Before ``activate(first:last:)``, without a lock: waits for room, for a while (A4).
    /// - Parameter settle: asks for a `retire` and `clear` by another thread, which ends in
    ///   ``noteSettled()``.
    package func waitForRoom(_ settle: () -> Void) {
        lock.lock()
        defer { lock.unlock() }
        guard markedCount >= Self.regionLimit else { return }
        let before = settlings
        // One that is under way may have begun without looking for room.
        while markedCount >= Self.regionLimit, settlings < before + 2 {
            settle()
            guard settled.wait(lock, timeoutMs: Self.longestWaitMs) else { return }
        }
    }

    /// A try to make room ended, well or not.
    package func noteSettled() {
        lock.withLock {
            settlings += 1
            settled.broadcast()
        }
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
            unmark(region)
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
