import BlockCore
import Replication
import SystemIO
import TestSupport

@testable import Pool
@testable import Targets

/// A raw mirror on a simulated disk. What it shows is read from its files by their names, without it.
final class RawFixture: TargetFixture {
    private(set) var disk: SimulatedDisk
    let path = "/raw"
    let id: String

    init(disk: SimulatedDisk = SimulatedDisk()) throws {
        self.disk = disk
        id = try RawMirror.create(path: path, primaryPoolID: "primary", disk: disk)
    }

    func open() -> any ReplicaTarget {
        RawMirror(path: path, primaryPoolID: "primary", id: id, disk: disk)
    }

    func losePower(_ random: inout SeededRandom) { disk = disk.crash(&random) }

    func stepBehind(_ target: any ReplicaTarget) throws {}

    func show(_ target: any ReplicaTarget) throws -> ShownPool {
        let raw = target as! RawMirror
        return try read(at: raw.position!, raw.tree!.nodes)
    }

    func showAlone() throws -> ShownPool? {
        let state = try RawFolderState.read(of: path, disk: disk)!
        guard state.isWhole else { return nil }
        let (entries, log) = try RawFolderNames.open(RawFolderNames.path(of: path), disk: disk)
        log.close()
        guard entries.count == 1 else { throw Violation("\(entries.count) entries, and clean") }
        var nodes: [NodeID: NodeRecord] = [:]
        for case .put(let node) in entries[0].names { nodes[node.id] = node }
        return try read(at: state.checkpoint, nodes)
    }

    private func read(
        at sequence: SequenceNumber, _ nodes: [NodeID: NodeRecord]
    ) throws -> ShownPool {
        var shown = ShownPool(sequence: sequence, names: nodes, images: [:])
        var expected: Set<String> = []
        for node in nodes.values where node.id != .root {
            var (path, next) = ("", NodeRecord?.some(node))
            while let each = next, each.id != .root {
                path = "/" + String(decoding: each.name, as: UTF8.self) + path
                next = each.parentID.flatMap { nodes[$0] }
            }
            guard next != nil else { continue }
            expected.insert(path)
            guard let image = node.imageID else { continue }
            shown.images[image] = try disk.readAll(self.path + path)
        }
        let found = try files("")
        guard found == expected else { throw Violation("there are \(found), not \(expected)") }
        return shown
    }

    private func files(_ folder: String) throws -> Set<String> {
        var found: Set<String> = []
        for entry in try disk.list(path + folder) where entry.name != RawFolderState.folderName {
            found.insert(folder + "/" + entry.name)
            if entry.kind == .directory { found.formUnion(try files(folder + "/" + entry.name)) }
        }
        return found
    }

    func snapshots(_ target: any ReplicaTarget) throws -> [SnapshotInfo] { [] }
    func showSnapshot(_ target: any ReplicaTarget, _ info: SnapshotInfo) throws -> ShownPool {
        throw Violation("a raw mirror has no snapshots")
    }
}
