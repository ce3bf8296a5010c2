// The targets of an open pool: which there are, what they are told to do, how they stand.
//
// A pool without targets has no write stream. It gets one with its first target, also while it is
// mounted, and keeps it until it is closed.

import BlockCore
import Foundation
import Pool
import Replication
import SystemIO
import Targets
import VirtualFS
import Volume

final class PoolReplication: @unchecked Sendable {  // fields are under `lock`
    private static let defaultTimeoutMs: Int64 = 5000
    private static let defaultHistoryMs: Int64 = 3_600_000

    let volume: Volume
    /// Sessions connect; otherwise what targets lack is kept track of alone.
    private let runs: Bool
    private let mounts: MirrorMounts
    let access = RemoteAccess.shared
    /// The kernel keeps writes back: an fsync that waits for a target would promise what the guest's
    /// other writes do not have.
    private let allowsAsyncOnly: Bool
    private let lock = Lock()
    /// One change of targets at a time; held across I/O.
    let changing = Lock()
    private var currentHub: TargetHub?
    private var names: (@Sendable () -> @Sendable () -> [NodeRecord])?
    private weak var fileSystem: VirtualFS?
    private var mirrors: [TargetID: MirrorTarget] = [:]
    private var rawMirrors: [TargetID: RawMirror] = [:]
    private var lines: [TargetID: LineCompression] = [:]
    /// The mirror that the pool is handed over to, from the moment that it may have taken over.
    private var successor: String?

    /// Attaches the targets that the catalog knows, before the pool takes its first change.
    init(volume: Volume, runs: Bool, mounts: MirrorMounts, allowsAsyncOnly: Bool) throws {
        self.volume = volume
        self.runs = runs
        self.mounts = mounts
        self.allowsAsyncOnly = allowsAsyncOnly
        let records = try volume.store.catalog.read { try $0.targets() }
        for record in records { try refuseWaiting(record.mode, record.address) }
        if !records.isEmpty { try attach() }
    }

    private func refuseWaiting(_ mode: TargetRecord.Mode, _ address: String) throws {
        guard allowsAsyncOnly, mode != .async else { return }
        throw ControlFailure(
            .usage,
            "--cache writeback keeps writes in the kernel, where no target gets them: it goes with "
                + "async targets alone, and \(address) is in mode \(mode.rawValue). Mount with "
                + "--cache none, or `doppel target set ... --mode async`")
    }

    /// G4: refused at once, never ignored.
    private func refuseConflict(_ record: TargetRecord, hasImages: Bool = false) throws {
        if let problem = TargetAddress.problem(record.address) {
            throw ControlFailure(.usage, problem)
        }
        guard let conflict = record.conflict(hasImages: hasImages) else { return }
        throw ControlFailure(.usage, "\(record.address): \(conflict)")
    }

    /// Retention on a server is the server's: whoever has this machine must not be able to shorten it there.
    private func refuseHistory(_ target: TargetSpecification) throws {
        guard target.historyMs != nil, TargetAddress(target.address).remote != nil else { return }
        throw ControlFailure(
            .usage,
            "how long \(target.address) keeps what was is up to its server (doppel serve --history)"
        )
    }

    var store: PoolStore { volume.store }
    var hub: TargetHub? { lock.withLock { currentHub } }

    func attach() throws {
        let stream = volume.attachStream()
        var options = HubOptions()
        options.connects = runs
        let hub = try TargetHub(
            volume: volume, stream: stream, suspects: volume.suspects(), options: options
        ) { [weak self] (record) throws(TargetError) in
            guard let self else { throw TargetError(.absent, "the pool is closed") }
            return try open(record)
        }
        volume.attach(hub)
        lock.withLock { currentHub = hub }
        watchServerKeys()
    }

    /// Who may not be a server any more is not spoken to any longer.
    private func watchServerKeys() {
        access.onChange { [weak self] in
            for target in self?.hub?.all ?? []
            where TargetAddress(target.record.address).remote != nil {
                target.driver?.connectAnew("the keys that servers may have were changed")
            }
        }
    }

    /// From here on sessions may ask for the pool's names.
    func start(_ fileSystem: VirtualFS) {
        let names: @Sendable () -> @Sendable () -> [NodeRecord] = { [fileSystem] in
            fileSystem.captureNames()
        }
        let hub = lock.withLock {
            self.fileSystem = fileSystem
            self.names = names
            return currentHub
        }
        hub?.start(names: names)
    }

    private func open(_ record: TargetRecord) throws(TargetError) -> any ReplicaTarget {
        if case .raw(let path) = TargetAddress(record.address) {
            let raw = RawMirror(
                path: path, primaryPoolID: store.identity.id, id: record.poolID, disk: LinuxDisk())
            lock.withLock { rawMirrors[record.id] = raw }
            return raw
        }
        if let remote = TargetAddress(record.address).remote {
            return try access.replica(remote, of: store, record, compression: line(of: record))
        }
        if TargetAddress(record.address).isElsewhere {
            throw Self.elsewhere(record, of: store)
        }
        // Who wants to look into the mirror meanwhile asks here.
        var owner = PoolOwner.current()
        if runs, let directory = try? RuntimePaths.directory(disk: LinuxDisk()) {
            owner.socketPath = RuntimePaths.socket(of: store.identity.id, in: directory)
        }
        let mirror = Self.mirror(record, of: store, owner: owner)
        lock.withLock { mirrors[record.id] = mirror }
        return ShownTarget(mirror, mounts)
    }

    /// What goes to a target on another machine, over all its sessions.
    private func line(of record: TargetRecord) -> LineCompression {
        let line = lock.withLock {
            let line = lines[record.id] ?? LineCompression()
            lines[record.id] = line
            return line
        }
        line.choice = record.compress
        return line
    }

    /// A target to be asked after a crash, closed.
    static func source(_ record: TargetRecord, of store: PoolStore) throws(TargetError)
        -> any ReplicaTarget
    {
        let address = TargetAddress(record.address)
        if address.isElsewhere { throw elsewhere(record, of: store) }
        guard let remote = address.remote else {
            return mirror(record, of: store, owner: .current())
        }
        return try RemoteAccess.shared.replica(remote, of: store, record)
    }

    /// The mirror directory of a target, closed.
    static func mirror(
        _ record: TargetRecord, of store: PoolStore, owner: PoolOwner
    ) -> MirrorTarget {
        var options = MirrorOptions()
        options.historyMs = record.historyMs > 0 ? record.historyMs : nil
        let disk = LinuxDisk()
        var owner = owner
        owner.writesMirror = true
        return MirrorTarget(
            path: record.address, primaryPoolID: store.identity.id, poolID: record.poolID,
            disk: disk, options: options,
            look: { PoolSight.look(at: record.address, disk: disk) }
        ) { [owner] () throws(PoolError) in
            // An owner that drains is waited for by trying again.
            try PoolStore.open(
                path: record.address, disk: disk, owner: owner, drainTimeoutMs: 0)
        }
    }

    /// The mirror at an address, as far as it is open.
    func mirror(at address: String) -> MirrorTarget? {
        guard let record = hub?.all.first(where: { $0.record.address == address })?.record else {
            return nil
        }
        return lock.withLock { mirrors[record.id] }
    }

    /// What was known of a target at its old address.
    func forget(_ id: TargetID) {
        lock.withLock {
            mirrors[id] = nil
            rawMirrors[id] = nil
            lines[id] = nil
        }
    }

    // MARK: Handing over

    func noteSuccessor(_ address: String?) { lock.withLock { successor = address } }

    /// - Throws: where the targets are those of another pool by now.
    func requireNoSuccessor() throws {
        if let successor = lock.withLock({ successor }) {
            throw ControlFailure.handedOver(store.path, to: successor)
        }
    }

    // MARK: Requests

    func perform(_ request: ControlRequest, _ result: inout ControlResult) throws {
        let arguments = request.arguments ?? ControlArguments()
        func target() throws -> TargetSpecification {
            guard let target = arguments.target else {
                throw ControlFailure(.usage, "'target' is missing")
            }
            return target
        }
        // Looking waits for nobody who changes something.
        if request.execute == .targetList {
            result.targets = status()
            return
        }
        try requireNoSuccessor()
        // What is there for a target that hangs waits for nobody who waits for it.
        if request.execute == .targetRemove, arguments.force ?? false {
            try hub?.remove(try known(try target()).id, detaches: true)
            return
        }
        try changing.withLock {
            // Of a handover that was waited for, the outcome is known.
            try requireNoSuccessor()
            switch request.execute {
            case .targetAdd: result.text = try add(try target())
            case .targetSet:
                let wanted = try target()
                if wanted.image != nil {
                    try setImage(wanted)
                } else if let address = wanted.newAddress {
                    result.text = try move(wanted, to: address)
                } else {
                    try update(wanted) { $0.take(wanted) }
                }
            case .targetPause: try update(try target()) { $0.isPaused = true }
            case .targetResume: try update(try target()) { $0.isPaused = false }
            case .targetRemove: try hub?.remove(try known(try target()).id)
            default: break
            }
        }
        if request.execute == .wait { try wait(arguments) }
    }

    func known(_ target: TargetSpecification) throws -> TargetRecord {
        guard let found = hub?.all.first(where: { $0.record.address == target.address }) else {
            throw ControlFailure(
                .failed,
                "\(target.address) is no target of this pool; `doppel target list` shows them")
        }
        return found.record
    }

    func update(
        _ target: TargetSpecification, _ change: (inout TargetRecord) -> Void
    ) throws {
        try refuseHistory(target)
        var record = try known(target)
        change(&record)
        try refuseWaiting(record.mode, record.address)
        let images = hub?.target(record.id)?.images ?? [:]
        try refuseConflict(record, hasImages: !images.isEmpty)
        try hub?.update(record.id, change)
        if let line = lock.withLock({ lines[record.id] }) { line.choice = record.compress }
    }

    private func setImage(_ wanted: TargetSpecification) throws {
        let record = try known(wanted)
        let path = wanted.image ?? ""
        let node = try lock.withLock { fileSystem }?.resolve(path)
        guard let imageID = node?.imageID else {
            throw ControlFailure(.failed, "'\(path)' is no image of this pool")
        }
        var new =
            hub?.target(record.id)?.images[imageID]
            ?? TargetImageRecord(targetID: record.id, imageID: imageID, mode: nil, onTimeout: nil)
        if wanted.inherits ?? false { (new.mode, new.onTimeout) = (nil, nil) }
        if let mode = wanted.mode.flatMap(TargetRecord.Mode.init(rawValue:)) {
            guard mode != .adaptive else {
                throw ControlFailure(
                    .usage, "mode adaptive is for a whole target, not for one image")
            }
            try refuseWaiting(mode, record.address)
            new.mode = mode.rawValue
        }
        if let reaction = wanted.onTimeout { new.onTimeout = reaction }
        try refuseConflict(record, hasImages: new.mode != nil || new.onTimeout != nil)
        try hub?.update(new)
    }

    /// Adds a target, or changes one that there is: what `--mirror` asks for.
    func ensure(_ target: TargetSpecification) throws -> String? {
        try changing.withLock {
            if hub?.all.contains(where: { $0.record.address == target.address }) ?? false {
                try update(target) {
                    $0.take(target)
                    $0.isPaused = false
                }
                return nil
            }
            return try add(target)
        }
    }

    /// - Returns: what the person should know all the same.
    func add(_ target: TargetSpecification) throws -> String? {
        if hub?.all.contains(where: { $0.record.address == target.address }) ?? false {
            throw ControlFailure(
                .failed, "\(target.address) is a target already; `doppel target set` changes it")
        }
        try refuseHistory(target)
        try refuseWaiting(
            target.mode.flatMap(TargetRecord.Mode.init(rawValue:)) ?? .flush, target.address)
        var record = TargetRecord(
            address: target.address, mode: .flush, timeoutMs: Self.defaultTimeoutMs,
            historyMs: Self.defaultHistoryMs, addedNs: store.disk.now())
        record.take(target)
        try refuseConflict(record)
        let place = try prepare(target)
        if let text = try adopt(place, target) { return text }
        record.poolID = place.id
        if hub == nil {
            try attach()
            if let names = lock.withLock({ names }) { hub?.start(names: names) }
        }
        _ = try hub?.add(record, hasContent: place.hasContent)
        let words = [place.note, MirrorPlace.warning(target.address, for: store)].compactMap { $0 }
        return words.isEmpty ? nil : words.joined(separator: "\n")
    }

    private func prepare(_ target: TargetSpecification) throws -> MirrorPlace {
        let address = TargetAddress(target.address)
        if let remote = address.remote {
            guard !(target.isSeeded ?? false) else {
                throw ControlFailure(
                    .usage,
                    "copies behind a server cannot be taken as they are: make a mirror of them here, carry that "
                        + "into the folder that it serves, and say where it is with `doppel target set --address`"
                )
            }
            return try MirrorPlace.prepare(
                remote, for: store, timeoutMs: target.timeoutMs ?? Self.defaultTimeoutMs, access)
        }
        try MirrorPlace.requireApart(address.path, store)
        guard target.isSeeded ?? false else {
            return try MirrorPlace.prepare(address, for: store)
        }
        let (id, note) = try Seeding.prepare(address, try seedItems(), for: store)
        return MirrorPlace(id: id, hasContent: true, note: note)
    }

    /// Every name as it is now, with its size.
    private func seedItems() throws -> [SeedItem] {
        let captured = lock.withLock { names }?()()
        let nodes = try captured ?? store.catalog.read { try $0.nodes() }
        return try Seeding.paths(of: nodes).map { path, node in
            SeedItem(
                path: path, node: node,
                sizeBytes: try node.imageID.map { try volume.image($0).sizeBytes } ?? 0)
        }
    }

    private func wait(_ arguments: ControlArguments) throws {
        guard let hub else { return }
        let ids = try arguments.target.map { [try known($0).id] }
        let behind = hub.wait(for: ids, timeoutMs: arguments.timeoutMs)
        guard behind.isEmpty else {
            let late = hub.status().filter { behind.contains($0.record.id) }.map(\.lateness)
            throw ControlFailure(
                .degraded,
                "not there yet: \(late.joined(separator: "; ")). `doppel status` shows how they get on"
            )
        }
    }

    // MARK: Status

    func status() -> [TargetInfo] {
        (hub?.status() ?? []).map { status in
            var info = TargetInfo(status)
            info.images = images(of: status)
            info.reachFromNs = lock.withLock { mirrors[status.record.id] }?.lastReachNs
            info.fill(raw(status.record))
            info.fill(lock.withLock { lines[status.record.id] }?.figures, status.record)
            return info
        }
    }

    /// What the folder of a raw mirror says. Its disk may hang: where a session has it open, it says what it
    /// said last.
    private func raw(_ record: TargetRecord) -> RawFolderState? {
        guard case .raw(let path) = TargetAddress(record.address) else { return nil }
        if runs { return lock.withLock { rawMirrors[record.id] }?.lastKnown }
        return (try? RawFolderState.read(of: path, disk: LinuxDisk())) ?? nil
    }

    private func images(of status: TargetStatus) -> [TargetImageInfo] {
        let fileSystem = lock.withLock { self.fileSystem }
        return status.images.sorted { $0.key < $1.key }.compactMap { id, policy in
            guard let path = fileSystem?.path(of: id) else { return nil }
            return TargetImageInfo(
                path: path, mode: policy.mode.rawValue, onTimeout: policy.onTimeout.rawValue)
        }
    }

    /// - Returns: whether what targets lack is written down: otherwise the pool is not clean.
    func close() -> Bool { hub?.close() ?? true }
}

extension TargetStatus {
    /// Why it has not got everything, and since when.
    fileprivate var lateness: String {
        let since = sinceNs.map { "behind since \(CivilTime($0).readable) UTC" } ?? "behind"
        guard let reason, state != .resyncing else { return "\(record.address), \(since)" }
        return "\(record.address), \(since): \(reason)"
    }
}

extension TargetRecord {
    mutating func take(_ target: TargetSpecification) {
        if let mode = target.mode.flatMap(Mode.init(rawValue:)) { self.mode = mode }
        if let timeoutMs = target.timeoutMs { self.timeoutMs = timeoutMs }
        if let historyMs = target.historyMs { self.historyMs = historyMs }
        if let reaction = target.onTimeout.flatMap(OnTimeout.init(rawValue:)) {
            onTimeout = reaction
        }
        if let budget = target.latencyBudgetUs { latencyBudgetUs = budget == 0 ? nil : budget }
        if let age = target.rpoMs { rpoMs = age == 0 ? nil : age }
        if let bytes = target.rpoBytes { rpoBytes = bytes == 0 ? nil : Int64(exactly: bytes) }
        if let reaction = target.onRPO.flatMap(OnRPO.init(rawValue:)) { onRPO = reaction }
        if let interval = target.intervalMs { intervalMs = interval == 0 ? nil : interval }
        if let rate = target.rateBytesPerSecond {
            // The catalog has signed numbers; what is beyond them is no limit.
            rateBytesPerSecond = rate == 0 ? nil : Int64(exactly: rate)
        }
        if let choice = target.compress.flatMap(CompressionChoice.init(rawValue:)) {
            compress = choice
        }
    }
}

extension TargetInfo {
    mutating func fill(_ raw: RawFolderState?) {
        if TargetAddress(address).remote != nil { kind = "remote" }
        guard TargetAddress(address).isRaw else { return }
        kind = "raw"
        content = raw.map { $0.isWhole ? "clean" : "torn" }
        tornSinceNs = raw?.sinceNs
    }

    mutating func fill(_ line: LineCompression.Figures?, _ record: TargetRecord) {
        guard TargetAddress(address).remote != nil else { return }
        compress = record.compress.rawValue
        isCompressing = line?.isCompressing ?? false
        lineRawBytes = line?.rawBytes ?? 0
        lineSentBytes = line?.sentBytes ?? 0
    }

    init(_ status: TargetStatus) {
        self.init(
            id: status.record.id.rawValue, address: status.record.address,
            mode: status.record.mode.rawValue, timeoutMs: status.record.timeoutMs)
        modeInForce = status.modeInForce.rawValue
        if status.record.mode == .adaptive {
            latencyBudgetUs =
                status.record.latencyBudgetUs ?? TargetRecord.defaultLatencyBudgetUs
        }
        onTimeout = status.record.onTimeout.rawValue
        stoppedSinceNs = status.stoppedSinceNs
        state =
            status.isSplitBrain
            ? "split-brain" : status.state?.rawValue ?? (status.isLevel ? "level" : "idle")
        isInStep = status.isInStep
        intervalMs = status.record.intervalMs
        nextRunNs = status.nextRunNs
        rpoMs = status.record.rpoMs
        rpoBytes = status.record.rpoBytes
        if status.record.recoveryGoal != nil { onRPO = status.record.onRPO.rawValue }
        rpoPassedSinceNs = status.rpoPassedSinceNs
        if case .slowed(let bytes)? = status.recovery?.pace { slowedToBytesPerSecond = bytes }
        staleSinceNs = status.isInStep || status.isLevel ? nil : status.sinceNs
        reason = status.isInStep || status.isLevel ? nil : status.reason
        durableSequence = status.durable.rawValue
        lagBytes = status.lagBytes
        lagMs = status.lagMs
        checkpointNs = status.checkpointNs
        dirtyBytes = status.dirtyBytes
        suspectBytes = status.suspectBytes
        atRiskBytes = status.atRiskBytes
        comparedBytes = status.figures.comparedBlocks * Geometry.blockSizeBytes
        resyncedBytes = status.figures.stagedBytes
        rateBytesPerSecond = status.bytesPerSecond
        rateLimitBytesPerSecond = status.record.rateBytesPerSecond.map(UInt64.init)
        resyncDoneBytes = status.resyncDoneBytes
        resyncTotalBytes = status.resyncTotalBytes
        etaMs = status.etaMs
    }
}

/// A mirror that may be mounted beside: before it is let go of, nobody reads it any more.
private final class ShownTarget: ReplicaTarget, Sendable {
    private let mirror: MirrorTarget
    private let mounts: MirrorMounts

    init(_ mirror: MirrorTarget, _ mounts: MirrorMounts) {
        self.mirror = mirror
        self.mounts = mounts
    }

    func disconnect() {
        mounts.end(of: mirror.path)
        mirror.disconnect()
    }

    func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        try mirror.connect(hello)
    }
    func append(_ batch: RecordBatch) throws(TargetError) { try mirror.append(batch) }
    func flush() throws(TargetError) -> SequenceNumber { try mirror.flush() }
    var durableThrough: SequenceNumber? { mirror.durableThrough }
    func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try mirror.beginStaging(id: id, shape: shape)
    }
    func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try mirror.stage(batch, number: number)
    }
    func syncStaging() throws(TargetError) { try mirror.syncStaging() }
    func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: Replication.SnapshotInfo?
    ) throws(TargetError) {
        try mirror.commitStaging(id: id, at: sequence, snapshot: snapshot)
    }
    func blockHashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64] {
        try mirror.blockHashes(of: image, in: range)
    }
    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try mirror.allocatedBlocks()
    }
    func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) { try mirror.read(range, of: image, into: buffer) }
    func shape() throws(TargetError) -> PoolShape { try mirror.shape() }
}
