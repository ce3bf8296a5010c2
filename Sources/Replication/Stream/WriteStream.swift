// Everything that happens to a pool, in order, on its way to the targets: one bounded ring in memory
// and, for each target, how far it has come or what it lacks.
//
//                  attachTracking                beginStreaming
//      (nothing) ─────────────────► tracking ──────────────────────► streaming
//          ▲                           │ ▲                              │
//          └────── detach ─────────────┘ └── stopStreaming, ring full ──┘
//
// A target that *streams* has a cursor at what it holds durably, and everything after it is held in
// the ring for it. For one that is *tracked* each record enters its dirty legs as it is appended.
//
// Invariants
//   W1 Sequence numbers are given together with the place in the ring: ring order is their order.
//   W2 Every record is in the ring for a target or in its legs (G3). The cursor moves at durable
//      acknowledgements alone.
//   W3 Payloads are copied outside the lock, so writers of different blocks do not wait for each
//      other; consumers see the ready prefix alone.
//   W4 A consumer gets a copy: no target, however slow or hung, ever holds the ring's memory but by
//      its cursor, and that can be taken from it.
//   W5 Blocks that no record carries (`dirty`) have a barrier in the stream; a target that streams
//      gets nothing beyond it before `passBarrier`, which enters them in its legs.
//
// The lock is a leaf, taken under the stripes of the blocks that a record tells of; it is held for
// the time of a few stores, but when the ring is full or a target attaches.

import BlockCore
import Synchronization
import SystemIO

package final class WriteStream: @unchecked Sendable {  // R2 for payloads; the rest is under `lock`
    package static let defaultCapacityBytes = 64 << 20

    let lock = Lock()
    /// Records became ready, a target changed its state, or somebody interrupts.
    let arrived = Condition()
    /// The ring has room again, or a copy ended.
    private let freed = Condition()
    let memory: RingMemory
    var ring: RecordRing
    var last: SequenceNumber
    var targets: [TargetID: StreamTarget] = [:]
    private var streamingCount = 0
    private var trackingCount = 0

    /// A consumer waits for the ready prefix to reach this place; `.max`: nobody waits.
    let wakeAt = Atomic<UInt64>(.max)
    /// The lowest cursor of the targets that hold writers back, and the ring's end, for a look
    /// without the lock.
    private let heldFrom = Atomic<UInt64>(.max)
    private let endMirror = Atomic<UInt64>(0)

    /// Longest payload of a record; what is longer is split by who appends it.
    package let maxPayloadBytes: Int
    /// Targets that hold writers back do so from here on: who asks (`hasRoom`) begins nothing new.
    private let softLimitBytes: UInt64
    /// Who begins all the same waits from here on; the rest is for those under way.
    private let hardLimitBytes: UInt64

    package init(
        capacityBytes: Int = WriteStream.defaultCapacityBytes, lastSequence: SequenceNumber
    ) {
        let capacity = max(capacityBytes, 64 << 10) & ~4095
        memory = RingMemory(capacityBytes: capacity)
        ring = RecordRing(memory: memory, lastSequence: lastSequence)
        last = lastSequence
        maxPayloadBytes = min(StreamRecord.maxPayloadBytes, capacity / 8 & ~4095)
        softLimitBytes = UInt64(capacity - capacity / 4)
        hardLimitBytes = UInt64(capacity - capacity / 8)
    }

    deinit { memory.free() }

    /// The last one given.
    package var lastSequence: SequenceNumber { lock.withLock { last } }

    // MARK: Appending

    /// Gives the operation its place in the sequence and hands it to the targets. The caller holds
    /// the stripes of the blocks, which are as `fill` has them.
    /// - Parameters:
    ///   - imageSizeBytes: evaluated at the record's place in the order: sizes in records of one
    ///     image only grow, but for its `.size` records.
    ///   - fill: writes the payload; called at once or not at all, outside the lock.
    @discardableResult
    package func append(
        _ kind: StreamKind, image: ImageID = ImageID(rawValue: 0),
        range: BlockRange = BlockRange(start: 0, count: 0),
        imageSizeBytes: @autoclosure () -> UInt64 = 0, atNs: Int64 = 0, payloadBytes: Int = 0,
        fill: (UnsafeMutableRawBufferPointer) -> Void = { _ in }
    ) -> SequenceNumber {
        append(
            kind, image: image, range: range, imageSizeBytes: imageSizeBytes, atNs: atNs,
            payloadBytes: payloadBytes, fill: fill, inOrder: { _ in })
    }

    /// - Parameter inOrder: called under the lock, when the record has its place and no target was
    ///   given it.
    @inline(__always)
    private func append(
        _ kind: StreamKind, image: ImageID = ImageID(rawValue: 0),
        range: BlockRange = BlockRange(start: 0, count: 0), imageSizeBytes: () -> UInt64 = { 0 },
        atNs: Int64 = 0, payloadBytes: Int = 0,
        fill: (UnsafeMutableRawBufferPointer) -> Void = { _ in },
        inOrder: (SequenceNumber) -> Void
    ) -> SequenceNumber {
        lock.lock()
        // Before the sequence is given: it may let go of the lock (W1).
        let place = makePlace(
            bytes: StreamRecord(kind, sequence: .zero, payloadBytes: payloadBytes).totalBytes)
        last = SequenceNumber(rawValue: last.rawValue + 1)
        let record = StreamRecord(
            kind, sequence: last, image: image, range: range, imageSizeBytes: imageSizeBytes(),
            atNs: atNs, payloadBytes: payloadBytes)
        if trackingCount > 0 { enter(record) }
        inOrder(last)
        guard let place else {
            ring.skip(last)
            lock.unlock()
            return record.sequence
        }
        let payload = ring.add(record, at: place)
        let end = ring.end
        endMirror.store(end, ordering: .relaxed)
        lock.unlock()

        if payload.count > 0 {
            fill(UnsafeMutableRawBufferPointer(rebasing: payload[0..<payloadBytes]))
            for index in payloadBytes..<payload.count { payload[index] = 0 }
        }
        memory.markReady(place)
        if wakeAt.load(ordering: .sequentiallyConsistent) <= end { wakeConsumers() }
        return record.sequence
    }

    /// A snapshot's cut. The caller holds everybody off who could append.
    package func cut(
        name: String, createdNs: Int64, origin: String, atNs: Int64
    ) -> SnapshotInfo {
        var info = SnapshotInfo(
            name: name, createdNs: createdNs, origin: origin, sequence: .zero)
        let payload = SnapshotPayload.encode(info)
        _ = append(
            .snapshot, atNs: atNs, payloadBytes: payload.count,
            fill: { $0.copyBytes(from: payload) }
        ) { sequence in
            info.sequence = sequence
            for target in targets.values where !target.isStreaming { target.legs.cut(info) }
        }
        return info
    }

    /// Blocks changed that no record carries: every target gets them by a resync.
    @discardableResult
    package func dirty(
        _ blocks: [ImageID: BlockSet], hasNameChanges: Bool = false
    ) -> SequenceNumber {
        append(.barrier) { sequence in
            for target in targets.values {
                if target.isStreaming {
                    target.barriers[sequence.rawValue] = Barrier(
                        blocks: blocks, hasNameChanges: hasNameChanges)
                } else {
                    target.legs.enter(blocks, hasNameChanges: hasNameChanges)
                }
            }
        }
    }

    /// A snapshot is deleted: what only it needed goes to the targets with the next.
    package func snapshotDeleted(_ cut: SequenceNumber) {
        lock.withLock { for target in targets.values { target.legs.join(cut: cut) } }
    }

    private func enter(_ record: StreamRecord) {
        for target in targets.values where !target.isStreaming { target.legs.enter(record) }
    }

    /// Called with the lock, which may be let go of meanwhile.
    /// - Returns: nil when nobody streams.
    private func makePlace(bytes: Int) -> UInt64? {
        while streamingCount > 0 {
            let ready = ring.advanceReady()
            var limit = ready
            var slowest: StreamTarget?
            for target in targets.values {
                if target.isStreaming, target.cursor <= slowest?.cursor ?? .max { slowest = target }
                limit = min(limit, target.cursorIfStreaming, target.pinned)
            }
            if let place = ring.place(bytes: bytes, holding: limit) { return place }
            if let slowest, slowest.cursor <= limit, slowest.cursor < ready {
                // W2: what it lacks is in its legs from here on. A target that holds writers back
                // comes here only if they did not ask for room.
                stopStreaming(slowest, hasOverflowed: true)
            } else {
                // A writer still fills the oldest record, or somebody copies it: a moment.
                lock.unlock()
                Pause.microseconds(20)
                lock.lock()
            }
        }
        return nil
    }

    // MARK: Room

    /// Whether the ring has room for a record, as far as the targets that hold writers back are
    /// concerned.
    @inline(__always)
    package func hasRoom(bytes: Int) -> Bool { isBelow(softLimitBytes, bytes) }

    @inline(__always)
    private func isBelow(_ limit: UInt64, _ bytes: Int) -> Bool {
        let from = heldFrom.load(ordering: .relaxed)
        if from == .max { return true }
        let now = endMirror.load(ordering: .relaxed)
        let end = now + UInt64(bytes)
        // A record larger than the limit itself waits for an empty ring.
        return end < from || end - from <= limit || now <= from
    }

    /// Returns when the ring has room for a record. Called before any lock.
    @inline(__always)
    package func waitForRoom(bytes: Int) {
        if !isBelow(hardLimitBytes, bytes) { waitForRoomLocked(bytes) }
    }

    private func waitForRoomLocked(_ bytes: Int) {
        lock.lock()
        defer { lock.unlock() }
        while true {
            let from = heldFrom.load(ordering: .relaxed)
            if from == .max || ring.end <= from || ring.end + UInt64(bytes) - from <= hardLimitBytes
            {
                return
            }
            freed.wait(lock)
        }
    }

    func cursorsChanged() {
        var held = UInt64.max
        streamingCount = 0
        trackingCount = 0
        for target in targets.values {
            if target.isStreaming { streamingCount += 1 } else { trackingCount += 1 }
            if target.isStreaming, target.holdsWriters { held = min(held, target.cursor) }
        }
        heldFrom.store(held, ordering: .relaxed)
        freed.broadcast()
    }

    // MARK: Targets

    /// Begins to keep what a target lacks.
    /// - Parameters:
    ///   - legs: what it lacks already.
    ///   - durable: what it said the last time that it holds durably.
    package func attachTracking(
        _ id: TargetID, legs: DirtyLegs = DirtyLegs(), durable: SequenceNumber = .zero
    ) {
        lock.withLock {
            targets[id] = StreamTarget(legs: legs, durable: durable)
            cursorsChanged()
        }
    }

    /// What a consumer keeps as long as it may have a batch in its hands, also one whose target is
    /// detached meanwhile.
    func consumer(_ id: TargetID) -> AnyObject? { lock.withLock { targets[id] } }

    /// Forgets a target.
    package func detach(_ id: TargetID) {
        lock.withLock {
            targets[id] = nil
            cursorsChanged()
            arrived.broadcast()
        }
    }

    package var targetIDs: [TargetID] { lock.withLock { targets.keys.sorted() } }

    /// Streams from now on, beside what the legs hold.
    /// - Returns: the last sequence that does not come through the stream.
    package func beginStreaming(_ id: TargetID) -> SequenceNumber {
        lock.withLock {
            guard let target = targets[id], !target.isStreaming else { return last }
            target.begin(at: ring.end, after: last)
            cursorsChanged()
            return last
        }
    }

    /// Streams what follows `sequence`, which the target holds; its legs are empty then.
    /// - Returns: false when the ring no longer holds that, or the target lacks something else.
    package func beginStreaming(_ id: TargetID, from sequence: SequenceNumber) -> Bool {
        lock.withLock {
            guard let target = targets[id], sequence <= last, target.legs.isFromRecordsOnly,
                let place = ring.place(after: sequence), !hasBarrier(after: place)
            else { return false }
            target.legs.clear()
            target.begin(at: place, after: sequence)
            target.acknowledge(sequence)
            cursorsChanged()
            return true
        }
    }

    func hasBarrier(after place: UInt64) -> Bool {
        var found = false
        memory.forEach(from: place, to: ring.end) { _, record in
            found = record.kind == .barrier
            return !found
        }
        return found
    }

    /// What the target has not acknowledged enters its legs.
    package func stopStreaming(_ id: TargetID) {
        lock.withLock {
            guard let target = targets[id], target.isStreaming else { return }
            stopStreaming(target, hasOverflowed: false)
        }
    }

    private func stopStreaming(_ target: StreamTarget, hasOverflowed: Bool) {
        enterRing(of: target, upTo: last, into: &target.legs)
        target.stop(hasOverflowed: hasOverflowed)
        cursorsChanged()
        arrived.broadcast()
    }

    /// Enters everything that the ring holds for a target. Under the lock.
    func enterRing(
        of target: StreamTarget, upTo sequence: SequenceNumber, into legs: inout DirtyLegs
    ) {
        guard target.isStreaming else { return }
        memory.forEach(from: target.cursor, to: ring.end) { place, record in
            if record.sequence > sequence { return false }
            legs.enter(record)
            if record.kind == .snapshot, let info = snapshot(at: place, record) { legs.cut(info) }
            if record.kind == .barrier, let barrier = target.barriers[record.sequence.rawValue] {
                legs.enter(barrier.blocks, hasNameChanges: barrier.hasNameChanges)
            }
            return true
        }
    }

    private func snapshot(at place: UInt64, _ record: StreamRecord) -> SnapshotInfo? {
        // Its writer may still be filling it: the cut is appended by one caller, who copies a few
        // bytes and waits for nobody.
        while !memory.isReady(place) { Pause.microseconds(5) }
        return SnapshotPayload.decode(memory.payload(place, record), sequence: record.sequence)
    }

    /// While it streams, writers wait for it rather than for it to be tracked.
    package func setHoldsWriters(_ id: TargetID, _ holds: Bool) {
        lock.withLock {
            targets[id]?.holdsWriters = holds
            cursorsChanged()
        }
    }

    /// The target holds everything up to here durably.
    package func acknowledge(_ id: TargetID, durable sequence: SequenceNumber) {
        lock.withLock {
            targets[id]?.acknowledge(sequence)
            cursorsChanged()
        }
    }
}
