import BlockCore
import SystemIO
import Testing
import Volume

/// A flush waits for the targets that count, holds no thread meanwhile, and is replied exactly once.
@Suite struct AckGateTests {
    /// What was replied, in order.
    final class Replies: @unchecked Sendable {  // `values` is under `lock`
        private let lock = Lock()
        private var values: [UInt] = []
        private var errnos: [Int32] = []
        var all: [UInt] { lock.withLock { values } }
        var codes: [Int32] { lock.withLock { errnos } }

        func pending(_ value: UInt) -> PendingReply {
            PendingReply(
                context: UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque()), value: value
            ) {
                context, value, errno in
                let replies = Unmanaged<Replies>.fromOpaque(
                    UnsafeRawPointer(bitPattern: context)!
                ).takeUnretainedValue()
                replies.lock.withLock {
                    replies.values.append(value)
                    replies.errnos.append(errno)
                }
            }
        }
    }

    private let gate = AckGate()
    private let replies = Replies()
    private func sequence(_ value: UInt64) -> SequenceNumber { SequenceNumber(rawValue: value) }
    private func target(_ value: Int64) -> TargetID { TargetID(rawValue: value) }

    private func flush(_ at: UInt64, _ value: UInt) {
        gate.finish(gate.begin(sequence(at)), replies.pending(value))
    }

    @Test func withoutTargetsAFlushIsRepliedAtOnce() {
        flush(5, 1)
        #expect(replies.all == [1])
        #expect(gate.begin(sequence(9)) == nil)
    }

    @Test func everyTargetThatCountsIsWaitedFor() {
        gate.count(target(1), durable: sequence(0))
        gate.count(target(2), durable: sequence(7))
        flush(5, 1)
        flush(8, 2)
        #expect(replies.all == [])
        gate.acknowledge(target(1), durable: sequence(6))
        #expect(replies.all == [1])
        gate.acknowledge(target(2), durable: sequence(20))
        #expect(replies.all == [1])
        gate.acknowledge(target(1), durable: sequence(8))
        #expect(replies.all == [1, 2])
        flush(8, 3)
        #expect(replies.all == [1, 2, 3])
        #expect(gate.waitingCount == 0)
    }

    /// The pool was fenced: nobody who waits for a target hears that all is well.
    @Test func whoWaitsForAFencedPoolHearsThatItIsReadOnly() {
        gate.count(target(1), durable: sequence(0))
        flush(5, 1)
        let begun = gate.begin(sequence(6))
        gate.refuse()
        #expect(replies.codes == [30])
        gate.finish(begun, replies.pending(2))
        gate.stopCounting(target(1))
        #expect(replies.all == [1, 2])
        #expect(replies.codes == [30, 30])
    }

    @Test func aTargetThatStopsCountingLetsGoOfWhoWaitedForItAlone() {
        gate.count(target(1), durable: sequence(0))
        gate.count(target(2), durable: sequence(0))
        flush(5, 1)
        flush(6, 2)
        gate.acknowledge(target(2), durable: sequence(5))
        gate.stopCounting(target(1))
        #expect(replies.all == [1])
        gate.stopCounting(target(2))
        #expect(replies.all == [1, 2])
        #expect(gate.begin(sequence(9)) == nil)
    }

    @Test func targetsThatCountAreAsked() {
        let asked = Replies()
        gate.attach { sequence in
            let pending = asked.pending(UInt(sequence.rawValue))
            pending.send(pending.context, pending.value, 0)
        }
        flush(3, 1)
        #expect(asked.all == [])
        gate.count(target(1), durable: sequence(3))
        flush(4, 2)
        #expect(asked.all == [4])
    }

    @Test func manyThreadsGetEveryReplyOnce() {
        gate.count(target(1), durable: sequence(0))
        let flushers = (0..<4).map { thread in
            WorkerThread.start("flusher") {
                for index in 0..<2000 { flush(UInt64(index + 1), UInt(thread * 2000 + index)) }
            }
        }
        let acknowledger = WorkerThread.start("target") {
            for value in 1...2000 { gate.acknowledge(target(1), durable: sequence(UInt64(value))) }
        }
        for each in flushers { each.join() }
        acknowledger.join()
        #expect(replies.all.sorted() == (0..<8000).map { UInt($0) })
    }

    @Test func anAbandonedGateRepliesToAll() {
        gate.count(target(1), durable: sequence(0))
        flush(5, 1)
        gate.abandon()
        #expect(replies.all == [1])
        flush(6, 2)
        #expect(replies.all == [1, 2])
    }
}
