// A connection on the server's side, with the replica that it asks. Its transport gives it bytes and time, from one
// thread at a time, and takes its output, from any; whoever performs the replica's work gives it answers.
//
// Its lock is never held when the replica is called, nor the other way round: neither waits for the other.

import BlockCore
import Synchronization
import SystemIO

package final class ServedConnection: @unchecked Sendable {  // fields are under `lock`
    private let lock = Lock()
    private var machine: ServerConnection
    private let now: @Sendable () -> Int64
    private let find: @Sendable (String) throws(TargetError) -> ServedReplica
    private let visitor: @Sendable (String) throws(TargetError) -> any PoolVisitor
    /// The transport has something to send, or to close.
    private let kick: @Sendable () -> Void
    private var replica: ServedReplica?
    /// Of a control connection.
    private var visit: ServedVisit?
    private var epoch: UInt64 = 0
    private let congested = Atomic(false)
    private let listening = Atomic(true)

    /// - Parameters:
    ///   - find: the replica of a pool's name; throws `.absent` where none is.
    ///   - visitor: who answers for a pool on a control connection; throws the same.
    ///   - kick: called from any thread, with no lock held, when output waits or the connection is over.
    package init(
        _ machine: ServerConnection, now: @escaping @Sendable () -> Int64,
        find: @escaping @Sendable (String) throws(TargetError) -> ServedReplica,
        visitor: @escaping @Sendable (String) throws(TargetError) -> any PoolVisitor,
        kick: @escaping @Sendable () -> Void
    ) {
        self.machine = machine
        self.now = now
        self.find = find
        self.visitor = visitor
        self.kick = kick
    }

    // MARK: The transport's side; `receive`, `tick` and `lost` from one thread at a time

    package func receive(_ bytes: UnsafeRawBufferPointer) {
        handle { machine, now in machine.receive(bytes, now: now) }
    }
    package func tick() { handle { machine, now in machine.tick(now: now) } }
    package func lost(_ why: String) { handle { machine, _ in machine.lost(why) } }

    /// To be sent in order; after it, where the connection has ended, the transport closes it. Taken when the
    /// transport can send it: what is not taken holds up what comes after it.
    package func takeOutput() -> (pieces: [WirePiece], isLast: Bool) {
        let now = now()
        let (output, waiting, visit) = lock.withLock {
            let pieces = machine.takeOutput(now: now)
            let wasCongested = congested.exchange(false, ordering: .relaxed)
            return (
                (pieces, machine.hasEnded), wasCongested ? replica : nil,
                wasCongested ? self.visit : nil
            )
        }
        waiting?.wakeUp()
        visit?.wakeUp()
        return output
    }
    package var hasEnded: Bool { lock.withLock { machine.hasEnded } }
    package var wakeNs: Int64 { lock.withLock { machine.wakeNs } }
    package var roundTrips: RoundTrips { lock.withLock { machine.roundTrips } }
    package var state: ServerConnection.State { lock.withLock { machine.state } }
    /// The transport tells it.
    package let line = LineRate()

    /// Ends it, and its session with it; what was received before is done.
    package func close(_ reason: WireGoodbye.Reason, _ text: String) {
        sayGoodbye(reason, text)
        lock.withLock { replica }?.ended(self, inOrder: false, because: text)
    }
    /// It is not served at all.
    package func turnAway(_ error: WireError) {
        end { machine, now in machine.refuse(error, now: now) }
    }

    private func handle(
        _ body: (inout ServerConnection, Int64) -> [ServerConnection.Event]
    ) {
        let now = now()
        let (events, epoch) = lock.withLock { (body(&machine, now), self.epoch) }
        var items: [ServedReplica.Item] = []
        for event in events {
            if case .request(let number, let request, let cost) = event {
                items.append(
                    .init(connection: self, number: number, request: request, cost: cost))
                continue
            }
            put(&items, epoch)
            take(event)
        }
        put(&items, epoch)
        kick()
    }

    private func put(_ items: inout [ServedReplica.Item], _ epoch: UInt64) {
        guard !items.isEmpty else { return }
        defer { items = [] }
        guard let replica = lock.withLock({ replica }), replica.put(items, by: self, epoch: epoch)
        else {
            return sayGoodbye(.superseded, "this session is over")
        }
        var received = SequenceNumber.zero
        for case .append(let records, tellsReceived: true) in items.map(\.request) {
            received = records.last
        }
        guard received > .zero else { return }
        let now = now()
        lock.withLock {
            machine.acknowledge(received: received)
            machine.tellAcknowledgements(now: now)
        }
    }

    private func take(_ event: ServerConnection.Event) {
        switch event {
        case .connect(let request):
            do throws(TargetError) {
                let found = try find(request.pool)
                lock.withLock { replica = found }
                try refusing { () throws(WireError) in try found.put(request, by: self) }
            } catch { refuse(error) }
        case .attach(let request):
            do throws(TargetError) {
                let found = try find(request.pool)
                lock.withLock { replica = found }
                try refusing { () throws(WireError) in
                    try found.put(request, by: self)
                    try lock.withLock { () throws(WireError) in
                        epoch = request.epoch
                        try machine.attached(now: now())
                    }
                }
            } catch { refuse(error) }
        case .enter(let request):
            do throws(TargetError) {
                let new = ServedVisit(try visitor(request.pool), self)
                let isThere = lock.withLock {
                    visit = new
                    do throws(WireError) { try machine.entered(now: now()) } catch { return false }
                    return !machine.hasEnded
                }
                if !isThere { new.end() }
            } catch { refuse(error) }
        case .query(let number, let query): lock.withLock { visit }?.put(number, query)
        case .leaving:
            lock.withLock { replica }?.ended(self, inOrder: true)
            lock.withLock { visit }?.leave()
        case .ended:
            listening.store(false, ordering: .relaxed)
            lock.withLock { replica }?.ended(self, inOrder: false)
            lock.withLock { visit }?.end()
        case .request, .suspected, .recovered: break
        }
    }

    private func refusing(_ body: () throws(WireError) -> Void) throws(TargetError) {
        do throws(WireError) { try body() } catch {
            end { machine, now in machine.refuse(error, now: now) }
        }
    }

    private func end(
        _ body: (inout ServerConnection, Int64) -> ServerConnection.Event?
    ) {
        let now = now()
        if lock.withLock({ body(&machine, now) }) != nil {
            listening.store(false, ordering: .relaxed)
            lock.withLock { visit }?.end()
        }
        kick()
    }

    // MARK: The replica's side

    /// Somebody hears what it is answered.
    var isListening: Bool { listening.load(ordering: .relaxed) }
    /// What was answered is not sent yet: the next long answer waits.
    var isCongested: Bool { congested.load(ordering: .relaxed) }

    func admitted(_ connected: WireConnected) throws(TargetError) {
        let now = now()
        do throws(WireError) {
            try lock.withLock { () throws(WireError) in
                epoch = connected.epoch
                try machine.admitted(connected, now: now)
            }
        } catch { throw TargetError(.io, "\(error)") }
        kick()
    }

    func refuse(_ error: TargetError) {
        let now = now()
        _ = lock.withLock { machine.refuseAdmission(error, now: now) }
        listening.store(false, ordering: .relaxed)
        kick()
    }

    /// - Returns: the same, compressed where that is agreed on, and pays.
    func pack(_ reply: WireReply, with packer: FramePacker) -> WireReply {
        guard case .content(let content) = reply, lock.withLock({ machine.mayPack }) else {
            return reply
        }
        let none = UnsafeRawBufferPointer(start: nil, count: 0)
        let line = line.current(nowNs: now())
        return content.buffer.withBytes { bytes in
            let batch = RecordBatch(pieces: [bytes], firstSequence: .zero, lastSequence: .zero)
            let packed = packer.pack(none, batch, line: line, clock: now)
            return packed.map { .content(WireContent(packed: WireBuffer(copying: $0))) } ?? reply
        }
    }

    /// - Parameter reply: nil for what the acknowledgement says.
    func answer(
        _ number: UInt64, _ reply: WireReply?, _ cost: UInt64,
        _ acknowledgement: WireAcknowledgement
    ) {
        let now = now()
        lock.withLock {
            machine.acknowledge(
                written: acknowledgement.written, durable: acknowledgement.durable,
                staged: acknowledgement.staged)
            machine.release(cost: cost)
            machine.tellAcknowledgements(now: now)
            if let reply { machine.reply(number, reply, now: now) }
            congested.store(machine.isCongested, ordering: .relaxed)
        }
        kick()
    }

    func sayGoodbye(_ reason: WireGoodbye.Reason, _ text: String) {
        end { machine, now in machine.sayGoodbye(reason, text, now: now) }
    }

    /// All that came by it is done.
    func isDone() { end { machine, now in machine.finish(now: now) } }
}
