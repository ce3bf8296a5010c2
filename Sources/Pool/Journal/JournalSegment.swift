import BlockCore
import SystemIO

/// One open segment, read frame by frame.
final class JournalSegment {
    let header: JournalSegmentHeader
    let file: DiskFile
    let path: String

    private init(header: JournalSegmentHeader, file: DiskFile, path: String) {
        self.header = header
        self.file = file
        self.path = path
    }

    /// - Parameter number: what the file's name says; the header must agree.
    static func open(
        disk: Disk, path: String, number: UInt64
    ) throws(JournalError) -> (segment: JournalSegment, chain: UInt64) {
        let (file, bytes) = try journaled { () throws(SystemError) in
            let file = try disk.open(path, .readWrite)
            var bytes = [UInt8](repeating: 0, count: Int(JournalSegmentHeader.bytes))
            let got = try bytes.withTypedMutableBytes { (raw) throws(SystemError) in
                try file.read(into: raw, at: 0)
            }
            bytes.removeSubrange(got...)
            return (file, bytes)
        }
        guard let (header, chain) = bytes.withUnsafeBytes(JournalSegmentHeader.decode),
            header.number == number
        else { throw .damaged(path: path, reason: "its header does not verify") }
        return (JournalSegment(header: header, file: file, path: path), chain)
    }

    /// Reads the frame at `offset` into the buffer.
    /// - Returns: nil where no whole frame that follows `chain` is.
    func frame(
        at offset: UInt64, chain: UInt64, into buffer: inout JournalBuffer
    ) throws(JournalError) -> (header: JournalFrameHeader, chain: UInt64)? {
        guard let (header, next) = try header(at: offset, into: &buffer), header.chain == chain
        else { return nil }
        let size = try journaled { () throws(SystemError) in try file.status().sizeBytes }
        let start = offset + UInt64(JournalFrameHeader.bytes)
        guard header.payloadBytes <= size, start <= size - header.payloadBytes else { return nil }
        let payload = buffer.space(Int(header.payloadBytes))
        let got = try journaled { () throws(SystemError) in
            try file.read(into: payload, at: start)
        }
        guard got == payload.count, header.matches(UnsafeRawBufferPointer(payload)) else {
            return nil
        }
        return (header, next)
    }

    private func header(
        at offset: UInt64, into buffer: inout JournalBuffer
    ) throws(JournalError) -> (header: JournalFrameHeader, chain: UInt64)? {
        let space = buffer.space(JournalFrameHeader.bytes)
        let got = try journaled { () throws(SystemError) in try file.read(into: space, at: offset) }
        return JournalFrameHeader.decode(
            UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(space)[0..<got]),
            nonce: header.nonce)
    }

    /// What follows the last whole frame.
    struct Tail {
        /// Something was written there.
        var isWritten = false
        /// Whether a frame in it says that more than `end` was durable.
        var namesDurable = false
    }

    func tail(from end: UInt64, buffer: inout JournalBuffer) throws(JournalError) -> Tail {
        var tail = Tail()
        var position = end
        while !tail.namesDurable {
            let start = position
            // Space that was never written to is a hole.
            guard
                let data = try journaled({ () throws(SystemError) in
                    try file.seekData(from: start)
                })
            else { break }
            position = max(position, data & ~7)
            let space = buffer.space(1 << 20)
            let got = try journaled { () throws(SystemError) in
                try file.read(into: space, at: position)
            }
            if got == 0 { break }
            let raw = UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(space)[0..<got])
            look(for: end, in: raw, &tail)
            if got < space.count { break }
            // A frame's header may lie across the border of two pieces.
            position += UInt64(got - JournalFrameHeader.bytes)
        }
        return tail
    }

    private func look(for end: UInt64, in raw: UnsafeRawBufferPointer, _ tail: inout Tail) {
        var at = 0
        while at + 8 <= raw.count {
            let word = raw.loadUnaligned(fromByteOffset: at, as: UInt64.self)
            if word != 0 { tail.isWritten = true }
            if UInt64(littleEndian: word) == JournalFrameHeader.magic,
                let (header, _) = JournalFrameHeader.decode(
                    UnsafeRawBufferPointer(rebasing: raw[at...]), nonce: header.nonce),
                header.durableEnd > end
            {
                tail.namesDurable = true
                return
            }
            at += 8
        }
        if at < raw.count { tail.isWritten = tail.isWritten || raw[at...].contains { $0 != 0 } }
    }
}

/// Memory for one frame at a time, kept between them.
///
/// A value with one owner: of a local object the optimizer (Swift 6.3.1) made one on the stack, and
/// released it wrongly where a function that used it threw.
struct JournalBuffer: ~Copyable {
    private var memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)

    deinit { memory.deallocate() }

    /// The first `count` bytes; what was there before is gone.
    mutating func space(_ count: Int) -> UnsafeMutableRawBufferPointer {
        if memory.count < count {
            memory.deallocate()
            memory = .allocate(byteCount: (count + 4095) & ~4095, alignment: 4096)
        }
        return UnsafeMutableRawBufferPointer(rebasing: memory[0..<count])
    }
}

@inline(__always)
func journaled<T>(_ body: () throws(SystemError) -> T) throws(JournalError) -> T {
    do throws(SystemError) { return try body() } catch { throw .system(error) }
}
