// What is lost when a mirror takes over now: what the old primary may have acknowledged, and the mirror
// lacks.
//
//   the old primary's directory can be read        exact: the blocks that may differ are compared
//   it is in use                                   what its owner knows at this moment; it goes on
//   it cannot be read                              a bound: since when nobody knows
//
// In a bound nothing is guessed: it says from when on something may be missing, and what is known to be.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import Volume

package struct LossPreview: Codable, Sendable, Hashable {
    package enum Knowledge: String, Codable, Sendable {
        /// All that is listed differs, and nothing else does.
        case exact
        /// At least what is listed is missing, and it becomes more.
        case growing
        case unknown
    }

    package struct LostFile: Codable, Sendable, Hashable {
        package var path: String
        /// "changed", "added" (missing in the mirror), "removed" (still in the mirror).
        package var change: String
        package var ranges: Int
        package var bytes: UInt64
    }

    package var knowledge: Knowledge
    /// Where the old primary is, as far as it said.
    package var primary: String?
    /// For people: how this is known, or why not.
    package var reason: String
    package var images: [LostFile] = []
    package var bytes: UInt64 = 0
    /// What the mirror holds is from then.
    package var fromNs: Int64
    /// The old primary changed last what is missing; nil where that is not known.
    package var throughNs: Int64?
    /// Since when acknowledgements were given without this mirror; nil where nobody says so.
    package var staleSinceNs: Int64?
    /// What for, where another copy was told.
    package var staleReason: String?
    /// The copy that knows it.
    package var staleToldBy: String?
    /// When the mirror heard of its primary last.
    package var heardNs: Int64?

    /// The primary has ended, and nothing is missing.
    package var isNothing: Bool { knowledge == .exact && images.isEmpty }
    package var seconds: Double? {
        // Files may have any time.
        throughNs.map { max(Double($0) - Double(fromNs), 0) / 1e9 }
    }
}

extension LossPreview {
    /// Another copy was told that this one is stale.
    mutating func add(_ told: OtherCopies.Told?) {
        // Where the old primary can be read, what is missing is known exactly.
        guard let told, knowledge != .exact else { return }
        staleSinceNs = staleSinceNs ?? told.stale.sinceNs
        staleReason = told.stale.reason
        staleToldBy = told.address
    }

    static func make(_ mirror: RecoveredMirror, own poolID: String, _ path: String) throws
        -> LossPreview
    {
        let record = mirror.record
        let view = try mirror.newestView()
        defer { view.release() }
        var preview = LossPreview(
            knowledge: .unknown, primary: record.primaryAddress, reason: "",
            fromNs: lastChange(of: mirror, view), heardNs: record.heardNs)
        guard let address = record.primaryAddress else {
            preview.reason = "it is not known where the old primary is"
            return preview
        }
        guard let sight = PoolSight.look(at: address, disk: LinuxDisk()) else {
            preview.reason = "the old primary at \(address) cannot be read"
            return preview
        }
        guard sight.poolID == record.primaryPoolID else {
            preview.reason = "at \(address) is another pool than the old primary"
            return preview
        }
        do {
            if sight.isInUse {
                try preview.ask(ownerOf: address, about: path)
            } else {
                try preview.compare(address, with: view, poolID)
            }
        } catch {
            preview.images = []
            preview.bytes = 0
            preview.knowledge = .unknown
            preview.reason = "the old primary at \(address) cannot be examined: \(error)"
        }
        return preview
    }

    /// When the last change was made that the mirror shows, by the primary's clock.
    static func lastChange(of mirror: RecoveredMirror, _ view: MirrorView) -> Int64 {
        let times = view.nodes.map { node in
            let image = node.node.imageID.flatMap { try? mirror.volume.image($0) }
            return max(node.node.modifyNs, node.node.changeNs, image?.modifiedNs ?? 0)
        }
        return min(times.max() ?? view.atNs, view.atNs)
    }

    // MARK: In use

    private mutating func ask(ownerOf address: String, about path: String) throws {
        let disk = LinuxDisk()
        reason = "the old primary at \(address) is in use: what it does from now on is not here"
        guard let socket = PoolStore.readOwner(path: address, disk: disk)?.socketPath else {
            return
        }
        let status = try ControlClient(path: socket).send(ControlRequest(.status)).status
        guard let target = status?.targets.first(where: { $0.address == path }) else { return }
        knowledge = .growing
        bytes = target.atRiskBytes
        staleSinceNs = target.staleSinceNs
        throughNs = disk.now()
    }

    // MARK: Not in use

    private mutating func compare(_ address: String, with view: MirrorView, _ own: String) throws {
        var options = PoolSession.Options()
        options.isReadOnly = true
        let session = try PoolSession(path: address, options: options)
        defer { try? session.close() }
        let suspects = try session.blocksLacking(in: own)
        var nodes: [ImageID: SnapshotNode] = [:]
        for node in view.nodes { if let image = node.node.imageID { nodes[image] = node } }
        var last: Int64 = 0
        let volume = session.volume
        for id in volume.imageIDs {
            let image = try volume.image(id)
            let path = session.fileSystem.path(of: id) ?? "image \(id.rawValue)"
            guard let node = nodes.removeValue(forKey: id) else {
                add(LostFile(path: path, change: "added", ranges: 1, bytes: image.allocatedBytes))
                last = max(last, image.modifiedNs)
                continue
            }
            let differing = try Self.differing(
                image, try view.open(node), within: suspects[id] ?? BlockSet())
            guard !differing.isEmpty || image.sizeBytes != node.sizeBytes else { continue }
            last = max(last, image.modifiedNs)
            add(
                LostFile(
                    path: path, change: "changed", ranges: differing.ranges.count,
                    bytes: differing.count * Geometry.blockSizeBytes))
        }
        let names = NameTreePaths(view.nodes.map(\.node))
        for node in nodes.values {
            add(
                LostFile(path: names.path(of: node.node.id), change: "removed", ranges: 0, bytes: 0)
            )
        }
        images.sort { $0.path < $1.path }
        knowledge = .exact
        throughNs = images.isEmpty ? fromNs : max(last, fromNs)
        staleSinceNs = try session.staleSince(own)
        reason =
            images.isEmpty
            ? "the old primary at \(address) has ended, and has nothing that is not here"
            : "compared with the old primary at \(address)"
    }

    private mutating func add(_ image: LostFile) {
        images.append(image)
        bytes += image.bytes
    }

    private static func differing(
        _ image: Image, _ mirrored: LayerView?, within blocks: BlockSet
    ) throws -> BlockSet {
        var result = BlockSet()
        let size = Int(Geometry.regionSizeBytes)
        let (a, b) = (
            UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096),
            UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096)
        )
        defer {
            a.deallocate()
            b.deallocate()
        }
        for range in blocks.ranges {
            var start = range.start
            while start < range.end {
                let count = min(range.end - start, Geometry.blocksPerRegion)
                let bytes = Int(count * Geometry.blockSizeBytes)
                let (one, other) = (
                    UnsafeMutableRawBufferPointer(rebasing: a[..<bytes]),
                    UnsafeMutableRawBufferPointer(rebasing: b[..<bytes])
                )
                for buffer in [one, other] {
                    buffer.initializeMemory(as: UInt8.self, repeating: 0)
                }
                let offset = start << Geometry.blockShift
                _ = try image.read(into: one, at: offset)
                _ = try mirrored?.read(into: other, at: offset)
                for index in 0..<Int(count) {
                    let block = index * 4096..<(index + 1) * 4096
                    let mine = UnsafeRawBufferPointer(rebasing: one[block])
                    guard !mine.hasSameBytes(as: UnsafeRawBufferPointer(rebasing: other[block]))
                    else { continue }
                    result.insert(BlockRange(start: start + UInt64(index), count: 1))
                }
                start += count
            }
        }
        return result
    }
}

extension PoolSession {
    /// What a target may lack, as the pool's own dirty file and an unclean end have it.
    fileprivate func blocksLacking(in poolID: String) throws -> [ImageID: BlockSet] {
        var blocks = volume.suspects()
        let target = try store.catalog.read { try $0.targets() }.first { $0.poolID == poolID }
        let opened = try target.flatMap {
            try DirtyFile.open(
                disk: store.disk, path: store.dirtyPath(target: $0.id), target: $0.id)
        }
        guard let opened else {
            for id in volume.imageIDs {
                let size = try volume.image(id).sizeBytes
                let count = Geometry.blockCount(sizeBytes: size)
                blocks.insert(BlockRange(start: 0, count: count), of: id)
            }
            return blocks
        }
        opened.file.close()
        for leg in opened.state.legs { blocks.formUnion(leg.blocks) }
        return blocks
    }

    fileprivate func staleSince(_ poolID: String) throws -> Int64? {
        try store.catalog.read { try $0.targets() }.first { $0.poolID == poolID }?.stale?.sinceNs
    }
}

/// Paths of names that no file system shows.
struct NameTreePaths {
    private let nodes: [NodeID: NodeRecord]
    init(_ records: [NodeRecord]) {
        nodes = Dictionary(records.map { ($0.id, $0) }, uniquingKeysWith: { a, _ in a })
    }
    func path(of id: NodeID) -> String {
        var parts: [String] = []
        var next: NodeID? = id
        while let id = next, id != .root, let node = nodes[id], parts.count < 1000 {
            parts.append(String(decoding: node.name, as: UTF8.self))
            next = node.parentID
        }
        return parts.reversed().joined(separator: "/")
    }
}
