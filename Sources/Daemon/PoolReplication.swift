// The targets of an open pool: what they have in common, from its opening to its close.
//
// How one is reached: PoolReplication+Opening.swift. What a person asks of them: PoolReplication+Requests.swift, with
// +Adding and +Moving. How they stand: PoolReplication+Status.swift.
//
// A pool without targets has no write stream. It gets one with its first target, also while it is
// mounted, and keeps it until it is closed.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import VirtualFS
import Volume

final class PoolReplication: @unchecked Sendable {  // fields are under `lock`
    let volume: Volume
    /// Sessions connect; otherwise what targets lack is kept track of alone.
    let runs: Bool
    let mounts: MirrorMounts
    let access = RemoteAccess.shared
    /// The kernel keeps writes back: an fsync that waits for a target would promise what the guest's
    /// other writes do not have.
    let allowsAsyncOnly: Bool
    let lock = Lock()
    /// One change of targets at a time; held across I/O.
    let changing = Lock()
    private var currentHub: TargetHub?
    private(set) var names: (@Sendable () -> @Sendable () -> [NodeRecord])?
    private(set) weak var fileSystem: VirtualFS?
    var mirrors: [TargetID: MirrorTarget] = [:]
    var rawMirrors: [TargetID: RawMirror] = [:]
    var lines: [TargetID: LineCompression] = [:]
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

    /// - Returns: whether what targets lack is written down: otherwise the pool is not clean.
    func close() -> Bool { hub?.close() ?? true }
}
