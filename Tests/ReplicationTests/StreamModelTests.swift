// The stream against lists and sets: first one thread with every operation, then many threads.

import BlockCore
import Replication
import SystemIO
import TestSupport
import Testing

private struct Block: Hashable {
    var image: Int64
    var block: UInt64
}

/// What a target lacks, leg by leg, as sets of numbers.
private struct LegsModel: Equatable {
    var legs: [(cut: UInt64?, blocks: Set<Block>)] = [(nil, [])]

    mutating func enter(_ event: StreamEvent) {
        switch event {
        case .blocks(_, let blocks), .barrier(_, let blocks):
            legs[legs.count - 1].blocks.formUnion(blocks)
        case .cut(let sequence):
            legs[legs.count - 1].cut = sequence
            legs.append((nil, []))
        case .deleted(_, let image):
            legs[legs.count - 1].blocks = legs[legs.count - 1].blocks.filter { $0.image != image }
        }
    }

    static func == (a: Self, b: Self) -> Bool {
        a.legs.map(\.cut) == b.legs.map(\.cut) && a.legs.map(\.blocks) == b.legs.map(\.blocks)
    }

    init() {}
    init(_ legs: DirtyLegs) {
        self.legs = legs.legs.map { leg in
            var blocks: Set<Block> = []
            for (image, set) in leg.blocks {
                for range in set.ranges {
                    var block = range.start
                    while block < range.end {
                        blocks.insert(Block(image: image.rawValue, block: block))
                        block += 1
                    }
                }
            }
            return (leg.snapshot?.sequence.rawValue, blocks)
        }
    }
}

private enum StreamEvent {
    case blocks(UInt64, Set<Block>)
    case barrier(UInt64, Set<Block>)
    case cut(UInt64)
    case deleted(UInt64, Int64)

    var sequence: UInt64 {
        switch self {
        case .blocks(let sequence, _), .barrier(let sequence, _), .cut(let sequence),
            .deleted(let sequence, _):
            sequence
        }
    }
}

private struct TrackedModel {
    var isStreaming = false
    var legs = LegsModel()
    var acknowledged: UInt64 = 0
    var taken: UInt64 = 0
    /// Ends of batches after what was acknowledged.
    var ends: [UInt64] = []
    var passed: Set<UInt64> = []
}

@Suite struct StreamModelTests {
    @Test(arguments: Seeds.run(30))
    func everyChangeIsInTheStreamOrInTheLegs(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let stream = WriteStream(capacityBytes: 96 << 10, lastSequence: .zero)
        var events: [StreamEvent] = []
        var targets: [TargetID: TrackedModel] = [targetA: TrackedModel(), targetB: TrackedModel()]
        for id in targets.keys { stream.attachTracking(id) }

        func note(_ event: StreamEvent) {
            events.append(event)
            for (id, target) in targets where !target.isStreaming { targets[id]!.legs.enter(event) }
        }
        func stop(_ id: TargetID) {
            guard var target = targets[id], target.isStreaming else { return }
            for event in events where event.sequence > target.acknowledged {
                if case .barrier(let sequence, _) = event, target.passed.contains(sequence) {
                    continue
                }
                target.legs.enter(event)
            }
            target.isStreaming = false
            targets[id] = target
        }
        for _ in 0..<400 {
            let id = random.chance(50) ? targetA : targetB
            // What the ring could not hold any more is tracked from then on.
            for each in targets.keys where targets[each]!.isStreaming {
                if stream.standing(each)?.isStreaming == false { stop(each) }
            }
            switch random.below(100) {
            case 0..<45:
                let image = Int64(1 + random.below(3))
                let range = BlockRange(
                    start: UInt64(random.below(2000)), count: UInt64(1 + random.below(2)))
                let kind: StreamKind =
                    random.chance(60) ? .data : random.chance(50) ? .zero : .size
                // The ring may have to let go of a target before it takes the record.
                let sequence = stream.append(
                    kind, image: ImageID(rawValue: image), range: range,
                    payloadBytes: kind == .data ? Int(range.lengthBytes) : 0
                ) { $0.initializeMemory(as: UInt8.self, repeating: 1) }
                for each in targets.keys where targets[each]!.isStreaming {
                    if stream.standing(each)?.isStreaming == false { stop(each) }
                }
                note(
                    .blocks(
                        sequence.rawValue,
                        Set((range.start..<range.end).map { Block(image: image, block: $0) })))
            case 45..<50:
                let info = stream.cut(
                    name: "s\(events.count)", createdNs: 1, origin: "user", atNs: 1)
                note(.cut(info.sequence.rawValue))
            case 50..<53:
                let sequence = stream.dirty([
                    ImageID(rawValue: 2): BlockSet([BlockRange(start: 9000, count: 2)])
                ])
                note(
                    .barrier(
                        sequence.rawValue,
                        [Block(image: 2, block: 9000), Block(image: 2, block: 9001)]))
            case 53..<54:
                let sequence = stream.append(.imageDeleted, image: ImageID(rawValue: 3))
                note(.deleted(sequence.rawValue, 3))
            case 54..<58:
                stream.stopStreaming(id)
                stop(id)
            case 58..<62:
                if !targets[id]!.isStreaming {
                    let from = stream.beginStreaming(id).rawValue
                    targets[id]!.isStreaming = true
                    targets[id]!.acknowledged = from
                    targets[id]!.taken = from
                    targets[id]!.ends = []
                    targets[id]!.passed = []
                }
            case 62..<66:
                // A target that comes back, and reports what it held.
                let from = SequenceNumber(rawValue: targets[id]!.acknowledged)
                if !targets[id]!.isStreaming, stream.beginStreaming(id, from: from) {
                    let lacked = events.filter { $0.sequence > from.rawValue }
                    let isCarried = lacked.allSatisfy {
                        if case .barrier = $0 { false } else { true }
                    }
                    try #require(isCarried, "seed \(seed): a barrier was skipped")
                    targets[id] = TrackedModel(
                        isStreaming: true, acknowledged: from.rawValue, taken: from.rawValue)
                }
            case 66..<84:
                let limit = 1 + random.below(20_000)
                let batch = stream.takeBatch(id, limitBytes: limit)
                guard targets[id]!.isStreaming, let batch else {
                    if let next = events.first(where: { $0.sequence > targets[id]!.taken }),
                        targets[id]!.isStreaming
                    {
                        guard case .barrier(let sequence, _) = next else {
                            Issue.record("seed \(seed): \(next) was not given")
                            return
                        }
                        try #require(stream.passBarrier(id)?.sequence.rawValue == sequence)
                        targets[id]!.legs.enter(next)
                        targets[id]!.passed.insert(sequence)
                        targets[id]!.taken = sequence
                        targets[id]!.ends.append(sequence)
                    }
                    break
                }
                for (record, _) in try batch.records() {
                    try #require(record.sequence.rawValue == targets[id]!.taken + 1)
                    targets[id]!.taken = record.sequence.rawValue
                }
                targets[id]!.ends.append(targets[id]!.taken)
            default:
                guard targets[id]!.isStreaming, let end = targets[id]!.ends.first else { break }
                stream.acknowledge(id, durable: SequenceNumber(rawValue: end))
                targets[id]!.ends.removeFirst()
                targets[id]!.acknowledged = end
            }
            for each in targets.keys where targets[each]!.isStreaming {
                if stream.standing(each)?.isStreaming == false { stop(each) }
            }
            for (each, target) in targets {
                let found = LegsModel(stream.withLegs(each) { $0 }!)
                try #require(
                    found == target.legs, "seed \(seed): legs of \(each) after \(events.count)")
            }
        }
    }

    @Test(arguments: Seeds.run(6))
    func manyWritersLoseNothing(seed: UInt64) throws {
        let writerCount = 6
        let perWriter = 600
        var random = SeededRandom(seed: seed)
        let capacity = [64 << 10, 1 << 20, 8 << 20][Int(seed % 3)]
        let stream = WriteStream(capacityBytes: capacity, lastSequence: .zero)
        let seeds = (0..<writerCount).map { _ in random.next() }
        let done = TestFlag()
        let logs = (0..<writerCount).map { _ in Log() }
        let consumers = [
            StreamConsumer(stream, targetA, holdsWriters: true, seed: random.next()),
            StreamConsumer(stream, targetB, holdsWriters: false, seed: random.next()),
        ]
        let consuming = consumers.map { consumer in
            WorkerThread.start("consumer") { consumer.run(until: done) }
        }
        let writing = (0..<writerCount).map { number in
            WorkerThread.start("writer") {
                var random = SeededRandom(seed: seeds[number])
                for count in 0..<perWriter {
                    let blocks = UInt64(1 + random.below(2))
                    let range = BlockRange(start: UInt64(count * 2), count: blocks)
                    stream.waitForRoom(bytes: Int(range.lengthBytes) + 64)
                    let sequence = stream.append(
                        .data, image: ImageID(rawValue: Int64(number + 1)), range: range,
                        payloadBytes: Int(range.lengthBytes)
                    ) { payload in
                        for index in payload.indices {
                            payload[index] = UInt8(
                                truncatingIfNeeded: (number + 1) &* 31 &+ count)
                        }
                    }
                    logs[number].note(sequence.rawValue, range)
                }
            }
        }
        for thread in writing { thread.join() }
        done.set()
        for id in [targetA, targetB] { stream.interrupt(id) }
        for thread in consuming { thread.join() }

        let total = UInt64(writerCount * perWriter)
        let all = logs.flatMap(\.entries)
        #expect(Set(all.map(\.sequence)) == Set(1...total), "seed \(seed)")
        for consumer in consumers {
            #expect(consumer.problem == nil, "seed \(seed)")
            guard consumer.problem == nil else { continue }
            stream.stopStreaming(consumer.id)
            let legs = try #require(stream.withLegs(consumer.id) { $0.legs[0].blocks })
            for (number, log) in logs.enumerated() {
                for entry in log.entries where !consumer.acknowledged.contains(entry.sequence) {
                    let set = legs[ImageID(rawValue: Int64(number + 1))] ?? BlockSet()
                    if !set.containsAll(entry.range) {
                        Issue.record(
                            "seed \(seed): \(entry) is lost for \(consumer.id)")
                        return
                    }
                }
            }
        }
    }
}

/// What one writer appended; read after its end.
private final class Log: @unchecked Sendable {
    struct Entry {
        var sequence: UInt64
        var range: BlockRange
    }
    private(set) var entries: [Entry] = []
    func note(_ sequence: UInt64, _ range: BlockRange) {
        entries.append(Entry(sequence: sequence, range: range))
    }
}

/// Takes and acknowledges at its own pace; what it finds is read after its end.
private final class StreamConsumer: @unchecked Sendable {
    let stream: WriteStream
    let id: TargetID
    private var random: SeededRandom
    private(set) var acknowledged: Set<UInt64> = []
    private(set) var problem: String?

    init(_ stream: WriteStream, _ id: TargetID, holdsWriters: Bool, seed: UInt64) {
        self.stream = stream
        self.id = id
        random = SeededRandom(seed: seed)
        stream.attachTracking(id)
        stream.setHoldsWriters(id, holdsWriters)
        _ = stream.beginStreaming(id)
    }

    func run(until done: TestFlag) {
        // Writers wait for one that goes on, and not for one that found something.
        defer { if problem != nil { stream.detach(id) } }
        var taken: [UInt64] = []
        var expected: UInt64? = 1
        while problem == nil {
            switch stream.waitForRecords(
                id, atLeastBytes: 1 + random.below(9000), timeoutMs: Int64(1 + random.below(20)))
            {
            case .records: break
            case .notStreaming:
                taken = []
                expected = nil
                // Without looking at what it lacks: that stays in the legs.
                expected = stream.beginStreaming(id).rawValue + 1
                continue
            default:
                // Writers may be waiting for just this.
                acknowledge(&taken, all: true)
                if done.isSet, stream.waitForRecords(id, timeoutMs: 0) != .records { return }
                continue
            }
            guard let batch = stream.takeBatch(id, limitBytes: 1 + random.below(40_000)) else {
                continue
            }
            do {
                for (record, payload) in try batch.records() {
                    guard record.sequence.rawValue == expected else {
                        problem = "\(record.sequence) instead of \(expected ?? 0)"
                        return
                    }
                    let count = Int(record.range.start / 2)
                    let stamp = UInt8(
                        truncatingIfNeeded: Int(record.image.rawValue) &* 31 &+ count)
                    guard payload.allSatisfy({ $0 == stamp }) else {
                        problem = "the payload of \(record.sequence) is not what was written"
                        return
                    }
                    taken.append(record.sequence.rawValue)
                    expected! += 1
                }
            } catch {
                problem = "\(error)"
                return
            }
            if random.chance(70) { acknowledge(&taken, all: random.chance(60)) }
        }
    }

    private func acknowledge(_ taken: inout [UInt64], all: Bool) {
        guard let first = taken.first, let last = taken.last else { return }
        let upTo = all ? last : first + UInt64(random.below(Int(last - first + 1)))
        stream.acknowledge(id, durable: SequenceNumber(rawValue: upTo))
        // An overflow meanwhile put it into the legs, which is a block too many at most.
        acknowledged.formUnion(taken.prefix { $0 <= upTo })
        taken.removeFirst(taken.prefix { $0 <= upTo }.count)
    }
}
