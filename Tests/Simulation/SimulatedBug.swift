// Bugs seeded on purpose: each must be found. None of them is in production code; they sit in what
// production code is given (a target that is not what it says, a keeper that keeps nothing, a disk that
// does not sync).

import BlockCore
import Pool
import Replication
import Volume

@testable import Targets

package enum SimulatedBug: String, CaseIterable, Sendable {
    /// Blocks that a target was let go with are forgotten.
    case skipsDirtyMarks
    /// The dirty file says that it was synced, and was not.
    case dirtyFileUnsynced
    /// A region's mark is cleared before the targets' files have what it stands for.
    case clearsMarksEarly
    /// Durable is said before the journal's sync.
    case acknowledgesEarly
    /// Written is said of what is in memory alone.
    case acknowledgesUnwritten
    /// Two records change places.
    case outOfOrder
    case forgetsTrims
    case forgetsResizes
    case forgetsRenames
    /// A staging is committed without its last batch.
    case commitsTooSoon
    /// An fsync is answered before the catalog says that a target is stale.
    case staleUnrecorded
    /// A mirror that lacked something is promoted as if it had had everything.
    case promotesStaleAsWhole
    /// What a promoted pool changes before its old primary is back is not kept track of.
    case losesDirtySet
    /// What a pool changed alone is not told to who replaced it.
    case losesDivergence
    /// The pool that replaced another is made its mirror.
    case wrongDirection
    /// Requests that wait are answered when the pool hears that it was replaced.
    case answersAfterFence
    /// What changes between two runs of a schedule is forgotten.
    case forgetsBetweenRuns
    /// Requests are answered without a target that nothing is to go on without.
    case answersHeld
    /// A machine that went down goes on with what its disk has.
    case skipsPull

    /// Where it can do harm.
    package var world: SimulatedWorld.Kind {
        switch self {
        case .promotesStaleAsWhole, .losesDirtySet, .losesDivergence, .wrongDirection,
            .answersAfterFence:
            .roles
        default: .mirrors
        }
    }
}

extension SimulatedWorld {
    /// Bugs that are not in what production code is given.
    func misbehave() {
        guard options.bug != nil else { return }
        for site in sites {
            for (_, target) in site.targets { misbehave(site, target) }
        }
    }

    private func misbehave(_ site: SimulatedSite, _ target: AttachedTarget) {
        let id = target.record.id
        switch options.bug {
        case .skipsDirtyMarks where target.driver?.snapshot.state == .disconnected,
            .losesDirtySet where site.generation.number > 1 && target.record.stale != nil:
            _ = site.primary?.stream.withLegs(id) { $0.takeFirst() }
        case .forgetsBetweenRuns where target.driver?.snapshot.state == .scheduled:
            _ = site.primary?.stream.withLegs(id) { $0.takeFirst() }
        case .answersHeld where target.driver?.snapshot.isLost ?? false:
            site.primary?.volume.gate.stopCounting(id)
        case .staleUnrecorded where target.staleWork != nil:
            target.clearStaleWork()
            target.driver?.staleRecorded()
        default: break
        }
    }

    func misbehaveAfterPromotion(_ site: SimulatedSite) {
        guard options.bug == .promotesStaleAsWhole, let content = site.content else { return }
        try? site.pool.catalog.write { tx in
            var state = try tx.poolState()
            let whole = SequenceNumber(rawValue: content.history.last)
            guard whole > state.generation.startSequence,
                var entry = try tx.history().entries.last
            else { return }
            state.generation.startSequence = whole
            entry.generation = state.generation
            try tx.setPoolState(state)
            try tx.addGeneration(entry)
        }
    }
}

/// Hands everything on, but for what the bug does.
final class BuggyTarget: WrappingTarget, @unchecked Sendable {  // one caller at a time
    let inner: any ReplicaTarget
    private let bug: SimulatedBug
    private unowned let primary: SimulatedSite
    private var appended = SequenceNumber.zero
    private var unwritten: (bytes: [UInt8], first: SequenceNumber, last: SequenceNumber)?
    private var held: (bytes: [UInt8], first: SequenceNumber, last: SequenceNumber, number: UInt64)?

    init(_ inner: any ReplicaTarget, _ bug: SimulatedBug, _ primary: SimulatedSite) {
        self.inner = inner
        self.bug = bug
        self.primary = primary
    }

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        do throws(TargetError) {
            var report = try inner.connect(hello)
            if bug == .losesDivergence, report.diverged?.isComplete ?? false {
                report.diverged?.blocks = [:]
                report.diverged?.suspects = [:]
            }
            return report
        } catch {
            if error.kind == .fenced, bug == .answersAfterFence { answerAll() }
            throw error
        }
    }

    /// The pool was told by now.
    private func answerAll() {
        primary.wasToldOfFence = true
        for (_, target) in primary.targets {
            primary.primary?.volume.gate.stopCounting(target.record.id)
        }
        primary.primary?.volume.gate.answer()
    }

    func append(_ batch: RecordBatch) throws(TargetError) {
        appended = batch.lastSequence
        if bug == .acknowledgesUnwritten {
            try write()
            unwritten = (
                batch.pieces.flatMap { Array($0) }, batch.firstSequence, batch.lastSequence
            )
            return
        }
        try changed(batch) { (batch) throws(TargetError) in try inner.append(batch) }
    }

    private func write() throws(TargetError) {
        guard let unwritten else { return }
        self.unwritten = nil
        try Self.with(unwritten.bytes, unwritten.first, unwritten.last) {
            (batch) throws(TargetError) in try inner.append(batch)
        }
    }

    func flush() throws(TargetError) -> SequenceNumber {
        try write()
        guard bug == .acknowledgesEarly, appended > .zero else { return try inner.flush() }
        return appended
    }

    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        held = nil
        try inner.beginStaging(id: id, shape: shape)
    }

    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        guard bug == .commitsTooSoon else {
            return try changed(batch) { (batch) throws(TargetError) in
                try inner.stage(batch, number: number)
            }
        }
        try pass()
        held = (
            batch.pieces.flatMap { Array($0) }, batch.firstSequence, batch.lastSequence, number
        )
    }

    private func pass() throws(TargetError) {
        guard let held else { return }
        self.held = nil
        try Self.with(held.bytes, held.first, held.last) { (batch) throws(TargetError) in
            try inner.stage(batch, number: held.number)
        }
    }

    func syncStaging() throws(TargetError) {
        try pass()
        try inner.syncStaging()
    }

    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        held = nil
        try inner.commitStaging(id: id, at: sequence, snapshot: snapshot)
    }

    // MARK: Records

    private func changed(
        _ batch: RecordBatch, _ body: (RecordBatch) throws(TargetError) -> Void
    ) throws(TargetError) {
        var records: [(StreamRecord, [UInt8])] = []
        batch.forEach { records.append(($0, Array($1))) }
        switch bug {
        case .forgetsTrims: Self.empty(&records, .zero)
        case .forgetsResizes: Self.empty(&records, .size)
        case .forgetsRenames: Self.empty(&records, .names)
        case .outOfOrder: exchange(&records)
        default: return try body(batch)
        }
        var bytes: [UInt8] = []
        for (record, payload) in records { bytes += Self.encode(record, payload) }
        try Self.with(bytes, batch.firstSequence, batch.lastSequence, body)
    }

    /// Their places stay, with a change of no name.
    private static func empty(_ records: inout [(StreamRecord, [UInt8])], _ kind: StreamKind) {
        let nothing = NamesCodec.encode([])
        for index in records.indices where records[index].0.kind == kind {
            records[index] = (
                StreamRecord(
                    .names, sequence: records[index].0.sequence, atNs: records[index].0.atNs,
                    payloadBytes: nothing.count), nothing
            )
        }
    }

    /// The content of the first two writes of one block.
    private func exchange(_ records: inout [(StreamRecord, [UInt8])]) {
        for first in records.indices where records[first].0.kind == .data {
            for second in records.indices.dropFirst(first + 1)
            where records[second].0.kind == .data
                && records[second].0.image == records[first].0.image
                && records[second].0.range == records[first].0.range
            {
                let content = records[first].1
                records[first].1 = records[second].1
                records[second].1 = content
                return
            }
        }
    }

    private static func encode(_ record: StreamRecord, _ payload: [UInt8]) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: record.totalBytes)
        bytes.withUnsafeMutableBytes { raw in
            record.encodeHeader(into: raw)
            raw[StreamRecord.headerBytes..<StreamRecord.headerBytes + payload.count]
                .copyBytes(from: payload)
        }
        return bytes
    }

    private static func with(
        _ bytes: [UInt8], _ first: SequenceNumber, _ last: SequenceNumber,
        _ body: (RecordBatch) throws(TargetError) -> Void
    ) throws(TargetError) {
        var result = Result<Void, TargetError>.success(())
        bytes.withUnsafeBytes { raw in
            result = Result { () throws(TargetError) in
                try body(RecordBatch(pieces: [raw], firstSequence: first, lastSequence: last))
            }
        }
        try result.get()
    }
}

/// Says that all is kept, and keeps nothing.
final class CarelessKeeper: TargetKeeper, Sendable {
    private let inner: any TargetKeeper
    init(_ inner: any TargetKeeper) { self.inner = inner }
    func secure(upTo sequence: SequenceNumber) throws(VolumeError) {}
    func letGo(of cut: SequenceNumber) { inner.letGo(of: cut) }
}
