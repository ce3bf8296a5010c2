import BlockCore
import Identity
import Replication
import SystemIO
import Synchronization

@testable import Transport

/// A server with one pool, `vms`, on a port of the loopback, and clients of it.
final class TransportPair {
    static let serverIdentity = try! HostIdentity.make()
    static let clientIdentity = try! HostIdentity.make()
    static let otherIdentity = try! HostIdentity.make()

    let target: NotedTarget
    let isEncrypted: Bool
    let server: TransportServer
    let known: Known
    let visitor = EchoVisitor()
    private let performer: ReplicaPerformer
    private var clients: UInt64 = 0
    private var isOpen = true

    /// What the host of the server knows, and what it was told.
    final class Known: @unchecked Sendable {  // fields are under `lock`
        private let lock = Lock()
        private var peers: Set<PeerFingerprint> = [clientIdentity.fingerprint]
        private var pools: Set<String> = ["vms"]
        private var told: [String] = []

        func admits(_ peer: PeerFingerprint) -> Bool { lock.withLock { peers.contains(peer) } }
        func allows(_ pool: String) -> Bool { lock.withLock { pools.contains(pool) } }
        func remove(_ peer: PeerFingerprint) { _ = lock.withLock { peers.remove(peer) } }
        func remove(pool: String) { _ = lock.withLock { pools.remove(pool) } }
        func note(_ kind: String) { lock.withLock { told.append(kind) } }
        var notes: [String] { lock.withLock { told } }
    }

    static var timing: WireTiming {
        var timing = WireTiming()
        timing.heartbeatMs = 50
        timing.suspectMs = 400
        timing.timeoutMs = 2000
        return timing
    }

    init(
        isEncrypted: Bool = true, target: NotedTarget = NotedTarget(), port: Int = 0,
        _ change: (inout TransportServer.Options) -> Void = { _ in }
    ) throws {
        self.isEncrypted = isEncrypted
        self.target = target
        let performer = ReplicaPerformer(name: "vms", target: target)
        let known = Known()
        let visitor = visitor
        var options = TransportServer.Options(
            listen: [HostPort(host: "127.0.0.1", port: port)],
            keys: isEncrypted ? try TransportKeys(Self.serverIdentity) : nil)
        options.connection.timing = Self.timing
        options.lingerMs = 100
        change(&options)
        server = try TransportServer.start(
            options,
            TransportHost(
                admits: { known.admits($0) },
                find: { (_, name) throws(TargetError) in
                    guard name == "vms" else {
                        throw TargetError(.absent, "there is no pool '\(name)'")
                    }
                    return performer.replica
                },
                visitor: { (_, _) throws(TargetError) in visitor },
                mayStay: { _, pool, _ in known.allows(pool) },
                tell: { known.note($0.kind.rawValue) }))
        self.performer = performer
        self.known = known
    }

    var address: HostPort { server.addresses[0] }
    var served: ServedReplica { performer.replica }

    func replica(
        bulk: Int = 0, identity: HostIdentity = clientIdentity,
        pinned: HostIdentity = serverIdentity, isEncrypted: Bool? = nil,
        compression: LineCompression = LineCompression(),
        _ change: (inout ClientConnection.Options) -> Void = { _ in }
    ) throws -> RemoteReplica {
        let keys = isEncrypted ?? self.isEncrypted ? try TransportKeys(identity) : nil
        let link = TransportClient(
            .init(server: address, keys: keys, pinned: [pinned.fingerprint]))
        var options = RemoteReplica.Options(pool: "vms")
        options.bulkConnections = bulk
        options.compression = compression
        options.connection.timing = Self.timing
        change(&options.connection)
        clients += 1
        return RemoteReplica(link, options: options, client: clients)
    }

    func control(identity: HostIdentity = clientIdentity) throws -> RemoteControl {
        var options = ClientConnection.Options()
        options.timing = Self.timing
        return try RemoteControl(
            TransportClient(
                .init(
                    server: address, keys: isEncrypted ? try TransportKeys(identity) : nil,
                    pinned: [Self.serverIdentity.fingerprint])), pool: "vms", options: options)
    }

    func close() {
        guard isOpen else { return }
        isOpen = false
        target.hang(false)
        server.shutDown(timeoutMs: 10_000)
        performer.stop()
    }
    deinit { close() }

    static let hello = PrimaryHello(
        poolID: "pool",
        generation: Generation(number: 1, id: "g1", parentID: nil, startSequence: .zero),
        incarnation: 1, incarnationID: "i1",
        history: GenerationHistory([
            .init(
                generation: Generation(
                    number: 1, id: "g1", parentID: nil, startSequence: .zero),
                poolID: "pool", begunNs: 5, cause: .initial)
        ]))
}

/// Answers with what it was asked, and counts.
final class EchoVisitor: PoolVisitor {
    let asked = Atomic(0)
    let ended = Atomic(0)

    func answer(_ query: WireQuery) throws(TargetError) -> WireReply {
        asked.wrappingAdd(1, ordering: .sequentiallyConsistent)
        guard case .control(let text) = query else { throw TargetError(.io, "what is that?") }
        if text.isEmpty { throw TargetError(.fenced, "nothing was asked") }
        // One that is long comes in several frames.
        return .answered(text.count == 1 ? [UInt8](repeating: text[0], count: 3 << 20) : text)
    }
    func end() { ended.wrappingAdd(1, ordering: .sequentiallyConsistent) }
}

/// What a call fails with.
func failure(_ body: () throws -> Void) -> TargetError? {
    do { try body() } catch { return error as? TargetError }
    return nil
}

/// Returns when it is so.
/// - Throws: after half a minute.
func eventually(_ isSo: () throws -> Bool) throws {
    struct NotSo: Error {}
    for _ in 0..<3000 {
        if try isSo() { return }
        Pause.microseconds(10_000)
    }
    throw NotSo()
}
