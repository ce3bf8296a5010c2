import BlockCore
import Foundation
import TestSupport
import Testing
import WireHarness

@testable import Replication

/// Compressed frames: they come back as what they were, within the same bounds; and lies are named.
@Suite struct PackedFrameTests {
    /// A body as it is compressed, by the library; nil where it would not be shorter.
    static func packed(_ body: [UInt8]) -> [UInt8]? {
        var place = [UInt8](repeating: 0, count: body.count)
        let none = UnsafeRawBufferPointer(start: nil, count: 0)
        let count = body.withUnsafeBytes { raw in
            place.withUnsafeMutableBytes {
                ZstdCompressor()!.compress(raw, none, none, into: $0)
            }
        }
        guard let count else { return nil }
        return Self.length(body.count) + [0, 0, 0, 0] + place[..<count]
    }

    private static func length(_ count: Int) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: count >> (8 * $0)) }
    }

    private static func frame(_ body: [UInt8], kind: WireKind = .append) -> [UInt8] {
        WireForge.frame(kind: kind.rawValue, flags: 2, number: 10, body: body)
    }

    private func decode(
        _ bytes: [UInt8], credit: UInt64? = nil, packs: Bool = true, piece: Int = .max
    ) throws -> (frame: WireFrame?, credit: UInt64?) {
        var decoder = FrameDecoder(accepts: WireKinds(WireKind.allCases), credit: credit)
        if packs { decoder.takePacked() }
        var (found, rest): (WireFrame?, ArraySlice<UInt8>) = (nil, bytes[...])
        while !rest.isEmpty {
            let part = Array(rest.prefix(piece))
            rest = rest.dropFirst(part.count)
            try part.withUnsafeBytes { raw in
                var left = raw
                while let frame = try decoder.next(&left) { found = frame }
            }
        }
        #expect(decoder.takenBytes == UInt64(bytes.count))
        return (found, decoder.credit)
    }

    private func error(
        _ bytes: [UInt8], credit: UInt64? = nil, packs: Bool = true
    ) -> WireError? {
        do { _ = try decode(bytes, credit: credit, packs: packs) } catch {
            return error as? WireError
        }
        return nil
    }

    private func content(_ frame: WireFrame?) -> [UInt8]? { frame?.body.withBytes { Array($0) } }

    /// What another build of the library makes may have other bytes, and is understood all the same.
    @Test func framesAreAsSpecified() throws {
        let text = try String(
            contentsOf: URL(filePath: #filePath).resolvingSymlinksInPath()
                .deletingLastPathComponent().deletingLastPathComponent()
                .deletingLastPathComponent().deletingLastPathComponent()
                .appending(path: "docs/wire-protocol.md"), encoding: .utf8
        ).filter { !$0.isWhitespace }
        #expect(WireGolden.packed.count == 3)
        for (name, golden) in WireGolden.packed {
            let bytes = bytes(ofHex: golden)
            let (frame, _) = try decode(bytes)
            #expect("\(frame!.head.kind),compressed" == name)
            #expect(frame!.head.bodyBytes == frame!.body.count && !frame!.head.isPacked)
            #expect(content(frame) == WireSamples.longBody(frame!.head.kind), "\(name)")
            #expect(
                text.contains(name + "```" + golden.filter { !$0.isWhitespace }),
                "docs/wire-protocol.md has another '\(name)'")
        }
    }

    @Test(arguments: Seeds.run(10)) func whateverIsSentComesBack(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let compression = LineCompression(.on)
        let packer = FramePacker(compression)
        for _ in 0..<20 {
            let fields = random.bytes([0, 24, 32][random.below(3)])
            // Some of it shrinks, some does not.
            var records = random.chance(30) ? random.bytes(1 + random.below(300_000)) : []
            records += [UInt8](repeating: 7, count: 8 * (1 + random.below(60_000)))
            let cut = random.chance(50) ? random.below(records.count) : records.count
            try records.withUnsafeBytes { raw in
                let pieces = [raw[..<cut], raw[cut...]].filter { !$0.isEmpty }
                    .map(UnsafeRawBufferPointer.init(rebasing:))
                let batch = RecordBatch(
                    pieces: pieces, firstSequence: sequence(1), lastSequence: sequence(2))
                let body: [UInt8]? = fields.withUnsafeBytes {
                    packer.pack($0, batch, line: nil, clock: { 0 }).map { Array($0) }
                }
                guard let body else {
                    #expect(fields.count + records.count < CompressionPolicy.leastBytes)
                    return
                }
                #expect(body.count < fields.count + records.count)
                let frame = try decode(
                    Self.frame(body), piece: random.chance(50) ? .max : 1 + random.below(5000)
                ).frame
                #expect(content(frame) == fields + records, "seed \(seed)")
            }
        }
        let figures = compression.figures
        #expect(figures.isCompressing && figures.sentBytes < figures.rawBytes)
    }

    @Test func whatDoesNotShrinkGoesAsItIs() {
        var random = SeededRandom(seed: 5)
        let compression = LineCompression(.on)
        let packer = FramePacker(compression)
        let noise = random.bytes(100_000)
        noise.withUnsafeBytes { raw in
            let batch = RecordBatch(
                pieces: [raw], firstSequence: sequence(1), lastSequence: sequence(1))
            let none = UnsafeRawBufferPointer(start: nil, count: 0)
            #expect(packer.pack(none, batch, line: 1, clock: { 0 }) == nil)
            compression.choice = .off
            #expect(packer.pack(none, batch, line: 1, clock: { 0 }) == nil)
        }
        #expect(compression.figures.sentBytes == 200_000)
        #expect(!compression.figures.isCompressing)
    }

    @Test func liesAreNamedWithFieldAndPlace() throws {
        let raw = WireSamples.longBody(.append)
        let good = Self.packed(raw)!
        #expect(content(try decode(Self.frame(good)).frame) == raw)
        func expect(
            _ field: String, _ offset: Int, _ kind: WireError.Kind, _ body: [UInt8],
            _ frameKind: WireKind = .append, line: Int = #line
        ) {
            let found = error(Self.frame(body, kind: frameKind))
            #expect(
                found?.field == field && found?.offset == offset && found?.kind == kind,
                "line \(line): \(found.map { "\($0.kind) \($0)" } ?? "understood")")
        }
        func changed(_ at: Int, _ value: UInt8) -> [UInt8] {
            var body = good
            body[at] = value
            return body
        }
        // Longer than any frame may be, than it itself is, than its kind may be; another length than its content has.
        expect("packed.length", 0, .length, Self.length(8 << 20 + 1) + good[4...])
        expect("packed.length", 0, .length, Self.length(Int(UInt32.max)) + good[4...])
        expect("packed.length", 0, .length, Self.length(good.count) + good[4...])
        expect("packed.length", 0, .length, Self.length(0) + good[4...])
        expect("packed.length", 0, .length, Self.length(80) + good[4...].prefix(60))
        expect("packed.frame", 8, .length, Self.length(raw.count - 1) + good[4...])
        expect("packed.frame", 8, .length, Self.length(raw.count + 1) + good[4...])
        expect("packed.frame", 8, .length, Self.length(8 << 20) + good[4...])
        expect("packed.zero", 4, .malformed, changed(5, 1))
        // No frame; one and a half; two; one that is to be skipped; cut off; damaged inside.
        expect("packed.frame", 8, .malformed, changed(8, 0))
        expect("packed.frame", 8, .malformed, good + [0])
        expect("packed.frame", 8, .malformed, good + good[8...])
        let skipped: [UInt8] = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]
        expect("packed.frame", 8, .malformed, Array(good[..<8]) + skipped + good[8...])
        expect("packed.frame", 8, .length, Array(good[..<8]) + skipped)
        expect("packed.frame", 8, .malformed, good.dropLast())
        // Kinds that are never compressed; and one that the other side did not offer.
        expect("frame.flags", 5, .malformed, Array(good.prefix(32)), .blockHashes)
        #expect(error(Self.frame(good), packs: false)?.field == "frame.flags")
        var short = Self.frame(Array(good.prefix(16)))
        WireForge.seal(&short)
        #expect(error(short)?.field == "frame.length")
    }

    /// Credit is for what it holds, not for what it looks like; and is asked for before memory is.
    @Test func creditCountsWhatItHolds() throws {
        let raw = WireSamples.longBody(.append)
        let bytes = Self.frame(Self.packed(raw)!)
        let cost = UInt64(WireFormat.headBytes + raw.count)
        #expect(try decode(bytes, credit: cost + 5).credit == 5)
        #expect(error(bytes, credit: cost - 1)?.kind == .credit)
        #expect(error(Array(bytes[..<32]), credit: 100)?.kind == .credit)
        #expect(error(Array(bytes[..<32]), credit: cost - 1) == nil, "not known yet")
        // Not counted twice for coming in pieces.
        #expect(try decode(bytes, credit: cost, piece: 7).credit == 0)
    }

    /// Anything in place of what the library made: refused, or all of the length that it says.
    @Test(arguments: Seeds.run(6)) func whateverComesIsRefusedOrWhole(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        var (refused, whole) = (0, 0)
        for _ in 0..<1500 {
            var body = random.bytes(random.below(3000))
            body += [UInt8](repeating: 3, count: 200 + random.below(5000))
            var packed = Self.packed(body)!
            for _ in 0..<1 + random.below(3) {
                let at = random.chance(20) ? random.below(8) : 8 + random.below(packed.count - 8)
                packed[at] = UInt8(random.below(256))
            }
            do {
                let frame = try decode(Self.frame(packed)).frame
                let said = packed.withUnsafeBytes { $0.load(as: UInt32.self) }
                #expect(frame?.body.count == Int(said), "seed \(seed)")
                whole += 1
            } catch { refused += 1 }
        }
        #expect(refused > 500, "\(refused) refused, \(whole) understood")
    }

    /// Who does not know of it is spoken to without.
    @Test(arguments: [(true, false), (false, true), (false, false), (true, true)])
    func bothHaveToKnowOfIt(client: Bool, server: Bool) throws {
        let target = LogTarget()
        let link = MemoryLink(seed: 1, ["vms": target])
        if !server { link.serverOptions.features = [] }
        var options = RemoteReplica.Options(pool: "vms")
        options.compression = LineCompression(.on)
        if !client { options.connection.features = [] }
        let replica = RemoteReplica(link, options: options, client: 1)
        _ = try replica.connect(WireSamples.hello)
        let buffer = RecordBuffer(capacityBytes: 4096)
        for next in 41...60 as ClosedRange<UInt64> {
            buffer.append(
                StreamRecord(
                    .zero, sequence: sequence(next), image: ImageID(rawValue: 1),
                    range: BlockRange(start: next, count: 1))
            ) { _ in }
        }
        try replica.append(buffer.batch)
        #expect(target.taken == Array(41...60))
        let (raw, sent) = (
            options.compression.figures.rawBytes, options.compression.figures.sentBytes
        )
        #expect(client && server ? sent < raw / 2 : raw == 0, "\(raw) as \(sent)")
        var bytes = [UInt8](repeating: 0, count: 40 * 4096)
        try bytes.withUnsafeMutableBytes {
            try replica.read(BlockRange(start: 7, count: 40), of: ImageID(rawValue: 2), into: $0)
        }
        #expect(bytes[4096 * 3] == LogTarget.byte(ImageID(rawValue: 2), 10))
        replica.disconnect()
    }

    /// A server that says it compresses where nobody asked it to.
    @Test func whatWasNotOfferedIsNotInForce() {
        var options = ClientConnection.Options()
        options.features = []
        var client = ClientConnection(.ordered, options: options, now: 0)
        client.begin(now: 0)
        var output = WireOutput()
        try! output.send(
            .welcome,
            WireWelcome(
                version: 1, features: [.compressedFrames], longestMessageBytes: 1 << 20,
                heartbeatMs: 500, creditBytes: 32 << 20, mostRequests: 16, instance: 1,
                challenge: 2, software: ""
            ).encoded())
        joined(output.take()).withUnsafeBytes { _ = client.receive($0, now: 1) }
        guard case .ended(.broken(let error)) = client.state else {
            Issue.record("\(client.state)")
            return
        }
        #expect(error.field == "welcome.features")
    }
}
