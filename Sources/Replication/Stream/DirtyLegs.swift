// What a target lacks, in the order in which it is shipped: a leg for each snapshot that the target
// has not, then the head.
//
//                  cut             cut
//     leg 1 ────────┤── leg 2 ──────┤── head      blocks changed before a cut are in its leg or in
//     blocks, taken │   blocks      │   blocks    an earlier one
//
// A block of the first leg goes   dirty ── takeFirst ──► taken ── commitFirst ──► clean
//                                   ▲                      │
//                                   └── putBack, returnTaken ┘  (an answer or a session was lost)
//
// Invariants
//   D1 A block that may differ from the target is dirty or taken in some leg, or unknown; it leaves
//      by `commitFirst` (or `forget`, for an image that is gone) alone.
//   D2 A change is entered in the first leg whose cut comes after it: what a snapshot has that the
//      target lacks is in its leg or an earlier one.
//   D3 `unwritten` names the regions of which the target's dirty file lacks something; what is taken is
//      still in the file. By regions, for a second set of blocks would double what tracking costs.
//   D4 Entering a stretch of records again, cuts among them, leaves what entering it once leaves,
//      but for blocks too many in a later leg.

import BlockCore

package struct DirtyLegs: Sendable {
    package struct Leg: Sendable {
        package fileprivate(set) var number: UInt64
        /// What the leg ends in; nil for the head.
        package fileprivate(set) var snapshot: SnapshotInfo?
        package fileprivate(set) var hasNameChanges = false
        package fileprivate(set) var blocks: [ImageID: BlockSet] = [:]
        /// With the session that ships them, not committed yet; the first leg alone has any.
        package fileprivate(set) var taken: [ImageID: BlockSet] = [:]
        fileprivate var unwritten = RegionNames()

        package var isClean: Bool { blocks.isEmpty && taken.isEmpty && !hasNameChanges }
        /// Dirty or taken: what the durable file has to hold.
        package var all: [ImageID: BlockSet] {
            var result = blocks
            result.formUnion(taken)
            return result
        }
        /// Of `all`, the regions that the file lacks something of.
        fileprivate var unwrittenBlocks: [ImageID: BlockSet] {
            var result = unwritten.of(blocks)
            result.formUnion(unwritten.of(taken))
            return result
        }
    }

    /// Never empty; the last one is the head's.
    package private(set) var legs: [Leg]
    /// After an unclean end: to be compared with the target.
    package private(set) var unknown: [ImageID: BlockSet]
    private var unknownNumber: UInt64
    private var unwrittenUnknown = RegionNames()
    private var nextNumber: UInt64
    private var lastCut: SequenceNumber
    /// The end of the leg that was taken; nil for the head.
    private var takenEnd: SequenceNumber?
    /// All of it was entered from records: a target that takes these records lacks nothing.
    package private(set) var isFromRecordsOnly: Bool

    /// A target that lacks nothing.
    package init() {
        legs = [Leg(number: 1)]
        unknown = [:]
        unknownNumber = 2
        nextNumber = 3
        lastCut = .zero
        isFromRecordsOnly = true
    }

    /// What a dirty file holds.
    /// - Parameter snapshot: the snapshot of a cut; nil when there is none any more, and its leg
    ///   joins the next.
    package init(
        _ states: [DirtyLegState], snapshot: (SequenceNumber) -> SnapshotInfo?
    ) {
        self.init()
        var highest: UInt64 = 2
        var known: [Leg] = []
        var joined = Leg(number: 0)
        for state in states {
            highest = max(highest, state.number)
            if state.isUnknown {
                unknown.formUnion(state.blocks)
                continue
            }
            joined.number = state.number
            joined.blocks.formUnion(state.blocks)
            joined.hasNameChanges = joined.hasNameChanges || state.hasNameChanges
            if let cut = state.cut {
                guard let info = snapshot(cut) else { continue }
                joined.snapshot = info
                lastCut = max(lastCut, info.sequence)
            }
            known.append(joined)
            joined = Leg(number: 0)
        }
        nextNumber = highest + 1
        if known.last?.snapshot != nil || known.isEmpty {
            joined.number = takeNumber()
            known.append(joined)
        }
        legs = known
        // All is written again under new numbers once something changes; until then the file is right.
        for index in legs.indices { renumber(index) }
        if !unknown.isEmpty { renumberUnknown() }
        isFromRecordsOnly = isClean
    }

    package var isClean: Bool { legs.count == 1 && legs[0].isClean && unknown.isEmpty }
    /// Known to differ, shipped or not.
    package var dirtyBlocks: UInt64 {
        legs.reduce(0) { $0 + $1.blocks.blockCount + $1.taken.blockCount }
    }
    /// To be compared: whole regions, of which most may be alike.
    package var unknownBlocks: UInt64 { unknown.blockCount }

    private mutating func takeNumber() -> UInt64 {
        nextNumber += 1
        return nextNumber - 1
    }

    // MARK: Entering changes

    /// Enters what a record of the stream changed (D2).
    package mutating func enter(_ record: StreamRecord) {
        switch record.kind {
        case .data, .zero, .size:
            insert(record.range, of: record.image, at: record.sequence)
            // A new size is sent with the names, as the pool's shape.
            if record.kind == .size { noteShape(at: record.sequence) }
        case .names, .imageCreated: noteShape(at: record.sequence)
        case .imageDeleted:
            noteShape(at: record.sequence)
            if record.sequence > lastCut { forget(record.image) }
        case .snapshot, .barrier, .standing: break
        }
    }

    private func legIndex(at sequence: SequenceNumber) -> Int {
        if sequence > lastCut { return legs.count - 1 }
        return legs.firstIndex { $0.snapshot.map { sequence <= $0.sequence } ?? true }!
    }

    private mutating func insert(
        _ range: BlockRange, of image: ImageID, at sequence: SequenceNumber
    ) {
        insert(range, of: image, inLeg: legIndex(at: sequence))
    }

    private mutating func insert(_ range: BlockRange, of image: ImageID, inLeg index: Int) {
        guard !range.isEmpty else { return }
        // What is dirty already is in the file, or on its way there.
        if legs[index].blocks[image]?.containsAll(range) ?? false { return }
        legs[index].blocks.insert(range, of: image)
        legs[index].unwritten.insert(range, of: image)
    }

    private mutating func noteShape(at sequence: SequenceNumber) {
        let index = legIndex(at: sequence)
        guard !legs[index].hasNameChanges else { return }
        legs[index].hasNameChanges = true
    }

    /// Enters blocks of the head that no record carries.
    package mutating func enter(_ blocks: [ImageID: BlockSet], hasNameChanges: Bool = false) {
        let index = legs.count - 1
        insert(blocks, inLeg: index)
        if hasNameChanges, !legs[index].hasNameChanges {
            legs[index].hasNameChanges = true
            isFromRecordsOnly = false
        }
    }

    private mutating func insert(_ blocks: [ImageID: BlockSet], inLeg index: Int) {
        for (image, set) in blocks where !set.isEmpty {
            legs[index].blocks[image, default: BlockSet()].formUnion(set)
            legs[index].unwritten.insert(set, of: image)
            isFromRecordsOnly = false
        }
    }

    /// Enters blocks that the target has its own content in, whichever leg comes first.
    package mutating func enterFirst(_ blocks: [ImageID: BlockSet]) {
        insert(blocks, inLeg: 0)
    }

    /// Enters blocks that may differ or not.
    package mutating func enterUnknown(_ blocks: [ImageID: BlockSet]) {
        guard blocks.blockCount > 0 else { return }
        unknown.formUnion(blocks)
        unwrittenUnknown.insert(blocks)
        isFromRecordsOnly = false
    }

    /// Blocks that were never written on either side differ in no leg's end.
    package mutating func keepUnknown(within held: [ImageID: BlockSet]) {
        let before = unknown.blockCount
        for image in unknown.keys {
            unknown[image]?.formIntersection(held[image] ?? BlockSet())
            if unknown[image]?.isEmpty ?? false { unknown[image] = nil }
        }
        if unknown.blockCount != before { renumberUnknown() }
    }

    /// What was unknown in a range was compared with the end of the first leg: `differing` of it is
    /// dirty there. Whether it differs from the ends of later legs nobody knows: all of it is dirty in
    /// those.
    /// - Parameter end: what they were compared with; nil for the head.
    /// - Returns: false where the first leg ends elsewhere by now: nothing is resolved.
    package mutating func resolve(
        _ range: BlockRange, of image: ImageID, differing: BlockSet, end: SequenceNumber?
    ) -> Bool {
        guard legs[0].snapshot?.sequence == end else { return false }
        guard let before = unknown[image] else { return true }
        unknown.remove(range, of: image)
        var resolved = before
        if let left = unknown[image] { resolved.subtract(left) }
        guard !resolved.isEmpty else { return true }
        var same = resolved
        same.subtract(differing)
        var dirty = resolved
        dirty.subtract(same)
        insert([image: dirty], inLeg: 0)
        for index in legs.indices.dropFirst() { insert([image: resolved], inLeg: index) }
        if unknown.isEmpty { renumberUnknown() }
        return true
    }

    /// A snapshot's cut: what is entered from here on belongs to the next leg.
    package mutating func cut(_ snapshot: SnapshotInfo) {
        guard snapshot.sequence > lastCut else { return }  // D4
        lastCut = snapshot.sequence
        legs[legs.count - 1].snapshot = snapshot
        legs.append(Leg(number: takeNumber()))
    }

    /// The snapshot is gone: what its leg has goes with the next one.
    package mutating func join(cut: SequenceNumber) {
        guard let index = legs.firstIndex(where: { $0.snapshot?.sequence == cut }) else { return }
        let gone = legs.remove(at: index)
        legs[index].blocks.formUnion(gone.blocks)
        legs[index].unwritten.insert(gone.all)
        legs[index].taken.formUnion(gone.taken)
        if gone.hasNameChanges { legs[index].hasNameChanges = true }
    }

    /// The target turned out to have every cut up to here: what is dirty in their legs goes with the
    /// leg after them.
    package mutating func joinLegs(through sequence: SequenceNumber) {
        while let cut = legs[0].snapshot?.sequence, cut <= sequence { join(cut: cut) }
    }

    /// The image is deleted. Snapshots before may still have it.
    private mutating func forget(_ image: ImageID) {
        legs[legs.count - 1].blocks[image] = nil
        legs[legs.count - 1].unwritten.forget(image)
        guard legs.count == 1 else { return }
        unknown[image] = nil
        unwrittenUnknown.forget(image)
    }

    // MARK: Shipping the first leg

    /// Takes the dirty blocks of the first leg, for a session that ships them. The leg stays in its
    /// place until it is committed.
    package mutating func takeFirst() -> [ImageID: BlockSet] {
        takenEnd = legs[0].snapshot?.sequence
        let blocks = legs[0].blocks
        legs[0].taken.formUnion(blocks)
        legs[0].blocks = [:]
        return blocks
    }

    /// Enters what a record changed as if it had been taken: it was staged beside the first leg's blocks.
    package mutating func enterTaken(_ record: StreamRecord) {
        switch record.kind {
        case .data, .zero, .size:
            if legs[0].taken[record.image]?.containsAll(record.range) != true {
                legs[0].taken.insert(record.range, of: record.image)
                legs[0].unwritten.insert(record.range, of: record.image)
            }
            if record.kind == .size { legs[0].hasNameChanges = true }
        case .names, .imageCreated, .imageDeleted: legs[0].hasNameChanges = true
        case .snapshot, .barrier, .standing: break
        }
    }

    /// Blocks that were taken are dirty again: the answer that they were taken for was not given, or
    /// they may have changed after the leg's end as well.
    package mutating func putBack(_ blocks: [ImageID: BlockSet]) {
        legs[0].taken.subtract(blocks)
        legs[0].blocks.formUnion(blocks)
        legs[0].unwritten.insert(blocks)
    }

    /// Whoever took blocks is gone.
    package mutating func returnTaken() {
        legs[0].blocks.formUnion(legs[0].taken)
        legs[0].taken = [:]
    }

    /// What was taken is committed. What is dirty in that leg all the same goes with the next.
    package mutating func commitFirst() {
        legs[0].taken = [:]
        // Its snapshot may have been deleted meanwhile: then the first leg is another one by now.
        if let cut = legs[0].snapshot?.sequence, cut == takenEnd {
            let rest = legs.removeFirst()
            legs[0].blocks.formUnion(rest.blocks)
            legs[0].unwritten.insert(rest.blocks)
        } else {
            if legs.count == 1 { legs[0].hasNameChanges = false }
            renumber(0)
        }
        takenEnd = nil
        if isClean { isFromRecordsOnly = true }
    }

    /// The target has everything: it takes the records that led here.
    package mutating func clear() {
        legs = [Leg(number: takeNumber())]
        takenEnd = nil
        // A cut that was entered may come again, from the ring, as one that the target lacks.
        lastCut = .zero
        unknown = [:]
        unwrittenUnknown = RegionNames()
        isFromRecordsOnly = true
    }

    /// A new number, so that the file drops what it has under the old one.
    private mutating func renumber(_ index: Int) {
        legs[index].number = takeNumber()
        legs[index].unwritten = RegionNames(legs[index].all)
    }

    private mutating func renumberUnknown() {
        unknownNumber = takeNumber()
        unwrittenUnknown = RegionNames(unknown)
    }

    // MARK: The durable file

    /// Every leg, with the blocks that its file lacks; they count as written from now on.
    /// - Parameter entering: enters what the file must hold besides, and these legs do not.
    package mutating func takeUnwritten(
        entering: (inout DirtyLegs) -> Void = { _ in }
    ) -> [DirtyLegState] {
        // The same legs without their blocks; what is entered continues them.
        var more = self.withoutBlocks
        entering(&more)
        nextNumber = more.nextNumber
        var result: [DirtyLegState] = []
        if !unknown.isEmpty {
            result.append(
                DirtyLegState(
                    number: unknownNumber, isUnknown: true, blocks: unwrittenUnknown.of(unknown)))
            unwrittenUnknown = RegionNames()
        }
        if isClean, more.isClean { return [] }
        for index in more.legs.indices {
            var leg = state(more.legs[index], more.legs[index].blocks)
            if index < legs.count {
                leg.blocks.formUnion(legs[index].unwrittenBlocks)
                leg.hasNameChanges = leg.hasNameChanges || legs[index].hasNameChanges
                legs[index].unwritten = RegionNames()
            }
            result.append(leg)
        }
        return result
    }

    private var withoutBlocks: DirtyLegs {
        var copy = DirtyLegs()
        copy.legs = legs.map { leg in
            var empty = Leg(number: leg.number)
            empty.snapshot = leg.snapshot
            return empty
        }
        copy.nextNumber = nextNumber
        copy.lastCut = lastCut
        return copy
    }

    /// What was taken did not reach the file: all of it is to be written again.
    package mutating func markUnwritten() {
        for index in legs.indices { renumber(index) }
        renumberUnknown()
    }

    private func state(_ leg: Leg, _ blocks: [ImageID: BlockSet]) -> DirtyLegState {
        DirtyLegState(
            number: leg.number, cut: leg.snapshot?.sequence, hasNameChanges: leg.hasNameChanges,
            blocks: blocks)
    }
}
