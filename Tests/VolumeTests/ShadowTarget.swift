// A target as arrays of bytes: applies the records that a volume's stream gives it, and what its legs
// name as dirty, and must then show what the volume shows.

import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Volume

typealias ShadowContent = [ImageID: [UInt8]]

final class ShadowTarget {
    let id: TargetID
    private(set) var content: ShadowContent = [:]
    private(set) var snapshots: [String: ShadowContent] = [:]
    /// The last record or leg that it has.
    private(set) var checkpoint = SequenceNumber.zero
    var file: DirtyFile?
    /// Between a barrier and the shipping of what it stands for it shows no state of the pool.
    private var isBetween = false

    init(id: Int64) { self.id = TargetID(rawValue: id) }

    // MARK: Records

    /// Takes a batch, if there is one.
    /// - Returns: false when there is none.
    func take(_ stream: WriteStream, limitBytes: Int = 1 << 20) throws -> Bool {
        guard let batch = stream.takeBatch(id, limitBytes: limitBytes) else { return false }
        for piece in batch.pieces {
            var rest = piece
            while rest.count > 0 {
                guard let record = StreamRecord(decoding: rest) else {
                    throw Violation("what the stream gave is no record")
                }
                let start = StreamRecord.headerBytes
                try apply(
                    record,
                    UnsafeRawBufferPointer(rebasing: rest[start..<start + record.payloadBytes]))
                rest = UnsafeRawBufferPointer(rebasing: rest[record.totalBytes...])
            }
        }
        return true
    }

    private func apply(_ record: StreamRecord, _ payload: UnsafeRawBufferPointer) throws {
        guard record.sequence > checkpoint else {
            throw Violation("\(record.sequence) came after \(checkpoint)")
        }
        checkpoint = record.sequence
        switch record.kind {
        case .data: try write(record, payload)
        case .zero:
            let size = try size(record)
            let end = min(Int(record.range.startByte + record.range.lengthBytes), size)
            let start = min(Int(record.range.startByte), end)
            content[record.image]!.put([UInt8](repeating: 0, count: end - start)[...], at: start)
        case .size:
            _ = try size(record)
            content[record.image]!.resize(to: Int(record.imageSizeBytes))
        case .imageCreated:
            content[record.image] = [UInt8](repeating: 0, count: Int(record.imageSizeBytes))
        case .imageDeleted: content[record.image] = nil
        case .snapshot:
            guard let info = SnapshotPayload.decode(payload, sequence: record.sequence) else {
                throw Violation("a cut says nothing")
            }
            snapshots[info.name] = isBetween ? nil : content
        case .names, .standing: break
        case .barrier: throw Violation("a barrier was given")
        }
    }

    private func size(_ record: StreamRecord) throws -> Int {
        guard let bytes = content[record.image] else {
            throw Violation("\(record.kind) of image \(record.image.rawValue), which is not there")
        }
        return bytes.count
    }

    private func write(_ record: StreamRecord, _ payload: UnsafeRawBufferPointer) throws {
        let start = Int(record.range.startByte)
        guard Int(record.imageSizeBytes) > start else { return }
        let count = min(payload.count, Int(record.imageSizeBytes) - start)
        if try size(record) < start + count { content[record.image]!.resize(to: start + count) }
        let bytes = [UInt8](payload)
        content[record.image]!.put(bytes[..<count], at: start)
        if !sameBytes(bytes[count...], [UInt8](repeating: 0, count: bytes.count - count)[...]) {
            throw Violation("what is behind the image's end is not zero")
        }
    }

    // MARK: Legs

    /// As a session does after an unclean end: what the file and the activity log leave open is
    /// compared.
    func compareUnknown(_ volume: Volume, _ stream: WriteStream) throws {
        _ = stream.withLegs(id) { $0.joinLegs(through: checkpoint) }
        let end = try firstEnd(volume, stream)
        let unknown: [ImageID: BlockSet] = stream.withLegs(id) { $0.unknown } ?? [:]
        for (image, blocks) in unknown {
            for range in blocks.ranges {
                let here = try end.read(range, of: image)
                let there = bytes(range, of: image)
                var differing = BlockSet()
                let isSame = sameBytes(here[...], there[...])
                for block in range.start..<range.end where !isSame {
                    let at = Int(block - range.start) * 4096
                    if !sameBytes(here[at..<at + 4096], there[at..<at + 4096]) {
                        differing.insert(BlockRange(start: block, count: 1))
                    }
                }
                _ = stream.withLegs(id) {
                    $0.resolve(
                        range, of: image, differing: differing, end: $0.legs[0].snapshot?.sequence)
                }
            }
        }
    }

    private func bytes(_ range: BlockRange, of image: ImageID) -> [UInt8] {
        let bytes = content[image] ?? []
        let start = min(Int(range.startByte), bytes.count)
        let count = Int(range.lengthBytes)
        var result = Array(bytes[start..<min(start + count, bytes.count)])
        result.resize(to: count)
        return result
    }

    /// Brings it in step while nobody writes.
    func resync(_ volume: Volume, _ stream: WriteStream) throws {
        if stream.standing(id)?.isStreaming != true {
            // What lies before the head comes first.
            while stream.withLegs(id, { $0.legs.count }) ?? 1 > 1 { try ship(volume, stream) }
            _ = stream.beginStreaming(id)
        }
        while true {
            if try take(stream) { continue }
            guard stream.passBarrier(id) != nil else { break }
            isBetween = true
        }
        try ship(volume, stream)
        checkpoint = max(checkpoint, stream.lastSequence)
        stream.acknowledge(id, durable: checkpoint)
        guard stream.standing(id)?.isClean == true else { throw Violation("it is not clean") }
    }

    private func firstEnd(_ volume: Volume, _ stream: WriteStream) throws -> ShippedState {
        while let info = stream.withLegs(id, { $0.legs[0].snapshot }) ?? nil {
            if let found = try volume.completeSnapshot(at: info.sequence) {
                return try ShippedState(volume, found.nodes)
            }
            _ = stream.withLegs(id) { $0.join(cut: info.sequence) }
        }
        return ShippedState(volume)
    }

    private func ship(_ volume: Volume, _ stream: WriteStream) throws {
        let end = try firstEnd(volume, stream)
        let info = stream.withLegs(id) { $0.legs[0].snapshot } ?? nil
        let blocks = stream.withLegs(id) { $0.takeFirst() } ?? [:]
        var next: ShadowContent = [:]
        for (image, size) in end.sizes {
            var bytes = content[image] ?? []
            bytes.resize(to: size)
            for range in (blocks[image] ?? BlockSet()).ranges {
                let start = min(Int(range.startByte), size)
                let stop = min(start + Int(range.lengthBytes), size)
                guard start < stop else { continue }
                let blocks = (UInt64(stop - start) + 4095) >> 12
                let part = BlockRange(start: range.start, count: blocks)
                bytes.put(try end.read(part, of: image)[..<(stop - start)], at: start)
            }
            next[image] = bytes
        }
        content = next
        isBetween = false
        if let info {
            snapshots[info.name] = next
            checkpoint = max(checkpoint, info.sequence)
        }
        _ = stream.withLegs(id) { $0.commitFirst() }
    }
}

/// What a leg ends in: a snapshot, or the head.
private struct ShippedState {
    var sizes: [ImageID: Int] = [:]
    private var reads: [ImageID: (UnsafeMutableRawBufferPointer, UInt64) throws -> Int] = [:]

    init(_ volume: Volume) {
        for image in volume.imageIDs.compactMap({ try? volume.image($0) }) {
            sizes[image.id] = Int(image.sizeBytes)
            reads[image.id] = { try image.read(into: $0, at: $1) }
        }
    }

    init(_ volume: Volume, _ nodes: [SnapshotNode]) throws {
        for node in nodes {
            guard let id = node.node.imageID, let layer = node.layerID else { continue }
            let view = try volume.openView(layer, sizeBytes: node.sizeBytes)
            sizes[id] = Int(node.sizeBytes)
            reads[id] = { try view.read(into: $0, at: $1) }
        }
    }

    /// Zeros behind the end.
    func read(_ range: BlockRange, of image: ImageID) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(range.lengthBytes))
        if let read = reads[image] {
            _ = try bytes.withUnsafeMutableBytes { try read($0, range.startByte) }
        }
        return bytes
    }
}

extension [UInt8] {
    fileprivate mutating func resize(to count: Int) {
        if count < self.count {
            removeLast(self.count - count)
        } else {
            self += [UInt8](repeating: 0, count: count - self.count)
        }
    }

    fileprivate mutating func put(_ bytes: ArraySlice<UInt8>, at offset: Int) {
        guard !bytes.isEmpty else { return }
        withUnsafeMutableBytes { all in
            bytes.withUnsafeBytes {
                UnsafeMutableRawBufferPointer(rebasing: all[offset..<offset + $0.count])
                    .copyMemory(from: $0)
            }
        }
    }
}

/// Keeps the dirty files of shadows as the owner of targets does.
final class ShadowKeeper: TargetKeeper, @unchecked Sendable {  // one thread, or the structure lock
    let shadows: [ShadowTarget]
    private(set) var stream: WriteStream!
    private var store: PoolStore!
    let capacityBytes: Int
    /// Seeded bugs.
    var forgetsFile = false

    init(count: Int, capacityBytes: Int) {
        shadows = (1...count).map { ShadowTarget(id: Int64($0)) }
        self.capacityBytes = capacityBytes
    }

    /// Attaches the shadows to a volume that was just opened.
    func attach(_ store: PoolStore, _ volume: Volume) throws {
        self.store = store
        stream = volume.attachStream(capacityBytes: capacityBytes)
        let snapshots = try store.catalog.read { try $0.snapshots() }
            .filter { $0.state == .complete && $0.isOfWholePool }
        let suspects = volume.suspects()
        for shadow in shadows {
            let path = store.dirtyPath(target: shadow.id)
            guard
                let (file, state) = try DirtyFile.open(
                    disk: store.disk, path: path, target: shadow.id)
            else {
                stream.attachTracking(shadow.id)
                shadow.file = try DirtyFile.create(
                    disk: store.disk, path: path, target: shadow.id,
                    self.state(.zero, stream.wholeState(shadow.id, upTo: .zero)))
                continue
            }
            shadow.file = file
            var legs = DirtyLegs(state.legs) { cut in
                snapshots.first { $0.sequence == cut }.map {
                    SnapshotInfo(
                        name: $0.name, createdNs: $0.createdNs, origin: $0.origin,
                        sequence: $0.sequence)
                }
            }
            legs.enterUnknown(suspects)
            guard shadow.checkpoint >= state.acknowledged else {
                throw Violation("the file knows more than the target said")
            }
            stream.attachTracking(shadow.id, legs: legs, durable: state.acknowledged)
        }
        volume.attach(self)
    }

    private func state(_ durable: SequenceNumber, _ legs: [DirtyLegState]) -> DirtyFileState {
        DirtyFileState(acknowledged: durable, incarnation: 1, legs: legs)
    }

    func secure(upTo sequence: SequenceNumber) throws(VolumeError) {
        if forgetsFile { return }
        for shadow in shadows {
            do {
                let file = shadow.file!
                let durable = stream.standing(shadow.id)!.durable
                if file.wantsRewrite {
                    try file.rewrite(
                        state(durable, stream.wholeState(shadow.id, upTo: sequence)))
                } else {
                    try file.append(
                        state(durable, stream.takeUnwritten(shadow.id, upTo: sequence)))
                }
            } catch {
                stream.markUnwritten(shadow.id)
                throw VolumeError(.io, "\(error)")
            }
        }
    }

    func letGo(of cut: SequenceNumber) {}
}
