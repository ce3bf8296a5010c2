import BlockCore
import Replication
import SystemIO
import TestSupport
import Testing

extension WriteStream {
    /// Appends blocks that all hold the record's sequence... which is known only afterwards: a stamp.
    @discardableResult
    func appendBlocks(_ image: Int64, _ range: BlockRange, stamp: UInt8) -> SequenceNumber {
        append(
            .data, image: ImageID(rawValue: image), range: range, imageSizeBytes: 1 << 30,
            payloadBytes: Int(range.lengthBytes)
        ) { $0.initializeMemory(as: UInt8.self, repeating: stamp) }
    }
}

extension RecordBatch {
    /// The records with their payloads.
    func records() throws -> [(StreamRecord, UnsafeRawBufferPointer)] {
        var result: [(StreamRecord, UnsafeRawBufferPointer)] = []
        for piece in pieces {
            var rest = piece
            while rest.count > 0 {
                let record = try #require(StreamRecord(decoding: rest))
                let payload = rest[StreamRecord.headerBytes..<record.totalBytes]
                result.append((record, UnsafeRawBufferPointer(rebasing: payload)))
                rest = UnsafeRawBufferPointer(rebasing: rest[record.totalBytes...])
            }
        }
        return result
    }
}

let targetA = TargetID(rawValue: 1)
let targetB = TargetID(rawValue: 2)

@Suite struct WriteStreamTests {
    @Test func aRecordArrivesAsItWasAppended() throws {
        let stream = WriteStream(lastSequence: SequenceNumber(rawValue: 41))
        stream.attachTracking(targetA)
        #expect(stream.beginStreaming(targetA).rawValue == 41)
        #expect(stream.takeBatch(targetA) == nil)
        stream.appendBlocks(7, BlockRange(start: 3, count: 2), stamp: 9)
        let info = stream.cut(name: "s", createdNs: 5, origin: "user", atNs: 6)
        stream.append(.size, image: ImageID(rawValue: 7), imageSizeBytes: 99)

        let first = try #require(stream.takeBatch(targetA))
        let records = try first.records()
        #expect(records.map(\.0.kind) == [.data, .snapshot], "a batch ends after a snapshot")
        #expect(records.map(\.0.sequence.rawValue) == [42, 43])
        #expect(records[0].1.allSatisfy { $0 == 9 } && records[0].1.count == 8192)
        #expect(
            SnapshotPayload.decode(
                UnsafeRawBufferPointer(rebasing: records[1].1[0..<records[1].0.payloadBytes]),
                sequence: records[1].0.sequence) == info)
        let second = try #require(stream.takeBatch(targetA))
        #expect(second.firstSequence.rawValue == 44)
        #expect(try second.records()[0].0.imageSizeBytes == 99)
        #expect(stream.takeBatch(targetA) == nil)
    }

    @Test func whatIsTakenAndNotAcknowledgedIsDirtyAfterwards() throws {
        let stream = WriteStream(lastSequence: .zero)
        stream.attachTracking(targetA)
        _ = stream.beginStreaming(targetA)
        for block in 0..<3 {
            stream.appendBlocks(1, BlockRange(start: UInt64(block), count: 1), stamp: 1)
            _ = try #require(stream.takeBatch(targetA))
        }
        stream.acknowledge(targetA, durable: SequenceNumber(rawValue: 2))
        stream.stopStreaming(targetA)
        let blocks = try #require(stream.withLegs(targetA) { $0.legs[0].blocks })
        #expect(blocks == [ImageID(rawValue: 1): BlockSet([BlockRange(start: 2, count: 1)])])
        // The ring has it all the same: the target may go on where it was.
        #expect(stream.beginStreaming(targetA, from: SequenceNumber(rawValue: 2)))
        #expect(stream.standing(targetA)?.isClean == true)
        #expect(try #require(stream.takeBatch(targetA)).firstSequence.rawValue == 3)
    }

    @Test func nothingPassesABarrierUnseen() throws {
        let stream = WriteStream(lastSequence: .zero)
        stream.attachTracking(targetA)
        _ = stream.beginStreaming(targetA)
        let blocks = [ImageID(rawValue: 1): BlockSet([BlockRange(start: 5, count: 4)])]
        stream.appendBlocks(1, BlockRange(start: 0, count: 1), stamp: 1)
        stream.dirty(blocks)
        stream.appendBlocks(1, BlockRange(start: 1, count: 1), stamp: 1)
        #expect(try #require(stream.takeBatch(targetA)).lastSequence.rawValue == 1)
        #expect(stream.takeBatch(targetA) == nil)
        #expect(stream.waitForRecords(targetA, timeoutMs: 0) == .barrier)
        #expect(stream.standing(targetA)?.isClean == true)
        #expect(stream.passBarrier(targetA)?.blocks == blocks)
        #expect(stream.withLegs(targetA) { $0.legs[0].blocks } == blocks)
        #expect(try #require(stream.takeBatch(targetA)).firstSequence.rawValue == 3)
        // It cannot go on from before the barrier as if nothing lacked.
        stream.withLegs(targetA) { legs in
            _ = legs.takeFirst()
            legs.commitFirst()
        }
        #expect(!stream.beginStreaming(targetA, from: SequenceNumber(rawValue: 1)))
        #expect(stream.beginStreaming(targetA, from: SequenceNumber(rawValue: 2)))
    }

    @Test func aFullRingLetsGoOfTheSlowestAndForgetsNothing() throws {
        let stream = WriteStream(capacityBytes: 64 << 10, lastSequence: .zero)
        stream.attachTracking(targetA)
        stream.attachTracking(targetB)
        _ = stream.beginStreaming(targetA)
        _ = stream.beginStreaming(targetB)
        for block in 0..<100 {
            stream.appendBlocks(1, BlockRange(start: UInt64(block), count: 1), stamp: 1)
            let batch = try #require(stream.takeBatch(targetB))
            stream.acknowledge(targetB, durable: batch.lastSequence)
        }
        #expect(stream.standing(targetB)?.isStreaming == true)
        let slow = try #require(stream.standing(targetA))
        #expect(!slow.isStreaming && slow.hasOverflowed)
        #expect(slow.dirtyBlocks == 100)
        #expect(stream.waitForRecords(targetA, timeoutMs: 0) == .notStreaming)
        #expect(!stream.beginStreaming(targetA, from: .zero))
    }

    /// What nobody streamed is not in the ring, also when older records are given up afterwards.
    @Test func aGapInTheRingIsNeverStreamedAcross() throws {
        let stream = WriteStream(capacityBytes: 64 << 10, lastSequence: .zero)
        stream.attachTracking(targetA)
        stream.attachTracking(targetB)
        _ = stream.beginStreaming(targetA)
        for _ in 0..<10 { stream.appendBlocks(1, BlockRange(start: 0, count: 1), stamp: 1) }
        stream.stopStreaming(targetA)
        for _ in 0..<3 { stream.appendBlocks(1, BlockRange(start: 7, count: 1), stamp: 1) }
        _ = stream.beginStreaming(targetB)
        for _ in 0..<8 { stream.appendBlocks(1, BlockRange(start: 1, count: 1), stamp: 1) }
        #expect(!stream.beginStreaming(targetA, from: SequenceNumber(rawValue: 9)))
        #expect(!stream.beginStreaming(targetA, from: SequenceNumber(rawValue: 12)))
        #expect(stream.beginStreaming(targetA, from: SequenceNumber(rawValue: 13)))
    }

    @Test func aTargetThatHoldsWritersBackIsWaitedForUntilItAcknowledgesOrGivesUp() throws {
        for givesUp in [false, true] {
            let stream = WriteStream(capacityBytes: 64 << 10, lastSequence: .zero)
            stream.attachTracking(targetA)
            stream.setHoldsWriters(targetA, true)
            _ = stream.beginStreaming(targetA)
            // Who asks begins nothing from three quarters on, who does not waits from seven eighths on.
            while stream.lagBytes(targetA) + 4160 <= 56 << 10 {
                #expect(
                    stream.hasRoom(bytes: 4160) == (stream.lagBytes(targetA) + 4160 <= 48 << 10))
                stream.waitForRoom(bytes: 4160)
                stream.appendBlocks(1, BlockRange(start: 0, count: 1), stamp: 1)
            }
            let passed = TestFlag()
            let writer = WorkerThread.start("writer") {
                stream.waitForRoom(bytes: 4160)
                passed.set()
            }
            Pause.microseconds(20_000)
            #expect(!passed.isSet, "there is no room yet")
            if givesUp {
                stream.stopStreaming(targetA)
            } else {
                let batch = try #require(stream.takeBatch(targetA))
                stream.acknowledge(targetA, durable: batch.lastSequence)
            }
            writer.join()
            #expect(passed.isSet)
        }
    }

    @Test func aWaitEndsByInterruption() {
        let stream = WriteStream(lastSequence: .zero)
        stream.attachTracking(targetA)
        _ = stream.beginStreaming(targetA)
        let waiter = WorkerThread.start("waiter") {
            #expect(stream.waitForRecords(targetA, timeoutMs: 60_000) == .interrupted)
        }
        stream.interrupt(targetA)
        waiter.join()
        #expect(stream.waitForRecords(targetA, timeoutMs: 1) == .timeout)
    }
}

final class TestFlag: Sendable {
    private let lock = Lock()
    nonisolated(unsafe) private var value = false  // under `lock`
    var isSet: Bool { lock.withLock { value } }
    func set() { lock.withLock { value = true } }
}
