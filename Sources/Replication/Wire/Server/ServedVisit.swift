// A control connection on the server's side: who came, and the thread that answers.
//
//   entered ──► answering, one query after the other ──► over: the connection has ended, or left
//
// - Nothing of a session of the pool is held up by it: it has a thread of its own, and whatever it asks of the pool
//   is up to the visitor.
// - What was answered and is not sent yet holds up the next answer.

import BlockCore
import SystemIO

/// Answers for one connection.
package protocol PoolVisitor: Sendable {
    /// One caller at a time; it may take its time. What the peer may is asked here, each time.
    func answer(_ query: WireQuery) throws(TargetError) -> WireReply
    /// Nothing more is asked; called once, after the last answer.
    func end()
}

final class ServedVisit: @unchecked Sendable {  // fields are under `lock`
    private let visitor: any PoolVisitor
    private let lock = Lock()
    private let changed = Condition()
    private var waiting: [(number: UInt64, query: WireQuery)] = []
    private var isLeaving = false
    private var isOver = false

    /// - Parameter connection: hears the answers, as long as it is there.
    init(_ visitor: any PoolVisitor, _ connection: ServedConnection) {
        self.visitor = visitor
        WorkerThread.start("doppel-visit") { [self, weak connection] in
            let packer = FramePacker(LineCompression())
            while let (number, query) = next(connection) {
                let reply: WireReply
                do throws(TargetError) { reply = try visitor.answer(query) } catch {
                    reply = .failed(error)
                }
                guard let connection else { continue }
                connection.answer(
                    number, connection.pack(reply, with: packer), 0, WireAcknowledgement())
            }
            connection?.isDone()
            visitor.end()
        }.detach()
    }

    private func next(_ connection: ServedConnection?) -> (UInt64, WireQuery)? {
        lock.lock()
        defer { lock.unlock() }
        while true {
            if isOver { return nil }
            if waiting.isEmpty {
                if isLeaving { return nil }
            } else if connection?.isCongested != true {
                return waiting.removeFirst()
            }
            changed.wait(lock)
        }
    }

    func put(_ number: UInt64, _ query: WireQuery) {
        lock.withLock {
            waiting.append((number, query))
            changed.signal()
        }
    }

    /// What was asked before is answered.
    func leave() {
        lock.withLock {
            isLeaving = true
            changed.signal()
        }
    }

    /// Nobody hears an answer any more.
    func end() {
        lock.withLock {
            isOver = true
            waiting = []
            changed.signal()
        }
    }

    /// What was answered is sent.
    func wakeUp() { lock.withLock { changed.signal() } }
}
