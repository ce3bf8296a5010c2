// A staging: content on its way to the next checkpoint.
//
//   drain     the journal is applied to its end, durably     crash: as streaming
//   snapshot  `staging/<id>`: the checkpoint                  crash: nobody needs it yet, removed
//   begun     the catalog says that a staging is under way    crash: the checkpoint is the snapshot;
//                                                             the staging goes on from its last
//                                                             durable batch, or is put back
//   shaped    images and names are the primary's              crash: the same; shaped anew
//   staged    blocks, straight into the heads                 crash: the same
//   flushed   everything is durable
//   sealed    where the leg ends in a snapshot: a cut         crash: the same, and the cut is removed
//   committed one catalog transaction (R4)                    crash: the new checkpoint
//   tidied    the old checkpoint's layers merge behind
//
//   put back  one catalog transaction, too: new heads on      crash: before it as above, after it the
//             the snapshot's layers, its names, no staging    old checkpoint without a staging

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

extension MirrorPool {
    static func stagingName(_ id: UInt64) -> String { "staging/\(id)" }

    func beginStaging(_ id: UInt64) throws(TargetError) {
        if let staging = state.staging, staging.id != id { try putBack() }
        guard state.staging == nil else { return }
        _ = try flush()
        try applyAll()
        try applying.withLock { () throws(TargetError) in
            // One that an attempt before left behind.
            try dropLeftovers()
            _ = try cut(
                Self.stagingName(id),
                at: SnapshotPlace(createdNs: baseNs, sequence: state.appliedSequence))
            try update { $0.staging = .init(id: id) }
        }
    }

    /// An internal snapshot of the heads.
    func cut(_ name: String, at place: SnapshotPlace) throws(TargetError) -> SnapshotRecord {
        try TargetError.volume { () throws(VolumeError) in
            try volume.createSnapshot(
                name: name, origin: SnapshotRecord.internalOrigin, at: place,
                nodes: try StagingNodes.all(of: volume))
        }
    }

    /// Gives the heads the images and names of the primary.
    func shape(_ shape: PoolShape) throws(TargetError) {
        guard let changes = shape.names.withUnsafeBytes(NamesCodec.decode),
            changes.contains(where: {
                if case .put(let node) = $0 { node.id == .root } else { false }
            })
        else { throw TargetError(.damaged, "the names that arrived are no tree") }
        let wanted = Set(shape.images.map(\.id))
        var unnamed = wanted
        for case .put(let node) in changes {
            guard let image = node.imageID, unnamed.remove(image) == nil else { continue }
            let isThere = wanted.contains(image)
            throw TargetError(
                .damaged,
                "image \(image.rawValue) has \(isThere ? "two names" : "a name, and is not there")")
        }
        try TargetError.volume { () throws(VolumeError) in
            for each in shape.images {
                let image =
                    volume.hasImage(each.id)
                    ? try volume.image(each.id) : try volume.createImage(id: each.id)
                if image.sizeBytes != each.sizeBytes { try image.resize(to: each.sizeBytes) }
                volume.withNameChange { _ in image.setModified(ns: each.modifiedNs) }
            }
        }
        try update(also: { tx in
            try tx.deleteAllNodes()
            try tx.apply(changes)
        }) { $0.staging?.shapeSequence = shape.sequence }
        try TargetError.volume { () throws(VolumeError) in
            for id in volume.imageIDs where !wanted.contains(id) {
                try volume.deleteImage(id)
            }
        }
    }

    /// The applier of a staging, whose shape is in the catalog. How far structure is need not be
    /// kept: who goes on with a staging brings a new shape.
    func stagingApplier() -> RecordApplier {
        RecordApplier(
            volume: volume, source: .staging, structure: state.staging?.shapeSequence ?? .zero,
            toleratesDamage: false
        ) { (_, transaction) throws(TargetError) in try transaction { _ in } }
    }

    func syncStaging(through batch: UInt64) throws(TargetError) {
        try TargetError.volume { () throws(VolumeError) in try volume.flushAll() }
        if state.staging?.durableBatch != batch {
            try update { $0.staging?.durableBatch = batch }
        }
    }

    func commitStaging(
        _ id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?, by hello: PrimaryHello
    ) throws(TargetError) {
        try TargetError.volume { () throws(VolumeError) in try volume.flushAll() }
        try applying.withLock { () throws(TargetError) in
            let sealed = try snapshot.map { (info) throws(TargetError) in
                try seal(info, staging: id)
            }
            try commit(id, at: sequence, snapshot: snapshot, sealed: sealed, by: hello)
            beginStream(after: sequence, isNew: true)
        }
        // It is committed: what is left to do is done behind, or at the next open.
        do throws(TargetError) {
            try applying.withLock { () throws(TargetError) in try noteApplied() }
            try TargetError.volume { () throws(VolumeError) in try volume.tidy() }
        } catch { log.error("after a resync of \(store.path): \(error)") }
    }

    private func seal(
        _ info: SnapshotInfo, staging id: UInt64
    ) throws(TargetError) -> SnapshotRecord {
        guard !info.name.contains("/") else {
            throw TargetError(.damaged, "'\(info.name)' cannot be a snapshot's name")
        }
        let name = Self.stagingName(id) + "/sealed"
        // One that an attempt before left behind.
        try changeRows { tx in
            if let old = try tx.snapshot(named: name) { try tx.deleteSnapshot(old.id) }
        }
        return try TargetError.volume { () throws(VolumeError) in
            try volume.createSnapshot(
                name: name, origin: SnapshotRecord.internalOrigin,
                at: SnapshotPlace(createdNs: info.createdNs, sequence: info.sequence),
                nodes: try volume.catalogNodes())
        }
    }

    /// R4.
    private func commit(
        _ id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?,
        sealed: SnapshotRecord?, by hello: PrimaryHello
    ) throws(TargetError) {
        let segment = journal.nextSegment
        let before = state.appliedSequence
        let diverged = divergence
        // A pool that was handed over, and did nothing alone, goes on where it is.
        let isOther = options.keepsHistory ? diverged?.isSomething ?? false : diverged != nil
        let goesBack = sequence < before || isOther
        let keepsHistory = options.historyMs != 0 && !goesBack
        // Once: the next checkpoint is the primary's.
        let isAhead = hello.keepsDiverged && state.incarnationID != hello.incarnationID
        let keepsAll = options.keepsHistory && goesBack && state.incarnationID != nil
        let keepsState =
            diverged?.isSomething ?? false || (isAhead && state.incarnationID != nil) || keepsAll
        try update(also: { tx in
            if let diverged { try markDiverged(after: diverged.common, through: before, tx) }
            if let snapshot, var sealed {
                if try Volume.makeWay(for: snapshot, tx) {
                    try tx.deleteSnapshot(sealed.id)
                } else {
                    sealed.name = snapshot.name
                    sealed.origin = snapshot.origin
                    try tx.publishSnapshot(sealed)
                }
            }
            if var old = try tx.snapshot(named: Self.stagingName(id)) {
                // The end of the journal's story up to here.
                old.name = Self.baseName(before)
                if keepsState {
                    try keepDiverged(old, tx)
                } else if keepsHistory, try tx.snapshot(named: old.name) == nil {
                    try tx.publishSnapshot(old)
                } else {
                    try tx.deleteSnapshot(old.id)
                }
            }
            try markDropped(hello.droppedCuts, through: before, tx)
            try tx.setHistory(hello.story)
            // Of a cut on the way that is not said yet.
            if sequence >= hello.givenThrough ?? .zero { try tx.setLostReceived(false) }
            if goesBack {
                // The primary went back, or is another: what was here is no part of its past.
                for each in try tx.snapshots() where Self.isBase(each) {
                    // One of the moment before is what is kept anyway.
                    if keepsAll, each.sequence != before {
                        try keepDiverged(each, as: each.createdNs, tx)
                    } else {
                        try tx.deleteSnapshot(each.id)
                    }
                }
            }
        }) {
            $0.staging = nil
            $0.generation = hello.generation
            $0.incarnationID = hello.incarnationID
            $0.contentGenerationID = hello.generation.id
            $0.divergence = nil
            $0.appliedSequence = sequence
            $0.structureSequence = sequence
            $0.journalSegment = segment
        }
        newestBaseNs = 0
        divergence = nil
    }

    /// Puts the heads back to the checkpoint, and forgets the staging.
    func putBack() throws(TargetError) {
        guard let staging = state.staging else { return }
        try applying.withLock { () throws(TargetError) in
            let name = Self.stagingName(staging.id)
            let (snapshot, nodes) = try rows { tx in
                let snapshot = try tx.snapshot(named: name)
                return (snapshot, try snapshot.map { try tx.snapshotNodes($0.id) } ?? [])
            }
            guard let snapshot else {
                throw TargetError(
                    .damaged, "the checkpoint of \(store.path) is missing from its catalog")
            }
            try update({ $0.staging = nil }) { (record) throws(TargetError) in
                try TargetError.volume { () throws(VolumeError) in
                    try volume.putBack(nodes) { tx in
                        try tx.deleteAllNodes()
                        for node in nodes where !StagingNodes.isUnnamed(node.node) {
                            try tx.upsertNode(node.node)
                        }
                        try tx.deleteSnapshot(snapshot.id)
                        try record(tx)
                    }
                }
            }
            beginStream(after: state.appliedSequence, isNew: false)
        }
    }
}
