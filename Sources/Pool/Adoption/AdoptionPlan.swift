// What adopting a folder would do, as a value: made by looking alone.

import BlockCore
import SystemIO

package struct AdoptionPlan: Sendable, Codable, Hashable {
    package struct Item: Sendable, Codable, Hashable {
        /// Path inside the folder.
        package var path: String
        package var kind: Int
        package var mode: UInt32
        package var uid: UInt32
        package var gid: UInt32
        package var accessNs: Int64
        package var modifyNs: Int64
        package var changeNs: Int64
        package var sizeBytes: UInt64
        package var symlinkTarget: String?
        package var xattrs: [String: [UInt8]]
        /// Its inode number and, for a file, its image and layer in the new pool.
        package var nodeID: UInt64
        package var imageID: Int64?
        package var layerID: Int64?
    }

    package var root: Item
    package var items: [Item]

    package var files: [Item] { items.filter { $0.imageID != nil } }
    package var totalBytes: UInt64 { files.reduce(0) { $0 + $1.sizeBytes } }
}

/// Ids that files and folders are to have in the pool, because others know them by these; the rest get ids
/// that nobody has.
package struct AdoptionIDs: Sendable {
    package struct Pair: Sendable, Hashable {
        package var node: NodeID
        package var image: ImageID?
        package init(node: NodeID, image: ImageID?) {
            self.node = node
            self.image = image
        }
    }
    /// By path in the folder.
    package var known: [String: Pair]
    package init(_ known: [String: Pair]) { self.known = known }
}

/// Looks through a folder and refuses what cannot be adopted, all reasons at once.
struct AdoptionScan {
    let disk: LinuxDisk
    let folder: String
    private let ids: AdoptionIDs?
    private var items: [AdoptionPlan.Item] = []
    private var reasons: [String] = []
    private var device: UInt64 = 0
    private var inodes: [FileIdentity: String] = [:]

    init(disk: LinuxDisk, folder: String, ids: AdoptionIDs? = nil) {
        self.disk = disk
        self.folder = folder
        self.ids = ids
    }

    mutating func run() throws(PoolError) -> AdoptionPlan {
        do throws(SystemError) {
            guard let status = try disk.status(folder), status.kind == .directory else {
                throw SystemError(operation: "adopt", path: folder, errno: 20)
            }
            device = status.device
            let root = try item("", status)
            try walk("")
            reasons += FileUsers.writers(of: inodes, disk: disk)
            guard reasons.isEmpty else { throw refusal }
            number()
            return AdoptionPlan(root: root, items: items)
        } catch {
            guard reasons.isEmpty else {
                throw PoolError(
                    .refused, "cannot adopt \(folder):\n  " + reasons.joined(separator: "\n  "))
            }
            throw PoolError(error)
        }
    }

    private var refusal: SystemError { SystemError(operation: "adopt", path: folder, errno: 1) }

    private mutating func walk(_ path: String) throws(SystemError) {
        let entries = try disk.list(folder + (path.isEmpty ? "" : "/" + path))
        for entry in entries.sorted(by: { $0.name < $1.name }) {
            let inside = path.isEmpty ? entry.name : path + "/" + entry.name
            if path.isEmpty, Adoption.ownNames.contains(entry.name) { continue }
            guard let status = try disk.status(folder + "/" + inside) else {
                // Not found by the name it was listed under: its bytes are no text, or it is gone.
                if inside.unicodeScalars.contains("\u{FFFD}") {
                    reasons.append("\(inside) has a name that is not UTF-8: rename it")
                }
                continue
            }
            if status.device != device {
                reasons.append("\(inside) is on another file system")
                continue
            }
            switch status.kind {
            case .other: reasons.append("\(inside) is neither a file, a folder nor a symlink")
            case .file where status.linkCount > 1:
                reasons.append("\(inside) has \(status.linkCount) hard links")
            case .file where status.sizeBytes > Geometry.maxImageSizeBytes:
                reasons.append("\(inside) is larger than 64 TiB")
            case _ where path.isEmpty && (inside == ".snapshots" || inside == ".doppel"):
                reasons.append("\(inside) has a name that Doppel uses itself")
            case .directory where PoolStore.isPool(folder + "/" + inside, disk: disk):
                reasons.append("\(inside) is a pool")
            default:
                let item = try item(inside, status)
                if item.symlinkTarget?.unicodeScalars.contains("\u{FFFD}") == true {
                    reasons.append("\(inside) points to a name that is not UTF-8")
                }
                items.append(item)
                if status.kind == .file {
                    inodes[FileIdentity(device: status.device, inode: status.inode)] = inside
                }
                if status.kind == .directory { try walk(inside) }
            }
        }
    }

    private func item(_ path: String, _ status: FileStatus) throws(SystemError) -> AdoptionPlan.Item
    {
        let full = path.isEmpty ? folder : folder + "/" + path
        let kind: NodeRecord.Kind =
            switch status.kind {
            case .directory: .directory
            case .symlink: .symlink
            default: .file
            }
        return AdoptionPlan.Item(
            path: path, kind: kind.rawValue, mode: status.mode, uid: status.uid, gid: status.gid,
            accessNs: status.accessNs, modifyNs: status.modifyNs, changeNs: status.changeNs,
            sizeBytes: status.sizeBytes,
            symlinkTarget: kind == .symlink ? try disk.readSymlink(full) : nil,
            xattrs: try disk.userAttributes(full), nodeID: 1)
    }

    private mutating func number() {
        // Others may give the ids that come next.
        let known = ids?.known ?? [:]
        var image =
            (known.values.compactMap(\.image?.rawValue).max().map { $0 >> 32 + 1 } ?? 0) << 32
        var node = (known.values.map(\.node.rawValue).max().map { $0 >> 32 + 1 } ?? 0) << 32 + 1
        var layer: Int64 = 0
        for index in items.indices {
            let isFile = items[index].kind == NodeRecord.Kind.file.rawValue
            let pair = known[items[index].path]
            node += 1
            items[index].nodeID = pair?.node.rawValue ?? node
            guard isFile else { continue }
            image += 1
            layer += 1
            items[index].imageID = pair?.image?.rawValue ?? image
            items[index].layerID = layer
        }
    }
}
