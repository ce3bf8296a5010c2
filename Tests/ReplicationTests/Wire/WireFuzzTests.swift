import BlockCore
import Foundation
import TestSupport
import Testing
import WireHarness

@testable import Replication

/// Nothing that comes makes either side trap, or take more memory than its kind of message may be long.
@Suite struct WireFuzzTests {
    /// For ``WireHarness``: every frame, to every side.
    private static let seeds: [[UInt8]] = {
        var seeds: [[UInt8]] = []
        for side in WireHarness.Side.allCases {
            var all: [UInt8] = [side.rawValue, 0]
            for (_, frame) in WireSamples.frames {
                let body = frame[32...]
                let part: [UInt8] =
                    [frame[4], frame[5], 0, UInt8(body.count & 255), UInt8(body.count >> 8)] + body
                seeds.append([side.rawValue, 0] + part)
                seeds.append([side.rawValue | 0x80, 7] + frame)
                all += part
            }
            seeds.append(all)
            for kind in [WireKind.append, .stage, .content] {
                let body = PackedFrameTests.packed(WireSamples.longBody(kind))!
                seeds.append(
                    [side.rawValue, 0, kind.rawValue, 2, 0, UInt8(body.count), 0] + body)
                seeds += dressed(side, kind)
            }
        }
        return seeds
    }()

    /// Whole blocks, as they are and compressed by the harness; as a reply to each of the first eight requests.
    private static func dressed(_ side: WireHarness.Side, _ kind: WireKind) -> [[UInt8]] {
        let last = SequenceNumber(rawValue: 41)
        let batch = RecordBatch(pieces: [], firstSequence: last, lastSequence: last)
        let fields: WireWriter? =
            switch kind {
            case .append: WireRequest.appendFields(batch, tellsReceived: true)
            case .stage: WireRequest.stageFields(batch, order: 1, number: 1)
            default: nil
            }
        let record = StreamRecord(
            .data, sequence: kind == .content ? .zero : last, image: ImageID(rawValue: 1),
            range: BlockRange(start: 2, count: 3), imageSizeBytes: 5 << 12, payloadBytes: 3 << 12)
        var head = [UInt8](repeating: 0, count: StreamRecord.headerBytes)
        head.withUnsafeMutableBytes { record.encodeHeader(into: $0) }
        let body = (fields?.withBody { Array($0) } ?? []) + head
        return [UInt8(0x30), 0x70].flatMap { flags in
            (0..<UInt8(kind == .content ? 8 : 1)).map { number in
                [side.rawValue, 0, kind.rawValue, flags, number, UInt8(body.count), 0] + body
            }
        }
    }

    /// Bits flipped, bytes cut off, put in, doubled; lengths that lie; one message in another.
    private static func mutated(_ input: [UInt8], _ random: inout SeededRandom) -> [UInt8] {
        var bytes = input
        for _ in 0..<1 + random.below(4) {
            guard bytes.count > 3 else { return bytes }
            let at = 2 + random.below(bytes.count - 2)
            switch random.below(9) {
            case 0, 1: bytes[at] ^= 1 << UInt8(random.below(8))
            case 2: bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)]
            case 3: bytes.removeLast(random.below(bytes.count - 2))
            case 4: bytes.removeSubrange(at..<min(bytes.count, at + 1 + random.below(20)))
            case 5: bytes.insert(contentsOf: random.bytes(1 + random.below(12)), at: at)
            case 6:
                // A number as it may be at its ends.
                let value: UInt64 = [0, 1, 1 << 31, 1 << 32, 1 << 63, .max][random.below(6)]
                let width = [1, 2, 4, 8][random.below(4)]
                for index in 0..<width where at + index < bytes.count {
                    bytes[at + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
                }
            case 7: bytes += bytes[at...].prefix(200)
            default:
                let other = seeds[random.below(seeds.count)].dropFirst(2)
                bytes.insert(contentsOf: other.prefix(1 + random.below(300)), at: at)
            }
        }
        return bytes
    }

    @Test(arguments: Seeds.run(12)) func whateverComesIsRefusedOrUnderstood(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var found: Set<Int> = []
        for _ in 0..<2500 {
            let input = Self.mutated(Self.seeds[random.below(Self.seeds.count)], &random)
            found.insert(WireHarness.run(input))
        }
        // It went somewhere: not all was refused by its first frame.
        #expect(found.count > 12, "seed \(seed)")
    }

    /// Frames as they go over the line, a few bytes changed and the checks made right.
    @Test(arguments: Seeds.run(6)) func messagesThatLieAreRefused(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let frames = WireSamples.frames
        for _ in 0..<4000 {
            var bytes = frames[random.below(frames.count)].bytes
            let original = bytes
            for _ in 0..<1 + random.below(3) {
                let at = 32 + random.below(bytes.count - 32)
                if at < bytes.count { bytes[at] = UInt8(random.below(256)) }
            }
            WireForge.seal(&bytes)
            var decoder = FrameDecoder(accepts: WireKinds(WireKind.allCases))
            try bytes.withUnsafeBytes { raw in
                var left = raw
                let frame = try #require(try decoder.next(&left))
                // What is understood is understood wholly: it is written as it was read.
                if let again = Self.writtenAnew(frame), again != frame.body.withBytes({ Array($0) })
                {
                    Issue.record(
                        "seed \(seed): \(frame.head.kind) \(hex(bytes)), before \(hex(original))")
                }
            }
        }
    }

    /// - Returns: nil where it is refused.
    private static func writtenAnew(_ frame: WireFrame) -> [UInt8]? {
        frame.body.withBytes { writtenAnew(frame, $0) }
    }

    private static func writtenAnew(
        _ frame: WireFrame, _ body: UnsafeRawBufferPointer
    ) -> [UInt8]? {
        do {
            let writer: WireWriter
            switch frame.head.kind {
            case .hello: writer = try WireHello(decoding: body).encoded()
            case .welcome: writer = try WireWelcome(decoding: body).encoded()
            case .connect: writer = try WireConnect(decoding: body).encoded()
            case .attach: writer = try WireAttach(decoding: body).encoded()
            case .enter: writer = try WireEnter(decoding: body).encoded()
            case .control: writer = try WireQuery(frame).encoded()
            case .connected: writer = try WireConnected(decoding: body).encoded()
            case .acknowledged: writer = try WireAcknowledgement(decoding: body).encoded()
            case .ping, .pong: writer = try WireBeat(decoding: body).encoded()
            case .goodbye: writer = try WireGoodbye(decoding: body).encoded()
            case .refused: writer = try WireError(decoding: body).encoded()
            case .append, .stage, .content, .attached, .entered: return nil
            case let kind where kind.isRequest: writer = try WireRequest(frame).encoded()
            default: writer = try WireReply(frame).encoded()
            }
            return Array(writer.bytes[32...])
        } catch { return nil }
    }

    /// What the fuzzer found worth keeping: `docs/testing.md` tells how it is run.
    @Test func theCorpusIsSurvived() throws {
        let folder = URL(filePath: #filePath).resolvingSymlinksInPath().deletingLastPathComponent()
            .appending(path: "Corpus")
        let names = try FileManager.default.contentsOfDirectory(atPath: folder.path).sorted()
        #expect(names.count > 100)
        var found: Set<Int> = []
        for name in names {
            found.insert(WireHarness.run(try Data(contentsOf: folder.appending(path: name))))
        }
        #expect(found.count > 20)
    }
}
