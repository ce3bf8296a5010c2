// Frames out of bytes that come in any pieces.
//
//     head ── 32 bytes are there, and sound ──► body ── all of it is there, and sound ──► a frame; head
//      └────────────── anything else ───────────► an error; the connection is over
//
// A body that is compressed is gathered in memory that is used for each of them, and then unpacked.
//
// Memory is taken for a body only when its head was understood, of a kind that may come now, no longer than
// its kind may be, and within the credit of the sender.

import BlockCore

/// A body, in memory of its own: it can be kept without copying it.
package final class WireBuffer: @unchecked Sendable {  // filled by one decoder, then never changed
    fileprivate let memory: UnsafeMutableRawBufferPointer
    package let count: Int

    fileprivate init(count: Int) {
        self.count = count
        memory = .allocate(byteCount: count, alignment: 16)
    }
    /// Of bytes that lie elsewhere.
    init(copying bytes: UnsafeRawBufferPointer) {
        count = bytes.count
        memory = .allocate(byteCount: count, alignment: 16)
        memory.copyMemory(from: bytes)
    }
    deinit { memory.deallocate() }

    /// - Parameter body: the bytes are valid during the call alone. Nothing gives them out in any other way: a
    ///   pointer does not keep alive what it points into.
    package func withBytes<T, E: Error>(
        _ body: (UnsafeRawBufferPointer) throws(E) -> T
    ) throws(E) -> T {
        defer { withExtendedLifetime(self) {} }
        return try body(UnsafeRawBufferPointer(memory))
    }
}

struct WireFrame {
    var head: WireHead
    var body: WireBuffer

    /// - Parameter body: reads the body, which is valid during the call alone.
    func read<T>(
        _ body: (UnsafeRawBufferPointer) throws(WireError) -> T
    ) throws(WireError) -> T {
        try self.body.withBytes(body)
    }
}

/// A set of kinds.
struct WireKinds: Sendable {
    private var bits: UInt64 = 0
    init(_ kinds: [WireKind]) { for kind in kinds { bits |= 1 << UInt64(kind.rawValue) } }
    func contains(_ kind: WireKind) -> Bool { bits & 1 << UInt64(kind.rawValue) != 0 }
}

struct FrameDecoder {
    private var headBytes = [UInt8](repeating: 0, count: WireFormat.headBytes)
    private var head: WireHead?
    private var body: WireBuffer?
    /// Where compressed bodies are gathered; nil where none may come.
    private var packed: PackedBody?
    /// Of the head, or the body, that is under way.
    private var filled = 0
    /// What may come now.
    var accepts: WireKinds
    /// Bytes of frames with records that may still come; nil where none of that is counted.
    private(set) var credit: UInt64?
    /// Bytes of the connection that were taken.
    private(set) var takenBytes: UInt64 = 0

    init(accepts: WireKinds, credit: UInt64? = nil) {
        self.accepts = accepts
        self.credit = credit
    }

    /// Compressed bodies may come from here on.
    mutating func takePacked() { packed = packed ?? PackedBody() }

    mutating func grant(_ bytes: UInt64) { credit = (credit ?? 0) + bytes }

    /// A frame has begun and is not whole.
    var isMidFrame: Bool { head != nil || filled > 0 }
    /// Of the body that is under way.
    var bodyBytesTaken: Int { head == nil ? 0 : filled }

    /// - Parameter bytes: what was taken of it is taken off.
    /// - Returns: nil when all was taken and no frame is whole.
    mutating func next(_ bytes: inout UnsafeRawBufferPointer) throws(WireError) -> WireFrame? {
        while true {
            guard let head else {
                guard try takeHead(&bytes) else { return nil }
                continue
            }
            let place = head.isPacked ? packed!.place(head.bodyBytes) : body!.memory
            let count = min(bytes.count, head.bodyBytes - filled)
            if count > 0 {
                (place.baseAddress! + filled)
                    .copyMemory(from: bytes.baseAddress!, byteCount: count)
                advance(&bytes, count)
            }
            guard filled == head.bodyBytes else { return nil }
            guard blockHash(UnsafeRawBufferPointer(place)) == head.bodyCheck else {
                throw WireError(
                    .check, "frame.bodyCheck", at: 16, "a '\(head.kind)' arrived damaged")
            }
            defer {
                self.head = nil
                body = nil
                filled = 0
            }
            if head.isPacked { return try unpacked(head) }
            return WireFrame(head: head, body: body!)
        }
    }

    /// As it would have come without having been compressed.
    private mutating func unpacked(_ head: WireHead) throws(WireError) -> WireFrame {
        var whole = head
        whole.bodyBytes = try packed!.rawBytes(of: head)
        whole.isPacked = false
        try charge(whole)
        let body = WireBuffer(count: whole.bodyBytes)
        try packed!.unpack(head, into: body.memory)
        return WireFrame(head: whole, body: body)
    }

    /// Credit is for what is held in memory.
    private mutating func charge(_ head: WireHead) throws(WireError) {
        guard head.kind.takesCredit, let left = credit else { return }
        guard UInt64(head.totalBytes) <= left else {
            throw WireError(
                .credit, "frame.length", at: 0,
                "a frame of \(head.totalBytes) bytes, with credit for \(left)")
        }
        // What is compressed is counted when it is known what it holds; it is more than it has itself.
        if !head.isPacked { credit = left - UInt64(head.totalBytes) }
    }

    /// - Returns: false when more bytes are needed.
    private mutating func takeHead(_ bytes: inout UnsafeRawBufferPointer) throws(WireError) -> Bool
    {
        let count = min(bytes.count, WireFormat.headBytes - filled)
        guard count > 0 else { return false }
        let from = UnsafeRawBufferPointer(rebasing: bytes[0..<count])
        headBytes.withUnsafeMutableBytes { raw in
            UnsafeMutableRawBufferPointer(rebasing: raw[filled..<filled + count])
                .copyMemory(from: from)
        }
        advance(&bytes, count)
        guard filled == WireFormat.headBytes else { return false }
        let found = try headBytes.withUnsafeBytes { raw in
            Result { () throws(WireError) in try WireHead(decoding: raw, packs: packed != nil) }
        }.get()
        guard accepts.contains(found.kind) else {
            throw WireError(.outOfOrder, "frame.kind", at: 4, "'\(found.kind)' cannot come now")
        }
        try charge(found)
        head = found
        body = found.isPacked ? nil : WireBuffer(count: found.bodyBytes)
        filled = 0
        return true
    }

    private mutating func advance(_ bytes: inout UnsafeRawBufferPointer, _ count: Int) {
        bytes = UnsafeRawBufferPointer(rebasing: bytes[count...])
        filled += count
        takenBytes += UInt64(count)
    }
}

/// Puts together what came in several frames.
struct MessageAssembler {
    private var head: WireHead?
    private var bytes: [UInt8] = []
    var longestBytes: Int

    init(longestBytes: Int) { self.longestBytes = longestBytes }

    /// - Returns: nil while the message goes on.
    mutating func add(_ frame: WireFrame) throws(WireError) -> WireFrame? {
        guard let begun = head else {
            guard frame.head.goesOn else { return frame }
            head = frame.head
            bytes = frame.body.withBytes { Array($0) }
            return nil
        }
        // These do not belong to it.
        if frame.head.kind.mayInterrupt { return frame }
        guard frame.head.kind == begun.kind, frame.head.number == begun.number else {
            throw WireError(
                .outOfOrder, "frame.kind", at: 4,
                "'\(frame.head.kind)' in the middle of a '\(begun.kind)'")
        }
        guard frame.body.count <= longestBytes - bytes.count, frame.body.count > 0 else {
            throw WireError(
                .length, "frame.length", at: 0,
                "a '\(begun.kind)' of more than \(longestBytes) bytes, or a part of it without any")
        }
        frame.body.withBytes { bytes.append(contentsOf: $0) }
        guard !frame.head.goesOn else { return nil }
        defer {
            head = nil
            bytes = []
        }
        return WireFrame(
            head: frame.head, body: bytes.withUnsafeBytes { WireBuffer(copying: $0) })
    }
}
