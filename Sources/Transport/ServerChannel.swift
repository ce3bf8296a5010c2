// One connection of a server: its bytes to the protocol's machine, and the machine's output to the line.
//
//   handshaking ── ready ──► serving ── the machine has ended ──► lingering ── the other side closed, or a second ──► over
//       │ drop                  │ the line broke
//       └───────────────────────┴──────────────────────────────────────────────► over
//
// Lingering: what was said last is still to be read by the other side. To close a line on which something comes would
// throw it away.
//
// What is answered is taken from the machine when the line takes it: an answer nobody fetches holds up the next one,
// within the machine's bounds.

import BlockCore
import Identity
import NIOCore
import Replication
import Synchronization
import SystemIO

final class ServerChannel: ChannelInboundHandler, @unchecked Sendable {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let server: TransportServer
    private let loop: any EventLoop
    private let isKicked = Atomic(false)

    // The loop's own:
    private var context: ChannelHandlerContext?
    private var connection: ServedConnection?
    private var peer: PeerFingerprint?
    private var pool: (name: String, use: PoolUse)?
    /// It is turned away for this, once it has said something.
    private var refusal: WireError?
    private var sending = OutgoingBytes()
    private var hasSaidAll = false
    private var trouble: String?
    private var deadline: Scheduled<Void>?
    private var throttle: PeerThrottle?
    private var isPaused = false
    /// What was read is within the peer's rate then.
    private var paidAtNs: Int64 = 0
    private lazy var paying = WakeTimer(loop) { [unowned self] in readWhenPaid() }
    private var drain = DrainMeter()
    private lazy var timer = WakeTimer(loop) { [unowned self] in
        connection?.tick()
        arm()
    }

    init(_ server: TransportServer, _ loop: any EventLoop) {
        self.server = server
        self.loop = loop
    }

    // MARK: Coming in

    func channelActive(context: ChannelHandlerContext) {
        self.context = context
        guard server.registry.began(self) else { return context.close(promise: nil) }
        closeLater(server.options.handshakeMs)
        if server.options.keys == nil { ready(nil) }
    }

    /// In the handshake.
    func isKnown(_ found: PeerFingerprint?) -> Bool {
        guard let found else {
            tell(.refused, nil, "its key is of no kind that is known")
            return false
        }
        guard server.host.admits(found) else {
            tell(.refused, found, "its key is not known here")
            return false
        }
        return true
    }

    private func tell(_ kind: TransportNotice.Kind, _ peer: PeerFingerprint?, _ reason: String) {
        let place = context?.remoteAddress?.ipAddress ?? "somewhere"
        server.host.tell(TransportNotice(kind: kind, peer: peer, place: place, reason: reason))
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if TransportTuning.isHandshakeDone(event) {
            // K2
            let found = context.peer
            guard isKnown(found) else { return context.close(promise: nil) }
            ready(found)
        }
        context.fireUserInboundEventTriggered(event)
    }

    private func ready(_ peer: PeerFingerprint?) {
        guard context != nil, connection == nil else { return }
        deadline?.cancel()
        deadline = nil
        self.peer = peer
        let options = server.options.connection
        do throws(WireError) {
            try server.registry.admit(
                self, peer,
                memoryBytes: options.creditBytes + UInt64(options.mostWaitingBytes)
                    + UInt64(WireFormat.longestBodyBytes))
        } catch {
            refusal = error
            tell(.limited, peer, error.message)
            closeLater(server.options.handshakeMs)
        }
        holdTo(server.registry.throttle(of: peer))
        let machine = ServerConnection(
            options: options, instance: server.instance, challenge: .random(in: .min ... .max),
            now: WakeTimer.nowNs)
        connection = ServedConnection(
            machine, now: { WakeTimer.nowNs },
            find: { [self] (name) throws(TargetError) in
                let found = try server.host.find(peer, name)
                pool = (name, .replica)
                return found
            },
            visitor: { [self] (name) throws(TargetError) in
                let found = try server.host.visitor(peer, name)
                pool = (name, .visit)
                return found
            }, kick: { [self] in kick() })
        arm()
    }

    // MARK: Bytes in

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        guard let connection else { return }
        if let refusal { return connection.turnAway(refusal) }
        let buffer = unwrapInboundIn(data)
        buffer.withUnsafeReadableBytes { connection.receive($0) }
        arm()
        guard let throttle else { return }
        paidAtNs = throttle.charge(buffer.readableBytes, nowNs: WakeTimer.nowNs)
        readWhenPaid()
    }

    /// Nothing more is read before what was read is within the peer's rate.
    private func readWhenPaid() {
        let mustWait = throttle != nil && paidAtNs > WakeTimer.nowNs
        if mustWait { paying.arm(at: paidAtNs) }
        guard mustWait != isPaused, let context else { return }
        isPaused = mustWait
        try? context.channel.syncOptions?.setOption(.autoRead, value: !mustWait)
    }

    private func holdTo(_ new: PeerThrottle?) {
        guard new !== throttle else { return }
        throttle = new
        paidAtNs = 0
        let readsInARow = new == nil ? TransportTuning.readsInARow : 1
        if let options = context?.channel.syncOptions {
            try? options.setOption(.recvAllocator, value: ServerReceiving(new))
            try? options.setOption(.maxMessagesPerRead, value: readsInARow)
        }
        readWhenPaid()
    }

    private func arm() { if let connection { timer.arm(at: connection.wakeNs) } }

    // MARK: Bytes out

    /// From any thread.
    private func kick() {
        if !isKicked.exchange(true, ordering: .acquiringAndReleasing) {
            loop.execute { self.move() }
        }
    }

    private func move() {
        isKicked.store(false, ordering: .sequentiallyConsistent)
        guard let context, let connection, !hasSaidAll else { return }
        drain.look(at: context.channel, connection.line)
        defer { drain.look(at: context.channel, connection.line) }
        while context.channel.isWritable {
            if let chunk = sending.take() {
                context.writeAndFlush(wrapOutboundOut(chunk), promise: nil)
                continue
            }
            let (pieces, isLast) = connection.takeOutput()
            sending.put(pieces)
            guard sending.isEmpty else { continue }
            if isLast {
                hasSaidAll = true
                timer.cancel()
                closeLater(server.options.lingerMs)
            }
            break
        }
        arm()
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) { move() }

    // MARK: The end

    private func closeLater(_ ms: Int64) {
        deadline?.cancel()
        deadline = loop.scheduleTask(in: .milliseconds(ms)) { self.context?.close(promise: nil) }
    }

    /// From any thread: without a word.
    func drop() { loop.execute { self.context?.close(promise: nil) } }

    /// From any thread.
    func shutDown() {
        loop.execute { [self] in
            guard let connection else { return context?.close(promise: nil) ?? () }
            connection.close(.shuttingDown, "the server shuts down")
        }
    }

    /// From any thread.
    func limitsChanged() {
        loop.execute { [self] in
            guard connection != nil else { return }
            holdTo(server.registry.throttle(of: peer))
        }
    }

    /// From any thread (L3).
    func recheck() {
        loop.execute { [self] in
            guard let peer, let connection else { return }
            let mayStay =
                server.host.admits(peer)
                && (pool.map { server.host.mayStay(peer, $0.name, $0.use) } ?? true)
            guard !mayStay else { return }
            tell(.ended, peer, "what it may do was taken back")
            connection.close(.sessionEnded, "what this host may do there was taken back")
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        trouble = trouble ?? LineTrouble.words(error)
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        self.context = nil
        timer.cancel()
        paying.cancel()
        deadline?.cancel()
        sending.drop()
        connection?.lost(trouble ?? "the connection is closed")
        connection = nil
        server.registry.ended(self)
    }
}
