import BlockCore
import Replication
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

    private func acknowledge(
        _ target: TargetID, _ sequence: SequenceNumber, _ point: AckPoint = .durable
    ) {
        gate.acknowledge(target, point, sequence)
        gate.answer()
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
        acknowledge(target(1), sequence(6))
        #expect(replies.all == [1])
        acknowledge(target(2), sequence(20))
        #expect(replies.all == [1])
        acknowledge(target(1), sequence(8))
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
        acknowledge(target(2), sequence(5))
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

    // MARK: Modes

    private func write(_ at: UInt64, _ value: UInt, image: Int64 = 1) {
        gate.finishWrite(sequence(at), of: ImageID(rawValue: image), replies.pending(value))
    }
    private func policy(
        _ mode: ReplicationMode, _ onTimeout: TimeoutReaction = .degrade,
        images: [ImageID: AckPolicy] = [:]
    ) -> TargetPolicy {
        TargetPolicy(AckPolicy(mode, onTimeout: onTimeout), images: images)
    }

    /// Each mode waits for what its table says, and for no more.
    @Test(arguments: ReplicationMode.allCases) func eachModeWaitsForItsPoints(
        mode: ReplicationMode
    ) {
        for point in AckPoint.allCases {
            let (gate, replies) = (AckGate(), Replies())
            gate.count(target(1), policy(mode), durable: sequence(0))
            gate.finishWrite(sequence(5), of: ImageID(rawValue: 1), replies.pending(1))
            gate.finish(gate.begin(sequence(5)), replies.pending(2))
            var expected: [UInt] = []
            if mode.writePoint == nil { expected.append(1) }
            if mode.flushPoint == nil { expected.append(2) }
            #expect(replies.all == expected)
            gate.acknowledge(target(1), point, sequence(4))
            gate.answer()
            #expect(replies.all == expected)
            gate.acknowledge(target(1), point, sequence(5))
            gate.answer()
            if let needed = mode.writePoint, needed <= point { expected.append(1) }
            if let needed = mode.flushPoint, needed <= point { expected.append(2) }
            #expect(replies.all == expected, "\(point)")
            gate.abandon()
            #expect(replies.all.sorted() == [1, 2])
        }
    }

    @Test func aWriteWaitsForTheSlowestTargetThatItsModeAsks() {
        gate.count(target(1), policy(.sync), durable: sequence(0))
        gate.count(target(2), policy(.semiSync), durable: sequence(0))
        gate.count(target(3), policy(.flush), durable: sequence(0))
        write(5, 1)
        acknowledge(target(1), sequence(5), .written)
        #expect(replies.all == [])
        acknowledge(target(2), sequence(5), .received)
        #expect(replies.all == [1])
        flush(5, 2)
        acknowledge(target(1), sequence(5), .durable)
        #expect(replies.all == [1])
        acknowledge(target(3), sequence(5), .durable)
        #expect(replies.all == [1, 2])
    }

    /// `degrade` goes on without the target, `block` waits on, `fail` says so; and an image may have it
    /// otherwise than the rest.
    @Test func whoGoesOnWithoutALostTargetIsItsPolicysToSay() {
        let images = (1...3).map { ImageID(rawValue: $0) }
        let policy = policy(
            .sync,
            images: [
                images[1]: AckPolicy(.sync, onTimeout: .block),
                images[2]: AckPolicy(.semiSync, onTimeout: .fail),
            ])
        gate.count(target(1), policy, durable: sequence(0))
        for (index, image) in images.enumerated() {
            gate.finishWrite(sequence(5), of: image, replies.pending(UInt(index)))
            #expect(gate.obstacle(for: image) == nil)
        }
        gate.isLost(target(1))
        #expect(replies.all.sorted() == [0, 2])
        #expect(replies.codes == [5, 0])
        #expect(images.map { gate.obstacle(for: $0) } == [nil, .block, .fail])
        gate.finishWrite(sequence(6), of: images[0], replies.pending(10))
        gate.finishWrite(sequence(6), of: images[1], replies.pending(11))
        gate.finish(gate.begin(sequence(6)), of: images[2], replies.pending(12))
        #expect(replies.all.suffix(2) == [10, 12])
        #expect(replies.codes.suffix(2) == [0, 5])
        // In step, and not counting yet: who stood still is served, the others do not wait.
        gate.isInStep(target(1))
        #expect(images.map { gate.obstacle(for: $0) } == [nil, nil, nil])
        gate.finishWrite(sequence(7), of: images[0], replies.pending(20))
        #expect(replies.all.last == 20)
        gate.finishWrite(sequence(7), of: images[2], replies.pending(21))
        acknowledge(target(1), sequence(6), .written)
        #expect(replies.all.last == 11)
        acknowledge(target(1), sequence(7), .written)
        #expect(replies.all.last == 21)
        gate.count(target(1), policy, durable: sequence(7))
        gate.finishWrite(sequence(8), of: images[0], replies.pending(30))
        #expect(gate.waitingCount == 1)
        gate.stopCounting(target(1))
        #expect(gate.waitingCount == 0)
    }

    /// What a target only had in memory, or in its file's cache, is not there after it was away.
    @Test func whatATargetMayHaveLostIsWaitedForAgain() {
        gate.count(target(1), policy(.semiSync), durable: sequence(0))
        acknowledge(target(1), sequence(3), .durable)
        acknowledge(target(1), sequence(5), .written)
        gate.retract(target(1))
        flush(3, 1)
        flush(5, 2)
        #expect(replies.all == [1])
        acknowledge(target(1), sequence(5), .received)
        #expect(replies.all == [1, 2])
    }

    /// What the local disk does not have either is answered when it is on record who has it.
    @Test func aWriteWaitsUntilItIsOnRecordThatTheTargetHasAll() {
        gate.count(target(1), policy(.sync), durable: sequence(0), isOnRecord: false)
        gate.finishWrite(sequence(3), of: ImageID(rawValue: 1), replies.pending(1))
        flush(3, 2)
        acknowledge(target(1), sequence(5), .durable)
        #expect(replies.all == [2], "what was flushed the local disk has, too")
        gate.setOnRecord(target(1), true)
        gate.answer()
        #expect(replies.all == [2, 1])
        gate.setOnRecord(target(1), false)
        gate.finishWrite(sequence(4), of: ImageID(rawValue: 1), replies.pending(3))
        #expect(replies.all == [2, 1])
        gate.isLost(target(1))
        #expect(replies.all == [2, 1, 3])
    }

    @Test func manyThreadsGetEveryReplyOnce() {
        gate.count(target(1), durable: sequence(0))
        let flushers = (0..<4).map { thread in
            WorkerThread.start("flusher") {
                for index in 0..<2000 { flush(UInt64(index + 1), UInt(thread * 2000 + index)) }
            }
        }
        let acknowledger = WorkerThread.start("target") {
            for value in 1...2000 { acknowledge(target(1), sequence(UInt64(value))) }
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
