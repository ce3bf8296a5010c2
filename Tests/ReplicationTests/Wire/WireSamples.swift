// One message of each kind, with the frame that it makes: the same as in docs/wire-protocol.md.

import BlockCore

@testable import Replication

func sequence(_ value: UInt64) -> SequenceNumber { SequenceNumber(rawValue: value) }

func hex(_ bytes: some Sequence<UInt8>) -> String {
    let digits = Array("0123456789abcdef")
    return String(bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] })
}

func bytes(ofHex text: String) -> [UInt8] {
    let digits = text.compactMap(\.hexDigitValue).map(UInt8.init)
    return stride(from: 0, to: digits.count - 1, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
}

/// Pieces as they go over the line.
func joined(_ pieces: [WirePiece]) -> [UInt8] {
    pieces.flatMap { piece in piece.withBytes { Array($0) } }
}

enum WireSamples {
    static let challenge: UInt64 = 0x1122_3344_5566_7788
    static let hello = PrimaryHello(
        poolID: "pool",
        generation: Generation(
            number: 2, id: "g2", parentID: "g1", startSequence: sequence(50)),
        incarnation: 7, incarnationID: "i7",
        history: GenerationHistory([
            .init(
                generation: Generation(
                    number: 1, id: "g1", parentID: nil, startSequence: .zero),
                poolID: "pool", begunNs: 5, cause: .initial),
            .init(
                generation: Generation(
                    number: 2, id: "g2", parentID: "g1", startSequence: sequence(50)),
                poolID: "pool", begunNs: -6, cause: .forced),
        ]), address: "host:/pool")

    static let snapshot = SnapshotInfo(
        name: "vor dem Update ✓", createdNs: -5, origin: "user", sequence: sequence(41))

    static var report: ReplicaReport {
        var report = ReplicaReport(
            incarnationID: "i7", generation: hello.generation, checkpoint: sequence(40),
            snapshots: [snapshot], staging: .init(id: 9, durableBatch: 3),
            diverged: Divergence(
                common: sequence(39), blocks: blocks,
                suspects: [ImageID(rawValue: 3): BlockSet([BlockRange(start: 5, count: 1)])],
                isComplete: true))
        report.keptAllReceived = true
        report.diverged?.hasNameChanges = true
        report.diverged?.images = [ImageID(rawValue: 3), ImageID(rawValue: 1)]
        return report
    }

    static let blocks: [ImageID: BlockSet] = [
        ImageID(rawValue: 1): BlockSet([
            BlockRange(start: 0, count: 1024), BlockRange(start: 2048, count: 3),
        ]),
        ImageID(rawValue: 2): BlockSet([BlockRange(start: (1 << 34) - 2, count: 2)]),
    ]

    static let shape = PoolShape(
        sequence: sequence(44),
        images: [
            .init(id: ImageID(rawValue: 1), sizeBytes: 50_000, modifiedNs: -1),
            .init(id: ImageID(rawValue: 2), sizeBytes: 64 << 40, modifiedNs: 12),
        ], names: [1, 2, 3])

    /// Two records: a trim, and a size.
    static let records: [UInt8] = {
        var bytes = [UInt8](repeating: 0, count: 2 * StreamRecord.headerBytes)
        bytes.withUnsafeMutableBytes { raw in
            StreamRecord(
                .zero, sequence: sequence(41), image: ImageID(rawValue: 1),
                range: BlockRange(start: 2, count: 3), imageSizeBytes: 50_000
            ).encodeHeader(into: raw)
            StreamRecord(
                .size, sequence: sequence(42), image: ImageID(rawValue: 1), imageSizeBytes: 60_000
            ).encodeHeader(into: UnsafeMutableRawBufferPointer(rebasing: raw[64...]))
        }
        return bytes
    }()

    /// A body that compressing makes shorter: twelve records, and eight blocks of zeros in as many.
    static func longBody(_ kind: WireKind) -> [UInt8] {
        let count = kind == .content ? 8 : 12
        var bytes = [UInt8](repeating: 0, count: count * StreamRecord.headerBytes)
        bytes.withUnsafeMutableBytes { raw in
            for index in 0..<count {
                let record = StreamRecord(
                    .zero, sequence: kind == .content ? .zero : sequence(41 + UInt64(index)),
                    image: ImageID(rawValue: 1),
                    range: BlockRange(start: 2 + UInt64(index), count: 1))
                let start = index * StreamRecord.headerBytes
                record.encodeHeader(into: UnsafeMutableRawBufferPointer(rebasing: raw[start...]))
            }
        }
        let batch = RecordBatch(
            pieces: [], firstSequence: sequence(41), lastSequence: sequence(52))
        let fields: WireWriter? =
            switch kind {
            case .append: WireRequest.appendFields(batch, tellsReceived: false)
            case .stage: WireRequest.stageFields(batch, order: 2, number: 1)
            default: nil
            }
        return (fields?.withBody { Array($0) } ?? []) + bytes
    }

    static func withRecords<T, E: Error>(
        _ body: (RecordBatch) throws(E) -> T
    ) throws(E) -> T {
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: records.count, alignment: 8)
        defer { copy.deallocate() }
        copy.copyBytes(from: records)
        let whole = UnsafeRawBufferPointer(copy)
        return try body(
            RecordBatch(
                pieces: [
                    UnsafeRawBufferPointer(rebasing: whole[..<64]),
                    UnsafeRawBufferPointer(rebasing: whole[64...]),
                ], firstSequence: sequence(41), lastSequence: sequence(42)))
    }

    static let requests: [WireRequest] = [
        .flush, .beginStaging(order: 1, id: 9, shape), .syncStaging(order: 3),
        .commitStaging(order: 4, id: 9, at: sequence(44), snapshot: snapshot),
        .blockHashes(after: 4, of: ImageID(rawValue: 1), in: BlockRange(start: 2, count: 3)),
        .allocatedBlocks(after: 4),
        .read(after: 4, BlockRange(start: 2, count: 3), of: ImageID(rawValue: 1)),
        .shape(after: 4),
    ]

    static let queries: [WireQuery] = [.control(Array(#"{"execute":"status"}"#.utf8))]

    static let errors: [TargetError] = [
        TargetError(.absent, "not there"), TargetError(.fenced, "replaced"),
        TargetError(.splitBrain, "both"), TargetError(.noSpace, "full", errno: 28),
        TargetError(.io, "Gerät fehlt", errno: 5), TargetError(.damaged, ""),
    ]

    static var replies: [WireReply] {
        [
            .flushed(sequence(42)), .done, .hashes([1, .max, 0]), .blocks(blocks), .shape(shape),
            content, .answered(Array(#"{"return":{}}"#.utf8)),
        ] + errors.map { .failed($0) }
    }

    /// Five blocks of zeros, in two records.
    static let content: WireReply = {
        var bytes = [UInt8](repeating: 0, count: 2 * StreamRecord.headerBytes)
        bytes.withUnsafeMutableBytes { raw in
            for (index, range) in [
                BlockRange(start: 2, count: 1), BlockRange(start: 3, count: 4),
            ].enumerated() {
                StreamRecord(.zero, sequence: .zero, image: ImageID(rawValue: 1), range: range)
                    .encodeHeader(
                        into: UnsafeMutableRawBufferPointer(rebasing: raw[(64 * index)...]))
            }
        }
        return .content(try! WireContent(bytes.withUnsafeBytes { WireBuffer(copying: $0) }))
    }()

    static let acknowledgement: WireAcknowledgement = {
        var all = WireAcknowledgement()
        all.received = sequence(44)
        all.written = sequence(43)
        all.durable = sequence(42)
        all.staged = 4
        all.creditBytes = 32 << 20
        return all
    }()

    /// Every kind, with the name it has in the tests and in the document.
    static var frames: [(name: String, bytes: [UInt8])] {
        func frame(_ kind: WireKind, _ number: UInt64, _ message: WireWriter) -> [UInt8] {
            var output = WireOutput()
            try! output.send(kind, number: number, message)
            return joined(output.take())
        }
        var all: [(String, [UInt8])] = [
            (
                "hello",
                frame(
                    .hello, 0,
                    WireHello(
                        role: .ordered, features: [], longestMessageBytes: 64 << 20,
                        heartbeatMs: 500,
                        software: "doppel"
                    ).encoded())
            ),
            (
                "welcome",
                frame(
                    .welcome, 0,
                    WireWelcome(
                        version: 1, features: [], longestMessageBytes: 64 << 20, heartbeatMs: 500,
                        creditBytes: 32 << 20, mostRequests: 16, instance: 0x99,
                        challenge: challenge, software: "doppel"
                    ).encoded())
            ),
            (
                "connect",
                frame(
                    .connect, 1,
                    try! WireConnect(
                        challenge: challenge, client: 0x77, attempt: 1, pool: "vms", hello: hello
                    ).encoded())
            ),
            (
                "attach",
                frame(
                    .attach, 1,
                    try! WireAttach(challenge: challenge, epoch: 1, token: 0x55, pool: "vms")
                        .encoded())
            ),
            (
                "enter",
                frame(.enter, 1, try! WireEnter(challenge: challenge, pool: "vms").encoded())
            ),
        ]
        for query in queries {
            all.append(("\(query.kind)", frame(query.kind, 2, try! query.encoded())))
        }
        for (index, request) in requests.enumerated() {
            all.append(
                (
                    "\(request.kind)",
                    frame(request.kind, UInt64(index + 2), try! request.encoded())
                ))
        }
        withRecords { batch in
            var output = WireOutput()
            try! output.send(
                .append, number: 10, WireRequest.appendFields(batch, tellsReceived: true),
                records: batch)
            all.append(("append", joined(output.take())))
            try! output.send(
                .stage, number: 11, WireRequest.stageFields(batch, order: 2, number: 1),
                records: batch)
            all.append(("stage", joined(output.take())))
        }
        all.append(
            (
                "connected",
                frame(
                    .connected, 1,
                    try! WireConnected(epoch: 1, token: 0x55, report: report).encoded())
            ))
        all.append(("attached", frame(.attached, 1, WireWriter("attached"))))
        all.append(("entered", frame(.entered, 1, WireWriter("entered"))))
        for reply in replies {
            if case .content(let content) = reply {
                var output = WireOutput()
                output.send(.content, number: 8, content.buffer)
                all.append(("content", joined(output.take())))
            } else if case .failed(let error) = reply, error.kind != .noSpace {
                continue
            } else {
                all.append(
                    ("\(reply.kind)", frame(reply.kind, 5, try! reply.encoded())))
            }
        }
        let beat = WireBeat(sentNs: 1_000_000_000, takenBytes: 4711)
        all += [
            ("acknowledged", frame(.acknowledged, 0, acknowledgement.encoded())),
            ("ping", frame(.ping, 0, beat.encoded())), ("pong", frame(.pong, 0, beat.encoded())),
            (
                "goodbye",
                frame(
                    .goodbye, 0,
                    WireGoodbye(reason: .shuttingDown, message: "back soon").encoded())
            ),
            (
                "refused",
                frame(
                    .refused, 0,
                    WireError(.check, "frame.bodyCheck", at: 16, "damaged").encoded())
            ),
        ]
        return all
    }
}
