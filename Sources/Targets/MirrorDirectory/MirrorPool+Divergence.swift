// What a mirror has that its primary has not, and how it is kept.
//
//   the mirror was a primary itself, until it was demoted       its own dirty set says what it changed
//   it followed another one further than this primary's         everything is compared
//   generation began
//   the primary went on after a crash without what it had here  the primary's suspects say it
//
// Nothing is copied: the snapshot that the first staging stands on is the mirror's state before it, and the
// transaction that commits the staging gives it a name, `diverged-<time>`. Until then a mount shows that
// state, and a crash, or a promotion, finds it as it was.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

extension MirrorPool {
    /// - Returns: nil where all that the mirror has is the primary's.
    func divergence(from hello: PrimaryHello) throws(TargetError) -> Divergence? {
        let state = state
        guard state.incarnationID != nil else { return nil }
        guard state.incarnationID != hello.incarnationID || state.divergence != nil else {
            return nil
        }
        let checkpoint = checkpoint
        let content = try rows { try $0.history() }
        if let divergence = state.divergence {
            let fork = content.fork(from: hello.story)
            let common = fork.map { min($0.sequence ?? checkpoint, checkpoint) } ?? .zero
            if case .tracked(let target) = divergence, fork != nil,
                let tracked = try tracked(by: target, since: common)
            {
                return tracked
            }
            return try unknown(since: common)
        }
        guard let id = state.contentGenerationID ?? state.generation?.id, id != hello.generation.id
        else { return nil }
        guard let end = hello.story.end(of: id) else {
            return hello.history.entries.isEmpty ? nil : try unknown(since: .zero)
        }
        return checkpoint > end ? try unknown(since: end) : nil
    }

    private func unknown(since common: SequenceNumber) throws(TargetError) -> Divergence {
        Divergence(common: common, suspects: try allocatedBlocks(), isComplete: false)
    }

    /// All that its heads, its snapshots or its checkpoint have anything in. Under a staging that is more
    /// than the heads: images that the staging has not (any more) come back when it is put back.
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        let checkpoint = state.staging.map { Self.stagingName($0.id) }
        return try TargetError.volume { () throws(VolumeError) in
            try volume.allocatedBlocks(also: checkpoint)
        }
    }

    /// What the dirty file says that was kept while this pool was a primary.
    /// - Returns: nil where it says nothing one can trust, or begins too late.
    private func tracked(
        by target: TargetID, since common: SequenceNumber
    ) throws(TargetError) -> Divergence? {
        let path = store.dirtyPath(target: target)
        let state: DirtyFileState
        do throws(DirtyFileError) {
            guard
                let opened = try DirtyFile.open(disk: store.disk, path: path, target: target)
            else { return nil }
            opened.file.close()
            state = opened.state
        } catch {
            guard case .damaged = error else { throw TargetError(.io, error.description) }
            log.error("\(error)")
            return nil
        }
        // Of one that was never in step the file says what an empty one lacks.
        guard state.acknowledged > .zero, common >= state.acknowledged else { return nil }
        var result = Divergence(common: common, isComplete: true)
        result.images = try shownImages()
        // Names and sizes are in no region: of what a crash cut off the dirty file need not know them.
        result.hasNameChanges = self.state.appliedSequence > common
        for leg in state.legs {
            if leg.isUnknown {
                result.suspects.formUnion(leg.blocks)
            } else {
                result.blocks.formUnion(leg.blocks)
            }
            result.hasNameChanges = result.hasNameChanges || leg.hasNameChanges
        }
        return result
    }

    /// Images that the checkpoint has.
    private func shownImages() throws(TargetError) -> Set<ImageID> {
        guard let staging = self.state.staging else { return Set(volume.imageIDs) }
        let name = Self.stagingName(staging.id)
        let nodes = try rows { tx in
            try tx.snapshot(named: name).map { try tx.snapshotNodes($0.id) } ?? []
        }
        return Set(nodes.compactMap(\.node.imageID))
    }

    /// In the transaction that commits the first staging of a new story.
    /// - Parameters:
    ///   - staged: a snapshot of the mirror's own, such as the one that the staging stands on; it is kept.
    ///   - timeNs: that its name says; nil: now.
    func keepDiverged(
        _ staged: SnapshotRecord, as timeNs: Int64? = nil, _ tx: CatalogTransaction
    ) throws {
        var kept = staged
        var name = "diverged-\(CivilTime(timeNs ?? store.disk.now()).compact)"
        while try tx.snapshot(named: name) != nil { name += "'" }
        kept.name = name
        kept.origin = SnapshotRecord.divergedOrigin
        try tx.publishSnapshot(kept)
        let nodes = try tx.snapshotNodes(kept.id)
        try tx.replaceSnapshotNodes(kept.id, nodes.filter { !StagingNodes.isUnnamed($0.node) })
        try tx.addEvent(
            EventRecord(
                atNs: store.disk.now(), kind: "diverged", subject: name,
                message: "what this pool had, and its primary had not, is kept in this snapshot; "
                    + "`doppel snapshot diff` shows what it is"))
    }

    /// Cuts of snapshots that the primary never completed: it may have lost what they show. They stay, as
    /// something that it has not.
    func markDropped(
        _ cuts: [DroppedCut], through last: SequenceNumber, _ tx: CatalogTransaction
    ) throws {
        try tx.setDroppedCuts(cuts)
        for var each in try tx.snapshots() where each.isOfWholePool && each.sequence <= last {
            guard cuts.contains(where: { $0.contains(each.sequence) }) else { continue }
            each.origin = SnapshotRecord.divergedOrigin
            try tx.publishSnapshot(each)
            try tx.addEvent(
                EventRecord(
                    atNs: store.disk.now(), kind: "diverged", subject: each.name,
                    message: "its primary crashed before this snapshot was complete there, and "
                        + "went on without it; what it shows is kept here"))
        }
    }

    /// Snapshots that were made after the stories parted are no moments of the one that is followed.
    func markDiverged(
        after common: SequenceNumber, through last: SequenceNumber, _ tx: CatalogTransaction
    ) throws {
        let own = try tx.snapshots().filter {
            !$0.isInternal && $0.sequence > common && $0.sequence <= last
        }
        for var each in own {
            each.origin = SnapshotRecord.divergedOrigin
            try tx.publishSnapshot(each)
        }
    }
}
