// Listens, and hands each connection that may come in to the protocol.
//
//   accepted ── handshake, key known (K1, K2) ──► admitted ── anything ──► over
//      │ no key, an unknown one, too slow, too many      │ over a limit: refused, with the reason
//      └──────────────────────────────────► over         └──► over
//
// - L1  Without keys it listens on 127.0.0.0/8 alone.
// - L2  Nothing of the protocol is read, and no memory for it taken, before a peer was admitted.
// - L3  What a peer may do is asked of the host when it connects, for a pool, and again whenever that may have
//       changed (`recheck`): who may not any more hears why, and nothing it sends after is looked at.

import BlockCore
import Identity
import NIOCore
import NIOPosix
import Replication
import SystemIO

/// What a person should hear of.
package struct TransportNotice: Sendable, Hashable {
    package enum Kind: String, Sendable {
        /// Not let in: its key.
        case refused = "peer-refused"
        /// Let in, and over a limit.
        case limited = "peer-limited"
        /// What it may do was taken back while it was at it.
        case ended = "peer-ended"
    }
    package var kind: Kind
    package var peer: PeerFingerprint?
    /// Where it connects from, without the port.
    package var place: String
    /// The same words each time.
    package var reason: String
}

/// What a connection is there for.
package enum PoolUse: Sendable {
    /// Writing to it as its primary.
    case replica
    /// Asking; what is asked for is judged each time.
    case visit
}

/// What a server asks of whoever runs it. All of it is quick: it is asked on the threads of connections.
package struct TransportHost: Sendable {
    /// Whether this key is known at all.
    package var admits: @Sendable (PeerFingerprint) -> Bool
    /// The replica of a pool's name, for this peer. No key is asked for where there is none.
    package var find: @Sendable (PeerFingerprint?, String) throws(TargetError) -> ServedReplica
    /// Who answers for a pool on a control connection of this peer.
    package var visitor: @Sendable (PeerFingerprint?, String) throws(TargetError) -> any PoolVisitor
    /// Whether the peer may still do with the pool what it does, the one or the other.
    package var mayStay: @Sendable (PeerFingerprint?, String, PoolUse) -> Bool
    package var tell: @Sendable (TransportNotice) -> Void

    package init(
        admits: @escaping @Sendable (PeerFingerprint) -> Bool,
        find: @escaping @Sendable (PeerFingerprint?, String) throws(TargetError) -> ServedReplica,
        visitor:
            @escaping @Sendable (PeerFingerprint?, String) throws(TargetError) -> any PoolVisitor,
        mayStay: @escaping @Sendable (PeerFingerprint?, String, PoolUse) -> Bool,
        tell: @escaping @Sendable (TransportNotice) -> Void
    ) {
        self.admits = admits
        self.find = find
        self.visitor = visitor
        self.mayStay = mayStay
        self.tell = tell
    }
}

// Unchecked: `listeners` is written before `start` returns, `keys` is under `lock`.
package final class TransportServer: @unchecked Sendable {
    package struct Options: Sendable {
        package var listen: [HostPort]
        /// nil: without TLS (L1).
        package var keys: TransportKeys?
        package var limits = TransportLimits()
        package var connection = ServerConnection.Options()
        package var handshakeMs: Int64 = 10_000
        /// What was said last is left there for so long, for the other side to read.
        package var lingerMs: Int64 = 1000

        package init(listen: [HostPort], keys: TransportKeys?) {
            self.listen = listen
            self.keys = keys
        }
    }

    let options: Options
    let host: TransportHost
    let registry: ConnectionRegistry
    /// This run of the server.
    let instance = UInt64.random(in: .min ... .max)
    private var listeners: [any Channel] = []
    private let lock = Lock()
    /// What it shows to whom connects; under `lock`.
    private var keys: TransportKeys?

    private init(_ options: Options, _ host: TransportHost) {
        self.options = options
        self.host = host
        keys = options.keys
        registry = ConnectionRegistry(options.limits)
    }

    /// Returns when it listens.
    /// - Throws: `.unprotected`, `.address`.
    package static func start(
        _ options: Options, _ host: TransportHost
    ) throws(TransportError) -> TransportServer {
        if options.keys == nil, let open = options.listen.first(where: { !$0.isLoopback }) {
            throw TransportError(
                .unprotected,
                "without keys nobody would be asked who he is: \(open) is not listened on. Addresses in "
                    + "127.0.0.0/8 need none")
        }
        let server = TransportServer(options, host)
        for place in options.listen {
            do {
                let listener = try server.bootstrap.bind(host: place.host, port: place.port).wait()
                server.listeners.append(listener)
            } catch {
                for listener in server.listeners { try? listener.close().wait() }
                throw TransportError(
                    .address, "\(place) cannot be listened on: \(LineTrouble.words(error))",
                    errno: (error as? IOError)?.errnoCode)
            }
        }
        return server
    }

    private var bootstrap: ServerBootstrap {
        ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .serverChannelOption(.backlog, value: 256)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelOption(.recvAllocator, value: ServerReceiving())
            .childChannelOption(.writeBufferWaterMark, value: TransportTuning.waterMark)
            .childChannelInitializer { [self] channel in
                channel.eventLoop.makeCompletedFuture {
                    let handler = ServerChannel(self, channel.eventLoop)
                    let pipeline = channel.pipeline.syncOperations
                    if let keys = lock.withLock({ self.keys }) {
                        try pipeline.addHandler(keys.serverHandler { handler.isKnown($0) })
                    }
                    try pipeline.addHandler(handler)
                }
            }
    }

    /// Where it listens, with the port that the system chose where it was to.
    package var addresses: [HostPort] {
        zip(options.listen, listeners).map { place, listener in
            HostPort(host: place.host, port: listener.localAddress?.port ?? place.port)
        }
    }
    package var connectionCount: Int { registry.admittedCount }

    // MARK: Changed while it runs

    /// Of the key that it shows; nil without one.
    package var fingerprint: PeerFingerprint? { lock.withLock { keys?.fingerprint } }

    /// Whoever connects from now on is shown this key; connections that there are go on with the one that they began with.
    /// - Precondition: it began with one.
    package func change(keys new: TransportKeys) {
        precondition(options.keys != nil, "a server without keys asks for none")
        lock.withLock { keys = new }
    }

    /// From now on. Nobody who is connected is sent away for it.
    package func change(limits: TransportLimits) {
        registry.change(limits)
        for channel in registry.channels { channel.limitsChanged() }
    }

    /// What peers may do may have changed (L3). Returns at once.
    package func recheck() { for channel in registry.channels { channel.recheck() } }

    /// Takes no more connections, and ends those there are in good order; what came by them is still done. Returns
    /// when they are gone, or after so long without those that are not.
    package func shutDown(timeoutMs: Int64) {
        registry.close()
        for listener in listeners { try? listener.close().wait() }
        for channel in registry.channels { channel.shutDown() }
        if registry.waitUntilEmpty(timeoutMs: timeoutMs) { return }
        for channel in registry.channels { channel.drop() }
        _ = registry.waitUntilEmpty(timeoutMs: 1000)
    }
}
