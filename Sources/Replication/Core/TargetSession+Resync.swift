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
        var unsynced: [BlockChunk] = []
        /// Staged and synced; to be done again when the whole staging is lost.
        var synced: [ImageID: BlockSet] = [:]
        var blocksSinceSync: UInt64 = 0
        /// Carried by the stream since the last sync; should the staging be lost before the next, the
        /// ring still has it.
        var unsyncedStream: [ImageID: BlockSet] = [:]
        var streamBytesSinceSync = 0
        /// Some of what came since it was opened is in: what its target was to be told with it.
        var hasStagedStream = false
        /// Blocks and stream take turns.
        var isBlocksTurn = false
        /// The regions of `remaining` in the order in which they are read, and how far that got.
        var order: [(image: ImageID, region: UInt64)] = []
        var position = 0

        package var remainingBlocks: UInt64 { remaining.values.reduce(0) { $0 + $1.count } }

        init(stagingID: UInt64) { self.stagingID = stagingID }

        mutating func noteStaged(_ chunk: BlockChunk) {
            unsynced.append(chunk)
            remove(chunk.blocks, of: chunk.image)
            blocksSinceSync += chunk.blockCount
        }

        mutating func remove(_ blocks: BlockSet, of image: ImageID) {
            remaining[image]?.subtract(blocks)
            if remaining[image]?.isEmpty == true { remaining[image] = nil }
        }

        mutating func noteSynced() {
            for chunk in unsynced {
                synced[chunk.image, default: BlockSet()].formUnion(chunk.blocks)
            }
            synced.formUnion(unsyncedStream)
            forgetUnsynced()
        }

        private mutating func forgetUnsynced() {
            unsynced = []
            blocksSinceSync = 0
            unsyncedStream = [:]
            streamBytesSinceSync = 0
        }

        /// The connection is gone: what was not synced counts as not staged.
        mutating func suspend() {
            isOpen = false
            holdsStream = false
            for chunk in unsynced {
                remaining[chunk.image, default: BlockSet()].formUnion(chunk.blocks)
            }
            forgetUnsynced()
        }

        mutating func sortRemaining() {
            order = remaining.keys.sorted().flatMap { image in
                remaining[image]!.regionNumbers.map { (image, $0) }
            }
            position = 0
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

    mutating func nextOfResync(
        _ nowNs: Int64, _ effects: inout [SessionEffect]
    ) -> SessionOperation? {
        guard var leg = resync, leg.isOpen else {
            if resync == nil { resync = Resync(stagingID: newStagingID()) }
            return .openLeg(stagingID: resync!.stagingID)
        }
        defer { resync = leg }
        if leg.blocksSinceSync >= options.blocksPerSync
            || leg.streamBytesSinceSync >= options.streamBytesPerSync
        {
            return .syncStaging
        }
        let blocks = leg.nextChunks(
            limit: min(
                bucket?.chunkBlocks ?? .max,
                makesWay ? options.courteousChunkBlocks : options.chunkBlocks))
        let hasStream = leg.holdsStream && leg.end == .head && hasRecords
        // What goes on streaming catches up first; one with a schedule has what its run is for, and need not
        // keep pace with the writers.
        let isEnough =
            options.intervalMs != nil && leg.hasStagedStream
            && leg.stagedThrough >= leg.shapeSequence
        // A cut may come between any two blocks: the stream first, so that it is met early.
        if hasStream, !leg.isBlocksTurn || (blocks == nil && !isEnough) {
            leg.isBlocksTurn = true
            hasRecords = false
            return .stageStream
        }
        leg.isBlocksTurn = false
        if let (now, ahead) = blocks {
            guard let waitNs = bucket?.take(now.blockCount * Geometry.blockSizeBytes, nowNs: nowNs)
            else { return .stageBlocks(now, ahead: ahead) }
            // The stream goes on meanwhile.
            if hasStream {
                hasRecords = false
                return .stageStream
            }
            hasRecords = leg.holdsStream
            effects.append(.wake(atNs: nowNs + min(waitNs, 20_000_000)))
            return nil
        }
        if case .snapshot(let info) = leg.end {
            leg.stagedThrough = info.sequence
        } else if leg.stagedThrough < leg.shapeSequence {
            return .stageStream
        }
        return .commitLeg(stagingID: leg.stagingID, at: leg.stagedThrough, end: leg.end)
    }

    mutating func noteStagingSynced(_ effects: inout [SessionEffect]) {
        guard var leg = resync else { return }
        leg.noteSynced()
        // From a cut on the ring says which leg a record belongs to.
        if leg.holdsStream, leg.end == .head { effects.append(.settleStaged(leg.stagedThrough)) }
        resync = leg
    }

    mutating func open(_ opened: LegSummary) {
        guard var leg = resync else { return }
        leg.end = opened.end
        leg.shapeSequence = opened.shapeSequence
        leg.stagedThrough = opened.streamFrom
        leg.holdsStream = opened.end == .head
        leg.isOpen = true
        leg.hasStagedStream = false
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
        leg.hasStagedStream = true
        if let through = stretch.through {
            leg.stagedThrough = max(leg.stagedThrough, through)
            // There may be more.
            hasRecords = true
        }
        // The stream's content is newer than what was staged before; should the staging be lost, the
        // stream's part is dirty anyway.
        for (image, blocks) in stretch.covered { leg.remove(blocks, of: image) }
        leg.unsyncedStream.formUnion(stretch.carried)
        leg.streamBytesSinceSync += stretch.lengthBytes
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
