// Which layer holds each block of one view of an image, flattened over its whole chain.
//
// A block has a 16-bit slot: a layer of the chain, or zero. A region whose blocks all have the same
// slot is one word; otherwise the word points to 1,024 slots (2 bytes a block). A lookup is one or
// two loads, however long the chain is.
//
// Invariants
//   I1 Entries change only under the stripes of the blocks concerned; readers take no lock, they
//      are inside a ReadEpochs section instead.
//   I2 A word that pointed to slots is replaced only by a writer that holds every stripe of the
//      region; the old array is freed after all readers of that moment have left.

import BlockCore
import Synchronization
import SystemIO

package struct LayerSlot: RawRepresentable, Hashable, Sendable {
    package let rawValue: UInt16
    @inlinable package init(rawValue: UInt16) { self.rawValue = rawValue }
    /// The chain's oldest layer; what an untouched index says of every block.
    package static let root = LayerSlot(rawValue: 0)
    package static let zero = LayerSlot(rawValue: .max)
    package static let limit = Int(UInt16.max) - 1
}

package final class BlockIndex: @unchecked Sendable {  // I1 and I2
    private typealias Slots = UnsafeMutablePointer<Atomic<UInt16>>
    private static let regionCount = Int(Geometry.maxImageSizeBytes >> Geometry.regionShift)
    private static let perRegion = Int(Geometry.blocksPerRegion)

    private let memory: LazyMemory
    private let words: UnsafeMutablePointer<Atomic<UInt>>
    private let retireLock = Lock()
    private var retired: [UnsafeMutableRawPointer] = []
    private let expanded = Atomic<Int>(0)
    private let highestRegion = Atomic<Int>(-1)

    package init() {
        memory = LazyMemory(lengthBytes: Self.regionCount * MemoryLayout<UInt>.size)
        words = memory.base.bindMemory(to: Atomic<UInt>.self, capacity: Self.regionCount)
    }

    deinit {
        let last = highestRegion.load(ordering: .relaxed)
        if last >= 0 {
            for region in 0...last {
                let word = words[region].load(ordering: .relaxed)
                if word & 1 == 1 { UnsafeMutableRawPointer(bitPattern: word & ~1)!.deallocate() }
            }
        }
        freeRetired(takeRetired())
        memory.free()
    }

    /// Bytes of slot arrays in use; for status.
    package var expandedBytes: Int {
        expanded.load(ordering: .relaxed) * Self.perRegion * MemoryLayout<UInt16>.size
    }

    private static func slots(_ word: UInt) -> Slots? {
        guard word & 1 == 1 else { return nil }
        return UnsafeMutableRawPointer(bitPattern: word & ~1)!
            .assumingMemoryBound(to: Atomic<UInt16>.self)
    }
    private static func uniform(_ word: UInt) -> LayerSlot {
        LayerSlot(rawValue: UInt16(truncatingIfNeeded: word >> 1))
    }
    private static func word(_ slot: LayerSlot) -> UInt { UInt(slot.rawValue) << 1 }

    @inline(__always)
    package func slot(of block: UInt64) -> LayerSlot {
        let word = words[Int(block >> 10)].load(ordering: .acquiring)
        guard let slots = Self.slots(word) else { return Self.uniform(word) }
        return LayerSlot(rawValue: slots[Int(block & 1023)].load(ordering: .acquiring))
    }

    /// The slot of `block` and how many blocks from it on have the same, at most `limit`.
    package func run(at block: UInt64, limit: UInt64) -> (slot: LayerSlot, count: UInt64) {
        let first = slot(of: block)
        var next = block + 1
        let end = block + limit
        while next < end {
            let word = words[Int(next >> 10)].load(ordering: .acquiring)
            guard let slots = Self.slots(word) else {
                if Self.uniform(word) != first { break }
                next = min(end, (next >> 10 + 1) << 10)
                continue
            }
            let stop = min(end, (next >> 10 + 1) << 10)
            while next < stop,
                slots[Int(next & 1023)].load(ordering: .acquiring) == first.rawValue
            { next += 1 }
            if next < stop { break }
        }
        return (first, next - block)
    }

    package func isAll(_ slot: LayerSlot, in range: BlockRange) -> Bool {
        self.slot(of: range.start) == slot
            && (range.count == 1 || run(at: range.start, limit: range.count) == (slot, range.count))
    }

    package func set(_ range: BlockRange, to slot: LayerSlot) {
        var block = range.start
        while block < range.end {
            let region = Int(block >> 10)
            let stop = min(range.end, (block >> 10 + 1) << 10)
            if stop - block == Geometry.blocksPerRegion {
                replaceRegion(region, with: slot)
            } else {
                let word = words[region].load(ordering: .acquiring)
                if Self.slots(word) != nil || Self.uniform(word) != slot {
                    let slots = expand(region)
                    for index in Int(block & 1023)..<Int(block & 1023) + Int(stop - block) {
                        slots[index].store(slot.rawValue, ordering: .releasing)
                    }
                }
            }
            block = stop
        }
    }

    private func expand(_ region: Int) -> Slots {
        let word = words[region].load(ordering: .acquiring)
        if let slots = Self.slots(word) { return slots }
        let raw = UnsafeMutableRawPointer.allocate(
            byteCount: Self.perRegion * MemoryLayout<UInt16>.size, alignment: 64)
        raw.initializeMemory(
            as: UInt16.self, repeating: Self.uniform(word).rawValue, count: Self.perRegion)
        // Another stripe of the same region may expand it at the same moment.
        let (won, current) = words[region].compareExchange(
            expected: word, desired: UInt(bitPattern: raw) | 1, ordering: .acquiringAndReleasing)
        if !won {
            raw.deallocate()
            return Self.slots(current) ?? expand(region)
        }
        expanded.add(1, ordering: .relaxed)
        noteRegion(region)
        return raw.assumingMemoryBound(to: Atomic<UInt16>.self)
    }

    private func replaceRegion(_ region: Int, with slot: LayerSlot) {
        let old = words[region].exchange(Self.word(slot), ordering: .acquiringAndReleasing)
        noteRegion(region)
        if old & 1 == 1 { retire(old) }
    }

    /// Every block has this slot from now on. Nobody writes meanwhile (the cut lock is held).
    package func reset(to slot: LayerSlot) {
        let last = highestRegion.load(ordering: .relaxed)
        guard last >= 0 else { return }
        for region in 0...last
        where words[region].load(ordering: .relaxed) != Self.word(slot) {
            replaceRegion(region, with: slot)
        }
    }

    private func noteRegion(_ region: Int) {
        var seen = highestRegion.load(ordering: .relaxed)
        while seen < region {
            let (won, now) = highestRegion.compareExchange(
                expected: seen, desired: region, ordering: .relaxed)
            if won { return }
            seen = now
        }
    }

    /// Turns a region of equal slots back into one word. The caller holds all its stripes.
    package func collapse(region: Int) {
        let word = words[region].load(ordering: .acquiring)
        guard let slots = Self.slots(word) else { return }
        let first = slots[0].load(ordering: .relaxed)
        for index in 1..<Self.perRegion where slots[index].load(ordering: .relaxed) != first {
            return
        }
        replaceRegion(region, with: LayerSlot(rawValue: first))
    }

    /// Gives every block of `old` to `new`. No writer may be under way.
    package func replaceAll(_ old: LayerSlot, with new: LayerSlot, blockCount: UInt64) {
        var block: UInt64 = 0
        while block < blockCount {
            let (slot, count) = run(at: block, limit: blockCount - block)
            if slot == old { set(BlockRange(start: block, count: count), to: new) }
            block += count
        }
    }

    private func retire(_ word: UInt) {
        expanded.subtract(1, ordering: .relaxed)
        retireLock.withLock { retired.append(UnsafeMutableRawPointer(bitPattern: word & ~1)!) }
    }

    /// Arrays that may be freed once every reader of now has left; empty nearly always.
    package func takeRetired() -> [UnsafeMutableRawPointer] {
        retireLock.withLock {
            defer { retired = [] }
            return retired
        }
    }
    package func freeRetired(_ arrays: [UnsafeMutableRawPointer]) {
        for array in arrays { array.deallocate() }
    }
}
