// A primary as plain values: what it shows after each operation, and the records it sends of them.

import BlockCore
import Pool
import Replication
import TestSupport

struct Violation: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// What one block holds: a stamp, up to where the image ended when it was written; zeros after.
struct ModelBlock: Hashable {
    var stamp: UInt64
    var validBytes: Int
}

struct ModelImage: Hashable {
    var sizeBytes = 0
    /// Blocks that are not here are zeros.
    var blocks: [UInt64: ModelBlock] = [:]

    func bytes(of block: UInt64) -> [UInt8] {
        let content = blocks[block] ?? ModelBlock(stamp: 0, validBytes: 0)
        var bytes = [UInt8](repeating: 0, count: 4096)
        bytes.withUnsafeMutableBytes { raw in
            raw.bindMemory(to: UInt64.self).update(repeating: content.stamp)
            UnsafeMutableRawBufferPointer(rebasing: raw[content.validBytes...])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
        return bytes
    }

    var bytes: [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(sizeBytes + 4096)
        for block in 0..<UInt64((sizeBytes + 4095) / 4096) { bytes += self.bytes(of: block) }
        bytes.removeLast(bytes.count - sizeBytes)
        return bytes
    }

    mutating func zero(_ range: BlockRange) {
        for block in range.start..<range.end { blocks[block] = nil }
    }

    mutating func resize(to size: Int) {
        if size < sizeBytes {
            blocks = blocks.filter { $0.key * 4096 < size }
            let last = UInt64(size / 4096)
            if let cut = blocks[last] {
                let valid = min(cut.validBytes, size % 4096)
                blocks[last] = valid == 0 ? nil : ModelBlock(stamp: cut.stamp, validBytes: valid)
            }
        }
        sizeBytes = size
    }
}

struct ModelPool: Equatable {
    var images: [ImageID: ModelImage] = [:]
    var names: [NodeID: NodeRecord] = [:]
}

struct ModelRecord {
    var sequence: SequenceNumber
    var atNs: Int64
    var bytes: [UInt8]
}

struct PrimaryModel {
    static let maxBlocks = 24

    var random: SeededRandom
    /// The clock.
    let now: () -> Int64
    private(set) var pool = ModelPool()
    private(set) var sequence: UInt64 = 0
    var incarnation = 1
    /// What the pool showed after each operation.
    private(set) var history: [SequenceNumber: ModelPool] = [:]
    private(set) var cuts: [SequenceNumber: SnapshotInfo] = [:]
    private(set) var records: [ModelRecord] = []
    private var nextImage: Int64 = 1
    private var nextNode: UInt64 = 2
    private var nextName = 0

    init(seed: UInt64, now: @escaping () -> Int64) {
        random = SeededRandom(seed: seed)
        self.now = now
        pool.names[.root] = NodeRecord(
            id: .root, parentID: nil, name: [], kind: .directory, mode: 0o755, uid: 0, gid: 0,
            accessNs: 0, modifyNs: 0, changeNs: 0)
        history[.zero] = pool
    }

    var last: SequenceNumber { SequenceNumber(rawValue: sequence) }
    var hello: PrimaryHello {
        PrimaryHello(
            poolID: "primary", generation: Self.generation, incarnation: UInt64(incarnation),
            incarnationID: "incarnation \(incarnation)")
    }
    static let generation = Generation(
        number: 3, id: "third", parentID: "second", startSequence: .zero)

    var shape: PoolShape {
        PoolShape(
            sequence: last,
            images: pool.images.sorted { $0.key < $1.key }.map {
                PoolShape.Image(id: $0, sizeBytes: UInt64($1.sizeBytes), modifiedNs: now())
            }, names: names(of: pool))
    }

    func names(of pool: ModelPool) -> [UInt8] {
        NamesCodec.encode(pool.names.values.map { .put($0) })
    }

    /// The process and its memory are gone. Nothing that was done is lost, in this model.
    mutating func restart() {
        incarnation += 1
        sequence = (sequence | 0xffff) + 1
        history[last] = pool
    }

    // MARK: Records

    private mutating func append(
        _ kind: StreamKind, _ change: (inout ModelPool) -> [UInt8] = { _ in [] },
        image: ImageID = ImageID(rawValue: 0), range: BlockRange = BlockRange(start: 0, count: 0)
    ) {
        sequence += 1
        let payload = change(&pool)
        let record = StreamRecord(
            kind, sequence: last, image: image, range: range,
            imageSizeBytes: UInt64(pool.images[image]?.sizeBytes ?? 0), atNs: now(),
            payloadBytes: payload.count)
        records.append(
            ModelRecord(
                sequence: last, atNs: record.atNs, bytes: Self.encode(record, payload)))
        history[last] = pool
    }

    static func encode(_ record: StreamRecord, _ payload: [UInt8]) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: record.totalBytes)
        bytes.withUnsafeMutableBytes { raw in
            record.encodeHeader(into: raw)
            raw[StreamRecord.headerBytes..<StreamRecord.headerBytes + payload.count]
                .copyBytes(from: payload)
        }
        return bytes
    }

    /// A block as a resync reads it.
    func blockRecord(_ image: ImageID, _ block: UInt64) -> [UInt8] {
        blockRecord(image, block, of: pool, at: last)
    }

    func blockRecord(
        _ id: ImageID, _ block: UInt64, of pool: ModelPool, at sequence: SequenceNumber
    ) -> [UInt8] {
        let image = pool.images[id]!
        let bytes = image.bytes(of: block)
        let record = StreamRecord(
            .data, sequence: sequence, image: id, range: BlockRange(start: block, count: 1),
            imageSizeBytes: UInt64(image.sizeBytes), atNs: now(), payloadBytes: bytes.count)
        return Self.encode(record, bytes)
    }

    /// Blocks of the live images, as they are now, that another pool does not have like this.
    func difference(to other: ModelPool, from pool: ModelPool) -> [(ImageID, UInt64)] {
        pool.images.sorted { $0.key < $1.key }.flatMap { id, image in
            let old = other.images[id] ?? ModelImage()
            let count = UInt64((image.sizeBytes + 4095) / 4096)
            return (0..<count).filter { image.blocks[$0] != old.blocks[$0] }.map { (id, $0) }
        }
    }

    /// Every block of the live images that an operation after this one was about.
    func touched(after sequence: SequenceNumber) -> [(ImageID, UInt64)] {
        records.filter { $0.sequence > sequence }.flatMap { record in
            let header = record.bytes.withUnsafeBytes { StreamRecord(decoding: $0)! }
            guard pool.images[header.image] != nil else { return [(ImageID, UInt64)]() }
            return (header.range.start..<header.range.end).map { (header.image, $0) }
        }
    }

    // MARK: Operations

    mutating func step() {
        let ids = pool.images.keys.sorted()
        guard let id = ids.isEmpty ? nil : ids[random.below(ids.count)] else { return create() }
        switch random.below(100) {
        case ..<55: write(id)
        case ..<65: zero(id)
        case ..<74: resize(id)
        case ..<80: if ids.count < 4 { create() } else { write(id) }
        case ..<84: delete(id)
        case ..<94: rename()
        default: snapshot()
        }
    }

    mutating func write(_ id: ImageID) {
        let blocks = BlockRange(
            start: UInt64(random.below(Self.maxBlocks - 4)), count: UInt64(1 + random.below(4)))
        let stamp = random.next() | 1
        let cut = random.chance(30) ? random.below(4096) : 0
        append(
            .data,
            { pool in
                let end = Int(blocks.end) * 4096 - cut
                var image = pool.images[id]!
                if end > image.sizeBytes { image.resize(to: end) }
                for block in blocks.start..<blocks.end {
                    let valid = min(4096, image.sizeBytes - Int(block) * 4096)
                    image.blocks[block] = ModelBlock(stamp: stamp, validBytes: valid)
                }
                pool.images[id] = image
                return (blocks.start..<blocks.end).flatMap { image.bytes(of: $0) }
            }, image: id, range: blocks)
    }

    private mutating func zero(_ id: ImageID) {
        let blocks = BlockRange(
            start: UInt64(random.below(Self.maxBlocks)), count: UInt64(1 + random.below(6)))
        append(
            .zero,
            { pool in
                pool.images[id]!.zero(blocks)
                return []
            }, image: id, range: blocks)
    }

    private mutating func resize(_ id: ImageID) {
        let old = pool.images[id]!.sizeBytes
        var size = random.below(Self.maxBlocks * 4096)
        if random.chance(50) { size &= ~4095 }
        let first = UInt64(size / 4096)
        let end = UInt64((old + 4095) / 4096)
        append(
            .size,
            { pool in
                pool.images[id]!.resize(to: size)
                return []
            }, image: id,
            range: first < end
                ? BlockRange(start: first, count: end - first) : BlockRange(start: 0, count: 0))
    }

    /// - Parameter sizeBytes: of a clone of something that has no content.
    mutating func create(sizeBytes: Int = 0) {
        let id = ImageID(rawValue: nextImage)
        nextImage += 1 + Int64(random.below(3))
        append(
            .imageCreated,
            { pool in
                var image = ModelImage()
                image.resize(to: sizeBytes)
                pool.images[id] = image
                return []
            }, image: id)
        nextName += 1
        let node = NodeRecord(
            id: NodeID(rawValue: nextNode), parentID: .root, name: Array("image \(nextName)".utf8),
            kind: .file, mode: 0o600, uid: 1, gid: 2, accessNs: 3, modifyNs: 4, changeNs: 5,
            imageID: id, xattrs: ["user.a": random.bytes(random.below(20))])
        nextNode += 1
        name(node)
    }

    private mutating func name(_ nodes: NodeRecord...) {
        append(.names) { pool in
            for node in nodes { pool.names[node.id] = node }
            return NamesCodec.encode(nodes.map { .put($0) })
        }
    }

    /// Names as they are from now on.
    mutating func rename(_ nodes: NodeRecord...) {
        append(.names) { pool in
            for node in nodes { pool.names[node.id] = node }
            return NamesCodec.encode(nodes.map { .put($0) })
        }
    }

    /// One takes the name of another, whose image goes.
    mutating func replace(_ old: NodeRecord, with new: NodeRecord, deleting image: ImageID) {
        append(.names) { pool in
            pool.names[old.id] = nil
            pool.names[new.id] = new
            return NamesCodec.encode([.remove(old.id), .put(new)])
        }
        append(
            .imageDeleted,
            { pool in
                pool.images[image] = nil
                return []
            }, image: image)
    }

    private mutating func rename() {
        let nodes = pool.names.values.filter { $0.id != .root }.sorted { $0.id < $1.id }
        guard var node = nodes.isEmpty ? nil : nodes[random.below(nodes.count)] else { return }
        if nodes.count > 1, random.chance(40) {
            // An exchange: both names in one change.
            var other = nodes.first { $0.id != node.id }!
            (node.name, other.name) = (other.name, node.name)
            return name(node, other)
        }
        nextName += 1
        node.name = Array("renamed \(nextName)".utf8)
        node.mode = UInt32(random.below(0o1000))
        name(node)
    }

    mutating func delete(_ id: ImageID) {
        let nodes = pool.names.values.filter { $0.imageID == id }.map(\.id)
        append(.names) { pool in
            for node in nodes { pool.names[node] = nil }
            return NamesCodec.encode(nodes.map { .remove($0) })
        }
        // Who has it open goes on writing.
        for _ in 0...random.below(3) { write(id) }
        append(
            .imageDeleted,
            { pool in
                pool.images[id] = nil
                return []
            }, image: id)
    }

    mutating func snapshot() {
        nextName += 1
        let info = SnapshotInfo(
            name: "s\(nextName)", createdNs: now(), origin: "user",
            sequence: SequenceNumber(rawValue: sequence + 1))
        append(.snapshot) { _ in SnapshotPayload.encode(info) }
        cuts[info.sequence] = info
    }
}

/// Hands encoded records over as a ring does: in one piece or two.
func withBatch<T>(
    _ records: [[UInt8]], first: SequenceNumber, last: SequenceNumber, split: Int?,
    _ body: (RecordBatch) throws -> T
) rethrows -> T {
    let at = split.map { min($0, records.count) } ?? records.count
    // Piece by piece: a sequence of sequences takes a third of a test's time where nothing is specialized.
    var (left, right): ([UInt8], [UInt8]) = ([], [])
    for record in records[..<at] { left += record }
    for record in records[at...] { right += record }
    return try left.withUnsafeBytes { a in
        try right.withUnsafeBytes { b in
            try body(
                RecordBatch(
                    pieces: [a, b].filter { !$0.isEmpty }, firstSequence: first, lastSequence: last)
            )
        }
    }
}
