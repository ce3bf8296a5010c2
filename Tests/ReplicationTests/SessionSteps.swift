// The first steps of a session, for tests of what comes after them.

import BlockCore
import Replication

extension ReplicaReport {
    /// Of a target that shows everything up to there, and has nothing else.
    static func at(
        _ checkpoint: SequenceNumber, incarnationID: String? = "this"
    ) -> ReplicaReport {
        ReplicaReport(
            incarnationID: incarnationID, generation: nil, checkpoint: checkpoint, snapshots: [],
            staging: nil)
    }
}

extension SessionEvent {
    /// The target has this incarnation's stream up to there, and lacks nothing of what came before.
    static func connectedInStep(at checkpoint: SequenceNumber) -> SessionEvent {
        .connected(
            .at(checkpoint),
            StreamPosition(
                isSameIncarnation: true, holdsAllAfterCheckpoint: true, isDirty: false,
                acknowledged: checkpoint))
    }
}

extension TargetSession {
    /// One that streams from 10 on.
    static func streaming(
        _ options: SessionOptions = SessionOptions(), now: Int64 = 0
    ) -> TargetSession {
        var session = TargetSession(options: options, seed: 1)
        _ = session.apply(.start, now: now)
        _ = session.apply(.connectedInStep(at: sequence(10)), now: now)
        return session
    }
}
