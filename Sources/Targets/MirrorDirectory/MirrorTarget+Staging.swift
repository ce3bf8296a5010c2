import BlockCore
import Replication
import SystemIO

extension MirrorTarget {
    package func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try guarded { (pool) throws(TargetError) in
            staging = nil
            endComparing()
            // From here on the journal stands still, and goes on with the story that is committed.
            syncer?.forget()
            try pool.beginStaging(id)
            try pool.shape(shape)
            staging = Staging(
                applier: pool.stagingApplier(), lastBatch: pool.state.staging?.durableBatch ?? 0)
        }
    }

    package func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try guarded { (_) throws(TargetError) in
            let applier = try open(staging).applier
            for piece in batch.pieces {
                try RecordReader.forEach(in: piece) { (record, payload) throws(TargetError) in
                    guard record.kind != .barrier else { return }
                    staging!.highest = max(staging!.highest, record.sequence)
                    try applier.apply(record, payload)
                }
            }
            staging!.lastBatch = max(staging!.lastBatch, number)
        }
    }

    package func syncStaging() throws(TargetError) {
        try guarded { (pool) throws(TargetError) in
            let staging = try open(staging)
            staging.applier.settleTimes()
            try pool.syncStaging(through: staging.lastBatch)
        }
    }

    package func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try guarded { (pool) throws(TargetError) in
            let staging = try open(staging)
            guard let hello, pool.state.staging?.id == id,
                let shaped = pool.state.staging?.shapeSequence, sequence >= shaped,
                sequence >= staging.highest
            else {
                throw TargetError(
                    .io,
                    "\(path) has no staging \(id) that could be committed at "
                        + "\(sequence.rawValue)")
            }
            staging.applier.settleTimes()
            try pool.commitStaging(id, at: sequence, snapshot: snapshot, by: hello)
            try requireInPlace()
            self.staging = nil
        }
    }

    private func open(_ staging: Staging?) throws(TargetError) -> Staging {
        guard let staging else {
            throw TargetError(.io, "\(path) has no staging under way on this connection")
        }
        return staging
    }
}
