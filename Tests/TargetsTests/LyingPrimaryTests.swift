import BlockCore
import Replication
import SystemIO
import TestSupport
import Testing

@testable import Pool
@testable import Targets

/// Numbers that no primary has, from one that may only replicate: sequences, generations, times, places. The server
/// refuses them, or takes them, and goes on; and the mirror can be opened, and promoted, after all of it.
@Suite struct LyingPrimaryTests {
    private static let numbers: [UInt64] = [
        0, 1, 2, 1 << 32, 1 << 48, 1 << 61, (1 << 62) - 1, 1 << 62, (1 << 62) + 1, 1 << 63, .max,
    ]
    private static let times: [Int64] = [.min, .min + 1, -1, 0, 1, 1 << 60, .max - 1, .max]

    private struct Liar {
        var random: SeededRandom
        /// Of what was given last.
        var sequence: UInt64 = 0

        mutating func number(_ usual: UInt64) -> UInt64 {
            random.chance(90) ? usual : numbers[random.below(numbers.count)]
        }
        mutating func time() -> Int64 {
            random.chance(50) ? 1_700_000_000_000_000_000 : times[random.below(times.count)]
        }
        mutating func next() -> SequenceNumber {
            sequence = number(sequence &+ 1)
            return SequenceNumber(rawValue: sequence)
        }

        mutating func hello(_ incarnation: UInt64) -> PrimaryHello {
            // Most of it is as it was: one that was believed would fence all that come after.
            let isOdd = random.chance(10)
            let generation = Generation(
                number: isOdd ? number(1) : 1, id: "first", parentID: nil,
                startSequence: SequenceNumber(rawValue: isOdd ? number(0) : 0))
            var hello = PrimaryHello(
                poolID: "primary", generation: generation, incarnation: number(incarnation),
                incarnationID: "run",
                history: GenerationHistory([
                    .init(
                        generation: generation, poolID: "primary", begunNs: time(),
                        cause: .initial)
                ]))
            if random.chance(20) {
                hello.givenThrough = SequenceNumber(rawValue: number(sequence))
            }
            if random.chance(20) {
                hello.droppedCuts = [
                    DroppedCut(
                        after: SequenceNumber(rawValue: number(1)),
                        through: SequenceNumber(rawValue: number(2)))
                ]
            }
            return hello
        }

        mutating func shape() -> PoolShape {
            func node(_ id: UInt64, _ image: Int64?, _ time: () -> Int64) -> NodeRecord {
                NodeRecord(
                    id: NodeID(rawValue: id), parentID: image == nil ? nil : .root,
                    name: image == nil ? [] : Array("\(id).img".utf8),
                    kind: image == nil ? .directory : .file, mode: 0o644, uid: 0, gid: 0,
                    accessNs: time(), modifyNs: time(), changeNs: time(),
                    imageID: image.map(ImageID.init))
            }
            var nodes = [node(1, nil) { 0 }]
            var images: [PoolShape.Image] = []
            for image in 1...2 {
                // Where only one of the two is a lie, the shape contradicts itself.
                let id = Int64(bitPattern: number(UInt64(image)))
                nodes.append(node(number(UInt64(image + 1)), random.chance(90) ? id : 1) { time() })
                images.append(
                    .init(
                        id: ImageID(rawValue: id),
                        // Not the largest: the zeros of one take minutes of a build without optimization.
                        sizeBytes: random.chance(80) ? 40960 : min(number(0), 1 << 36),
                        modifiedNs: time()))
            }
            return PoolShape(
                sequence: next(), images: images, names: NamesCodec.encode(nodes.map { .put($0) }))
        }

        mutating func record() -> [UInt8] {
            let kind: StreamKind = [.data, .zero, .size, .barrier, .snapshot][random.below(5)]
            let sequence = next()
            var payload: [UInt8] = []
            var range = BlockRange(start: 0, count: 0)
            if kind == .data || kind == .zero {
                range = BlockRange(start: number(UInt64(random.below(8))), count: 1)
            }
            if kind == .data { payload = pattern(4096) }
            if kind == .snapshot {
                payload = SnapshotPayload.encode(
                    SnapshotInfo(
                        name: "s\(sequence.rawValue)", createdNs: time(), origin: "",
                        sequence: sequence))
            }
            let ofPool = kind == .barrier || kind == .snapshot
            let record = StreamRecord(
                kind, sequence: sequence, image: ImageID(rawValue: ofPool ? 0 : 1), range: range,
                imageSizeBytes: ofPool ? 0 : 40960, atNs: time(), payloadBytes: payload.count)
            var bytes = [UInt8](repeating: 0, count: record.totalBytes)
            bytes.withUnsafeMutableBytes { record.encodeHeader(into: $0) }
            bytes.replaceSubrange(
                StreamRecord.headerBytes..<StreamRecord.headerBytes + payload.count, with: payload)
            return bytes
        }
    }

    private static func stage(_ target: any ReplicaTarget, _ liar: inout Liar) throws {
        try target.beginStaging(id: liar.number(7), shape: liar.shape())
        let cut = liar.next()
        let buffer = RecordBuffer(capacityBytes: 1 << 16)
        try buffer.append(
            blocks: BlockRange(start: UInt64(liar.random.below(8)), count: 2),
            of: ImageID(rawValue: 1), sizeBytes: 40960, at: cut
        ) { (place) throws(TargetError) in
            place.initializeMemory(as: UInt8.self, repeating: 0x5a)
            return place.count
        }
        try target.stage(buffer.batch, number: liar.number(1))
        try target.syncStaging()
        let snapshot = SnapshotInfo(
            name: "leg\(liar.sequence)", createdNs: liar.time(), origin: "",
            sequence: SequenceNumber(rawValue: liar.number(cut.rawValue)))
        try target.commitStaging(
            id: 7, at: SequenceNumber(rawValue: liar.number(cut.rawValue)),
            snapshot: liar.random.chance(50) ? snapshot : nil)
    }

    private static func append(_ target: any ReplicaTarget, _ liar: inout Liar) throws {
        let first = SequenceNumber(rawValue: liar.sequence &+ 1)
        let records = (0..<1 + liar.random.below(3)).map { _ in liar.record() }
        let last = SequenceNumber(rawValue: liar.sequence)
        try withBatch(records, first: first, last: last, split: nil) { try target.append($0) }
        if liar.random.chance(40) { _ = try target.flush() }
    }

    @Test(arguments: Seeds.run(6)) func whateverItSaysTheServerGoesOn(seed: UInt64) throws {
        let mirror = try MirrorFixture()
        if seed % 2 == 0 { mirror.options.historyMs = 3_600_000 }
        mirror.options.keepsHistory = seed % 4 < 2
        let fixture = RemoteFixture(mirror, bulkConnections: 0)
        var liar = Liar(random: SeededRandom(seed: seed))
        var (taken, refused) = (0, 0)
        for incarnation in 1...60 {
            let target = fixture.open()
            do {
                let report = try target.connect(liar.hello(UInt64(incarnation)))
                liar.sequence = report.checkpoint.rawValue
                for _ in 0..<4 {
                    if liar.sequence == 0 || liar.random.chance(40) {
                        try Self.stage(target, &liar)
                    } else {
                        try Self.append(target, &liar)
                    }
                    taken += 1
                }
            } catch { refused += 1 }
            target.disconnect()
        }
        #expect(refused > 3, "seed \(seed)")
        // Nobody tells it now: it is what it was at some moment, and can be a primary.
        guard taken > 0 else { return }
        let opened = try RecoveredMirror(store: try mirror.openStore(), runsInBackground: false)
        defer { opened.close() }
        try opened.newestView().release()
        _ = try opened.promote(NewGeneration(cause: .forced))
        opened.close()
        // What it hands out from here on was given to nobody.
        let store = try mirror.openStore()
        defer { try? store.close(clean: false, lastSequence: .zero) }
        let (nodes, images, next) = try store.catalog.read {
            (try $0.nodes(), try $0.images(), try $0.nextNodeID())
        }
        #expect(nodes.allSatisfy { $0.id < next })
        let image = try store.catalog.write { try $0.insertImage() }
        #expect(images.allSatisfy { $0.id < image })
    }
}
