// Seeded random operations on a real volume against arrays of bytes. A failure names its seed;
// DOPPEL_SEED=n replays it, DOPPEL_SOAK=n runs n times as many.

import BlockCore
import Foundation
import Pool
import SystemIO
import TestSupport
import Testing
import Volume

/// A pool in a temporary folder and what it has to hold.
final class CheckedVolume {
    static let maxBytes = 1 << 20
    let path: String
    var random: SeededRandom
    var store: PoolStore
    var volume: Volume
    var images: [ImageID: [UInt8]] = [:]
    var snapshots: [String: [ImageID: [UInt8]]] = [:]
    var nextName = 0

    init(seed: UInt64) throws {
        random = SeededRandom(seed: seed)
        path = NSTemporaryDirectory() + "doppel-volume-\(UUID().uuidString)"
        try PoolStore.initialize(path: path, disk: LinuxDisk())
        store = try PoolStore.open(path: path, disk: LinuxDisk())
        volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        for _ in 0..<2 { images[try volume.createImage().id] = [] }
    }

    func remove() { try? FileManager.default.removeItem(atPath: path) }

    func anyImage() -> ImageID { images.keys.sorted().randomElement(using: &random)! }
    func pick(_ limit: Int) -> Int { Int.random(in: 0..<max(limit, 1), using: &random) }

    // MARK: Operations

    func step() throws {
        switch pick(100) {
        case 0..<45: try write()
        case 45..<55: try trim()
        case 55..<60: try resize()
        case 60..<68: try volume.image(anyImage()).flush()
        case 68..<76: try compareOne(anyImage())
        case 76..<82: try snapshot()
        case 82..<86: try deleteSnapshot()
        case 86..<89: try restore()
        case 89..<91: try clone()
        case 91..<95: _ = try volume.mergeStep()
        case 95..<98: _ = try volume.coverNextLayer()
        default: try reopen()
        }
    }

    private func write() throws {
        let id = anyImage()
        let length = pick(4) == 0 ? 1 + pick(200_000) : 1 + pick(9000)
        var offset = pick(Self.maxBytes - length)
        if pick(3) == 0 { offset &= ~4095 }
        let value = UInt8.random(in: 1...255, using: &random)
        let bytes = (0..<length).map { UInt8(truncatingIfNeeded: $0) &+ value }
        let image = try volume.image(id)
        try bytes.withUnsafeBytes { try image.write($0, at: UInt64(offset)) }
        if images[id]!.count < offset + length {
            images[id]! += [UInt8](repeating: 0, count: offset + length - images[id]!.count)
        }
        images[id]!.replaceSubrange(offset..<offset + length, with: bytes)
    }

    private func trim() throws {
        let id = anyImage()
        let offset = pick(Self.maxBytes)
        let length = 1 + pick(pick(3) == 0 ? Self.maxBytes : 20_000)
        let image = try volume.image(id)
        if pick(2) == 0 {
            try image.trim(at: UInt64(offset), length: UInt64(length))
        } else {
            try image.zero(at: UInt64(offset), length: UInt64(length), keepSize: true)
        }
        let end = min(offset + length, images[id]!.count)
        if offset < end {
            images[id]!.replaceSubrange(
                offset..<end, with: repeatElement(0, count: end - offset))
        }
    }

    private func resize() throws {
        let id = anyImage()
        let size = pick(Self.maxBytes)
        try volume.image(id).resize(to: UInt64(size))
        if size < images[id]!.count {
            images[id]!.removeSubrange(size...)
        } else {
            images[id]! += [UInt8](repeating: 0, count: size - images[id]!.count)
        }
    }

    func nodes(_ ids: [ImageID]) -> [NodeRecord] {
        ids.map { id in
            NodeRecord(
                id: NodeID(rawValue: UInt64(id.rawValue) + 1), parentID: .root,
                name: Array("\(id.rawValue)".utf8), kind: .file, mode: 0o644, uid: 0, gid: 0,
                accessNs: 0, modifyNs: 0, changeNs: 0, imageID: id)
        }
    }

    private func snapshot() throws {
        guard snapshots.count < 6 else { return }
        nextName += 1
        let all = nodes(images.keys.sorted())
        _ = try volume.createSnapshot(name: "s\(nextName)") { { all } }
        snapshots["s\(nextName)"] = images
    }

    private func deleteSnapshot() throws {
        guard let name = snapshots.keys.sorted().randomElement(using: &random) else { return }
        try volume.deleteSnapshot(name: name)
        snapshots[name] = nil
    }

    func content(_ name: String) throws -> [ImageID: SnapshotNode] {
        let record = try volume.snapshot(named: name)
        let nodes = try store.catalog.read { try $0.snapshotNodes(record.id) }
        return Dictionary(uniqueKeysWithValues: nodes.map { ($0.node.imageID!, $0) })
    }

    private func restore() throws {
        let id = anyImage()
        guard snapshots.count < 6,
            let name = snapshots.filter({ $0.value[id] != nil }).keys.sorted()
                .randomElement(using: &random)
        else { return }
        let source = try #require(try content(name)[id])
        nextName += 1
        try volume.restore(
            image: id, to: try #require(source.layerID), sizeBytes: source.sizeBytes,
            keepAs: "s\(nextName)", nodes: nodes([id]))
        snapshots["s\(nextName)"] = [id: images[id]!]
        images[id] = snapshots[name]![id]
    }

    private func clone() throws {
        let id = anyImage()
        guard images.count < 5,
            let name = snapshots.filter({ $0.value[id] != nil }).keys.sorted()
                .randomElement(using: &random)
        else {
            if images.count > 3 {
                try volume.deleteImage(id)
                images[id] = nil
            }
            return
        }
        let source = try #require(try content(name)[id])
        let image = try volume.clone(
            layer: try #require(source.layerID), sizeBytes: source.sizeBytes)
        images[image.id] = snapshots[name]![id]
    }

    private func reopen() throws {
        try volume.close()
        try store.close(clean: true, lastSequence: volume.sequence)
        store = try PoolStore.open(path: path, disk: LinuxDisk())
        #expect(!store.wasUnclean)
        volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
        try compareAll()
    }

    // MARK: Comparing

    func compareOne(_ id: ImageID) throws {
        let expected = images[id]!
        let image = try volume.image(id)
        try #require(image.sizeBytes == UInt64(expected.count), "size of image \(id.rawValue)")
        var bytes = [UInt8](repeating: 0xee, count: expected.count + 100)
        let got = try bytes.withUnsafeMutableBytes { try image.read(into: $0, at: 0) }
        try #require(got == expected.count)
        try requireEqual(Array(bytes[..<got]), expected, "image \(id.rawValue)")
    }

    func compareAll() throws {
        for id in images.keys { try compareOne(id) }
        for (name, expected) in snapshots {
            let nodes = try content(name)
            for (id, bytes) in expected {
                let node = try #require(nodes[id])
                let view = try volume.openView(
                    try #require(node.layerID), sizeBytes: node.sizeBytes)
                try #require(node.sizeBytes == UInt64(bytes.count))
                var read = [UInt8](repeating: 0xee, count: bytes.count)
                let got = try read.withUnsafeMutableBytes { try view.read(into: $0, at: 0) }
                try #require(got == bytes.count)
                try requireEqual(read, bytes, "image \(id.rawValue) in snapshot \(name)")
            }
        }
    }

    private func requireEqual(_ a: [UInt8], _ b: [UInt8], _ what: String) throws {
        if a == b { return }
        let at = zip(a, b).enumerated().first { $0.element.0 != $0.element.1 }?.offset ?? -1
        Issue.record("\(what) differs at byte \(at) (block \(at / 4096))")
        throw Difference()
    }
    struct Difference: Error {}
}

@Suite struct RandomOperationsTests {
    static let seeds: [UInt64] = {
        let environment = ProcessInfo.processInfo.environment
        if let seed = environment["DOPPEL_SEED"].flatMap(UInt64.init) { return [seed] }
        return (1...UInt64(4 * (Int(environment["DOPPEL_SOAK"] ?? "1") ?? 1))).map { $0 }
    }()

    @Test(arguments: seeds)
    func everyOperationLeavesWhatTheModelSays(seed: UInt64) throws {
        let checked = try CheckedVolume(seed: seed)
        defer { checked.remove() }
        for step in 0..<250 {
            do { try checked.step() } catch {
                Issue.record("seed \(seed), step \(step): \(error)")
                return
            }
        }
        try checked.compareAll()
        while try checked.volume.mergeStep() {}
        try checked.compareAll()
        while try checked.volume.coverNextLayer() {}
        #expect(try checked.volume.scrub().damaged.isEmpty)
        try checked.compareAll()
        try checked.volume.close()
        try checked.store.close(clean: true, lastSequence: checked.volume.sequence)
    }
}
