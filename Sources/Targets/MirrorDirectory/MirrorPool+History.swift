// Looking back: which moments a mirror can be mounted at, and what is kept for it.
//
// A moment is a snapshot at or before it, and the journal from there on. Snapshots that the primary sent
// serve as well as the mirror's own `history/<sequence>`, its *bases*, of which there is one
//   - where a story of the journal begins (after a resync) and where it ended,
//   - then one each half of the history's length.
// The bases from the newest that is older than the history on are kept, and the journal after the oldest
// of them: between once and one and a half times as long as was asked for. On a full disk history goes
// first. docs/decisions/0009-looking-back.md tells why.
//
// With `keepsHistory` it does not: what a primary sends, and whatever it says of itself and of the time, ends no
// history before its time. Then a base's time is never before this machine's clock had it, so that it is kept for long
// enough; a base says "no later than", which is enough to look back from it.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

extension MirrorPool {
    private static let basePrefix = "history/"
    static func baseName(_ sequence: SequenceNumber) -> String {
        basePrefix + String(sequence.rawValue)
    }
    static func isBase(_ snapshot: SnapshotRecord) -> Bool {
        snapshot.isInternal && snapshot.name.hasPrefix(basePrefix)
    }

    var momentNs: Int64 { lastAppliedNs == 0 ? store.disk.now() : lastAppliedNs }

    /// What a clock of another machine may be ahead.
    private static let skewNs: Int64 = 300_000_000_000
    /// The time of a base that is made now: everything in it was done by then.
    var baseNs: Int64 {
        guard options.keepsHistory else { return momentNs }
        let (moment, now) = (momentNs, store.disk.now())
        // Beyond that it is a lie, and ends nothing.
        return moment > now + Self.skewNs ? now : max(moment, now)
    }

    // MARK: Keeping bases: the caller holds `applying`

    func findBases() throws(TargetError) {
        let start = journal.storyStart
        newestBaseNs =
            try internalSnapshots(Self.basePrefix).filter { $0.sequence >= start }
            .map(\.createdNs).max() ?? 0
    }

    var isBaseDue: Bool {
        guard let historyMs = options.historyMs, historyMs > 0 else { return false }
        // A primary says when it was.
        let (ageNs, isBeyond) = store.disk.now().subtractingReportingOverflow(newestBaseNs)
        return newestBaseNs == 0 || isBeyond || ageNs >= historyMs * 500_000
    }

    /// Makes a base when it is time, and drops those that nobody can ask for any more. What is
    /// applied is durable and noted.
    /// - Returns: what the journal has to be kept after.
    func keepHistory(mayCut: Bool) throws(TargetError) -> SequenceNumber {
        guard let historyMs = options.historyMs else { return .zero }
        var bases = try internalSnapshots(Self.basePrefix).sorted { $0.sequence < $1.sequence }
        if isBaseDue, mayCut {
            if bases.last?.sequence != position {
                let place = SnapshotPlace(createdNs: baseNs, sequence: position)
                do throws(TargetError) {
                    bases.append(try cut(Self.baseName(position), at: place))
                } catch {
                    guard error.kind == .noSpace else { throw error }
                    guard options.keepsHistory else {
                        try dropBases(bases)
                        return position
                    }
                }
            }
            // Where there is no room for one, the next one in its time.
            newestBaseNs =
                bases.last?.sequence == position ? bases.last!.createdNs : store.disk.now()
        }
        let limit = store.disk.now() - historyMs * 1_000_000
        let kept = historyMs == 0 ? nil : bases.lastIndex { $0.createdNs <= limit } ?? 0
        let doomed = kept.map { Array(bases[..<$0]) } ?? bases
        try delete(doomed)
        return kept.map { $0 < bases.count ? bases[$0].sequence : position } ?? position
    }

    /// Gives up what is kept for looking back.
    /// - Returns: whether there was any.
    func dropHistory() throws(TargetError) -> Bool {
        let bases = try internalSnapshots(Self.basePrefix)
        try dropBases(bases)
        let hasFreed = try TargetError.journal { () throws(JournalError) in
            try journal.freeHistory()
        }
        return hasFreed || !bases.isEmpty
    }

    private func dropBases(_ bases: [SnapshotRecord]) throws(TargetError) {
        // The next one in its time: the disk may be full for long.
        newestBaseNs = store.disk.now()
        guard !bases.isEmpty else { return }
        log.warning("\(store.path) is full: its history is given up")
        try delete(bases)
    }

    // MARK: Views

    private static let viewPrefix = "view/"
    func isPinned(_ snapshot: SnapshotRecord) -> Bool {
        snapshot.name.hasPrefix(Self.viewPrefix) && nextViewNumber > 1
    }

    /// What the mirror shows now, for as long as the view is open, whatever is written meanwhile.
    func newestView() throws(TargetError) -> MirrorView {
        try applying.withLock { () throws(TargetError) in
            if let staging = state.staging {
                return try view(of: Self.stagingName(staging.id))
            }
            _ = try flush()
            try catchUp()
            let number = nextViewNumber
            nextViewNumber += 1
            let snapshot = try cut(
                Self.viewPrefix + String(number),
                at: SnapshotPlace(createdNs: momentNs, sequence: position))
            return try MirrorView(pool: self, pin: snapshot)
        }
    }

    /// What the mirror shows now, and before it each snapshot that it shows, the oldest first: all of it stays
    /// until it is released.
    func allViews() throws(TargetError) -> [(snapshot: SnapshotRecord?, view: MirrorView)] {
        let newest = try newestView()
        var views: [(snapshot: SnapshotRecord?, view: MirrorView)] = []
        do throws(TargetError) {
            try applying.withLock { () throws(TargetError) in
                let snapshots = try rows { try $0.snapshots() }.filter {
                    $0.state == .complete && $0.isOfWholePool && $0.sequence <= newest.sequence
                }
                for each in snapshots.sorted(by: { $0.sequence < $1.sequence }) {
                    views.append((each, try view(of: each.name)))
                }
            }
        } catch {
            for each in views { each.view.release() }
            newest.release()
            throw error
        }
        return views + [(nil, newest)]
    }

    /// A second row for the same layers: the first may go while the view is open.
    private func view(of name: String) throws(TargetError) -> MirrorView {
        let number = nextViewNumber
        nextViewNumber += 1
        var pin: SnapshotRecord?
        try changeRows { tx in
            guard var copy = try tx.snapshot(named: name) else { return }
            let nodes = try tx.snapshotNodes(copy.id)
            copy.name = Self.viewPrefix + String(number)
            copy.origin = SnapshotRecord.internalOrigin
            copy = try tx.insertSnapshot(copy)
            try tx.insertSnapshotNodes(copy.id, nodes)
            pin = copy
        }
        guard let pin else {
            throw TargetError(.damaged, "the snapshot \(name) of \(store.path) is missing")
        }
        return try MirrorView(pool: self, pin: pin)
    }

    /// What the primary showed at a moment, by its clock: everything before the first operation
    /// that is later.
    /// - Throws: `.absent` where the journal and the snapshots do not reach.
    func view(atNs timeNs: Int64) throws(TargetError) -> MirrorView {
        try view {
            $0.createdNs <= timeNs
        } isExact: {
            $0.createdNs == timeNs
        } isAfter: {
            $0.atNs > timeNs
        }
    }

    /// What the primary showed once it had done everything up to `sequence`.
    func view(at sequence: SequenceNumber) throws(TargetError) -> MirrorView {
        try view {
            $0.sequence <= sequence
        } isExact: {
            $0.sequence == sequence
        } isAfter: {
            $0.sequence > sequence
        }
    }

    private func view(
        basedOn isBefore: (SnapshotRecord) -> Bool, isExact: (SnapshotRecord) -> Bool,
        isAfter: (StreamRecord) -> Bool
    ) throws(TargetError) -> MirrorView {
        try applying.withLock { () throws(TargetError) in
            let snapshots = try rows { try $0.snapshots() }.filter(Self.isMoment)
                .sorted { $0.sequence < $1.sequence }
            guard let base = snapshots.last(where: isBefore) else {
                throw TargetError(.absent, "\(store.path) does not reach back so far")
            }
            let view = try view(of: base.name)
            do throws(TargetError) {
                let isAll = isExact(base) || base.sequence >= journal.durableSequence
                if !isAll {
                    guard let reader = journal.historyReader(after: base.sequence) else {
                        throw view.lacksWhatFollows
                    }
                    let next = snapshots.first { $0.sequence > base.sequence }
                    try view.replay(reader, knownTo: next?.sequence, isAfter: isAfter)
                }
                return view
            } catch {
                view.release()
                throw error
            }
        }
    }

    /// Whether it shows the whole pool as it was at its sequence.
    private static func isMoment(_ snapshot: SnapshotRecord) -> Bool {
        snapshot.state == .complete && snapshot.origin != SnapshotRecord.restoreOrigin
            && snapshot.origin != SnapshotRecord.divergedOrigin
            && !(snapshot.isInternal && snapshot.name.hasPrefix(viewPrefix))
    }

    /// How far back every moment can be had, by the primary's clock; nil where none can.
    func reachNs() throws(TargetError) -> Int64? {
        let start = journal.startSequence
        return try rows { try $0.snapshots() }
            .filter { Self.isMoment($0) && $0.sequence >= start }
            .map(\.createdNs).min()
    }
}
