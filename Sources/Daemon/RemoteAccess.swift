// How this process reaches pools behind servers: with this host's key, and with the keys that authorized_peers says a
// server may have. Without a line for it, a server is spoken to on the loopback alone, and without encryption.

import BlockCore
import Identity
import Pool
import Replication
import Settings
import SystemIO
import Transport

final class RemoteAccess: @unchecked Sendable {  // `known` is under `lock`
    private static let bulkConnections = 2
    /// Of this process, as its host is.
    static let shared = RemoteAccess()

    /// This run of the client; its attempts to connect have one order.
    private let client = UInt64.random(in: .min ... .max)
    private let attempts = ConnectAttempts()
    private let lock = Lock()
    private var known: Known?
    private var listeners: [@Sendable () -> Void] = []

    /// As the settings of the host have it.
    private struct Known {
        var state: StateDirectory
        var peers: AuthorizedPeers
        var serve: ServeSettings
    }

    private init() {}

    /// The target of a record, not connected.
    /// - Parameter compression: of the target, over all its sessions; nil where only a few things are asked.
    func replica(
        _ place: RemoteAddress, of store: PoolStore, _ record: TargetRecord,
        compression: LineCompression? = nil
    ) throws(TargetError) -> any ReplicaTarget {
        try replica(
            place, of: store, mirrorID: record.poolID, timeoutMs: record.timeoutMs, laysOut: false,
            compression: compression ?? LineCompression(record.compress))
    }

    /// - Parameters:
    ///   - mirrorID: the pool that it has to be; nil before the first contact.
    ///   - timeoutMs: of the line: without a sign of life it is given up.
    ///   - laysOut: a pool that is not there is made.
    func replica(
        _ place: RemoteAddress, of store: PoolStore, mirrorID: String?, timeoutMs: Int64,
        laysOut: Bool, compression: LineCompression = LineCompression()
    ) throws(TargetError) -> any ReplicaTarget {
        var line = try clientOptions(for: place.server)
        // While the line is cut each try is in vain: the next one is to come soon.
        line.connectTimeoutMs = min(timeoutMs, 1000)
        var options = RemoteReplica.Options(pool: place.pool)
        options.bulkConnections = Self.bulkConnections
        options.compression = compression
        options.mirrorID = mirrorID
        options.laysOut = laysOut
        options.primaryAddress = try address(of: store)
        options.connection.timing = Self.timing(timeoutMs)
        return RemoteReplica(
            TransportClient(line), options: options, client: client, attempts: attempts)
    }

    /// A control connection to a pool there.
    /// - Parameters:
    ///   - timeoutMs: of the line: without a sign of life it is given up.
    ///   - limitMs: for the answers, of a server whose line is alive.
    func control(
        _ place: RemoteAddress, timeoutMs: Int64 = 5000, limitMs: Int64? = nil
    ) throws(TargetError) -> RemoteControl {
        var line = try clientOptions(for: place.server)
        line.connectTimeoutMs = timeoutMs
        var options = ClientConnection.Options()
        options.timing = Self.timing(timeoutMs)
        return try RemoteControl(
            TransportClient(line), pool: place.pool, options: options, limitMs: limitMs)
    }

    private static func timing(_ timeoutMs: Int64) -> WireTiming {
        var timing = WireTiming()
        timing.timeoutMs = timeoutMs
        timing.suspectMs = min(2000, timeoutMs / 2)
        timing.heartbeatMs = min(500, max(timeoutMs / 10, 20))
        return timing
    }

    /// Which keys a server may have may have changed.
    func onChange(_ body: @escaping @Sendable () -> Void) {
        lock.withLock { listeners.append(body) }
    }

    /// - Returns: none where no line says anything of it.
    func serverKeys(_ server: HostPort) throws(TargetError) -> Set<PeerFingerprint> {
        try identity().peers.keys(ofServerAt: server.host, port: server.port)
    }

    private func clientOptions(for server: HostPort) throws(TargetError) -> TransportClient.Options
    {
        let pinned = try serverKeys(server)
        guard !pinned.isEmpty else {
            guard server.isLoopback else {
                throw TargetError(
                    .absent,
                    "no key of \(server) is known here, and nothing is sent to a server without: `doppel "
                        + "pair --help` says how two hosts come to know each other")
            }
            return TransportClient.Options(server: server, keys: nil, pinned: [])
        }
        do {
            // Read each time: it may have been changed.
            let keys = try TransportKeys(HostKeys(try identity().state).current())
            return TransportClient.Options(server: server, keys: keys, pinned: pinned)
        } catch { throw TargetError(.io, "this host's key cannot be used: \(error)") }
    }

    /// What this host says of where a pool is: for people, where its settings do not say at which address it is served.
    private func address(of store: PoolStore) throws(TargetError) -> String {
        let served = try identity().serve.address(of: store.path)
        return served?.text ?? "\(HostSystem.hostName):\(store.path)"
    }

    private func identity() throws(TargetError) -> Known {
        lock.lock()
        defer { lock.unlock() }
        if let known { return known }
        do {
            let settings = try SettingsFile.load(nil)
            let peers = try AuthorizedPeers(path: settings.authorizedPeersPath)
            peers.onChange { [self] in for body in lock.withLock({ listeners }) { body() } }
            let found = Known(
                state: StateDirectory(path: settings.stateDirectory), peers: peers,
                serve: settings.serve)
            known = found
            return found
        } catch { throw TargetError(.io, "who a server may be is not known: \(error)") }
    }
}

extension ServeSettings {
    /// - Returns: nil for a pool that is not below the folder, and where others cannot connect to what is listened at.
    fileprivate func address(of path: String) -> RemoteAddress? {
        guard let root = root.flatMap(ProcessControl.realPath), path.hasPrefix(root + "/"),
            let place = listen.first(where: { !$0.isLoopback && !$0.isAnyAddress && $0.port > 0 })
        else { return nil }
        return RemoteAddress("\(RemoteAddress.prefix)\(place)/\(path.dropFirst(root.count + 1))")
    }
}
