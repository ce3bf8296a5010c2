import BlockCore
import Logging
import Pool
import Replication
import SystemIO
import Volume

/// One target of the hub: its record, its session, its dirty file, and what the keeper has to do.
package final class AttachedTarget: @unchecked Sendable {  // under `lock`; the file under `filing`
    private let lock = Lock()
    private var currentRecord: TargetRecord
    private var currentDriver: SessionDriver?
    private var currentImages: [ImageID: TargetImageRecord] = [:]
    private var stale: StaleWork?
    private var hasArrived = false
    private var toldStandings: [CopyStanding] = []
    private var isDirtyWorkDue = false
    /// It counts again. What was answered before that, and so without it, is up to here.
    private var inStepFrom: SequenceNumber?
    /// It was not yet given again what it lost.
    private var isLacking = false
    private var isBeingHandedTo = false
    private var events: [EventRecord] = []
    private var fence: String?
    private var rate = RateMeter()
    private var recovery: RecoveryPoint?
    /// Of the sessions before.
    private var past = SessionTally.Figures()
    /// Held across I/O: one change of the record at a time, in memory and in the catalog.
    let recording = Lock()
    /// Held across I/O: one writer of the dirty file at a time.
    private let filing = Lock()
    private let file: DirtyFile
    /// Under `filing`: what the file was asked to hold. It says so until the target holds it, whatever
    /// else is written down meanwhile: region marks were cleared for it.
    private var securedUpTo = SequenceNumber.zero
    private let incarnation: UInt64

    private init(_ record: TargetRecord, file: DirtyFile, incarnation: UInt64) {
        currentRecord = record
        self.file = file
        self.incarnation = incarnation
    }

    // MARK: The dirty file

    static func path(_ id: TargetID, in store: PoolStore) -> String {
        "\(store.path)/targets/\(id.rawValue)/dirty"
    }

    /// Attaches a target that the pool knew when it was opened: with what its file says, what an unclean
    /// end left open, and everything where the file is missing or says nothing one can trust.
    static func open(
        _ record: TargetRecord, volume: Volume, stream: WriteStream, incarnation: UInt64,
        suspects: [ImageID: BlockSet]
    ) throws(TargetError) -> AttachedTarget {
        let store = volume.store
        let path = path(record.id, in: store)
        let opened: (file: DirtyFile, state: DirtyFileState)?
        do throws(DirtyFileError) {
            opened = try DirtyFile.open(disk: store.disk, path: path, target: record.id)
        } catch {
            guard case .damaged = error else { throw TargetError(.io, error.description) }
            Logger(label: "doppel.targets").error("\(error)")
            opened = nil
        }
        guard let opened else {
            var legs = DirtyLegs()
            // The target may have what is a hole here.
            legs.enterUnknown(
                try TargetError.volume { () throws(VolumeError) in try volume.wholeImages() })
            stream.attachTracking(record.id, legs: legs)
            let target = try create(
                record, volume: volume, stream: stream, incarnation: incarnation)
            target.addEvent(
                EventRecord(
                    atNs: store.disk.now(), kind: "compare-all", subject: record.address,
                    message: "what it lacks is not known: all of it is compared by hash"))
            return target
        }
        let snapshots = try TargetHub.read(store) { try $0.snapshots() }.filter {
            $0.state == .complete && $0.isOfWholePool
        }
        let infos = Dictionary(
            snapshots.map { ($0.sequence, PoolSource.info($0)) }, uniquingKeysWith: { a, _ in a })
        var legs = DirtyLegs(opened.state.legs) { infos[$0] }
        legs.enterUnknown(suspects)
        stream.attachTracking(
            record.id, legs: legs, durable: opened.state.acknowledged)
        return AttachedTarget(record, file: opened.file, incarnation: incarnation)
    }

    /// Makes the file of a target that is attached.
    static func create(
        _ record: TargetRecord, volume: Volume, stream: WriteStream, incarnation: UInt64
    ) throws(TargetError) -> AttachedTarget {
        let state = DirtyFileState(
            acknowledged: stream.standing(record.id)?.durable ?? .zero, incarnation: incarnation,
            legs: stream.wholeState(record.id, upTo: .zero))
        let file = try TargetError.dirty { () throws(DirtyFileError) in
            try DirtyFile.create(
                disk: volume.store.disk, path: path(record.id, in: volume.store), target: record.id,
                state)
        }
        return AttachedTarget(record, file: file, incarnation: incarnation)
    }

    /// On return the target holds everything up to `sequence` durably, or its file says what it lacks
    /// of that; and the file says how far the target said it was. On a full disk with the reserve's help:
    /// what a target lacks is among what recovery cannot do without (G9).
    func secure(
        upTo sequence: SequenceNumber, _ stream: WriteStream, _ store: PoolStore
    ) throws(TargetError) {
        filing.lock()
        defer { filing.unlock() }
        do throws(DirtyFileError) { try write(upTo: sequence, stream) } catch {
            let first = error
            do throws(DirtyFileError) {
                guard first.isNoSpace, store.reserveBytes > 0 else { throw first }
                try store.withReserve { () throws(DirtyFileError) in
                    try write(upTo: sequence, stream)
                }
            } catch {
                throw TargetError(
                    error.isNoSpace ? .noSpace : .io,
                    "what target \(record.address) lacks cannot be written down: \(error)")
            }
        }
    }

    private func write(
        upTo sequence: SequenceNumber, _ stream: WriteStream
    ) throws(DirtyFileError) {
        let id = record.id
        guard let standing = stream.standing(id) else { return }
        securedUpTo = max(securedUpTo, sequence)
        do throws(DirtyFileError) {
            if file.wantsRewrite {
                try file.rewrite(
                    state(standing.durable, stream.wholeState(id, upTo: securedUpTo)))
            } else {
                try file.append(
                    state(standing.durable, stream.takeUnwritten(id, upTo: securedUpTo)))
            }
        } catch {
            stream.markUnwritten(id)
            throw error
        }
    }

    private func state(_ durable: SequenceNumber, _ legs: [DirtyLegState]) -> DirtyFileState {
        DirtyFileState(acknowledged: durable, incarnation: incarnation, legs: legs)
    }

    func removeFile(_ store: PoolStore) {
        filing.lock()
        defer { filing.unlock() }
        file.close()
        // A file without a row is nobody's: ids are not used twice.
        try? DirtyFile.remove(disk: store.disk, path: Self.path(record.id, in: store))
    }

    package var record: TargetRecord { lock.withLock { currentRecord } }
    /// What is different for single images.
    package var images: [ImageID: TargetImageRecord] { lock.withLock { currentImages } }
    func setImages(_ images: [TargetImageRecord]) {
        lock.withLock {
            currentImages = Dictionary(
                images.filter { $0.targetID == currentRecord.id }.map { ($0.imageID, $0) },
                uniquingKeysWith: { $1 })
        }
    }
    package var policy: TargetPolicy { lock.withLock { currentRecord.policy(currentImages) } }
    package var driver: SessionDriver? { lock.withLock { currentDriver } }
    func setDriver(_ driver: SessionDriver?) {
        lock.withLock {
            if let ended = currentDriver { past = past + ended.tally.figures }
            currentDriver = driver
            // That another session counted says nothing of this one.
            inStepFrom = nil
            isLacking = false
        }
    }
    /// The pool is being handed over to it, and takes no change meanwhile.
    var isHandedTo: Bool { lock.withLock { isBeingHandedTo } }
    func setHandedTo(_ isSo: Bool) { lock.withLock { isBeingHandedTo = isSo } }
    var isWithheld: Bool { lock.withLock { isLacking } }
    func setWithheld(_ isSo: Bool) { lock.withLock { isLacking = isSo } }
    /// What was done for it since the pool was opened.
    package var figures: SessionTally.Figures {
        lock.withLock { past + (currentDriver?.tally.figures ?? SessionTally.Figures()) }
    }
    func update(_ change: (inout TargetRecord) -> Void) { lock.withLock { change(&currentRecord) } }

    // MARK: What the keeper has to do

    var staleWork: StaleWork? { lock.withLock { stale } }
    /// - Parameter announcedAt: where in the stream the others are told.
    func noteStaleRecorded(_ work: StaleWork, announcedAt: SequenceNumber?) {
        lock.withLock {
            // Another reason may have come meanwhile: then that one is next.
            guard stale == work else { return }
            stale?.isRecorded = true
            stale?.announcedAt = announcedAt
        }
    }
    func setStaleWork(since: SequenceNumber, reason: String) {
        lock.withLock {
            stale = StaleWork(since: since, reason: reason)
            inStepFrom = nil
        }
    }
    func clearStaleWork() { lock.withLock { stale = nil } }
    func addDirtyWork() { lock.withLock { isDirtyWorkDue = true } }
    func takeDirtyWork() -> Bool { lock.withLock { take(&isDirtyWorkDue) } }
    /// It takes the stream as it comes, from now on.
    func noteArrival() { lock.withLock { hasArrived = true } }
    func takeArrival() -> Bool { lock.withLock { take(&hasArrived) } }
    /// How others stand, as it was told with its last run.
    var told: [CopyStanding] { lock.withLock { toldStandings } }
    func noteTold(_ standings: [CopyStanding]) { lock.withLock { toldStandings = standings } }
    func noteInStep(from sequence: SequenceNumber) { lock.withLock { inStepFrom = sequence } }
    /// What it has to hold before it lacks nothing; nil where it counts no more, or that is written down.
    var awaitedInStep: SequenceNumber? { lock.withLock { inStepFrom } }
    func clearInStep() { lock.withLock { inStepFrom = nil } }
    func addEvent(_ event: EventRecord) { lock.withLock { events.append(event) } }
    func setFenceWork(_ reason: String) { lock.withLock { fence = reason } }
    func clearFenceWork() { lock.withLock { fence = nil } }
    var fenceWork: String? { lock.withLock { fence } }
    func takeEvents() -> [EventRecord] {
        lock.withLock {
            defer { events = [] }
            return events
        }
    }
    var hasWork: Bool {
        lock.withLock {
            (stale != nil && stale?.isRecorded != true) || isDirtyWorkDue
                || !events.isEmpty || fence != nil
        }
    }

    private func take(_ flag: inout Bool) -> Bool {
        defer { flag = false }
        return flag
    }

    // MARK: What may be lost

    /// nil where nothing was asked for.
    var recoveryPoint: RecoveryPoint? { lock.withLock { recovery } }

    /// - Parameter pace: called before anybody else changes it: what was let go of stays so.
    func setRecoveryPoint(_ new: RecoveryPoint?, pace: (Pace) -> Void) {
        lock.withLock {
            recovery = new
            pace(.free)
        }
    }

    /// Something else is asked for; what is known of the target is kept.
    /// - Returns: false where nothing was asked for.
    func changeGoal(_ goal: RecoveryGoal) -> Bool {
        lock.withLock {
            recovery?.goal = goal
            return recovery != nil
        }
    }

    func look(
        _ sight: RecoveryPoint.Sight, nowNs: Int64, pace: (Pace) -> Void
    ) -> (change: RecoveryPoint.Change?, wantsRun: Bool) {
        lock.withLock {
            guard let change = recovery?.look(sight, nowNs: nowNs) else {
                if let recovery { pace(recovery.pace) }
                return (nil, recovery?.wantsRun ?? false)
            }
            pace(recovery?.pace ?? .free)
            return (change, recovery?.wantsRun ?? false)
        }
    }

    // MARK: Speed

    func meter(nowNs: Int64) {
        guard let driver else { return }
        let session = driver.snapshot
        let resync = session.resync.map {
            ($0.totalBlocks - min($0.remainingBlocks, $0.totalBlocks))
        }
        lock.withLock { rate.note((resync ?? 0) * Geometry.blockSizeBytes, nowNs: nowNs) }
    }
    var bytesPerSecond: UInt64 { lock.withLock { rate.bytesPerSecond } }
}

/// That a target is stale is to be known to the catalog, then to the other targets.
struct StaleWork: Sendable, Hashable {
    var since: SequenceNumber
    var reason: String
    var isRecorded = false
    var announcedAt: SequenceNumber?
}

/// Progress over the last few seconds.
struct RateMeter {
    private var lastBytes: UInt64 = 0
    private var lastNs: Int64 = 0
    private(set) var bytesPerSecond: UInt64 = 0

    mutating func note(_ bytes: UInt64, nowNs: Int64) {
        // A new leg begins at zero.
        if bytes < lastBytes || lastNs == 0 { (lastBytes, lastNs) = (bytes, nowNs) }
        let elapsedNs = nowNs - lastNs
        guard elapsedNs > 500_000_000 else { return }
        let now = Double(bytes - lastBytes) * 1e9 / Double(elapsedNs)
        bytesPerSecond = UInt64(
            bytesPerSecond == 0 ? now : Double(bytesPerSecond) * 0.7 + now * 0.3)
        (lastBytes, lastNs) = (bytes, nowNs)
    }
}

/// When the pool was where in its sequence: how long a target is behind in time.
struct SequenceSamples {
    private var samples: [(sequence: SequenceNumber, atNs: Int64)] = []

    mutating func add(_ sequence: SequenceNumber, atNs: Int64) {
        guard samples.last?.sequence != sequence else { return }
        samples.append((sequence, atNs))
        // An hour at ten a second; beyond it the oldest says "at least so long".
        if samples.count > 36_000 { samples.removeFirst(samples.count - 36_000) }
    }

    /// The last moment known at which the pool was no further than this.
    func momentNs(of sequence: SequenceNumber) -> Int64? {
        let index = index(after: sequence)
        return index > 0 ? samples[index - 1].atNs : nil
    }

    /// How long ago the pool was where the target is.
    func lagMs(behind sequence: SequenceNumber, nowNs: Int64) -> Int64 {
        let index = index(after: sequence)
        guard index < samples.count else { return 0 }
        return max((nowNs - samples[index].atNs) / 1_000_000, 0)
    }

    /// Of the first sample that is further.
    private func index(after sequence: SequenceNumber) -> Int {
        var (low, high) = (0, samples.count)
        while low < high {
            let middle = (low + high) / 2
            if samples[middle].sequence > sequence { high = middle } else { low = middle + 1 }
        }
        return low
    }
}
