import BlockCore
import GRDB

extension CatalogTransaction {
    // MARK: Snapshots

    package func insertSnapshot(_ snapshot: SnapshotRecord) throws -> SnapshotRecord {
        try execute(
            sql: """
                INSERT INTO snapshots (name, created_ns, sequence, state, origin)
                VALUES (?, ?, ?, ?, ?)
                """,
            arguments: [
                snapshot.name, snapshot.createdNs, Int64(snapshot.sequence.rawValue),
                snapshot.state.rawValue, snapshot.origin,
            ])
        var inserted = snapshot
        inserted.id = SnapshotID(rawValue: db.lastInsertedRowID)
        return inserted
    }
    package func setSnapshotComplete(_ id: SnapshotID, sequence: SequenceNumber) throws {
        try execute(
            sql: "UPDATE snapshots SET state = 1, sequence = ? WHERE id = ?",
            arguments: [Int64(sequence.rawValue), id.rawValue])
    }
    package func deleteSnapshot(_ id: SnapshotID) throws {
        try execute(sql: "DELETE FROM snapshots WHERE id = ?", arguments: [id.rawValue])
    }
    package func renameSnapshot(_ id: SnapshotID, to name: String) throws {
        try execute(
            sql: "UPDATE snapshots SET name = ? WHERE id = ?", arguments: [name, id.rawValue])
    }
    /// Makes an internal snapshot one that users see.
    package func publishSnapshot(_ snapshot: SnapshotRecord) throws {
        try execute(
            sql: """
                UPDATE snapshots SET name = ?, created_ns = ?, sequence = ?, origin = ? WHERE id = ?
                """,
            arguments: [
                snapshot.name, snapshot.createdNs, Int64(bitPattern: snapshot.sequence.rawValue),
                snapshot.origin, snapshot.id.rawValue,
            ])
    }
    package func snapshots() throws -> [SnapshotRecord] {
        try fetchAll(sql: "SELECT * FROM snapshots ORDER BY id", Self.snapshot)
    }
    package func snapshot(named name: String) throws -> SnapshotRecord? {
        try fetchOne(
            sql: "SELECT * FROM snapshots WHERE name = ?", arguments: [name], Self.snapshot)
    }
    private static func snapshot(_ row: Row) -> SnapshotRecord {
        SnapshotRecord(
            id: SnapshotID(rawValue: row["id"]), name: row["name"], createdNs: row["created_ns"],
            sequence: SequenceNumber(rawValue: UInt64(row["sequence"] as Int64)),
            state: SnapshotRecord.State(rawValue: row["state"]) ?? .pending, origin: row["origin"])
    }

    package func replaceSnapshotNodes(_ id: SnapshotID, _ nodes: [SnapshotNode]) throws {
        try execute(
            sql: "DELETE FROM snapshot_nodes WHERE snapshot = ?", arguments: [id.rawValue])
        try insertSnapshotNodes(id, nodes)
    }
    package func insertSnapshotNodes(_ id: SnapshotID, _ nodes: [SnapshotNode]) throws {
        let statement = try db.cachedStatement(
            sql: """
                INSERT INTO snapshot_nodes (snapshot, node, parent, name, kind, mode, uid, gid,
                    access_ns, modify_ns, change_ns, symlink, image, xattrs, layer, size_bytes)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                """)
        for each in nodes {
            let arguments: StatementArguments =
                [id.rawValue] + Self.arguments(each.node)
                + [each.layerID?.rawValue, Int64(each.sizeBytes)]
            try statement.execute(arguments: arguments)
        }
    }
    package func snapshotNodes(_ id: SnapshotID) throws -> [SnapshotNode] {
        try fetchAll(
            sql: "SELECT *, node AS id FROM snapshot_nodes WHERE snapshot = ?",
            arguments: [id.rawValue]
        ) { row in
            SnapshotNode(
                node: Self.node(row),
                layerID: (row["layer"] as Int64?).map { LayerID(rawValue: $0) },
                sizeBytes: UInt64(row["size_bytes"] as Int64))
        }
    }
    package func isReferencedBySnapshots(_ layer: LayerID) throws -> Bool {
        try fetchOne(
            Bool.self, sql: "SELECT EXISTS (SELECT 1 FROM snapshot_nodes WHERE layer = ?)",
            arguments: [layer.rawValue]) ?? false
    }
    package func layersReferencedBySnapshots() throws -> Set<LayerID> {
        Set(
            try fetchAll(
                Int64.self, sql: "SELECT DISTINCT layer FROM snapshot_nodes WHERE layer IS NOT NULL"
            ).map { LayerID(rawValue: $0) })
    }

    // MARK: Names

    package func upsertNode(_ node: NodeRecord) throws {
        try execute(
            sql: """
                INSERT OR REPLACE INTO nodes (id, parent, name, kind, mode, uid, gid, access_ns,
                    modify_ns, change_ns, symlink, image, xattrs)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                """, arguments: Self.arguments(node))
    }
    package func deleteNode(_ id: NodeID) throws {
        try execute(sql: "DELETE FROM nodes WHERE id = ?", arguments: [Int64(id.rawValue)])
    }
    package func deleteAllNodes() throws { try execute(sql: "DELETE FROM nodes") }
    package func apply(_ changes: [NameChange]) throws {
        for change in changes {
            switch change {
            case .put(let node): try upsertNode(node)
            case .remove(let id): try deleteNode(id)
            }
        }
    }
    /// An image has one name at most: others than this node's go, so long as it has one itself.
    /// - Returns: how many there were.
    package func deleteOtherNames(than node: NodeRecord) throws -> Int {
        guard let image = node.imageID else { return 0 }
        try execute(
            sql: "DELETE FROM nodes WHERE image = ?1 AND id <> ?2 "
                + "AND EXISTS (SELECT 1 FROM nodes WHERE id = ?2)",
            arguments: [image.rawValue, Int64(node.id.rawValue)])
        return db.changesCount
    }
    package func nodes() throws -> [NodeRecord] {
        try fetchAll(sql: "SELECT * FROM nodes ORDER BY id", Self.node)
    }
    /// Above every id that was ever committed: ids are not used twice.
    package func nextNodeID() throws -> NodeID {
        let last = try fetchOne(
            Int64.self, sql: "SELECT seq FROM sqlite_sequence WHERE name = 'nodes'")
        return NodeID(rawValue: UInt64(max(last ?? 0, 1)) + 1)
    }

    package func namesSequence() throws -> SequenceNumber {
        SequenceNumber(rawValue: UInt64(try setting("names.sequence") ?? "0") ?? 0)
    }
    package func setNamesSequence(_ sequence: SequenceNumber) throws {
        try setSetting("names.sequence", String(sequence.rawValue))
    }

    // MARK: Rows

    private static func arguments(_ node: NodeRecord) -> StatementArguments {
        [
            Int64(node.id.rawValue), node.parentID.map { Int64($0.rawValue) },
            Blob.encode(node.name), node.kind.rawValue, node.mode, node.uid, node.gid,
            node.accessNs, node.modifyNs, node.changeNs, node.symlinkTarget.map(Blob.encode),
            node.imageID?.rawValue, node.xattrs.isEmpty ? nil : Blob.encode(node.xattrs),
        ]
    }
    private static func node(_ row: Row) -> NodeRecord {
        NodeRecord(
            id: NodeID(rawValue: UInt64(row["id"] as Int64)),
            parentID: (row["parent"] as Int64?).map { NodeID(rawValue: UInt64($0)) },
            name: Blob.bytes(row["name"]), kind: NodeRecord.Kind(rawValue: row["kind"]) ?? .file,
            mode: row["mode"], uid: row["uid"], gid: row["gid"], accessNs: row["access_ns"],
            modifyNs: row["modify_ns"], changeNs: row["change_ns"],
            symlinkTarget: Blob.optionalBytes(row["symlink"]),
            imageID: (row["image"] as Int64?).map { ImageID(rawValue: $0) },
            xattrs: Blob.attributes(row["xattrs"]))
    }
}
