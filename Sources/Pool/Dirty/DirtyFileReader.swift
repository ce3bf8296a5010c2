import BlockCore
import SystemIO

/// Reads a dirty file from its beginning to the last closed change.
struct DirtyFileReader {
    private let file: DiskFile
    private let path: String
    let nonce: UInt64
    private var position = DirtyFileHeader.bytes
    private var chain: UInt64
    /// After the last closed change.
    private(set) var closedEnd = DirtyFileHeader.bytes
    private(set) var closedChain: UInt64
    private(set) var state = DirtyFileState(acknowledged: .zero, incarnation: 0, legs: [])
    /// Of a change that is not closed yet.
    private var pending: [UInt64: [ImageID: BlockSet]] = [:]

    init(file: DiskFile, path: String, target: TargetID) throws(DirtyFileError) {
        self.file = file
        self.path = path
        let bytes = try Self.read(file, at: 0, count: Int(DirtyFileHeader.bytes))
        // A file gets its name only when its header and a first change are durable.
        guard bytes.count == Int(DirtyFileHeader.bytes),
            let header = bytes.withUnsafeBytes(DirtyFileHeader.init(decoding:)),
            header.target == target
        else { throw .damaged(path: path, reason: "its header does not verify") }
        nonce = header.nonce
        chain = header.encoded().chain
        closedChain = chain
    }

    private static func read(
        _ file: DiskFile, at offset: UInt64, count: Int
    ) throws(DirtyFileError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let got = try dirtied { () throws(SystemError) in
            try bytes.withTypedMutableBytes { (raw) throws(SystemError) in
                try file.read(into: raw, at: offset)
            }
        }
        bytes.removeSubrange(got...)
        return bytes
    }

    mutating func readAll() throws(DirtyFileError) {
        while let (header, payload) = try nextFrame() {
            guard payload.withUnsafeBytes({ enter($0, closes: header.closes) }) else {
                throw .damaged(path: path, reason: "the change at \(position) contradicts itself")
            }
            position += header.totalBytes
            if header.closes {
                closedEnd = position
                closedChain = chain
            }
        }
        guard closedEnd > DirtyFileHeader.bytes else {
            throw .damaged(path: path, reason: "its first change does not verify")
        }
    }

    /// - Returns: nil where none follows; the chain is then still that of the frame before.
    private mutating func nextFrame() throws(DirtyFileError) -> (DirtyFrameHeader, [UInt8])? {
        let head = try Self.read(file, at: position, count: DirtyFrameHeader.bytes)
        guard
            let (header, next) = head.withUnsafeBytes({
                DirtyFrameHeader.decode($0, nonce: nonce)
            }), header.chain == chain
        else { return nil }
        let payload = try Self.read(
            file, at: position + UInt64(DirtyFrameHeader.bytes), count: Int(header.payloadBytes))
        guard payload.count == Int(header.payloadBytes),
            payload.withUnsafeBytes({ blockHash($0, seed: chain) }) == header.payloadHash
        else { return nil }
        chain = next
        return (header, payload)
    }

    /// - Returns: false when the payload is not of this format.
    private mutating func enter(_ payload: UnsafeRawBufferPointer, closes: Bool) -> Bool {
        var reader = ByteReader(payload)
        guard reader.remaining >= 8 else { return false }
        let count: UInt64 = reader.take()
        for _ in 0..<count {
            guard let extent = DirtyExtent(&reader) else { return false }
            extent.enter(in: &pending[extent.leg, default: [:]])
        }
        return closes ? close(&reader) : reader.remaining == 0
    }

    private mutating func close(_ reader: inout ByteReader) -> Bool {
        guard reader.remaining >= 24 else { return false }
        let acknowledged = SequenceNumber(rawValue: reader.take())
        let incarnation: UInt64 = reader.take()
        let count: UInt64 = reader.take()
        guard UInt64(reader.remaining) == count * 24 else { return false }
        var before: [UInt64: [ImageID: BlockSet]] = [:]
        for leg in state.legs { before[leg.number] = leg.blocks }
        state = DirtyFileState(acknowledged: acknowledged, incarnation: incarnation, legs: [])
        for _ in 0..<count {
            let number: UInt64 = reader.take()
            let cut: UInt64 = reader.take()
            let flags: UInt64 = reader.take()
            guard flags < 8 else { return false }
            var blocks = before.removeValue(forKey: number) ?? [:]
            if let more = pending.removeValue(forKey: number) { blocks.formUnion(more) }
            state.legs.append(
                DirtyLegState(
                    number: number, cut: flags & 1 == 0 ? nil : SequenceNumber(rawValue: cut),
                    hasNameChanges: flags & 2 != 0, isUnknown: flags & 4 != 0, blocks: blocks))
        }
        defer { pending = [:] }
        return pending.isEmpty
    }

    /// F3, and F1: what follows must not say that more was durable.
    func cutTail() throws(DirtyFileError) {
        let size = try dirtied { () throws(SystemError) in try file.status().sizeBytes }
        guard size > closedEnd else { return }
        var place = closedEnd
        while place < size {
            let head = try Self.read(file, at: place, count: DirtyFrameHeader.bytes)
            let found = head.withUnsafeBytes { DirtyFrameHeader.decode($0, nonce: nonce) }
            if let (header, _) = found, header.durableEnd > closedEnd {
                throw .damaged(
                    path: path, reason: "the change at \(closedEnd) was durable and does not verify"
                )
            }
            place += 4096
        }
        try dirtied { () throws(SystemError) in
            try file.truncate(to: closedEnd)
            try file.sync()
        }
    }
}
