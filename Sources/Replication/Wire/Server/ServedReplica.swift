// One pool behind a server: its target, and the session that may write to it. Connections put in what they are
// asked for; one thread at a time takes it out and asks the target, which may block.
//
//     connection ── put ──► ordered: connect, append, flush …  ─┐
//     connection ── put ──► bulk: stage, stage, hashes …        ├── performNext ──► target ──► answer
//     connection ── put ──► bulk: stage, stage …               ─┘
//
// - E1  Sessions have epochs, each later than the one before. What is put in on behalf of an epoch that is over
//       is refused: a write that stalled in an old connection is never applied after a newer one was accepted.
// - E2  What was put in before that is done before the newer session's `connect` is asked of the target, and
//       counts in its report: `received` was said of it. The same when a connection ends, before the target is
//       let go of.
// - E3  Operations of a staging are done in their order, whatever connection they came by; what reads waits for
//       those it was asked after. A connection's own requests are done in their order.
// - E4  After an operation that failed, none that changes anything is done in this session: the next one would
//       leave a gap.
// - E5  Another primary than the one in session does not disturb it, unless it comes after it (`mayFollow`).
// - E6  Who takes a turn (`inTurn`) has the pool for himself: no session has it meanwhile, and none begins.

import BlockCore
import SystemIO

package final class ServedReplica: @unchecked Sendable {
    // Fields are under `lock`, but for `target`.
    struct Item {
        var connection: ServedConnection
        var number: UInt64
        var request: WireRequest
        var cost: UInt64
    }
    struct Connecting {
        var connection: ServedConnection
        var request: WireConnect
    }
    /// What comes by one connection, in its order.
    struct Lane {
        var connection: ServedConnection
        var items: [Item] = []
        var next = 0
        var head: Item? { next < items.count ? items[next] : nil }
        mutating func removeHead() {
            next += 1
            guard next == items.count || next > 64 else { return }
            items.removeFirst(next)
            next = 0
        }
    }
    struct Session {
        var epoch: UInt64
        var token: UInt64
        var hello: PrimaryHello
        /// The ordered one first.
        var lanes: [Lane]
        var doneOrder: UInt64 = 0
        /// The last item that is not to be done any more failed with this (E4).
        var failure: TargetError?
        /// Nothing more comes: what is there is done, then the target is let go of.
        var isEnding = false
    }

    package let name: String
    /// Used by whoever performs, one at a time.
    private let target: any ReplicaTarget
    /// Used by whoever performs.
    private let packer = FramePacker(LineCompression())
    let lock = Lock()
    private var epoch: UInt64 = 0
    var session: Session?
    private var connecting: [Connecting] = []
    private var lastAttempt: (client: UInt64, attempt: UInt64)?
    /// Who waits to have the pool for himself (E6).
    var turns: [ReplicaTurn] = []
    private var isPerforming = false
    private(set) var isRetired = false
    private let random: @Sendable () -> UInt64
    /// Something may be there to perform.
    private let wake: @Sendable () -> Void

    /// - Parameters:
    ///   - random: for the tokens of sessions.
    ///   - wake: called with no lock held whenever there may be something to perform.
    package init(
        name: String, target: any ReplicaTarget, random: @escaping @Sendable () -> UInt64,
        wake: @escaping @Sendable () -> Void
    ) {
        self.name = name
        self.target = target
        self.random = random
        self.wake = wake
    }

    // MARK: What connections put in

    /// - Throws: `.superseded` for an attempt from before one that was made already.
    func put(_ request: WireConnect, by connection: ServedConnection) throws(WireError) {
        try lock.withLock { () throws(WireError) in
            guard !isRetired else {
                throw WireError(.limit, "connect.pool", at: 24, "it was just put away: try again")
            }
            if let last = lastAttempt, last.client == request.client,
                request.attempt <= last.attempt
            {
                throw WireError(
                    .superseded, "connect.attempt", at: 16,
                    "attempt \(request.attempt) comes after attempt \(last.attempt)")
            }
            lastAttempt = (request.client, request.attempt)
            connecting.append(Connecting(connection: connection, request: request))
        }
        wake()
    }

    /// - Throws: `.superseded` for a session that is over.
    func put(_ request: WireAttach, by connection: ServedConnection) throws(WireError) {
        try lock.withLock { () throws(WireError) in
            guard let session, session.epoch == request.epoch, session.token == request.token,
                !session.isEnding
            else {
                throw WireError(
                    .superseded, "attach.epoch", at: 8, "session \(request.epoch) is over")
            }
            self.session!.lanes.append(Lane(connection: connection))
        }
    }

    /// - Returns: false where its session is over (E1).
    func put(_ items: [Item], by connection: ServedConnection, epoch: UInt64) -> Bool {
        let isTaken = lock.withLock {
            guard let session, session.epoch == epoch, !session.isEnding,
                let lane = session.lanes.firstIndex(where: { $0.connection === connection })
            else { return false }
            self.session!.lanes[lane].items += items
            return true
        }
        if isTaken { wake() }
        return isTaken
    }

    /// The connection is over, or nothing more comes by it. With the ordered one, or with a bulk one in the
    /// middle of something, the session ends.
    /// - Parameter why: the other connections of the session hear it.
    func ended(
        _ connection: ServedConnection, inOrder: Bool, because why: String = "its session ended"
    ) {
        let (isFree, others) = lock.withLock { () -> (Bool, [ServedConnection]) in
            connecting.removeAll { $0.connection === connection }
            guard let session, !session.isEnding,
                let lane = session.lanes.firstIndex(where: { $0.connection === connection })
            else { return (false, []) }
            if lane > 0, inOrder, session.lanes[lane].head == nil {
                self.session!.lanes.remove(at: lane)
                return (true, [])
            }
            self.session!.isEnding = true
            return (false, session.lanes.map(\.connection).filter { $0 !== connection })
        }
        if isFree { connection.isDone() }
        for other in others { other.sayGoodbye(.sessionEnded, why) }
        wake()
    }

    /// Nobody uses it, and nobody can any more: whoever comes now has to look for it anew.
    /// - Returns: false where somebody does.
    package func retire() -> Bool {
        lock.withLock {
            guard session == nil, connecting.isEmpty, turns.isEmpty, !isPerforming else {
                return false
            }
            isRetired = true
            return true
        }
    }

    /// What kept something from being performed may be over.
    func wakeUp() { wake() }

    // MARK: Performing

    private enum Work {
        case item(Item, epoch: UInt64)
        case connect(Connecting, epoch: UInt64, after: [ServedConnection])
        case refuse(Connecting, TargetError)
        case letGo([ServedConnection])
        case turn(ReplicaTurn, isHad: Bool)
    }

    /// Asks the target for the next thing; blocks for as long as that takes. Called until it is false: what is
    /// put in meanwhile is left to who performs already.
    /// - Returns: false where nothing is to be done, or somebody else does.
    package func performNext() -> Bool {
        let work = lock.withLock { () -> Work? in
            guard !isPerforming, let work = next() else { return nil }
            isPerforming = true
            return work
        }
        guard let work else { return false }
        switch work {
        case .item(let item, let epoch): perform(item, epoch)
        case .connect(let connecting, let epoch, let old): connect(connecting, epoch, old)
        case .refuse(let connecting, let error): connecting.connection.refuse(error)
        case .letGo(let connections):
            target.disconnect()
            for connection in connections { connection.isDone() }
        case .turn(let turn, let isHad): turn.give(isHad)
        }
        lock.withLock { isPerforming = false }
        return true
    }

    /// Under the lock.
    private func next() -> Work? {
        // Who only looks makes way for a primary; a promotion does not.
        if let turn = turns.first,
            turn.endsSession ? session == nil : session != nil || connecting.isEmpty
        {
            turns.removeFirst()
            return .turn(turn, isHad: session == nil)
        }
        if let first = connecting.first, session?.isEnding != true {
            if let session, !mayFollow(first.request.hello, session.hello) {
                connecting.removeFirst()
                return .refuse(first, refusal(first.request.hello, session.hello))
            }
            session?.isEnding = true
        }
        if let item = nextItem() { return .item(item, epoch: session!.epoch) }
        // Where another session follows, the target is not let go of in between.
        if let session, session.isEnding, connecting.isEmpty || !turns.isEmpty {
            self.session = nil
            return .letGo(session.lanes.map(\.connection))
        }
        guard !connecting.isEmpty, session?.isEnding ?? true else { return nil }
        let first = connecting.removeFirst()
        let old = session?.lanes.map(\.connection) ?? []
        epoch += 1
        // From here on nothing of the older session is taken (E1).
        session = Session(
            epoch: epoch, token: random(), hello: first.request.hello,
            lanes: [Lane(connection: first.connection)])
        return .connect(first, epoch: epoch, after: old)
    }

    /// The head of a lane that may be done now (E3).
    private func nextItem() -> Item? {
        guard let (doneOrder, isEnding) = session.map({ ($0.doneOrder, $0.isEnding) }) else {
            return nil
        }
        for index in session!.lanes.indices {
            while let head = session!.lanes[index].head {
                let isRead = head.request.isRead
                // Nobody is there to hear what is read.
                if isRead, isEnding, !head.connection.isListening {
                    session!.lanes[index].removeHead()
                    continue
                }
                if let order = head.request.order, order > doneOrder &+ 1 { break }
                if let after = head.request.after, after > doneOrder { break }
                if isRead, !isEnding, head.connection.isCongested { break }
                session!.lanes[index].removeHead()
                return head
            }
        }
        return nil
    }

    // MARK: One thing after the other

    private func connect(
        _ connecting: Connecting, _ epoch: UInt64, _ old: [ServedConnection]
    ) {
        for connection in old {
            connection.sayGoodbye(.superseded, "a newer session of this pool has begun")
            connection.isDone()
        }
        do throws(TargetError) {
            let report = try target.connect(connecting.request.hello)
            let token = lock.withLock { session?.token ?? 0 }
            try connecting.connection.admitted(
                WireConnected(epoch: epoch, token: token, report: report))
        } catch {
            lock.withLock { if session?.epoch == epoch { session = nil } }
            target.disconnect()
            connecting.connection.refuse(error)
        }
    }

    private func perform(_ item: Item, _ epoch: UInt64) {
        let (failure, doneOrder) = lock.withLock { (session?.failure, session?.doneOrder ?? 0) }
        var acknowledgement = WireAcknowledgement()
        do throws(TargetError) {
            if let failure, !item.request.isRead { throw failure }
            if let order = item.request.order, order <= doneOrder {
                throw TargetError(.io, "operation \(order) of the staging comes twice")
            }
            let reply = try ask(item, &acknowledgement)
            done(item)
            item.connection.answer(item.number, reply, item.cost, acknowledgement)
        } catch {
            if !item.request.isRead {
                lock.withLock {
                    let first = session?.failure ?? error
                    session?.failure = first
                }
            }
            done(item)
            item.connection.answer(
                item.number, .failed(error), item.cost, WireAcknowledgement())
        }
    }

    /// Also of one that failed: what comes after it fails, too, and does not wait for ever.
    private func done(_ item: Item) {
        guard let order = item.request.order else { return }
        lock.withLock {
            let before = session?.doneOrder ?? 0
            session?.doneOrder = max(before, order)
        }
    }

    /// - Returns: nil for what is answered by acknowledgements alone.
    private func ask(
        _ item: Item, _ told: inout WireAcknowledgement
    ) throws(TargetError) -> WireReply? {
        switch item.request {
        case .append(let records, _):
            try WireRecordReader.check(records, isStream: true)
            try records.withBatch { (batch) throws(TargetError) in try target.append(batch) }
            told.written = records.last
            // What it has by itself need not be asked for.
            if let durable = target.durableThrough { told.durable = durable }
            return nil
        case .flush:
            let through = try target.flush()
            told.durable = through
            return .flushed(through)
        case .beginStaging(let order, let id, let shape):
            try target.beginStaging(id: id, shape: shape)
            told.staged = order
            return .done
        case .stage(let order, let number, let records):
            try WireRecordReader.check(records, isStream: false)
            try records.withBatch { (batch) throws(TargetError) in
                try target.stage(batch, number: number)
            }
            told.staged = order
            return nil
        case .syncStaging(let order):
            try target.syncStaging()
            told.staged = order
            return .done
        case .commitStaging(let order, let id, let sequence, let snapshot):
            try target.commitStaging(id: id, at: sequence, snapshot: snapshot)
            told.staged = order
            told.written = sequence
            told.durable = sequence
            return .done
        default: return try read(item.request, for: item.connection)
        }
    }

    private func read(
        _ request: WireRequest, for connection: ServedConnection
    ) throws(TargetError) -> WireReply {
        switch request {
        case .blockHashes(_, let image, let range):
            let hashes = try target.blockHashes(of: image, in: range)
            guard hashes.count == Int(range.count) else {
                throw TargetError(.io, "\(hashes.count) hashes of \(range.count) blocks")
            }
            return .hashes(hashes)
        case .allocatedBlocks: return .blocks(try target.allocatedBlocks())
        case .shape: return .shape(try target.shape())
        case .read(_, let range, let image):
            let reply = try WireReply.content(range, of: image) { (place) throws(TargetError) in
                try target.read(range, of: image, into: place)
                return place.count
            }
            return connection.pack(reply, with: packer)
        default: throw TargetError(.io, "'\(request.kind)' is no request that reads")
        }
    }

    // MARK: Who may follow whom (E5)

    /// Whether one that connects ends the session of the one that is connected. It is what the target would
    /// say, so far as it needs no target; what it lets through, the target still judges.
    private func mayFollow(_ new: PrimaryHello, _ old: PrimaryHello) -> Bool {
        if new.generation.number != old.generation.number {
            let cameFromIt =
                new.poolID == old.poolID || new.history.contains(old.generation.id)
            return new.generation.number > old.generation.number && cameFromIt
        }
        return new.poolID == old.poolID && new.generation.id == old.generation.id
            && new.incarnation >= old.incarnation
    }

    private func refusal(_ new: PrimaryHello, _ old: PrimaryHello) -> TargetError {
        let wasReplaced =
            new.generation.number < old.generation.number
            && (new.poolID == old.poolID || old.history.contains(new.generation.id)
                || old.generation.parentID == new.generation.id)
        if wasReplaced {
            return TargetError(
                .fenced,
                "\(name) follows generation \(old.generation.number) by now, this primary is "
                    + "generation \(new.generation.number): it was replaced")
        }
        return TargetError(
            .absent,
            "\(name) takes the changes of pool \(old.poolID) (generation "
                + "\(old.generation.number)) just now: nothing in it was touched")
    }
}
