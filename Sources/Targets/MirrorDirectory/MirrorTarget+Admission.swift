// Who may write to a mirror, and what the mirror has that this primary has not.
//
//   its primary, in the generation that it follows                         goes on
//   its primary, or another pool, in a later one that came from that       followed from now on
//   one in an earlier generation                                           fenced: it was replaced
//   one in a generation that did not come from the one it follows          split brain
//   any other pool                                                         absent
//
// The later generation is noted durably before anything is taken from its primary. What the content is
// of stays as it is until the first checkpoint that came from there: a crash in between, and the next
// connection, find the same divergence again.

import BlockCore
import Pool
import Replication
import SystemIO

extension PrimaryHello {
    /// The generations that led to the primary's, as far as it says.
    var story: GenerationHistory {
        guard history.entries.isEmpty else { return history }
        return GenerationHistory([
            .init(generation: generation, poolID: poolID, begunNs: 0, cause: .unknown)
        ])
    }
}

extension MirrorTarget {
    /// The primary is followed from here on, and that is noted.
    func admit(_ hello: PrimaryHello, to pool: MirrorPool) throws(TargetError) {
        let state = pool.state
        try check(hello, against: state, try pool.rows { try $0.history() })
        // The same primary, which only began another generation.
        let isSame = state.incarnationID == hello.incarnationID
        try pool.update(also: { tx in
            guard isSame else { return }
            try tx.setHistory(hello.story)
        }) {
            $0.generation = hello.generation
            if isSame { $0.contentGenerationID = hello.generation.id }
            $0.primaryPoolID = hello.poolID
            $0.primaryAddress = hello.address ?? $0.primaryAddress
            $0.heardNs = pool.store.disk.now()
        }
        // It lives, and gives again what was not durable.
        let hasLost = try pool.rows { try $0.lostReceived() }
        lostThrough = isSame && hasLost ? hello.givenThrough : nil
        if state.primaryPoolID != hello.poolID {
            try TargetError.system { () throws(SystemError) in try pool.store.writeRole() }
        }
    }

    /// What it has now is all that it had been given before its machine went down: nothing is lost any more.
    /// Whoever waits for what it is given hears of that only when this is durable.
    func noteGiven(_ through: SequenceNumber, _ pool: MirrorPool) throws(TargetError) {
        guard let given = lostThrough, through >= given else { return }
        try pool.changeRows { try $0.setLostReceived(false) }
        lostThrough = nil
    }

    /// - Throws: `.absent` where the pool is no mirror of this primary, `.fenced`, `.splitBrain`.
    func check(
        _ hello: PrimaryHello, against record: ReplicaRecord, _ content: GenerationHistory
    ) throws(TargetError) {
        let isOther = hello.poolID != record.primaryPoolID
        guard let known = record.generation, known.id != hello.generation.id else {
            guard !isOther else { throw otherPool(record.primaryPoolID, hello) }
            return
        }
        if known.number > hello.generation.number {
            let wasFollowed =
                !isOther || known.parentID == hello.generation.id
                || content.contains(hello.generation.id)
            guard wasFollowed else { throw otherPool(record.primaryPoolID, hello) }
            throw TargetError(
                .fenced,
                "\(path) follows generation \(known.number) by now, this primary is generation "
                    + "\(hello.generation.number): it was replaced")
        }
        // Models and older primaries say nothing of what was before.
        let saysNothing = hello.history.entries.isEmpty
        let isLater = known.number < hello.generation.number
        if isLater, hello.story.contains(known.id) || (saysNothing && !isOther) { return }
        guard !isOther || content.fork(from: hello.story) != nil else {
            throw otherPool(record.primaryPoolID, hello)
        }
        throw splitBrain(known.number, hello)
    }

    private func otherPool(_ primary: String, _ hello: PrimaryHello) -> TargetError {
        TargetError(
            .absent,
            "\(path) is a pool, but not a mirror of pool \(hello.poolID) (it follows \(primary)): "
                + "nothing in it was touched")
    }

    func splitBrain(_ number: UInt64, _ hello: PrimaryHello) -> TargetError {
        TargetError(
            .splitBrain,
            "split brain: \(path) is in a generation \(number) and this pool in a generation "
                + "\(hello.generation.number), and neither came from the other. Nothing is sent; "
                + "`doppel target resolve ... --keep here|there` says which of the two goes on, and "
                + "keeps the other's state as a snapshot")
    }

    /// - Throws: for a primary, whatever it is to the one that connects.
    func refuse(primary sight: PoolSight, _ hello: PrimaryHello) throws(TargetError) {
        guard !sight.isReplica else { return }
        switch sight.history.relation(to: hello.story) {
        case .replacesOther: throw promoted
        case .split: throw splitBrain(sight.history.current?.number ?? 0, hello)
        case .replacedByOther:
            throw TargetError(
                .absent,
                "\(path) was replaced by this pool, and is a primary still: unmount it, then `doppel "
                    + "demote \(path)` makes it a mirror of this one")
        case .same, .unrelated:
            throw TargetError(
                .absent,
                "\(path) is a pool, but no mirror of pool \(hello.poolID): nothing in it was touched"
            )
        }
    }

    /// A mirror that was promoted takes nothing from the pool it once followed.
    private var promoted: TargetError {
        TargetError(
            .fenced,
            "\(path) was promoted and is a primary itself: mount that, and keep this one until it is "
                + "known to hold nothing that is missed")
    }
}
