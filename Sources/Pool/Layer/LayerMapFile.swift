// The block map of one layer, `<layer id>.map`.
//
// Layout (little-endian; docs/disk-format.md has every byte):
//   0      header: magic, version, block shift, layer id, image id, created, hash
//   1024   slot 0 \  each names a commit known durable: epoch, end offset, chain, hash;
//   2048   slot 1 /  written in turn, so a torn one leaves the other
//   4096   commit records, one after another: header, extents, chain hash
//
// Invariants
//   M1 A record is appended only after the fdatasync of the data that it names has returned.
//   M2 Every record's hash is seeded with the hash before it, so bytes left over from an earlier
//      life of the file can never pass for the next record.
//   M3 The slot written together with record N names record N-1, which is durable by then: one
//      sync makes both durable, and what lies before a valid slot's end must verify.
//   M4 What follows the last record that verifies is cut, and the cut synced, before an append.
//   M5 A map is rewritten beside itself (LayerMapFile+Rewriting.swift) and takes its own name when all
//      of it is durable; both files say the same then.

import BlockCore
import SystemIO

package enum BlockState: UInt8, Sendable {
    case data = 1
    case zero = 2
    /// Moved to the parent by a merge: look there again.
    case absent = 3
}

package struct MapExtent: Sendable, Hashable {
    package var range: BlockRange
    package var state: BlockState

    package init(range: BlockRange, state: BlockState) {
        self.range = range
        self.state = state
    }
}

package struct MapCommit: Sendable, Hashable {
    package var epoch: UInt64
    package var sequence: SequenceNumber
    package var imageSizeBytes: UInt64
    package var isSealed: Bool
}

package final class LayerMapFile: @unchecked Sendable {  // one flusher at a time (Layer's gate)
    static let magic: UInt64 = 0x3130_5041_4d4c_5044  // "DPLMAP01"
    static let recordMagic: UInt32 = 0x544d_4f43  // "COMT"
    static let version: UInt32 = 1
    static let recordsOffset: UInt64 = 4096
    static let recordHeaderBytes = 48
    private static let slotBytes = 32
    static let maxExtentsPerRecord = 1 << 20

    package internal(set) var file: DiskFile
    package internal(set) var lastCommit: MapCommit?
    var chain: UInt64
    package internal(set) var endOffset: UInt64
    var allocatedEnd: UInt64 = 0
    /// Bytes of a torn tail that opening cut off; for the event that tells of it.
    package private(set) var tornTailBytes: UInt64 = 0

    private init(file: DiskFile, chain: UInt64) {
        self.file = file
        self.chain = chain
        endOffset = Self.recordsOffset
    }

    // MARK: Creating

    /// Creates the map and writes its first commit; nothing is durable before ``DiskFile/sync()``.
    package static func create(
        disk: Disk, path: String, layer: LayerID, image: ImageID, imageSizeBytes: UInt64,
        sequence: SequenceNumber
    ) throws(LayerError) -> LayerMapFile {
        var header = ByteWriter(capacity: 4096)
        header.put(magic)
        header.put(version)
        header.put(UInt32(Geometry.blockShift))
        header.put(layer.rawValue)
        header.put(image.rawValue)
        header.put(disk.now())
        let chain = header.seal()
        header.pad(to: Int(recordsOffset))
        let bytes = header.bytes
        let file = try layered { () throws(SystemError) in
            let file = try disk.open(path, [.readWrite, .create, .truncate])
            try bytes.withTypedBytes { (raw) throws(SystemError) in try file.write(raw, at: 0) }
            return file
        }
        let map = LayerMapFile(file: file, chain: chain)
        try map.append(
            [], imageSizeBytes: imageSizeBytes, sequence: sequence, isSealed: false)
        return map
    }

    // MARK: Appending

    /// Bytes of the file that `extentCount` more extents after `endOffset` may need.
    package static func bytesNeeded(after endOffset: UInt64, extentCount: Int) -> UInt64 {
        endOffset + UInt64(extentCount * 16)
            + UInt64((extentCount / maxExtentsPerRecord + 2) * (recordHeaderBytes + 8))
    }

    /// Finds room up to `end`, so that a full disk is met by the write that fills it and not by
    /// the flush that promised to keep it. Called under the layer's lock.
    package func reserve(to end: UInt64) throws(SystemError) {
        guard end > allocatedEnd else { return }
        let target = (end + (256 << 10)) & ~4095
        let start = max(allocatedEnd, Self.recordsOffset)
        try file.allocate(at: start, length: target - start, keepSize: true)
        allocatedEnd = target
    }

    /// Appends one commit. The caller syncs ``file`` afterwards and then calls nothing else for it:
    /// the next append names this one as durable.
    package func append(
        _ extents: [MapExtent], imageSizeBytes: UInt64, sequence: SequenceNumber, isSealed: Bool
    ) throws(LayerError) {
        var rest = extents[...]
        // M3: of several records with one sync, only the first may name the one before it.
        var previous = lastCommit
        repeat {
            let part = rest.prefix(Self.maxExtentsPerRecord)
            rest = rest.dropFirst(part.count)
            try appendRecord(
                part, naming: previous, imageSizeBytes: imageSizeBytes, sequence: sequence,
                isSealed: isSealed && rest.isEmpty)
            previous = nil
        } while !rest.isEmpty
    }

    private func appendRecord(
        _ extents: ArraySlice<MapExtent>, naming durable: MapCommit?, imageSizeBytes: UInt64,
        sequence: SequenceNumber, isSealed: Bool
    ) throws(LayerError) {
        let commit = MapCommit(
            epoch: (lastCommit?.epoch ?? 0) + 1, sequence: sequence,
            imageSizeBytes: imageSizeBytes, isSealed: isSealed)
        var record = ByteWriter(capacity: Self.recordHeaderBytes + extents.count * 16 + 8)
        record.put(Self.recordMagic)
        record.put(UInt32(extents.count))
        record.put(commit.epoch)
        record.put(sequence.rawValue)
        record.put(imageSizeBytes)
        record.put(UInt32(isSealed ? 1 : 0))
        record.put(UInt32(0))
        record.put(chain)
        for extent in extents {
            record.put(extent.range.start)
            record.put(extent.range.count << 8 | UInt64(extent.state.rawValue))
        }
        let nextChain = record.seal(seed: chain)
        let bytes = record.bytes
        try layered { () throws(SystemError) in
            if let durable { try writeSlot(naming: durable) }
            try bytes.withTypedBytes { (raw) throws(SystemError) in
                try file.write(raw, at: endOffset)
            }
        }
        chain = nextChain
        endOffset += UInt64(bytes.count)
        lastCommit = commit
    }

    func writeSlot(naming commit: MapCommit) throws(SystemError) {
        var slot = ByteWriter(capacity: Self.slotBytes)
        slot.put(commit.epoch)
        slot.put(endOffset)
        slot.put(chain)
        slot.seal()
        let offset: UInt64 = commit.epoch & 1 == 0 ? 1024 : 2048
        try slot.bytes.withTypedBytes { (raw) throws(SystemError) in
            try file.write(raw, at: offset)
        }
    }

    // MARK: Opening

    /// Reads and verifies the map, hands every extent in order to `each`, and cuts a torn tail.
    /// - Parameter isSettled: the pool was closed cleanly, so that no tail can be torn.
    /// - Throws: ``LayerError/damaged`` when something known durable does not verify.
    package static func open(
        disk: Disk, path: String, layer: LayerID, isSealed: Bool, isSettled: Bool = false,
        readOnly: Bool = false, each: (MapExtent) -> Void
    ) throws(LayerError) -> LayerMapFile {
        let (file, bytes) = try layered { () throws(SystemError) in
            let file = try disk.open(path, readOnly ? [] : .readWrite)
            return (file, try readAll(file))
        }
        func damaged(_ reason: String) -> LayerError { .damaged(path: path, reason: reason) }
        guard bytes.count >= Int(recordsOffset) else { throw damaged("it is too short") }
        let map = try bytes.withTypedBytes { (raw) throws(LayerError) in
            var header = ByteReader(raw)
            let magic = header.take(UInt64.self)
            let version = header.take(UInt32.self)
            let shift = header.take(UInt32.self)
            let layerID = header.take(Int64.self)
            let hash = blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<40]))
            guard magic == Self.magic,
                raw.loadUnaligned(fromByteOffset: 40, as: UInt64.self) == hash
            else { throw damaged("its header does not verify") }
            guard version == Self.version, shift == UInt32(Geometry.blockShift) else {
                throw damaged("it has format version \(version), which this Doppel does not know")
            }
            guard layerID == layer.rawValue else { throw damaged("it belongs to layer \(layerID)") }
            let map = LayerMapFile(file: file, chain: hash)
            map.replay(raw, base: 0, each: each)
            let known = [1024, 2048].compactMap { knownDurable(raw, slotAt: $0) }.max {
                $0.epoch < $1.epoch
            }
            if let known, (map.lastCommit?.epoch ?? 0) < known.epoch {
                throw damaged("commit \(known.epoch) was durable and no longer verifies")
            }
            guard map.lastCommit != nil else { throw damaged("it has no commit") }
            if isSettled, !isSealed, map.endOffset != UInt64(raw.count) {
                throw damaged(
                    "the pool was closed cleanly, and its last "
                        + "\(UInt64(raw.count) - map.endOffset) bytes do not verify")
            }
            if isSealed, map.endOffset != UInt64(raw.count) || map.lastCommit?.isSealed != true {
                throw damaged("it is sealed and does not end in its seal")
            }
            return map
        }
        if !readOnly, !isSealed { try map.cutTornTail(fileSizeBytes: UInt64(bytes.count)) }
        return map
    }

    /// The slots first: a flush may append meanwhile, and what a slot names is then among the records.
    private static func readAll(_ file: DiskFile) throws(SystemError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(recordsOffset))
        var filled = 0
        var size = bytes.count
        while true {
            let got = try bytes.withTypedMutableBytes { (raw) throws(SystemError) in
                try file.read(
                    into: UnsafeMutableRawBufferPointer(rebasing: raw[filled..<size]),
                    at: UInt64(filled))
            }
            filled += got
            if filled < size { break }
            size = Int(try file.status().sizeBytes)
            if size <= filled { break }
            bytes += [UInt8](repeating: 0, count: size - filled)
        }
        bytes.removeSubrange(filled...)
        return bytes
    }

    private func cutTornTail(fileSizeBytes: UInt64) throws(LayerError) {
        guard fileSizeBytes > endOffset else { return }
        tornTailBytes = fileSizeBytes - endOffset
        try layered { () throws(SystemError) in
            try file.truncate(to: endOffset)
            try file.sync()
        }
    }

    static func knownDurable(
        _ raw: UnsafeRawBufferPointer, slotAt offset: Int
    ) -> (epoch: UInt64, endOffset: UInt64)? {
        var slot = ByteReader(raw, at: offset)
        let epoch = slot.take(UInt64.self)
        let end = slot.take(UInt64.self)
        _ = slot.take(UInt64.self)
        let stored = slot.take(UInt64.self)
        let hash = blockHash(UnsafeRawBufferPointer(rebasing: raw[offset..<offset + 24]))
        return stored == hash && epoch > 0 ? (epoch, end) : nil
    }

    /// Takes records from `endOffset` on; `raw` begins at `base` of the file.
    func replay(_ raw: UnsafeRawBufferPointer, base: UInt64, each: (MapExtent) -> Void) {
        var position = Int(endOffset - base)
        while raw.count - position >= Self.recordHeaderBytes + 8 {
            var reader = ByteReader(raw, at: position)
            guard reader.take(UInt32.self) == Self.recordMagic else { return }
            let count = Int(reader.take(UInt32.self))
            let length = Self.recordHeaderBytes + count * 16
            guard count <= Self.maxExtentsPerRecord, raw.count - position >= length + 8 else {
                return
            }
            let hash = blockHash(
                UnsafeRawBufferPointer(rebasing: raw[position..<position + length]), seed: chain)
            guard raw.loadUnaligned(fromByteOffset: position + length, as: UInt64.self) == hash
            else {
                return
            }
            let epoch = reader.take(UInt64.self)
            let sequence = SequenceNumber(rawValue: reader.take())
            let size = reader.take(UInt64.self)
            let isSealed = reader.take(UInt32.self) & 1 == 1
            _ = reader.take(UInt32.self)
            _ = reader.take(UInt64.self)
            for _ in 0..<count {
                let start = reader.take(UInt64.self)
                let word = reader.take(UInt64.self)
                guard let state = BlockState(rawValue: UInt8(truncatingIfNeeded: word)) else {
                    return
                }
                each(MapExtent(range: BlockRange(start: start, count: word >> 8), state: state))
            }
            lastCommit = MapCommit(
                epoch: epoch, sequence: sequence, imageSizeBytes: size, isSealed: isSealed)
            chain = hash
            position += length + 8
            endOffset = base + UInt64(position)
        }
    }
}
