// One live image: where reads and writes of a disk meet its layers.
//
// The way of a write (DESIGN §5), in Image+Write.swift:
//   1. before any lock: the region's activity bit is durable; the old content of a partly written
//      block that is not in the head was read
//   2. cut lock shared, then the stripes, ascending: pwrite, map, size, and the place in the sequence
//      by appending to the write stream (Image+Stream.swift). Both are released
//   3. reply
//
// Invariants
//   V1 `head`, `headSlot` and `chain` change only under the cut lock, held exclusively.
//   V2 Index entries change only under their stripes, with the cut lock held (shared is enough).
//   V3 No lock here is held across a sync or a wait for one.
//   V4 What lies past the image's end inside its last block is zero, in every layer.
//   V5 While a layer drains into the head (Image+Merge.swift), every block that enters the head leaves
//      the draining layer: noted in the head first, and durable there first.

import BlockCore
import Pool
import Replication
import Synchronization
import SystemIO

/// What all images of a volume share: the cut lock, the one sequence, the clock.
final class VolumeCore: Sendable {
    let disk: Disk
    let cut = ReadWriteLock()
    let epochs = ReadEpochs()
    let gate = AckGate()
    /// Regions are marked before they are written. Not on a replica: its journal tells what may
    /// differ.
    let marksActivity: Bool
    /// A thread of the volume empties activity logs that are full.
    let settlesBehind: Bool
    private let lastSequence: Atomic<UInt64>
    /// Set under the cut lock, exclusively; kept by `attached`, never taken back.
    private let streamPointer = Atomic<UInt>(0)
    private let attached = Mutex<WriteStream?>(nil)
    /// Set once; read by every change, so that none begins afterwards.
    private let isFenced = Atomic<Bool>(false)
    private let fence = Mutex<String?>(nil)

    init(
        disk: Disk, lastSequence: SequenceNumber, marksActivity: Bool = true,
        settlesBehind: Bool = false
    ) {
        self.disk = disk
        self.marksActivity = marksActivity
        self.settlesBehind = settlesBehind
        self.lastSequence = Atomic(lastSequence.rawValue)
    }

    /// Where everything takes its place; nil for a pool without targets.
    @inline(__always)
    var stream: WriteStream? {
        guard let raw = UnsafeRawPointer(bitPattern: streamPointer.load(ordering: .acquiring))
        else { return nil }
        return Unmanaged<WriteStream>.fromOpaque(raw).takeUnretainedValue()  // kept by `attached`
    }

    /// Why nothing may be changed; nil where it may.
    var fenceReason: String? {
        guard isFenced.load(ordering: .relaxed) else { return nil }
        return fence.withLock { $0 }
    }

    func setFence(_ reason: String) {
        fence.withLock { if $0 == nil { $0 = reason } }
        isFenced.store(true, ordering: .sequentiallyConsistent)
    }

    /// Called before any lock by whatever changes content: waits until targets that hold writers back
    /// have room.
    @inline(__always)
    func admit(_ bytes: UInt64, to image: ImageID) throws(VolumeError) {
        waitForRoom(bytes)
        guard !isFenced.load(ordering: .relaxed) else { throw refusal }
        if gate.obstacle(for: image) == .fail { throw Self.lostTarget(image) }
    }
    static func lostTarget(_ image: ImageID) -> VolumeError {
        VolumeError(
            .io, image: image, errno: 5,
            "a target that this image does not go on without (on-timeout=fail) does not answer; "
                + "`doppel status` shows which")
    }
    /// Takes the cut lock, shared, for a change: one that waited for it while the pool was handed over
    /// comes too late.
    @inline(__always)
    func lockForChange() throws(VolumeError) {
        cut.lockRead()
        guard !isFenced.load(ordering: .relaxed) else {
            cut.unlock()
            throw refusal
        }
    }
    private var refusal: VolumeError { VolumeError(.readOnly, fenceReason ?? "") }

    /// The caller holds the cut lock exclusively.
    func attachStream(capacityBytes: Int) -> WriteStream {
        if let stream { return stream }
        let new = WriteStream(capacityBytes: capacityBytes, lastSequence: sequence)
        attached.withLock { $0 = new }
        streamPointer.store(
            UInt(bitPattern: Unmanaged.passUnretained(new).toOpaque()), ordering: .releasing)
        return new
    }

    /// For a pool without a stream.
    @inline(__always)
    func nextSequence() -> SequenceNumber {
        SequenceNumber(rawValue: lastSequence.add(1, ordering: .relaxed).newValue)
    }
    var sequence: SequenceNumber {
        if let stream { return stream.lastSequence }
        return SequenceNumber(rawValue: lastSequence.load(ordering: .relaxed))
    }
}

/// A layer that was sealed at a cut and is not yet known durable.
struct UnsettledLayer {
    var layer: Layer
    var sizeBytes: UInt64
    var sequence: SequenceNumber
}

package final class Image: @unchecked Sendable {  // V1, V2; the rest is atomic or under `lock`
    package let id: ImageID
    let core: VolumeCore
    let activity: ActivityLog
    let stripes = Stripes()
    let gate = FlushGate()

    private let chainPointer: Atomic<UInt>
    private(set) var head: Layer
    private(set) var headSlot: LayerSlot
    /// The layer on top of the head whose blocks a merge moves down into it; V5.
    private(set) var draining: Layer?
    /// Whether the index has to follow a write: not where the head is a plain file and all there is.
    private(set) var tracksBlocks: Bool
    /// The head's parent; changes as V1 says.
    private(set) var layerBelowHead: LayerID?

    private let size: Atomic<UInt64>
    private let modified: Atomic<Int64>
    private let changed: Atomic<Bool>
    private let lock = Lock()
    private var unsettled: [UnsettledLayer] = []
    /// Every chain this image ever had: a reader may still be in an older one.
    private var chains: [LayerChain]
    private var failure: VolumeError?
    /// Asked for when the activity log has more regions than it should, or the map has become long;
    /// see `Volume.runBackgroundStep`.
    let wantsSettling: @Sendable () -> Void
    /// Records of the head's map at which it is looked at; under the flush gate.
    private var mapBytesToNotice: UInt64 = 1 << 20

    init(
        id: ImageID, core: VolumeCore, activity: ActivityLog, chain: LayerChain, head: Layer,
        headSlot: LayerSlot, layerBelowHead: LayerID?, sizeBytes: UInt64, modifiedNs: Int64,
        wantsSettling: @escaping @Sendable () -> Void
    ) {
        self.id = id
        self.core = core
        self.activity = activity
        self.head = head
        self.headSlot = headSlot
        tracksBlocks = head.map != nil
        self.layerBelowHead = layerBelowHead
        self.wantsSettling = wantsSettling
        chains = [chain]
        chainPointer = Atomic(UInt(bitPattern: Unmanaged.passUnretained(chain).toOpaque()))
        size = Atomic(sizeBytes)
        modified = Atomic(modifiedNs)
        // After a reopen only the map tells: more than its first commit may be a change.
        changed = Atomic((head.map?.lastCommit?.epoch ?? 2) > 1)
    }

    @inline(__always)
    var chain: LayerChain {
        let raw = UnsafeRawPointer(bitPattern: chainPointer.load(ordering: .acquiring))!
        return Unmanaged<LayerChain>.fromOpaque(raw).takeUnretainedValue()  // kept by `chains`
    }

    @inline(__always)
    package var sizeBytes: UInt64 { size.load(ordering: .acquiring) }
    /// Time of the last change of content, nanoseconds since 1970.
    package var modifiedNs: Int64 { modified.load(ordering: .relaxed) }
    /// Also sets the head's file time, which is where the next open finds the time of the last write.
    /// Called inside ``Volume/withNameChange(_:)`` (V1).
    package func setModified(ns: Int64) {
        modified.store(ns, ordering: .relaxed)
        try? head.data.setTimes(accessNs: ns, modifyNs: ns)
    }

    package var allocatedBytes: UInt64 {
        min(allocated(chain.layers), (sizeBytes + 4095) & ~4095)
    }
    /// The first failed sync, of data, map or activity log; see ``flush()``.
    package var latchedFailure: VolumeError? {
        lock.withLock { failure } ?? activity.latchedFailure.map { VolumeError($0, image: id) }
    }

    /// A cut was made whose layer is not known durable yet.
    var hasUnsettledLayers: Bool { lock.withLock { !unsettled.isEmpty } }
    /// Lets the disk begin with what was just written; it promises nothing.
    package func startWriteback(at offset: UInt64, length: UInt64) {
        core.cut.withRead { head }.data.startWriteback(at: offset, length: length)
    }

    /// The layer that holds all below it together with it: the head, or what drains into it.
    var topLayer: Layer { draining ?? head }
    /// The head while a layer drains into it.
    var lowerHead: LayerID? { draining == nil ? nil : head.id }

    /// The head has the same content as the layer below it: a snapshot may use that one.
    var isUnchangedSinceCut: Bool {
        head.map != nil && layerBelowHead != nil && !changed.load(ordering: .acquiring)
    }

    func latch(_ error: VolumeError) {
        lock.withLock { if failure == nil { failure = error } }
    }

    // MARK: Called by the parts of the write path

    @inline(__always)
    func noteChange() {
        modified.store(core.disk.now(), ordering: .relaxed)
        if !changed.load(ordering: .relaxed) { changed.store(true, ordering: .releasing) }
    }

    /// Grows the size to `end`; the caller holds the stripes of the last byte.
    @inline(__always)
    func grow(to end: UInt64) {
        var now = size.load(ordering: .relaxed)
        while now < end {
            let (won, current) = size.compareExchange(
                expected: now, desired: end, ordering: .acquiringAndReleasing)
            if won {
                noteSize()
                return
            }
            now = current
        }
    }

    /// The caller holds every stripe.
    func storeSize(_ sizeBytes: UInt64) {
        size.store(sizeBytes, ordering: .releasing)
        noteSize()
    }

    /// The next commit has the size.
    func noteSize() {
        head.noteSize()
        draining?.noteSize()
    }

    // MARK: Changing the head (V1: the caller holds the cut lock exclusively)

    func switchHead(to layer: Layer, slot: LayerSlot, sequence: SequenceNumber) {
        lock.withLock {
            for sealed in [head, draining].compactMap({ $0 }) {
                unsettled.append(
                    UnsettledLayer(layer: sealed, sizeBytes: sizeBytes, sequence: sequence))
            }
        }
        layerBelowHead = topLayer.id
        draining = nil
        head = layer
        headSlot = slot
        tracksBlocks = layer.map != nil
        // The new head's first commit was written before the cut; what the size is at the cut must
        // be in its next one.
        layer.noteSize()
        changed.store(false, ordering: .releasing)
    }

    func replaceChain(
        _ chain: LayerChain, head layer: Layer, slot: LayerSlot, below: LayerID,
        sizeBytes: UInt64, sequence: SequenceNumber
    ) {
        switchHead(to: layer, slot: slot, sequence: sequence)
        layerBelowHead = below
        lock.withLock { chains.append(chain) }
        chainPointer.store(
            UInt(bitPattern: Unmanaged.passUnretained(chain).toOpaque()), ordering: .releasing)
        size.store(sizeBytes, ordering: .releasing)
        modified.store(core.disk.now(), ordering: .relaxed)
    }

    func layerMerged(_ gone: LayerID, into other: LayerID?) {
        core.cut.withWrite { if layerBelowHead == gone { layerBelowHead = other } }
    }

    /// The layer below becomes the head, and the head drains into it.
    func drain(into lower: Layer, slot: LayerSlot, below: LayerID?) {
        lower.unseal()
        draining = head
        head = lower
        headSlot = slot
        layerBelowHead = below
        tracksBlocks = true
        noteSize()
        changed.store(true, ordering: .releasing)
    }

    /// Nothing is left in the draining layer. Of a plain file the index is not followed any more:
    /// what says zero in it, where the file has a hole, would hide what is written there.
    func endDraining() {
        draining = nil
        tracksBlocks = head.map != nil
        if !tracksBlocks { chain.index.reset(to: headSlot) }
    }

    /// What is merged into the head makes it other than the layer below.
    func noteMerge() { changed.store(true, ordering: .releasing) }

    // MARK: Reading

    /// - Returns: bytes read; short only at the end of the image.
    @inline(__always)
    package func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(VolumeError) -> Int {
        let ticket = core.epochs.enter()
        defer { core.epochs.leave(ticket) }
        let end = sizeBytes
        guard offset < end, buffer.count > 0 else { return 0 }
        let count = Int(min(UInt64(buffer.count), end - offset))
        do throws(LayerError) {
            try chain.read(
                into: UnsafeMutableRawBufferPointer(rebasing: buffer[0..<count]), at: offset)
        } catch { throw VolumeError(error, image: id) }
        return count
    }

    package func seekData(from offset: UInt64) throws(VolumeError) -> UInt64? {
        try seek(data: true, from: offset)
    }

    /// The end of the image counts as a hole; nil past it.
    package func seekHole(from offset: UInt64) throws(VolumeError) -> UInt64? {
        guard offset < sizeBytes else { return nil }
        return try seek(data: false, from: offset) ?? sizeBytes
    }

    private func seek(data: Bool, from offset: UInt64) throws(VolumeError) -> UInt64? {
        let ticket = core.epochs.enter()
        defer { core.epochs.leave(ticket) }
        return try VolumeError.wrapping(id) { () throws(LayerError) in
            try chain.seek(data: data, from: offset, sizeBytes: sizeBytes)
        }
    }

    // MARK: Flushing

    /// Makes everything acknowledged before the call durable: the layers sealed by cuts that have
    /// not settled yet, then the head.
    /// - Throws: the first failure for ever after one; nothing is retried and hoped over.
    package func flush() throws(VolumeError) {
        try gate.run { () throws(VolumeError) in try flushUnlessLatched() }
    }

    /// Flushes, and runs `body` before any other flush begins: what it switches, none finds half.
    /// - Throws: also what `body` throws, which latches nothing.
    func flush(then body: () throws(VolumeError) -> Void) throws(VolumeError) {
        try gate.runAlone { () throws(VolumeError) in
            try flushUnlessLatched()
            try body()
        }
    }

    private func flushUnlessLatched() throws(VolumeError) {
        if let failure = latchedFailure {
            throw VolumeError.latched(id, failure)
        }
        do throws(VolumeError) { try flushOnce() } catch {
            latch(error)
            throw error
        }
    }

    private func flushOnce() throws(VolumeError) {
        core.cut.lockRead()
        let sealed = lock.withLock { unsettled }
        let head = self.head
        let draining = self.draining
        // With it: what comes after a cut is in another head, and this one's commit is not to speak for that.
        let sequence = core.sequence
        core.cut.unlock()
        for each in sealed {
            _ = try VolumeError.wrapping(id) { () throws(LayerError) in
                try each.layer.commit(
                    imageSizeBytes: each.sizeBytes, sequence: each.sequence, seal: true)
            }
        }
        // The size is the image's only as long as the head is: a cut in between seals the old size
        // with the layer, and this commit's is then only an upper bound that the seal corrects.
        let punches = try VolumeError.wrapping(id) { () throws(LayerError) in
            // V5: what is taken here was noted in the head before, so the head's commit has it.
            let leaving = try draining?.take(imageSizeBytes: sizeBytes)
            let punches = try head.commit(imageSizeBytes: sizeBytes, sequence: sequence)
            if let draining, let leaving, leaving.mustCommit {
                // One less: until the layer is gone, the head's size is the one in force.
                let before = SequenceNumber(rawValue: max(sequence.rawValue, 1) - 1)
                _ = try draining.commit(leaving, sequence: before)
            }
            return punches
        }
        lock.withLock {
            unsettled.removeAll { each in sealed.contains { $0.layer === each.layer } }
        }
        punch(punches, in: head)
        noticeLongMap(of: head)
    }

    /// Wakes who rewrites maps when this one has doubled; what that left has to grow fourfold.
    private func noticeLongMap(of head: Layer) {
        guard head.map != nil else { return }
        let bytes = head.mapRecordBytes
        mapBytesToNotice = min(mapBytesToNotice, max(1 << 20, 4 * bytes))
        if bytes > mapBytesToNotice {
            mapBytesToNotice = 2 * bytes
            wantsSettling()
        }
    }

    /// Frees what trims left behind, where nothing was written since. A failure costs only space.
    private func punch(_ ranges: [BlockRange], in layer: Layer) {
        for range in ranges {
            var block = range.start
            while block < range.end {
                let part = BlockRange(start: block, count: min(range.end - block, 1 << 18))
                core.cut.lockRead()
                stripes.lock(part)
                if head === layer { punchZeros(part, in: layer) }
                stripes.unlock(part)
                core.cut.unlock()
                block = part.end
            }
        }
    }

    private func punchZeros(_ range: BlockRange, in layer: Layer) {
        var block = range.start
        while block < range.end {
            let (slot, count) = chain.index.run(at: block, limit: range.end - block)
            if slot == .zero {
                let hole = BlockRange(start: block, count: count)
                try? layer.data.punchHole(at: hole.startByte, length: hole.lengthBytes)
            }
            block += count
        }
    }
}
