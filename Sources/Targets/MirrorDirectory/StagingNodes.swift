import BlockCore
import Pool
import Volume

/// The nodes of a mirror's own snapshots: the names, and a stand-in for each image that has none yet, so
/// that its layers are kept like the others'.
enum StagingNodes {
    private static let firstID: UInt64 = 1 << 62

    static func isUnnamed(_ node: NodeRecord) -> Bool { node.id.rawValue >= firstID }

    static func all(of volume: Volume) throws(VolumeError) -> [NodeRecord] {
        let named = try volume.catalogNodes()
        let images = Set(named.compactMap(\.imageID))
        return named
            + volume.imageIDs.filter { !images.contains($0) }.map { id in
                NodeRecord(
                    id: NodeID(rawValue: firstID + UInt64(id.rawValue)), parentID: nil, name: [],
                    kind: .file, mode: 0, uid: 0, gid: 0, accessNs: 0, modifyNs: 0, changeNs: 0,
                    imageID: id)
            }
    }
}
