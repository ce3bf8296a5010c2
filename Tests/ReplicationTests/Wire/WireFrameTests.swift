import BlockCore
import Foundation
import TestSupport
import Testing
import WireHarness

@testable import Replication

@Suite struct WireFrameTests {
    private static let root = URL(filePath: #filePath).resolvingSymlinksInPath()
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    private func decode(
        _ bytes: [UInt8], pieces: (Int) -> Int = { $0 }
    ) throws -> [WireFrame] {
        var decoder = FrameDecoder(accepts: WireKinds(WireKind.allCases))
        var (frames, rest): ([WireFrame], ArraySlice<UInt8>) = ([], bytes[...])
        while !rest.isEmpty {
            let piece = Array(rest.prefix(max(1, min(rest.count, pieces(rest.count)))))
            rest = rest.dropFirst(piece.count)
            try piece.withUnsafeBytes { raw in
                var left = raw
                while let frame = try decoder.next(&left) { frames.append(frame) }
                #expect(left.isEmpty)
            }
        }
        #expect(!decoder.isMidFrame)
        #expect(decoder.takenBytes == UInt64(bytes.count))
        return frames
    }

    /// What a frame says, written anew.
    private func encodedAnew(_ frame: WireFrame) throws -> [UInt8] {
        try frame.body.withBytes { try encodedAnew(frame, $0) }
    }

    private func encodedAnew(
        _ frame: WireFrame, _ body: UnsafeRawBufferPointer
    ) throws -> [UInt8] {
        let kind = frame.head.kind
        var output = WireOutput()
        let number = frame.head.number
        switch kind {
        case .hello: try output.send(kind, try WireHello(decoding: body).encoded())
        case .welcome: try output.send(kind, try WireWelcome(decoding: body).encoded())
        case .connect:
            try output.send(kind, number: number, try WireConnect(decoding: body).encoded())
        case .attach:
            try output.send(kind, number: number, try WireAttach(decoding: body).encoded())
        case .enter:
            try output.send(kind, number: number, try WireEnter(decoding: body).encoded())
        case .control:
            try output.send(kind, number: number, try WireQuery(frame).encoded())
        case .entered: try output.send(kind, number: number, WireWriter("entered"))
        case .connected:
            try output.send(kind, number: number, try WireConnected(decoding: body).encoded())
        case .attached: try output.send(kind, number: number, WireWriter("attached"))
        case .acknowledged:
            try output.send(kind, try WireAcknowledgement(decoding: body).encoded())
        case .ping, .pong: try output.send(kind, try WireBeat(decoding: body).encoded())
        case .goodbye: try output.send(kind, try WireGoodbye(decoding: body).encoded())
        case .refused: try output.send(kind, try WireError(decoding: body).encoded())
        case _ where kind.isRequest:
            switch try WireRequest(frame) {
            case .append(let records, let tells):
                return try records.withBatch { batch in
                    try output.send(
                        kind, number: number,
                        WireRequest.appendFields(batch, tellsReceived: tells), records: batch)
                    return joined(output.take())
                }
            case .stage(let order, let batchNumber, let records):
                return try records.withBatch { batch in
                    try output.send(
                        kind, number: number,
                        WireRequest.stageFields(batch, order: order, number: batchNumber),
                        records: batch)
                    return joined(output.take())
                }
            case let request: try output.send(kind, number: number, try request.encoded())
            }
        default:
            let reply = try WireReply(frame)
            if case .content(let content) = reply {
                output.send(kind, number: number, content.buffer)
            } else {
                try output.send(kind, number: number, try reply.encoded())
            }
        }
        return joined(output.take())
    }

    @Test func everyKindHasASample() {
        #expect(
            Set(WireSamples.frames.map(\.name)) == Set(WireKind.allCases.map { "\($0)" }))
    }

    @Test func everyMessageComesBack() throws {
        for (name, bytes) in WireSamples.frames {
            let frames = try decode(bytes)
            try #require(frames.count == 1, "\(name)")
            #expect("\(frames[0].head.kind)" == name)
            #expect(try encodedAnew(frames[0]) == bytes, "\(name)")
        }
    }

    @Test func aHelloAndAReportComeBackAsTheyWere() throws {
        for (name, bytes) in WireSamples.frames {
            let body = try decode(bytes)[0].body
            switch name {
            case "connect":
                let connect = try body.withBytes { try WireConnect(decoding: $0) }
                #expect(connect.hello == WireSamples.hello)
            case "connected":
                let connected = try body.withBytes { try WireConnected(decoding: $0) }
                #expect(connected.report == WireSamples.report)
            case "poolShape":
                guard case .shape(let shape) = try WireReply(decode(bytes)[0]) else { break }
                #expect(shape == WireSamples.shape)
            case "blocks":
                guard case .blocks(let blocks) = try WireReply(decode(bytes)[0]) else { break }
                #expect(blocks == WireSamples.blocks)
            default: break
            }
        }
        for error in WireSamples.errors {
            var output = WireOutput()
            try output.send(.failed, number: 3, try WireReply.failed(error).encoded())
            guard case .failed(let back) = try WireReply(decode(joined(output.take()))[0]) else {
                Issue.record("\(error)")
                continue
            }
            #expect(back == error)
        }
    }

    /// The golden frames: what changes them is another version of the protocol.
    @Test func framesAreAsSpecified() throws {
        let frames = Dictionary(uniqueKeysWithValues: WireSamples.frames)
        #expect(Set(frames.keys) == Set(WireGolden.frames.keys))
        for (name, golden) in WireGolden.frames {
            #expect(hex(frames[name] ?? []) == golden.filter { !$0.isWhitespace }, "\(name)")
        }
        let text = try String(
            contentsOf: Self.root.appending(path: "docs/wire-protocol.md"), encoding: .utf8)
        let document = text.filter { !$0.isWhitespace }
        for (name, golden) in WireGolden.frames {
            #expect(
                document.contains(name + "```" + golden.filter { !$0.isWhitespace }),
                "docs/wire-protocol.md has another '\(name)'")
        }
    }

    @Test func bytesMayComeInAnyPieces() throws {
        let all = WireSamples.frames.flatMap(\.bytes)
        let expected = try decode(all).map { $0.body.withBytes { hex($0) } }
        #expect(expected.count == WireSamples.frames.count)
        #expect(
            try decode(all, pieces: { _ in 1 }).map { $0.body.withBytes { hex($0) } } == expected)
        for seed in Seeds.run(20) {
            var random = SeededRandom(seed: seed)
            let frames = try decode(all) { 1 + random.below(random.chance(50) ? 40 : $0) }
            #expect(frames.map { $0.body.withBytes { hex($0) } } == expected, "seed \(seed)")
        }
    }

    // MARK: What is wrong, and where

    private func error(_ bytes: [UInt8]) -> WireError? {
        do { _ = try decode(bytes).map { try encodedAnew($0) } } catch {
            return error as? WireError
        }
        return nil
    }

    private func frame(_ name: String) -> [UInt8] {
        WireSamples.frames.first { $0.name == name }!.bytes
    }

    @Test func aChangedByteIsFoundWhereverItIs() throws {
        for (name, bytes) in WireSamples.frames {
            for index in bytes.indices where index < 200 || index % 97 == 0 {
                var wrong = bytes
                wrong[index] ^= 1 << UInt8(index % 8)
                // Nothing of a frame that goes on past its end is given out.
                let found = error(wrong)
                #expect(
                    found?.kind == .check, "\(name), byte \(index): \(String(describing: found))")
            }
        }
    }

    /// A frame whose checks are right, and what it says is not.
    private func lie(_ name: String, _ change: (inout [UInt8]) -> Void) -> WireError? {
        var wrong = frame(name)
        change(&wrong)
        WireForge.seal(&wrong)
        return error(wrong)
    }

    @Test func liesAreNamedWithFieldAndPlace() {
        let body = WireFormat.headBytes
        func expect(
            _ name: String, _ field: String, _ offset: Int, _ kind: WireError.Kind,
            _ change: (inout [UInt8]) -> Void, line: Int = #line
        ) {
            let found = lie(name, change)
            #expect(
                found?.field == field && found?.offset == offset && found?.kind == kind,
                "line \(line): \(found.map { "\($0.kind) \($0)" } ?? "understood")")
        }
        expect("ping", "frame.length", 0, .length) { $0[0] = 15 }
        expect("append", "frame.length", 0, .length) { $0[3] = 0x7f }
        expect("ping", "frame.kind", 4, .unknown) { $0[4] = 99 }
        expect("ping", "frame.flags", 5, .malformed) { $0[5] = 1 }
        expect("append", "frame.flags", 5, .malformed) { $0[5] = 2 }
        expect("ping", "frame.zero", 6, .malformed) { $0[6] = 1 }
        expect("ping", "frame.number", 8, .malformed) { $0[8] = 1 }
        expect("flush", "frame.number", 8, .malformed) { $0[8] = 0 }
        expect("hello", "hello.magic", 0, .unknown) { $0[body] = 0 }
        expect("hello", "hello.versions", 8, .malformed) { $0[body + 8] = 9 }
        expect("hello", "hello.role", 12, .unknown) { $0[body + 12] = 4 }
        expect("enter", "enter.pool", 12, .length) { $0[body + 8] = 4 }
        expect("enter", "enter.end", 14, .length) { $0[body + 8] = 2 }
        expect("control", "frame.length", 0, .length) { $0[2] = 2 }
        expect("hello", "hello.heartbeat", 28, .malformed) { $0[body + 28...body + 29] = [1, 0] }
        expect("hello", "hello.software", 40, .length) { $0[body + 40] = 65 }
        expect("hello", "hello.software", 44, .length) { $0[body + 40] = 7 }
        expect("hello", "hello.end", 49, .length) { $0[body + 40] = 5 }
        expect("hello", "hello.software", 40, .malformed) { $0[body + 44] = 0xff }
        expect("welcome", "welcome.version", 8, .version) { $0[body + 8] = 2 }
        expect("welcome", "welcome.features", 16, .unknown) { $0[body + 16] = 2 }
        expect("append", "append.flags", 0, .malformed) { $0[body] = 2 }
        expect("stage", "stage.order", 0, .malformed) { $0[body] = 0 }
        expect("beginStaging", "beginStaging.images", 24, .length) { $0[body + 24] = 200 }
        expect("beginStaging", "beginStaging.images", 28, .malformed) { $0[body + 28 + 14] = 1 }
        expect("beginStaging", "beginStaging.names", 76, .length) { $0[body + 79] = 1 }
        expect("blockHashes", "blockHashes.range", 16, .length) { $0[body + 24] = 0 }
        expect("blockHashes", "blockHashes.range", 16, .length) { $0[body + 26] = 2 }
        expect("read", "read.range", 16, .length) { $0[body + 22] = 4 }
        expect("hashes", "hashes.count", 0, .length) { $0[body] = 2 }
        expect("blocks", "blocks.blocks", 0, .length) { $0[body + 3] = 1 }
        expect("blocks", "blocks.blocks", 12, .length) { $0[body + 12] = 200 }
        expect("blocks", "blocks.blocks", 20, .unknown) { $0[body + 20] = 3 }
        expect("failed", "failed.kind", 0, .unknown) { $0[body] = 7 }
        expect("acknowledged", "acknowledged.written", 8, .malformed) { $0[body + 16] = 200 }
        expect("goodbye", "goodbye.reason", 0, .unknown) { $0[body] = 5 }
        expect("refused", "refused.kind", 0, .unknown) { $0[body] = 200 }
        expect("content", "content.records", 0, .malformed) { $0[body + 4] = 3 }
        expect("content", "content.records", 64, .malformed) { $0[body + 64 + 4] = 0 }
    }

    @Test func whatIsTooLongIsNotSent() {
        var output = WireOutput()
        let long = String(repeating: "n", count: 2000)
        #expect(throws: WireError.self) {
            try WireAttach(challenge: 0, epoch: 0, token: 0, pool: long).encoded()
        }
        var shape = WireSamples.shape
        shape.names = [UInt8](repeating: 1, count: 3 << 20)
        #expect(throws: WireError.self) {
            try output.send(
                .poolShape, number: 1, try WireReply.shape(shape).encoded(),
                longestMessageBytes: 2 << 20)
        }
        #expect(output.isEmpty)
        // For people, the beginning is enough, and no character is cut in two.
        let error = WireError(.check, String(repeating: "ä", count: 99), at: 0, long + long + long)
        #expect(throws: Never.self) { try output.send(.refused, error.encoded()) }
    }

    @Test func aLongMessageComesInSeveralFrames() throws {
        var shape = WireSamples.shape
        shape.names = (0..<(5 << 19)).map { UInt8(truncatingIfNeeded: $0 &* 31) }
        var output = WireOutput()
        try output.send(.poolShape, number: 1, try WireReply.shape(shape).encoded())
        let frames = try decode(joined(output.take()))
        #expect(frames.map(\.head.goesOn) == [true, true, false])
        func assemble(_ frames: [WireFrame], _ limit: Int) throws -> [WireFrame] {
            var assembler = MessageAssembler(longestBytes: limit)
            return try frames.compactMap { try assembler.add($0) }
        }
        let beat = try decode(frame("ping"))[0]
        let whole = try assemble([frames[0], beat, frames[1], frames[2]], 3 << 20)
        #expect(whole.map(\.head.kind) == [.ping, .poolShape])
        guard case .shape(let back) = try WireReply(whole[1]) else {
            Issue.record("it is no shape")
            return
        }
        #expect(back == shape)
        #expect(throws: WireError.self) { try assemble(frames, 2 << 20) }
        let other = try decode(frame("done"))[0]
        #expect(throws: WireError.self) { try assemble([frames[0], other], 3 << 20) }
    }

    /// A head is enough to refuse it: nothing is kept for what it announces.
    @Test func recordsBeyondTheCreditAreRefusedByTheirHead() {
        let bytes = frame("append")
        var decoder = FrameDecoder(
            accepts: WireKinds([.append]), credit: UInt64(bytes.count) - 1)
        Array(bytes[0..<32]).withUnsafeBytes { raw in
            var left = raw
            do {
                _ = try decoder.next(&left)
                Issue.record("it was taken")
            } catch { #expect((error as? WireError)?.kind == .credit) }
        }
        decoder = FrameDecoder(accepts: WireKinds([.append]), credit: UInt64(bytes.count))
        bytes.withUnsafeBytes { raw in
            var left = raw
            #expect(throws: Never.self) { try decoder.next(&left) }
        }
    }
}
