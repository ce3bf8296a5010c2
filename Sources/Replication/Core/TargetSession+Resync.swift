// One leg of a resync: everything the target lacks up to a snapshot, or up to the head.
//
//   openLeg ──► stageBlocks, stageStream … (syncStaging now and then) ──► commitLeg ──► next leg
//                      │ a snapshot's cut in the stream                      or streaming
//                      └──► the leg ends in that snapshot: what is left is read from it
//
// What a failed try staged durably stays staged: `remaining` is what the next try has to do.

import BlockCore

extension TargetSession {
    package struct Resync: Sendable {
        package internal(set) var stagingID: UInt64
        package internal(set) var end = LegEnd.head
        package internal(set) var remaining: [ImageID: BlockSet] = [:]
        package internal(set) var totalBlocks: UInt64 = 0
        package internal(set) var stagedThrough = SequenceNumber.zero
        var shapeSequence = SequenceNumber.zero
        /// The stream is held for the target: records are staged beside the blocks.
        var holdsStream = false
        var isOpen = false
        /// Staged since the last sync; to be done again when the staging does not survive.
        var unsynced: [(image: ImageID, range: BlockRange)] = []
        /// Staged and synced; to be done again when the whole staging is lost.
        var synced: [ImageID: BlockSet] = [:]
        var batchesSinceSync = 0
        /// The regions of `remaining` in the order in which they are read, and how far that got.
        var order: [(image: ImageID, region: UInt64)] = []
        var position = 0

        package var remainingBlocks: UInt64 { remaining.values.reduce(0) { $0 + $1.count } }

        init(stagingID: UInt64) { self.stagingID = stagingID }

        mutating func noteStaged(_ image: ImageID, _ range: BlockRange) {
            unsynced.append((image, range))
            remove(BlockSet([range]), of: image)
            batchesSinceSync += 1
        }

        mutating func remove(_ blocks: BlockSet, of image: ImageID) {
            remaining[image]?.subtract(blocks)
            if remaining[image]?.isEmpty == true { remaining[image] = nil }
        }

        mutating func noteSynced() {
            for (image, range) in unsynced { synced[image, default: BlockSet()].insert(range) }
            unsynced = []
            batchesSinceSync = 0
        }

        /// The connection is gone: what was not synced counts as not staged.
        mutating func suspend() {
            isOpen = false
            holdsStream = false
            for (image, range) in unsynced { remaining[image, default: BlockSet()].insert(range) }
            unsynced = []
            batchesSinceSync = 0
        }

        mutating func sortRemaining() {
            order = remaining.keys.sorted().flatMap { image in
                remaining[image]!.regionNumbers.map { (image, $0) }
            }
            position = 0
        }

        /// The next blocks to read.
        mutating func nextRun(limit: UInt64) -> (ImageID, BlockRange)? {
            while position < order.count {
                let (image, region) = order[position]
                if let run = remaining[image]?.firstRun(inRegion: region) {
                    return (image, BlockRange(start: run.start, count: min(run.count, limit)))
                }
                position += 1
            }
            return nil
        }

        /// Without the staging that it had, the target has nothing of this leg.
        mutating func keep(only staging: ReplicaReport.Staging?) {
            guard staging?.id != stagingID else { return }
            for (image, blocks) in synced {
                remaining[image, default: BlockSet()].formUnion(blocks)
            }
            synced = [:]
        }
    }

    mutating func nextOfResync() -> SessionOperation? {
        guard var leg = resync, leg.isOpen else {
            if resync == nil { resync = Resync(stagingID: newStagingID()) }
            return .openLeg(stagingID: resync!.stagingID)
        }
        defer { resync = leg }
        // A cut may come between any two blocks: the stream first, so that it is met early.
        if leg.holdsStream, leg.end == .head, hasRecords {
            hasRecords = false
            return .stageStream
        }
        if leg.batchesSinceSync >= options.chunksPerSync { return .syncStaging }
        if let (image, range) = leg.nextRun(limit: options.chunkBlocks) {
            return .stageBlocks(image, range)
        }
        if case .snapshot(let info) = leg.end {
            leg.stagedThrough = info.sequence
        } else if leg.stagedThrough < leg.shapeSequence {
            return .stageStream
        }
        return .commitLeg(stagingID: leg.stagingID, at: leg.stagedThrough, end: leg.end)
    }

    mutating func open(_ opened: LegSummary) {
        guard var leg = resync else { return }
        leg.end = opened.end
        leg.shapeSequence = opened.shapeSequence
        leg.stagedThrough = opened.streamFrom
        leg.holdsStream = opened.end == .head
        leg.isOpen = true
        for (image, blocks) in opened.blocks where !blocks.isEmpty {
            leg.remaining[image, default: BlockSet()].formUnion(blocks)
            leg.synced[image]?.subtract(blocks)
        }
        leg.totalBlocks = leg.remainingBlocks
        leg.sortRemaining()
        hasRecords = leg.holdsStream
        resync = leg
    }

    /// The stream was staged further, perhaps up to a cut.
    mutating func advance(_ stretch: StagedStretch) {
        guard var leg = resync else { return }
        if let through = stretch.through {
            leg.stagedThrough = max(leg.stagedThrough, through)
            // There may be more.
            hasRecords = true
        }
        // The stream's content is newer than what was staged before; should the staging be lost, the
        // stream's part is dirty anyway.
        for (image, blocks) in stretch.covered { leg.remove(blocks, of: image) }
        if !stretch.dirtied.isEmpty {
            for (image, blocks) in stretch.dirtied where !blocks.isEmpty {
                leg.remaining[image, default: BlockSet()].formUnion(blocks)
                leg.totalBlocks += blocks.count
            }
            leg.sortRemaining()
        }
        if let cut = stretch.cut {
            leg.end = .snapshot(cut)
            // Nothing after the cut may be staged; what is left is read from the snapshot.
            hasRecords = false
        }
        resync = leg
    }
}
