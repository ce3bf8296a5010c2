// A target that has much of the pool already: copies of the images that were carried there by hand.
//
//   folder of plain files   adopted, with the images that match by name and size under the pool's ids
//   a pool                  of which that is true already: one that was adopted from the same files
//        └──► demoted: a mirror of this pool, of which nothing is known
//   raw:folder              what is what is written down
//
// Then everything is compared by hash, and what differs travels. A mirror directory keeps what it had as a
// snapshot, `diverged-<time>`; a raw mirror keeps nothing.

import BlockCore
import Pool
import SystemIO
import Targets

enum Seeding {
    /// - Parameter items: every name of the pool, with its size.
    /// - Returns: the target's UUID, and what the person should know.
    static func prepare(
        _ place: TargetAddress, _ items: [SeedItem], for store: PoolStore
    ) throws -> (id: String, note: String) {
        let disk = LinuxDisk()
        let all = items.count { $0.node.imageID != nil }
        if case .raw(let path) = place {
            let (id, matched) = try RawMirror.seed(
                path: path, primaryPoolID: store.identity.id, items: items, disk: disk)
            return (id, note(matched, of: all, path))
        }
        let path = place.path
        if Adoption.interruption(path, disk: disk) != nil {
            // It was cut off in the middle: the plan says which file is to be what.
            _ = try Adoption.adopt(path, ids: AdoptionIDs([:]))
        }
        let matched: Int
        if PoolStore.isPool(path, disk: disk) {
            matched = try matches(ofPool: path, items)
        } else {
            let ids = try self.ids(of: path, items, disk)
            let plan = try Adoption.adopt(path, ids: ids)
            let known = Set(ids.known.values.compactMap(\.image?.rawValue))
            matched = plan.files.count { known.contains($0.imageID ?? 0) }
        }
        let sight = try store.catalog.read { try PoolSight($0) }
        _ = try PoolDemotion.follow(path, sight, at: store.path) { _ in }
        guard let id = PoolSight.look(at: path, disk: disk)?.poolID else {
            throw ControlFailure(.failed, "\(path) cannot be looked into")
        }
        return (id, note(matched, of: all, path))
    }

    private static func note(_ matched: Int, of all: Int, _ path: String) -> String {
        "\(path) has \(matched) of \(all) images by name and size: they are compared by hash, and only what "
            + "differs is sent"
    }

    /// What in a folder of plain files is an image of the pool, by name and size.
    private static func ids(
        of path: String, _ items: [SeedItem], _ disk: LinuxDisk
    ) throws -> AdoptionIDs {
        var known: [String: AdoptionIDs.Pair] = [:]
        for item in items where item.node.id != .root {
            guard let status = try disk.status(path + "/" + item.path) else { continue }
            switch (item.node.kind, status.kind) {
            case (.file, .file) where status.sizeBytes == item.sizeBytes,
                (.directory, .directory), (.symlink, .symlink):
                known[item.path] = AdoptionIDs.Pair(
                    node: item.node.id, image: item.node.imageID)
            default: continue
            }
        }
        // A folder of which nothing matches would be copied to as a whole: that is another thing to ask for.
        guard known.values.contains(where: { $0.image != nil }) else {
            throw ControlFailure(
                .failed,
                "nothing in \(path) is an image of this pool by its name and size: without --seed, a new or "
                    + "empty directory gets it all")
        }
        return AdoptionIDs(known)
    }

    /// - Throws: where the pool has other images under the ids of ours: all of it would be sent.
    private static func matches(ofPool path: String, _ items: [SeedItem]) throws -> Int {
        var nodes: [NodeRecord]?
        guard
            let sight = PoolSight.look(at: path, disk: LinuxDisk(), { nodes = try $0.nodes() }),
            let nodes
        else { throw ControlFailure(.inUse, "the pool \(path) is in use") }
        guard !sight.isReplica else {
            throw ControlFailure(.failed, "\(path) is a mirror: it is added without --seed")
        }
        let theirs = Dictionary(
            paths(of: nodes).map { ($0.path, $0.node) }, uniquingKeysWith: { a, _ in a })
        let common = items.filter {
            $0.node.imageID != nil && theirs[$0.path]?.imageID != nil
        }
        guard !common.isEmpty, common.allSatisfy({ theirs[$0.path]?.imageID == $0.node.imageID })
        else {
            throw ControlFailure(
                .failed,
                "\(path) is a pool whose images are not numbered as this one's: `doppel eject \(path)` gives "
                    + "the plain files, which --seed takes")
        }
        return common.count
    }

    /// Every name with its path in the pool.
    static func paths(of nodes: [NodeRecord]) -> [(path: String, node: NodeRecord)] {
        let byID = Dictionary(nodes.map { ($0.id, $0) }, uniquingKeysWith: { a, _ in a })
        return nodes.compactMap { node in
            var (path, next, depth) = ("", NodeRecord?.some(node), 0)
            while let each = next, each.id != .root {
                let name = String(decoding: each.name, as: UTF8.self)
                path = path.isEmpty ? name : name + "/" + path
                next = each.parentID.flatMap { byID[$0] }
                depth += 1
                if depth > 4096 { return nil }
            }
            return next == nil ? nil : (path, node)
        }
    }
}
