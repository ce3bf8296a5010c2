import BlockCore
import GRDB

/// Rows of the catalog, inside one transaction. Valid only in the closure it is handed to.
package final class CatalogTransaction {
    let db: Database
    init(_ db: Database) { self.db = db }

    // MARK: Statements, which stay prepared: most of what a small one costs is reading its text

    func execute(sql: String, arguments: StatementArguments = StatementArguments()) throws {
        try db.cachedStatement(sql: sql).execute(arguments: arguments)
    }
    /// What is made of each row, while it is the statement's: a row that is copied out of it costs many
    /// times as much, and a column that is asked for by name more again.
    func fetchAll<T>(
        sql: String, arguments: StatementArguments = StatementArguments(),
        _ make: (Row) throws -> T
    ) throws -> [T] {
        let rows = try Row.fetchCursor(try db.cachedStatement(sql: sql), arguments: arguments)
        var all: [T] = []
        while let row = try rows.next() { all.append(try make(row)) }
        return all
    }
    func fetchOne<T>(
        sql: String, arguments: StatementArguments = StatementArguments(),
        _ make: (Row) throws -> T
    ) throws -> T? {
        let rows = try Row.fetchCursor(try db.cachedStatement(sql: sql), arguments: arguments)
        // Its end takes the row out of the statement.
        return try withExtendedLifetime(rows) { try rows.next().map(make) }
    }
    func fetchAll<T: DatabaseValueConvertible & StatementColumnConvertible>(
        _ type: T.Type, sql: String, arguments: StatementArguments = StatementArguments()
    ) throws -> [T] {
        try T.fetchAll(try db.cachedStatement(sql: sql), arguments: arguments)
    }
    func fetchOne<T: DatabaseValueConvertible & StatementColumnConvertible>(
        _ type: T.Type, sql: String, arguments: StatementArguments = StatementArguments()
    ) throws -> T? {
        try T.fetchOne(try db.cachedStatement(sql: sql), arguments: arguments)
    }

    // MARK: Settings, identity, state

    package func setting(_ key: String) throws -> String? {
        try fetchOne(String.self, sql: "SELECT value FROM settings WHERE key = ?", arguments: [key])
    }
    package func setSetting(_ key: String, _ value: String) throws {
        try execute(
            sql: "INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)",
            arguments: [key, value])
    }

    /// Of what this pool is to be a copy, while not all of it is there.
    package func unfinishedCopy() throws -> String? { try setting("clone.unfinished") }
    /// - Parameter source: nil: all of it is there.
    package func setUnfinishedCopy(of source: String?) throws {
        if let source { return try setSetting("clone.unfinished", source) }
        try execute(sql: "DELETE FROM settings WHERE key = 'clone.unfinished'")
    }

    package func identity() throws -> PoolIdentity {
        PoolIdentity(
            id: try required("pool.id"), formatVersion: Int(try required("pool.format")) ?? 0,
            createdNs: Int64(try required("pool.created_ns")) ?? 0)
    }
    func setIdentity(_ identity: PoolIdentity) throws {
        try setSetting("pool.id", identity.id)
        try setSetting("pool.format", String(identity.formatVersion))
        try setSetting("pool.created_ns", String(identity.createdNs))
    }

    private func required(_ key: String) throws -> String {
        guard let value = try setting(key) else {
            throw CatalogError(message: "the catalog lacks '\(key)'", cause: "")
        }
        return value
    }

    package func poolState() throws -> PoolState {
        PoolState(
            cleanlyClosed: try setting("state.clean") == "1",
            generation: Generation(
                number: UInt64(try setting("state.generation") ?? "1") ?? 1,
                id: try setting("state.generation_id") ?? "",
                parentID: try setting("state.generation_parent"),
                startSequence: SequenceNumber(
                    rawValue: UInt64(try setting("state.generation_start") ?? "0") ?? 0)),
            incarnation: UInt64(try setting("state.incarnation") ?? "1") ?? 1,
            incarnationID: try setting("state.incarnation_id") ?? "",
            lastSequence: SequenceNumber(
                rawValue: UInt64(try setting("state.sequence") ?? "0") ?? 0))
    }
    package func setPoolState(_ state: PoolState) throws {
        try setSetting("state.clean", state.cleanlyClosed ? "1" : "0")
        try setSetting("state.generation", String(state.generation.number))
        try setSetting("state.generation_id", state.generation.id)
        if let parent = state.generation.parentID {
            try setSetting("state.generation_parent", parent)
        } else {
            try execute(sql: "DELETE FROM settings WHERE key = 'state.generation_parent'")
        }
        try setSetting("state.generation_start", String(state.generation.startSequence.rawValue))
        try setSetting("state.incarnation", String(state.incarnation))
        try setSetting("state.incarnation_id", state.incarnationID)
        try setSetting("state.sequence", String(state.lastSequence.rawValue))
    }

    // MARK: Images

    package func insertImage() throws -> ImageID {
        try execute(sql: "INSERT INTO images DEFAULT VALUES")
        return ImageID(rawValue: db.lastInsertedRowID)
    }
    /// On a replica: an image with the id that its primary gave it. Ids handed out later are above it.
    package func insertImage(_ id: ImageID) throws {
        try execute(sql: "INSERT INTO images (id) VALUES (?)", arguments: [id.rawValue])
    }
    /// A deleted image comes back; it has no head until ``setHead(_:_:)``.
    package func reviveImage(_ image: ImageID) throws {
        try execute(
            sql: "UPDATE images SET deleted = 0, head = NULL WHERE id = ?",
            arguments: [image.rawValue])
    }
    package func images() throws -> [ImageRecord] {
        try fetchAll(sql: "SELECT id, head, deleted FROM images ORDER BY id") { row in
            ImageRecord(
                id: ImageID(rawValue: row["id"]),
                headLayerID: (row["head"] as Int64?).map { LayerID(rawValue: $0) },
                isDeleted: row["deleted"])
        }
    }
    package func setHead(_ image: ImageID, _ layer: LayerID) throws {
        try execute(
            sql: "UPDATE images SET head = ? WHERE id = ?",
            arguments: [layer.rawValue, image.rawValue])
    }
    /// Only where the head is `other` still.
    package func setHead(
        _ image: ImageID, _ layer: LayerID, insteadOf other: LayerID
    ) throws {
        try execute(
            sql: "UPDATE images SET head = ? WHERE id = ? AND head = ?",
            arguments: [layer.rawValue, image.rawValue, other.rawValue])
    }
    package func clearHead(ofImagesWith layer: LayerID) throws {
        try execute(
            sql: "UPDATE images SET head = NULL WHERE head = ?", arguments: [layer.rawValue])
    }
    package func markImageDeleted(_ image: ImageID) throws {
        try execute(
            sql: "UPDATE images SET deleted = 1 WHERE id = ?", arguments: [image.rawValue])
    }
    /// One that still has a name, which no pool does of itself, keeps its row: a pool must be able to open.
    package func deleteImage(_ image: ImageID) throws {
        try execute(
            sql: "DELETE FROM images WHERE id = ?1 AND NOT EXISTS "
                + "(SELECT 1 FROM nodes WHERE image = ?1)",
            arguments: [image.rawValue])
    }

    // MARK: Layers

    package func insertLayer(_ layer: LayerRecord) throws -> LayerID {
        try execute(
            sql: """
                INSERT INTO layers (image, parent, sealed, size_bytes, sealed_sequence)
                VALUES (?, ?, ?, ?, ?)
                """,
            arguments: [
                layer.imageID.rawValue, layer.parentID?.rawValue, layer.isSealed,
                Int64(layer.sizeBytes), Int64(layer.sealedSequence.rawValue),
            ])
        return LayerID(rawValue: db.lastInsertedRowID)
    }
    package func updateLayer(_ layer: LayerRecord) throws {
        try execute(
            sql: """
                UPDATE layers SET image = ?, parent = ?, sealed = ?, size_bytes = ?,
                    sealed_sequence = ? WHERE id = ?
                """,
            arguments: [
                layer.imageID.rawValue, layer.parentID?.rawValue, layer.isSealed,
                Int64(layer.sizeBytes), Int64(layer.sealedSequence.rawValue), layer.id.rawValue,
            ])
    }
    package func deleteLayer(_ id: LayerID) throws {
        try execute(sql: "DELETE FROM layers WHERE id = ?", arguments: [id.rawValue])
    }
    private static let layerColumns = "id, image, parent, sealed, size_bytes, sealed_sequence"

    package func layers() throws -> [LayerRecord] {
        try fetchAll(sql: "SELECT \(Self.layerColumns) FROM layers ORDER BY id", Self.layer)
    }
    package func layer(_ id: LayerID) throws -> LayerRecord? {
        try fetchOne(
            sql: "SELECT \(Self.layerColumns) FROM layers WHERE id = ?",
            arguments: [id.rawValue], Self.layer)
    }
    private static func layer(_ row: Row) -> LayerRecord {
        LayerRecord(
            id: LayerID(rawValue: row[0]), imageID: ImageID(rawValue: row[1]),
            parentID: (row[2] as Int64?).map { LayerID(rawValue: $0) }, isSealed: row[3],
            sizeBytes: UInt64(row[4] as Int64),
            sealedSequence: SequenceNumber(rawValue: UInt64(row[5] as Int64)))
    }

    /// Everything that named `old` names `new` from now on (the end of a merge down).
    package func replaceReferences(to old: LayerID, with new: LayerID) throws {
        let pair: StatementArguments = [new.rawValue, old.rawValue]
        try execute(sql: "UPDATE layers SET parent = ? WHERE parent = ?", arguments: pair)
        try execute(sql: "UPDATE snapshot_nodes SET layer = ? WHERE layer = ?", arguments: pair)
        try execute(sql: "UPDATE images SET head = ? WHERE head = ?", arguments: pair)
    }

    /// The highest place in the sequence that any row tells of.
    package func highestSequence() throws -> SequenceNumber {
        let highest = try fetchOne(
            Int64.self,
            sql: """
                SELECT max((SELECT coalesce(max(sealed_sequence), 0) FROM layers),
                    (SELECT coalesce(max(sequence), 0) FROM snapshots))
                """)
        return max(SequenceNumber(rawValue: UInt64(highest ?? 0)), try namesSequence())
    }

    // MARK: The last ids handed out

    package func lastImageID() throws -> ImageID { ImageID(rawValue: try lastID(of: "images")) }
    package func lastTargetID() throws -> TargetID { TargetID(rawValue: try lastID(of: "targets")) }
    package func lastLayerID() throws -> LayerID { LayerID(rawValue: try lastID(of: "layers")) }

    /// The highest id the table ever had; 0 when it had none.
    func lastID(of table: String) throws -> Int64 {
        try fetchOne(
            Int64.self, sql: "SELECT seq FROM sqlite_sequence WHERE name = ?", arguments: [table])
            ?? 0
    }

    // MARK: Merges and events

    package func setMerge(_ merge: MergeRecord) throws {
        try execute(
            sql: "INSERT OR REPLACE INTO merges (layer, into_layer, direction) VALUES (?, ?, ?)",
            arguments: [
                merge.layerID.rawValue, merge.intoLayerID.rawValue, merge.direction.rawValue,
            ])
    }
    package func deleteMerges(naming layer: LayerID) throws {
        try execute(
            sql: "DELETE FROM merges WHERE layer = ? OR into_layer = ?",
            arguments: [layer.rawValue, layer.rawValue])
    }
    package func merges() throws -> [MergeRecord] {
        try fetchAll(sql: "SELECT * FROM merges ORDER BY layer") { row in
            MergeRecord(
                layerID: LayerID(rawValue: row["layer"]),
                intoLayerID: LayerID(rawValue: row["into_layer"]),
                direction: MergeRecord.Direction(rawValue: row["direction"]) ?? .up)
        }
    }

    /// How many events are kept: the newest.
    package static let eventLimit: Int64 = 10_000

    package func addEvent(_ event: EventRecord) throws {
        try execute(
            sql: "INSERT INTO events (at_ns, kind, subject, message) VALUES (?, ?, ?, ?)",
            arguments: [event.atNs, event.kind, event.subject, event.message])
        try execute(
            sql: "DELETE FROM events WHERE id <= ?",
            arguments: [db.lastInsertedRowID - Self.eventLimit])
    }
    /// The newest first.
    package func events(limit: Int) throws -> [EventRecord] {
        try fetchAll(
            sql: "SELECT * FROM events ORDER BY id DESC LIMIT ?", arguments: [limit], Self.event)
    }
    /// What came after the event with this id, the oldest first.
    package func events(after id: Int64) throws -> [EventRecord] {
        try fetchAll(
            sql: "SELECT * FROM events WHERE id > ? ORDER BY id", arguments: [id], Self.event)
    }
    private static func event(_ row: Row) -> EventRecord {
        var event = EventRecord(
            atNs: row["at_ns"], kind: row["kind"], subject: row["subject"],
            message: row["message"])
        event.id = row["id"]
        return event
    }
}
