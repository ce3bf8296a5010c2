// One connection of a client.
//
//   idle ── the first bytes to send ──► connecting ── channelActive ──► open ── anything ──► over
//     └──────────────── close ──────────────┴──────── it failed ───────────────────────────►┘
//
// It connects with the first bytes: then whoever receives is ready to hear the answer, also a refusal that comes
// at once.
//
// Threads: whoever sends puts bytes in and never waits; the event loop takes them out and writes, as fast as the line
// takes them. `lock` is held for a moment only, and nobody is called under it.

import BlockCore
import Identity
import NIOCore
import NIOPosix
import Replication
import Synchronization
import SystemIO

final class ClientChannel: WireChannel, ChannelInboundHandler, @unchecked Sendable {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer
    /// What waits for a line that is given up is not waited for any longer.
    private static let lingerMs: Int64 = 1000

    private enum State { case idle, connecting, open, over }

    private let loop: any EventLoop
    private let options: TransportClient.Options
    private let receiver: RemoteConnection

    private let unsent = Atomic(0)
    private let lock = Lock()
    // Under `lock`:
    private var given = OutgoingBytes()
    private var isTold = false
    private var closes = false

    // The loop's own:
    private var state = State.idle
    private var context: ChannelHandlerContext?
    private var sending = OutgoingBytes()
    private var isClosing = false
    private var trouble: String?
    private var linger: Scheduled<Void>?
    private var drain = DrainMeter()
    private lazy var timer = WakeTimer(loop) { [unowned self] in
        receiver.tick()
        arm()
    }

    init(_ loop: any EventLoop, _ options: TransportClient.Options, _ receiver: RemoteConnection) {
        self.loop = loop
        self.options = options
        self.receiver = receiver
    }

    // MARK: From any thread

    func send(_ pieces: [WirePiece]) {
        tell {
            guard !closes else { return }
            given.put(pieces)
            let count = pieces.reduce(0) { $0 + $1.count }
            unsent.add(count, ordering: .relaxed)
        }
    }
    var unsentBytes: Int { unsent.load(ordering: .relaxed) }
    func close() { tell { closes = true } }

    private func tell(_ change: () -> Void) {
        let isFirst = lock.withLock {
            change()
            defer { isTold = true }
            return !isTold
        }
        if isFirst { loop.execute { self.move() } }
    }

    // MARK: On the loop

    private func move() {
        lock.withLock {
            isTold = false
            sending.put(all: &given)
            isClosing = closes
        }
        switch state {
        case .idle where isClosing: end("it was let go of")
        case .idle: begin()
        case .connecting: if isClosing { end("it was let go of") }
        case .open: write()
        case .over: sending.drop()
        }
    }

    private func begin() {
        state = .connecting
        let server = options.server
        ClientBootstrap(group: loop)
            .connectTimeout(.milliseconds(options.connectTimeoutMs))
            .channelOption(.tcpOption(.tcp_nodelay), value: 1)
            .channelOption(.recvAllocator, value: TransportTuning.receiving)
            .channelOption(.writeBufferWaterMark, value: TransportTuning.waterMark)
            .channelInitializer { [self] channel in
                channel.eventLoop.makeCompletedFuture {
                    let pipeline = channel.pipeline.syncOperations
                    if let keys = options.keys {
                        try pipeline.addHandler(keys.clientHandler { self.isPinned($0) })
                    }
                    try pipeline.addHandler(self)
                }
            }
            .connect(host: server.host, port: server.port)
            .whenFailure { error in
                self.end("\(server) cannot be reached: \(LineTrouble.words(error))")
            }
    }

    private func isPinned(_ found: PeerFingerprint?) -> Bool {
        if let found, options.pinned.contains(found) { return true }
        let expected = options.pinned.map(\.description).sorted().joined(separator: " or ")
        trouble =
            "\(options.server) shows the key \(found?.description ?? "of no kind that is known"), and not "
            + "\(expected): nothing was sent to it"
        return false
    }

    func channelActive(context: ChannelHandlerContext) {
        guard state == .connecting else { return context.close(promise: nil) }
        self.context = context
        state = .open
        arm()
        write()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        // K2
        if TransportTuning.isHandshakeDone(event), !isPinned(context.peer) {
            return context.close(promise: nil)
        }
        context.fireUserInboundEventTriggered(event)
    }

    private func arm() { timer.arm(at: receiver.wakeNs) }

    private func write() {
        guard let context else { return }
        drain.look(at: context.channel, receiver.line)
        while context.channel.isWritable, let chunk = sending.take() {
            let count = chunk.readableBytes
            context.writeAndFlush(wrapOutboundOut(chunk), promise: nil)
            let before = unsent.subtract(count, ordering: .relaxed).oldValue
            if !RemoteConnection.hasRoom(before), RemoteConnection.hasRoom(before - count) {
                receiver.madeRoom()
            }
        }
        drain.look(at: context.channel, receiver.line)
        guard isClosing else { return }
        if sending.isEmpty { return context.close(promise: nil) }
        guard linger == nil else { return }
        linger = loop.scheduleTask(in: .milliseconds(Self.lingerMs)) {
            self.sending.drop()
            self.context?.close(promise: nil)
        }
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) { write() }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        unwrapInboundIn(data).withUnsafeReadableBytes { receiver.receive($0) }
        arm()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        trouble = trouble ?? "\(options.server): \(LineTrouble.words(error))"
        context.close(promise: nil)
    }

    func channelInactive(context: ChannelHandlerContext) {
        end(trouble ?? "\(options.server) has closed the connection")
    }

    private func end(_ why: String) {
        guard state != .over else { return }
        state = .over
        timer.cancel()
        linger?.cancel()
        context = nil
        sending.drop()
        receiver.lost(why)
    }
}
