// The layers of one view of an image, oldest first, and the flattened index over them.

import BlockCore
import Pool
import Synchronization
import SystemIO

// Unchecked: slots are atomics, the rest is under `lock`.
package final class LayerChain: @unchecked Sendable {
    let index = BlockIndex()
    let epochs: ReadEpochs
    private let memory = LazyMemory(
        lengthBytes: (LayerSlot.limit + 1) * MemoryLayout<UInt>.size)
    private let slots: UnsafeMutablePointer<Atomic<UInt>>
    private let lock = Lock()
    /// Keeps alive what the slots point to, until `drop`.
    private var retained: [LayerSlot: Layer] = [:]
    private var nextSlot = 0
    private var freeSlots: [LayerSlot] = []

    init(epochs: ReadEpochs) {
        self.epochs = epochs
        slots = memory.base.bindMemory(to: Atomic<UInt>.self, capacity: LayerSlot.limit + 1)
    }
    deinit { memory.free() }

    /// Gives a layer its slot.
    /// - Throws: after 65,534 layers that are all in use.
    func add(_ layer: Layer) throws(VolumeError) -> LayerSlot {
        lock.lock()
        defer { lock.unlock() }
        let slot: LayerSlot
        if nextSlot < LayerSlot.limit {
            slot = LayerSlot(rawValue: UInt16(nextSlot))
            nextSlot += 1
        } else if let free = freeSlots.popLast() {
            slot = free
        } else {
            throw VolumeError(
                .invalid, image: layer.imageID,
                "the image has \(LayerSlot.limit) layers; delete snapshots and let them merge")
        }
        retained[slot] = layer
        slots[Int(slot.rawValue)].store(
            UInt(bitPattern: Unmanaged.passUnretained(layer).toOpaque()), ordering: .releasing)
        return slot
    }

    var isEmpty: Bool { lock.withLock { nextSlot == 0 } }

    /// The slot that the next `add` gives; for loading, where nobody else adds.
    var nextSlotForLoading: LayerSlot { lock.withLock { LayerSlot(rawValue: UInt16(nextSlot)) } }

    func slot(of layer: Layer) -> LayerSlot? {
        lock.withLock { retained.first { $0.value === layer }?.key }
    }

    var layers: [Layer] { lock.withLock { Array(retained.values) } }

    /// Takes a layer out after its last block left the index and its readers are gone.
    func drop(_ slot: LayerSlot) {
        lock.withLock {
            retained[slot] = nil
            if slot != .root { freeSlots.append(slot) }
        }
    }

    /// Puts another layer in a slot: its blocks are found there from now on. The caller keeps the old
    /// one alive until its readers are gone.
    func replace(_ slot: LayerSlot, with layer: Layer) {
        lock.withLock { retained[slot] = layer }
        slots[Int(slot.rawValue)].store(
            UInt(bitPattern: Unmanaged.passUnretained(layer).toOpaque()), ordering: .releasing)
    }

    @inline(__always)
    func withLayer<T, E: Error>(_ slot: LayerSlot, _ body: (Layer) throws(E) -> T) throws(E) -> T {
        let raw = UnsafeRawPointer(
            bitPattern: slots[Int(slot.rawValue)].load(ordering: .acquiring))!
        // Safe: the caller is inside a read epoch or holds the cut lock, and `drop` waits for both.
        return try body(Unmanaged<Layer>.fromOpaque(raw).takeUnretainedValue())
    }

    /// Fills the buffer from wherever the index says the blocks are. The caller is in an epoch.
    func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(LayerError) {
        var done: UInt64 = 0
        let length = UInt64(buffer.count)
        while done < length {
            let position = offset + done
            let block = position >> Geometry.blockShift
            let lastBlock = (offset + length - 1) >> Geometry.blockShift
            let (slot, count) = index.run(at: block, limit: lastBlock - block + 1)
            let end = min(offset + length, (block + count) << Geometry.blockShift)
            let part = UnsafeMutableRawBufferPointer(
                rebasing: buffer[Int(done)..<Int(end - offset)])
            if slot == .zero {
                part.initializeMemory(as: UInt8.self, repeating: 0)
            } else {
                try withLayer(slot) { layer throws(LayerError) in
                    try layer.read(into: part, at: position)
                }
            }
            done = end - offset
        }
    }

    /// First byte at or after `offset`, below `sizeBytes`, that is (or is not) stored data.
    func seek(data wantsData: Bool, from offset: UInt64, sizeBytes: UInt64) throws(LayerError)
        -> UInt64?
    {
        let blockCount = Geometry.blockCount(sizeBytes: sizeBytes)
        var position = offset
        while position < sizeBytes {
            let block = position >> Geometry.blockShift
            let (slot, count) = index.run(at: block, limit: blockCount - block)
            let end = min(sizeBytes, (block + count) << Geometry.blockShift)
            if slot == .zero {
                if !wantsData { return position }
            } else {
                let found = try withLayer(slot) { layer throws(LayerError) -> UInt64? in
                    if slot != .root { return wantsData ? position : nil }
                    return try Self.seekInRoot(layer, wantsData: wantsData, from: position, to: end)
                }
                if let found { return found }
            }
            position = end
        }
        return nil
    }

    /// In a root layer the file's own holes are the zeros.
    private static func seekInRoot(
        _ layer: Layer, wantsData: Bool, from position: UInt64, to end: UInt64
    ) throws(LayerError) -> UInt64? {
        do throws(SystemError) {
            let found =
                wantsData
                ? try layer.data.seekData(from: position)
                // Past the end of a shorter root everything is a hole.
                : try layer.data.seekHole(from: position) ?? position
            return found.flatMap { $0 < end ? $0 : nil }
        } catch { throw .system(error) }
    }
}
