import BlockCore
import Replication
import TestSupport
import Testing

@Suite struct StreamRecordTests {
    private func encoded(_ record: StreamRecord) -> [UInt8] {
        var bytes = [UInt8](repeating: 0xaa, count: StreamRecord.headerBytes)
        bytes.withUnsafeMutableBytes { record.encodeHeader(into: $0) }
        return bytes
    }
    private func decoded(_ bytes: [UInt8]) -> StreamRecord? {
        bytes.withUnsafeBytes { StreamRecord(decoding: $0) }
    }

    static let records = [
        StreamRecord(
            .data, sequence: SequenceNumber(rawValue: 7), image: ImageID(rawValue: 3),
            range: BlockRange(start: 9, count: 2), imageSizeBytes: 50_000, atNs: -5,
            payloadBytes: 8192),
        StreamRecord(
            .zero, sequence: SequenceNumber(rawValue: 8), image: ImageID(rawValue: 3),
            range: BlockRange(start: 0, count: 1 << 34), imageSizeBytes: 64 << 40),
        StreamRecord(
            .size, sequence: .highest, image: ImageID(rawValue: 3),
            imageSizeBytes: 1),
        StreamRecord(
            .size, sequence: SequenceNumber(rawValue: 12), image: ImageID(rawValue: 3),
            range: BlockRange(start: 12, count: 100), imageSizeBytes: 49_153),
        StreamRecord(.names, sequence: SequenceNumber(rawValue: 9), payloadBytes: 13),
        StreamRecord(
            .imageCreated, sequence: SequenceNumber(rawValue: 9), image: ImageID(rawValue: 4)),
        StreamRecord(.snapshot, sequence: SequenceNumber(rawValue: 10), payloadBytes: 1),
        StreamRecord(.barrier, sequence: SequenceNumber(rawValue: 11)),
        StreamRecord(.standing, sequence: SequenceNumber(rawValue: 13), payloadBytes: 40),
    ]

    @Test(arguments: records)
    func aHeaderComesBack(record: StreamRecord) {
        #expect(decoded(encoded(record)) == record)
        #expect(record.totalBytes % 8 == 0)
    }

    @Test func everyLengthThatLiesIsRefused() {
        for record in Self.records {
            let bytes = encoded(record)
            #expect(decoded(Array(bytes.dropLast())) == nil)
            for (offset, value) in [(0, UInt8(1)), (4, 0), (4, 10), (5, 1), (56, 77), (60, 1)] {
                var wrong = bytes
                guard wrong[offset] != value else { continue }
                wrong[offset] = value
                #expect(decoded(wrong) == nil, "\(record) with byte \(offset) = \(value)")
            }
        }
    }

    @Test(arguments: [SequenceNumber.highest.rawValue + 1, 1 << 63, .max])
    func sequencesThatNoPoolHasAreRefused(sequence: UInt64) {
        for var record in Self.records {
            record.sequence = SequenceNumber(rawValue: sequence)
            #expect(decoded(encoded(record)) == nil, "\(record)")
        }
    }

    @Test func blocksBeyondTheLargestImageAreRefused() {
        var record = Self.records[1]
        record.range = BlockRange(start: 1 << 34, count: 1)
        #expect(decoded(encoded(record)) == nil)
        record.range = BlockRange(start: .max, count: 2)
        #expect(decoded(encoded(record)) == nil)
    }
}

@Suite struct SnapshotPayloadTests {
    private func decoded(_ bytes: some Sequence<UInt8>, at sequence: UInt64) -> SnapshotInfo? {
        Array(bytes).withUnsafeBytes {
            SnapshotPayload.decode($0, sequence: SequenceNumber(rawValue: sequence))
        }
    }

    @Test func aSnapshotComesBack() {
        let info = SnapshotInfo(
            name: "vor dem Update ✓", createdNs: -5, origin: "user",
            sequence: SequenceNumber(rawValue: .max))
        let bytes = SnapshotPayload.encode(info)
        #expect(decoded(bytes, at: .max) == info)
        #expect(decoded(bytes + [0], at: .max) == nil)
        for length in 0..<bytes.count { #expect(decoded(bytes[..<length], at: .max) == nil) }
    }

    @Test(arguments: Seeds.run(10)) func anyBytesAreRefusedOrUnderstoodWhole(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        for _ in 0..<2000 {
            var bytes = SnapshotPayload.encode(
                SnapshotInfo(
                    name: "a\(random.next())", createdNs: 1, origin: "user", sequence: .zero))
            for _ in 0..<1 + random.below(4) {
                bytes[random.below(bytes.count)] = UInt8(random.below(256))
            }
            guard let info = decoded(bytes, at: 0) else { continue }
            #expect(SnapshotPayload.encode(info) == bytes, "seed \(seed)")
        }
    }
}

@Suite struct StandingPayloadTests {
    private static let standings = [
        CopyStanding(poolID: "a pool", address: "/mnt/näher", stale: nil),
        CopyStanding(
            poolID: "a pool", address: "",
            stale: .init(sinceNs: -3, sequence: .highest, reason: "it hangs")),
    ]
    private func decoded(_ bytes: some Sequence<UInt8>) -> CopyStanding? {
        Array(bytes).withUnsafeBytes { StandingPayload.decode($0) }
    }

    @Test(arguments: standings) func aStandingComesBack(standing: CopyStanding) {
        let bytes = StandingPayload.encode(standing)
        #expect(decoded(bytes) == standing)
        #expect(decoded(bytes + [0]) == nil)
        for length in 0..<bytes.count { #expect(decoded(bytes[..<length]) == nil) }
    }

    @Test(arguments: Seeds.run(5)) func anyBytesAreRefusedOrUnderstoodWhole(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        for _ in 0..<2000 {
            var bytes = StandingPayload.encode(Self.standings[random.below(2)])
            for _ in 0..<1 + random.below(4) {
                bytes[random.below(bytes.count)] = UInt8(random.below(256))
            }
            guard let standing = decoded(bytes) else { continue }
            #expect(StandingPayload.encode(standing) == bytes, "seed \(seed)")
        }
    }

    @Test func aLongReasonIsCutOff() {
        let standing = CopyStanding(
            poolID: "p", address: "a",
            stale: .init(
                sinceNs: 1, sequence: .zero, reason: String(repeating: "ä", count: 20_000)))
        let back = decoded(StandingPayload.encode(standing))
        #expect(back?.stale?.reason.utf8.count == 2048)
    }
}
