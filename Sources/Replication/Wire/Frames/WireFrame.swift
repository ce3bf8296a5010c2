// Frames: what every message travels in. docs/wire-protocol.md specifies each byte.
//
//   offset  bytes
//        0      4  length of the body
//        4      1  kind
//        5      1  flags: bit 0, the message goes on in the next frame of its kind and number; bit 1, the body is
//                  compressed (`PackedBody`)
//        6      2  zero
//        8      8  number: of a request, and of its reply; 0 for what is neither
//       16      8  XXH3-64 of the body
//       24      8  XXH3-64 of the 24 bytes before, seeded with the protocol's name
//
// All little-endian. The head has a check of its own: a length is believed only after it, and then only
// within what its kind allows. So a frame costs at most what its kind may be long.

import BlockCore

package enum WireKind: UInt8, Sendable, CaseIterable {
    case hello = 1
    case welcome = 2
    // Requests.
    case connect = 3
    case attach = 4
    case append = 5
    case flush = 6
    case beginStaging = 7
    case stage = 8
    case syncStaging = 9
    case commitStaging = 10
    case blockHashes = 11
    case allocatedBlocks = 12
    case read = 13
    case shape = 14
    case enter = 15
    case control = 16
    // Replies.
    case connected = 32
    case attached = 33
    case flushed = 34
    case done = 35
    case hashes = 36
    case blocks = 37
    case content = 38
    case poolShape = 39
    case failed = 40
    /// Belongs to no request: cumulative.
    case acknowledged = 41
    case entered = 42
    case answered = 43
    // From either side, belonging to no request.
    case ping = 48
    case pong = 49
    case goodbye = 50
    case refused = 51

    /// How long a body may be; of one that goes on in several frames, each of them.
    var bodyBytes: ClosedRange<Int> {
        switch self {
        case .hello: 44...108
        case .welcome: 68...132
        case .connect: 64...WireFormat.longestFragmentBytes
        case .attach: 28...28 + WireFormat.longestNameBytes
        case .append: 24 + StreamRecord.headerBytes...WireFormat.longestBodyBytes
        case .stage: 32 + StreamRecord.headerBytes...WireFormat.longestBodyBytes
        case .enter: 12...12 + WireFormat.longestNameBytes
        case .control: 0...WireFormat.longestControlBytes
        case .flush, .done, .attached, .entered: 0...0
        case .beginStaging, .connected, .blocks, .poolShape, .answered:
            0...WireFormat.longestFragmentBytes
        case .syncStaging, .allocatedBlocks, .shape, .flushed: 8...8
        case .commitStaging: 25...8192
        case .blockHashes, .read: 32...32
        case .hashes: 16...8 + 8 * WireFormat.mostHashedBlocks
        case .content: StreamRecord.headerBytes...WireFormat.longestBodyBytes
        case .failed: 12...12 + WireFormat.longestMessageTextBytes
        case .acknowledged: 40...40
        case .ping, .pong: 16...16
        case .goodbye: 8...8 + WireFormat.longestMessageTextBytes
        case .refused: 20...20 + 128 + WireFormat.longestMessageTextBytes
        }
    }

    /// A message of this kind may need several frames.
    var mayGoOn: Bool {
        switch self {
        case .beginStaging, .connected, .blocks, .poolShape, .answered: true
        default: false
        }
    }

    var isRequest: Bool { (WireKind.connect.rawValue...WireKind.control.rawValue) ~= rawValue }
    /// It has the number of its request.
    var isReply: Bool { (32...47).contains(rawValue) && self != .acknowledged }
    /// It carries records: what may be under way of it is limited by credit.
    var takesCredit: Bool { self == .append || self == .stage }
    /// Its body may be compressed, where both sides understand that.
    var mayBePacked: Bool { takesCredit || self == .content }
    var isBeat: Bool { self == .ping || self == .pong }
    /// It may come between two frames of one message.
    var mayInterrupt: Bool {
        switch self {
        case .acknowledged, .ping, .pong, .goodbye, .refused: true
        default: false
        }
    }
}

package enum WireFormat {
    /// "DOPPELW1", read as one number.
    package static let magic: UInt64 = 0x3157_4c45_5050_4f44
    package static let versions: ClosedRange<UInt16> = 1...1
    package static let headBytes = 32
    /// Holds the longest record, with room for what a resync puts around blocks.
    package static let longestBodyBytes = 8 << 20
    package static let longestFragmentBytes = 1 << 20
    /// Longest message that comes in several frames, unless a side says less.
    package static let longestMessageBytes = 64 << 20
    package static let longestMessageTextBytes = 4096
    package static let mostHashedBlocks = 1 << 16
    /// 4 MiB.
    package static let mostReadBlocks = 1 << 10
    package static let longestNameBytes = 1024
    package static let longestIDBytes = 128
    package static let longestControlBytes = 64 << 10
}

struct WireHead: Equatable {
    var kind: WireKind
    var number: UInt64
    var bodyBytes: Int
    var goesOn = false
    var isPacked = false
    var bodyCheck: UInt64

    /// Bytes of the frame; once it is unpacked, of one with the same body that is not compressed.
    var totalBytes: Int { WireFormat.headBytes + bodyBytes }

    func encode(into head: UnsafeMutableRawBufferPointer) {
        func store<T: FixedWidthInteger>(_ value: T, at offset: Int) {
            head.storeBytes(of: value.littleEndian, toByteOffset: offset, as: T.self)
        }
        store(UInt32(bodyBytes), at: 0)
        store(kind.rawValue, at: 4)
        store(UInt8(goesOn ? 1 : 0) | (isPacked ? 2 : 0), at: 5)
        store(UInt16(0), at: 6)
        store(number, at: 8)
        store(bodyCheck, at: 16)
        let checked = UnsafeRawBufferPointer(rebasing: head[0..<24])
        store(blockHash(checked, seed: WireFormat.magic), at: 24)
    }

    init(
        kind: WireKind, number: UInt64, bodyBytes: Int, goesOn: Bool = false,
        isPacked: Bool = false, bodyCheck: UInt64
    ) {
        self.kind = kind
        self.number = number
        self.bodyBytes = bodyBytes
        self.goesOn = goesOn
        self.isPacked = isPacked
        self.bodyCheck = bodyCheck
    }

    /// - Parameters:
    ///   - head: ``WireFormat/headBytes`` of them.
    ///   - packs: compressed bodies are understood.
    init(decoding head: UnsafeRawBufferPointer, packs: Bool) throws(WireError) {
        func load<T: FixedWidthInteger>(_ type: T.Type, at offset: Int) -> T {
            T(littleEndian: head.loadUnaligned(fromByteOffset: offset, as: T.self))
        }
        let checked = UnsafeRawBufferPointer(rebasing: head[0..<24])
        guard load(UInt64.self, at: 24) == blockHash(checked, seed: WireFormat.magic) else {
            throw WireError(.check, "frame.headCheck", at: 24, "this is no frame of Doppel's")
        }
        guard let kind = WireKind(rawValue: head[4]) else {
            throw WireError(.unknown, "frame.kind", at: 4, "kind \(head[4]) is not known")
        }
        let length = Int(load(UInt32.self, at: 0))
        let isPacked = packs && kind.mayBePacked && head[5] & 2 != 0
        let allowed =
            isPacked
            ? PackedBody.leastBytes...kind.bodyBytes.upperBound - 1 : kind.bodyBytes
        guard allowed.contains(length) else {
            throw WireError(
                .length, "frame.length", at: 0,
                "\(length) bytes; a body of '\(kind)' has \(allowed)")
        }
        guard head[5] & ~((kind.mayGoOn ? 1 : 0) | (isPacked ? 2 : 0)) == 0 else {
            throw WireError(.malformed, "frame.flags", at: 5, "\(head[5]) for '\(kind)'")
        }
        guard load(UInt16.self, at: 6) == 0 else {
            throw WireError(.malformed, "frame.zero", at: 6, "it is not zero")
        }
        let number = load(UInt64.self, at: 8)
        guard (kind.isRequest || kind.isReply) == (number != 0) else {
            throw WireError(.malformed, "frame.number", at: 8, "\(number) for '\(kind)'")
        }
        self.init(
            kind: kind, number: number, bodyBytes: length, goesOn: head[5] & 1 != 0,
            isPacked: isPacked, bodyCheck: load(UInt64.self, at: 16))
    }
}
