// A target that is behind a server: what a session asks of it travels over one ordered connection, and the batches
// of a staging, which are many and large, over bulk connections beside it: these are there while a staging is, and
// where the server has no room for them all goes over the one.
//
// - A batch of a staging is on its way when `stage` returns. That it was taken is known with the next `syncStaging`
//   or `commitStaging`, which the server does after it (E3).
// - After an error nothing more is asked, but to `connect` anew: that is another session, with another epoch.

import BlockCore
import Synchronization
import SystemIO

package final class RemoteReplica: PipelinedTarget, @unchecked Sendable {
    // One caller at a time (see `ReplicaTarget`); the connections have locks of their own.
    package struct Options: Sendable {
        /// As the server names it.
        package var pool: String
        package var connection = ClientConnection.Options()
        package var bulkConnections = 0
        package var compression = LineCompression()
        /// See ``PrimaryHello``.
        package var mirrorID: String?
        package var laysOut = false
        /// Where the primary is, as somebody on another machine would say it.
        package var primaryAddress: String?
        package init(pool: String) { self.pool = pool }
    }

    private let link: any WireLink
    private let options: Options
    /// This run of the client.
    private let client: UInt64
    private let attempts: ConnectAttempts
    private let packer: FramePacker
    private var ordered: RemoteConnection?
    private var bulk: [RemoteConnection] = []
    private var session: (epoch: UInt64, token: UInt64) = (0, 0)
    private var lastOrder: UInt64 = 0
    /// The last of what the server was given.
    private var given = SequenceNumber.zero
    private var hear: (@Sendable (TargetProgress?) -> Void)?

    /// - Parameters:
    ///   - client: at random; one for all replicas of a process.
    ///   - attempts: shared by replicas with the same client.
    package init(
        _ link: any WireLink, options: Options, client: UInt64,
        attempts: ConnectAttempts = ConnectAttempts()
    ) {
        self.link = link
        self.options = options
        packer = FramePacker(options.compression)
        self.client = client
        self.attempts = attempts
    }

    /// For who shows how the line is; nil without a connection.
    package var roundTrips: RoundTrips? { ordered?.roundTrips }
    package var isSuspected: Bool { ordered?.isSuspected ?? false }
    package var acknowledged: WireAcknowledgement? { ordered?.acknowledged }

    // MARK: Connecting

    package func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        drop("another connection takes its place")
        lastOrder = 0
        var hello = hello
        hello.mirrorID = options.mirrorID
        hello.laysOut = options.laysOut
        hello.address = options.primaryAddress ?? hello.address
        do throws(TargetError) { return try connectAnew(hello) } catch {
            drop("it was not connected")
            throw error
        }
    }

    private func connectAnew(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        let first = RemoteConnection(.ordered, options.connection, link, onNews: hear)
        ordered = first
        let welcome = try first.begin()
        let connected = try first.connect(
            WireConnect(
                challenge: welcome.challenge, client: client, attempt: attempts.next(),
                pool: options.pool,
                hello: hello))
        session = (connected.epoch, connected.token)
        given = connected.report.checkpoint
        return connected.report
    }

    /// As many as the server takes.
    private func openBulk() {
        while bulk.count < options.bulkConnections {
            let next = RemoteConnection(.bulk, options.connection, link)
            do throws(TargetError) {
                let welcome = try next.begin()
                try next.attach(
                    WireAttach(
                        challenge: welcome.challenge, epoch: session.epoch, token: session.token,
                        pool: options.pool))
            } catch { return next.drop("it is not needed") }
            bulk.append(next)
        }
    }

    /// All that went by them is done.
    private func closeBulk() {
        for connection in bulk { connection.leave() }
        bulk = []
    }

    private func drop(_ why: String) {
        for connection in bulk + [ordered].compactMap({ $0 }) { connection.drop(why) }
        ordered = nil
        bulk = []
    }

    /// A line that is over is noticed while there is nothing to send, too.
    package var knownFailure: TargetError? {
        do throws(TargetError) { _ = try connected() } catch { return error }
        return nil
    }

    package func disconnect() {
        ordered?.leave()
        drop("it was let go of")
    }

    private func connected() throws(TargetError) -> RemoteConnection {
        guard let ordered else { throw TargetError(.absent, "it is not connected") }
        for connection in bulk { try connection.requireSound() }
        try ordered.requireSound()
        return ordered
    }

    /// Of all connections together, for they share a line; nil where it keeps up.
    private var lineBytesPerSecond: UInt64? {
        let now = link.nowNs
        var sum = ordered?.line.current(nowNs: now) ?? 0
        for connection in bulk { sum += connection.line.current(nowNs: now) ?? 0 }
        return sum > 0 ? sum : nil
    }

    // MARK: The stream

    package func append(_ batch: RecordBatch) throws(TargetError) {
        try give(batch)
        try connected().wait(written: batch.lastSequence)
    }

    package func give(_ batch: RecordBatch) throws(TargetError) { try send(batch) }

    /// - Parameter tellsReceived: ``acknowledged`` tells also when the server has them in memory.
    package func send(_ batch: RecordBatch, tellsReceived: Bool = false) throws(TargetError) {
        let first = try connected()
        try first.append(
            batch, tellsReceived: tellsReceived, packer, lineBytesPerSecond: lineBytesPerSecond)
        given = batch.lastSequence
    }

    package func askFlush() throws(TargetError) { try connected().askFlush(of: given) }

    package var roomBytes: Int { ordered?.room.bytes ?? 0 }
    package var progress: TargetProgress {
        ordered?.progress ?? TargetProgress(written: .zero, durable: .zero, hasRoom: false)
    }
    package func onNews(_ hear: @escaping @Sendable (TargetProgress?) -> Void) {
        self.hear = hear
    }

    /// What the server said by itself.
    package var durableThrough: SequenceNumber? { acknowledged?.durable }

    package func flush() throws(TargetError) -> SequenceNumber {
        guard case .flushed(let through) = try connected().ask(.flush) else { throw unexpected }
        return through
    }

    // MARK: Staging

    package func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try ask(.beginStaging(order: nextOrder(), id: id, shape))
        openBulk()
    }

    package func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        let first = try connected()
        let order = nextOrder()
        // The one with most room: whichever is fastest gets most.
        let connection = bulk.max { $0.creditBytes < $1.creditBytes } ?? first
        try connection.stage(
            batch, order: order, number: number, packer, lineBytesPerSecond: lineBytesPerSecond)
    }

    package func syncStaging() throws(TargetError) { try ask(.syncStaging(order: nextOrder())) }

    package func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try ask(
            .commitStaging(order: nextOrder(), id: id, at: sequence, snapshot: snapshot))
        closeBulk()
    }

    private func nextOrder() -> UInt64 {
        lastOrder += 1
        return lastOrder
    }

    private func ask(_ request: WireRequest) throws(TargetError) {
        guard case .done = try connected().ask(request) else { throw unexpected }
    }

    // MARK: Reading

    /// A range in parts that one request may ask for.
    private static func parts(_ range: BlockRange, of mostBlocks: Int) -> [BlockRange] {
        stride(from: range.start, to: range.end, by: mostBlocks).map {
            BlockRange(start: $0, count: min(UInt64(mostBlocks), range.end - $0))
        }
    }

    package func blockHashes(
        of image: ImageID, in range: BlockRange
    ) throws(TargetError) -> [UInt64] {
        let parts = Self.parts(range, of: WireFormat.mostHashedBlocks)
        let replies = try connected().ask(
            parts.map { .blockHashes(after: lastOrder, of: image, in: $0) })
        var hashes: [UInt64] = []
        hashes.reserveCapacity(Int(range.count))
        for (part, reply) in zip(parts, replies) {
            guard case .hashes(let some) = reply, some.count == Int(part.count) else {
                throw unexpected
            }
            hashes += some
        }
        return hashes
    }

    package func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        guard case .blocks(let blocks) = try connected().ask(.allocatedBlocks(after: lastOrder))
        else { throw unexpected }
        return blocks
    }

    package func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        let parts = Self.parts(range, of: WireFormat.mostReadBlocks)
        let replies = try connected().ask(parts.map { .read(after: lastOrder, $0, of: image) })
        for (part, reply) in zip(parts, replies) {
            guard case .content(let content) = reply else { throw unexpected }
            let start = Int((part.start - range.start) << Geometry.blockShift)
            let place = UnsafeMutableRawBufferPointer(
                rebasing: buffer[start..<start + Int(part.lengthBytes)])
            do throws(WireError) { try content.fill(place, with: part, of: image) } catch {
                throw TargetError(.io, "what it read is not what it was asked for: \(error)")
            }
        }
    }

    package func shape() throws(TargetError) -> PoolShape {
        guard case .shape(let shape) = try connected().ask(.shape(after: lastOrder)) else {
            throw unexpected
        }
        return shape
    }

    private var unexpected: TargetError {
        TargetError(.io, "what it answered is not what it was asked for")
    }
}

/// Numbers of a client's attempts to connect: each is higher than those before.
package final class ConnectAttempts: Sendable {
    private let last = Atomic<UInt64>(0)
    package init() {}
    func next() -> UInt64 { last.wrappingAdd(1, ordering: .relaxed).newValue }
}
