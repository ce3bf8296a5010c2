// How each copy stands, told to all others: whoever takes over knows what it takes over, and where the rest is.
//
//   stale      before anybody is answered without it     who waits for it waits for the others to know
//   in step    when it is waited for again
//   gone       it is no target any more; the others keep since when they know nothing of it
//
// A copy that comes in step is told how all others stand: while it was away, records passed it by.
// One that never streams, for it has an interval, is told with each of its runs: what it knows is as old as
// its checkpoint. That something is to be told is reason enough for a run.
// A pool with one target has nobody to tell.

import BlockCore
import Pool
import Replication

extension TargetHub {
    private func standing(_ record: TargetRecord, isGone: Bool = false) -> CopyStanding? {
        record.poolID.map { poolID in
            CopyStanding(
                poolID: poolID, address: isGone ? "" : record.address,
                stale: record.stale.map {
                    .init(sinceNs: $0.sinceNs, sequence: $0.sequence, reason: $0.reason)
                })
        }
    }

    private func append(_ standing: CopyStanding) -> SequenceNumber {
        let payload = StandingPayload.encode(standing)
        return stream.append(.standing, atNs: disk.now(), payloadBytes: payload.count) {
            $0.copyBytes(from: payload)
        }
    }

    /// Appends what is to be known of a copy to the stream, where anybody else takes it.
    /// - Returns: once the others hold this place durably, they know.
    func announce(_ record: TargetRecord, isGone: Bool = false) -> SequenceNumber? {
        let others = listeners(but: record.id)
        guard !others.isEmpty, let standing = standing(record, isGone: isGone) else { return nil }
        let place = append(standing)
        for other in others { other.driver?.wantFlush(place) }
        return place
    }

    /// Targets that the stream reaches now. One that does not confirm within its own timeout is none.
    private func listeners(but id: TargetID) -> [AttachedTarget] {
        all.filter { $0.record.id != id && $0.driver?.snapshot.state == .streaming }
    }

    func othersKnow(of id: TargetID, at place: SequenceNumber?) -> Bool {
        guard let place else { return true }
        return listeners(but: id).allSatisfy {
            (stream.standing($0.record.id)?.durable ?? .zero) >= place
        }
    }

    /// Where somebody came in step, which may have heard of nobody.
    /// - Returns: whether anything was told.
    func announceArrivals() -> Bool {
        let known = all
        // A session that just said that all is durable goes on to say that it is in step.
        for target in known { _ = target.driver?.snapshot }
        let hasArrivals = known.filter { $0.takeArrival() }.count > 0
        guard hasArrivals, known.count > 1 else { return false }
        for target in known {
            if let standing = standing(target.record) { _ = append(standing) }
        }
        return true
    }

    // MARK: Those that never stream

    /// How the others stand now.
    private func standings(but id: TargetID) -> [CopyStanding] {
        let others = all.filter { $0.record.id != id }.compactMap { standing($0.record) }
        let gone = lock.withLock { departed }.filter { gone in
            !others.contains { $0.poolID == gone.poolID }
        }
        return gone + others
    }

    /// The stream is held for it, for a run: what is appended goes with it.
    func tellWithRun(_ id: TargetID) {
        guard let target = target(id), target.record.intervalMs != nil else { return }
        let news = standings(but: id)
        target.noteTold(news)
        for each in news { _ = append(each) }
    }

    /// What it was told with its last run is not so any more.
    func hasNews(for id: TargetID) -> Bool {
        guard let target = target(id), target.record.intervalMs != nil else { return false }
        return target.told != standings(but: id)
    }

    // MARK: Those that are gone

    func noteDeparted(_ record: TargetRecord) {
        guard let standing = standing(record, isGone: true) else { return }
        lock.withLock {
            departed.removeAll { $0.poolID == standing.poolID }
            departed.append(standing)
        }
    }

    /// Who waits for a target that was removed is answered when the others know of it.
    func releaseWhenKnown(_ id: TargetID, at place: SequenceNumber?) {
        if othersKnow(of: id, at: place) { return volume.gate.stopCounting(id) }
        lock.withLock { leaving.append((id, place)) }
        wakeKeeper()
    }

    func releaseLeaving(all isForced: Bool = false) {
        let waiting = lock.withLock { leaving }
        guard !waiting.isEmpty else { return }
        let done = waiting.filter { isForced || othersKnow(of: $0.id, at: $0.place) }
        lock.withLock { leaving.removeAll { each in done.contains { $0.id == each.id } } }
        for each in done { volume.gate.stopCounting(each.id) }
    }
}
