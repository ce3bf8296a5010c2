// Where a volume tells the write stream what happens to it, and what it asks of who keeps the targets.
//
// Every change takes its place in the sequence under the cut lock (and, for blocks, their stripes) by
// being appended to the stream. A volume without targets has no stream: then the place is one atomic
// addition.
//
//   content   Image+Stream.swift                      under the stripes of the blocks
//   names     the names record                        under the lock of the tree
//   images    created, deleted, cloned                under the cut lock, shared, with the table
//   snapshot  the cut's record ends the targets' legs under the cut lock, exclusively
//   restore   the cut of what is kept, a barrier with every block that differs, the new size
//
// Invariants
//   T1 The stream is attached under the cut lock, exclusively, and stays: one sequence, no gap.
//   T2 A region's mark is cleared, and a snapshot complete, only after `TargetKeeper.secure`: each
//      target has what came before, or lacks it durably (G3).
//   T3 Sequence numbers never go back, whatever a crash took: an unclean open continues with the next
//      multiple of 2^40, noted in the catalog before anything is given.

import BlockCore
import Pool
import Replication
import SystemIO

/// Who keeps the targets of a volume.
package protocol TargetKeeper: AnyObject, Sendable {
    /// Returns when every target holds what came before `sequence` durably, or its dirty file says
    /// what it lacks of that.
    func secure(upTo sequence: SequenceNumber) throws(VolumeError)
    /// The snapshot with this cut is about to be deleted: on return nobody reads it for a target.
    func letGo(of cut: SequenceNumber)
}

extension Volume {
    // MARK: Attaching

    /// From here on everything that happens to the pool is in the stream, which is made at the first
    /// call.
    package func attachStream(
        capacityBytes: Int = WriteStream.defaultCapacityBytes
    ) -> WriteStream {
        core.cut.withWrite { core.attachStream(capacityBytes: capacityBytes) }
    }

    /// - Parameter keeper: not retained.
    package func attach(_ keeper: any TargetKeeper) { keeperBox.set(keeper) }

    /// What an unclean end left open: the blocks of the regions that are marked, written or not, for
    /// what a target got may be what was lost here. To be asked for before anything is written.
    package func suspects() -> [ImageID: BlockSet] {
        var result: [ImageID: BlockSet] = [:]
        for image in allImages {
            for region in image.activity.regions {
                // Also behind the image's end, where a target may have what was lost here: the image
                // may grow over it before anybody compares.
                let start = UInt64(region) * Geometry.blocksPerRegion
                result.insert(
                    BlockRange(start: start, count: Geometry.blocksPerRegion), of: image.id)
            }
        }
        return result
    }

    // MARK: Fencing

    /// Another pool has taken this one's place: from here on nothing is written, nothing flushed (for
    /// nobody may take it for safe), and no name changes. What is under way may still end.
    package func fence(_ reason: String) {
        core.setFence(reason)
        gate.refuse()
    }

    /// What a person has to know of it; nil where the pool takes changes.
    package var fenceReason: String? { core.fenceReason }

    /// Keeps every change waiting as long as `body` runs: writes, names, snapshots. Reads go on. When the
    /// pool was fenced meanwhile, those that waited hear that.
    package func holdingChanges<T>(_ body: () throws -> T) rethrows -> T {
        // Who asks first is parked, and holds no thread of the mount; the few others wait at the lock.
        gate.hold(true)
        defer { gate.hold(false) }
        return try structure.withLock {
            core.cut.lockWrite()
            defer { core.cut.unlock() }
            return try body()
        }
    }

    func requireUnfenced() throws(VolumeError) {
        if let reason = fenceReason { throw VolumeError(.readOnly, reason) }
    }

    func secure(upTo sequence: SequenceNumber) throws(VolumeError) {
        try keeperBox.keeper?.secure(upTo: sequence)
    }

    // MARK: Sequence

    /// T3.
    static func firstSequence(
        of store: PoolStore, isReadOnly: Bool
    ) throws(VolumeError) -> SequenceNumber {
        var (known, state) = try catalog(store) { tx in
            let state = try tx.poolState()
            let cuts = try tx.snapshots().map(\.sequence)
            return (max(state.lastSequence, try tx.namesSequence(), cuts.max() ?? .zero), state)
        }
        known = max(known, try LayerLoader.highestSequence(store))
        guard store.wasUnclean, !isReadOnly else { return known }
        state.lastSequence = SequenceNumber(rawValue: (known.rawValue >> 40 + 1) << 40)
        let next = state
        do { try store.catalog.write { try $0.setPoolState(next) } } catch {
            throw VolumeError(.io, "the catalog did not take a change: \(error)")
        }
        return next.lastSequence
    }

    // MARK: Names

    /// A change of names at its place in the sequence.
    package struct NamesPlace {
        fileprivate let core: VolumeCore

        /// Takes the place. The caller keeps other changes of names away.
        package func take(_ changes: [NameChange]) -> SequenceNumber {
            guard let stream = core.stream else { return core.nextSequence() }
            let payload = NamesCodec.encode(changes)
            // As many attributes as no record has room for travel with the pool's shape.
            guard payload.count <= stream.maxPayloadBytes else {
                return stream.dirty([:], hasNameChanges: true)
            }
            return stream.append(.names, atNs: core.disk.now(), payloadBytes: payload.count) {
                $0.copyBytes(from: payload)
            }
        }
    }

    /// Runs a change of names under the cut lock, shared: a snapshot has it or has it not, together
    /// with every write before it.
    package func withNameChange<T, E: Error>(
        _ body: (NamesPlace) throws(E) -> T
    ) throws(E) -> T {
        core.waitForRoom(4096)
        return try core.cut.withRead { () throws(E) in try body(NamesPlace(core: core)) }
    }

    // MARK: Images

    /// Makes a new image known, here and to the targets.
    /// - Parameter blocks: its content, which no record carries.
    func announce(_ image: Image, blocks: BlockSet = BlockSet()) {
        core.cut.withRead {
            put(image)
            guard let stream = core.stream else {
                _ = core.nextSequence()
                return
            }
            let atNs = image.modifiedNs
            stream.append(
                .imageCreated, image: image.id, imageSizeBytes: image.sizeBytes, atNs: atNs)
            if !blocks.isEmpty { stream.dirty([image.id: blocks]) }
        }
    }

    func withdraw(_ id: ImageID) {
        core.cut.withRead {
            forget(image: id)
            if let stream = core.stream {
                stream.append(.imageDeleted, image: id, atNs: disk.now())
            } else {
                _ = core.nextSequence()
            }
        }
    }

    // MARK: Snapshots

    /// The cut's place. The caller holds the cut lock exclusively.
    func cutPlace(_ record: SnapshotRecord) -> SequenceNumber {
        guard let stream = core.stream else { return core.nextSequence() }
        guard !record.isHelper, !record.isInternal else {
            // Nobody else hears of it; its place must be its own all the same.
            return NamesPlace(core: core).take([])
        }
        return stream.cut(
            name: record.name, createdNs: record.createdNs, origin: record.origin, atNs: disk.now()
        ).sequence
    }

    func letGo(of record: SnapshotRecord) { keeperBox.keeper?.letGo(of: record.sequence) }
    func forgetCut(of record: SnapshotRecord) { core.stream?.snapshotDeleted(record.sequence) }

    /// Notes which blocks are written from here on, for ``announceRestored(_:_:)``. The caller holds
    /// the structure lock.
    func noteWrites() { core.stream?.attachTracking(Self.noteTaker) }
    func endNotes() { core.stream?.detach(Self.noteTaker) }
    private static var noteTaker: TargetID { TargetID(rawValue: 0) }

    /// The image has another content. The caller holds the cut lock exclusively.
    /// - Parameter differing: where its head before and the layer differed after ``noteWrites()``.
    func announceRestored(_ image: Image, _ differing: BlockSet) {
        guard let stream = core.stream else { return }
        var blocks = differing
        let written = stream.withLegs(Self.noteTaker) { legs in
            legs.legs.compactMap { $0.blocks[image.id] }
        }
        for more in written ?? [] { blocks.formUnion(more) }
        stream.dirty([image.id: blocks], hasNameChanges: true)
        stream.append(
            .size, image: image.id, imageSizeBytes: image.sizeBytes, atNs: image.modifiedNs)
    }
}

/// A weak reference under a lock.
final class TargetKeeperBox: @unchecked Sendable {  // `reference` is under `lock`
    private let lock = Lock()
    private weak var reference: (any TargetKeeper)?
    var keeper: (any TargetKeeper)? { lock.withLock { reference } }
    func set(_ keeper: any TargetKeeper) { lock.withLock { reference = keeper } }
}
