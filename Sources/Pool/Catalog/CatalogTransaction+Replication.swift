import BlockCore
import GRDB

extension CatalogTransaction {
    // MARK: The replica's side

    /// nil: the pool is a primary that never was a replica.
    package func replica() throws -> ReplicaRecord? {
        try fetchOne(sql: "SELECT * FROM replica", Self.replica)
    }
    private static func replica(_ row: Row) throws -> ReplicaRecord {
        let roleText: String = row["role"]
        guard let role = ReplicaRecord.Role(rawValue: roleText) else {
            throw CatalogError(message: "the catalog has an unknown role '\(roleText)'", cause: "")
        }
        var replica = ReplicaRecord(primaryPoolID: row["primary_pool"])
        replica.role = role
        if let number = row["generation"] as Int64? {
            replica.generation = Generation(
                number: UInt64(bitPattern: number), id: row["generation_id"] ?? "",
                parentID: row["generation_parent"],
                startSequence: sequence(row["generation_start"] as Int64?) ?? .zero)
        }
        replica.incarnationID = row["incarnation_id"]
        replica.primaryAddress = row["primary_address"]
        replica.heardNs = row["heard_ns"]
        replica.contentGenerationID = row["content_generation"]
        switch row["divergence"] as String? {
        case nil: break
        case "tracked":
            let target = row["divergence_target"] as Int64?
            replica.divergence = target.map { .tracked(TargetID(rawValue: $0)) } ?? .unknown
        default: replica.divergence = .unknown
        }
        replica.appliedSequence = sequence(row["applied"] as Int64?) ?? .zero
        replica.structureSequence = sequence(row["structure"] as Int64?) ?? .zero
        replica.journalSegment = UInt64(bitPattern: row["journal_segment"] as Int64)
        if let id = row["staging"] as Int64? {
            replica.staging = ReplicaRecord.Staging(
                id: UInt64(bitPattern: id),
                durableBatch: UInt64(bitPattern: row["staging_batch"] as Int64? ?? 0),
                shapeSequence: sequence(row["staging_shape"] as Int64?))
        }
        return replica
    }

    package func setReplica(_ replica: ReplicaRecord) throws {
        let generation = replica.generation
        let staging = replica.staging
        var (divergence, divergenceTarget): (String?, Int64?)
        switch replica.divergence {
        case nil: break
        case .tracked(let target): (divergence, divergenceTarget) = ("tracked", target.rawValue)
        case .unknown: divergence = "unknown"
        }
        try execute(
            sql: """
                INSERT OR REPLACE INTO replica (id, role, primary_pool, generation, generation_id,
                    generation_parent, generation_start, incarnation_id, applied, structure,
                    journal_segment, staging, staging_batch, staging_shape, primary_address,
                    heard_ns, content_generation, divergence, divergence_target)
                VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                """,
            arguments: [
                replica.role.rawValue, replica.primaryPoolID,
                (generation?.number).map(Int64.init(bitPattern:)), generation?.id,
                generation?.parentID, Self.number(generation?.startSequence),
                replica.incarnationID, Self.number(replica.appliedSequence),
                Self.number(replica.structureSequence),
                Int64(bitPattern: replica.journalSegment),
                (staging?.id).map(Int64.init(bitPattern:)),
                (staging?.durableBatch).map(Int64.init(bitPattern:)),
                Self.number(staging?.shapeSequence), replica.primaryAddress, replica.heardNs,
                replica.contentGenerationID, divergence, divergenceTarget,
            ])
    }

    static func sequence(_ number: Int64?) -> SequenceNumber? {
        number.map { SequenceNumber(rawValue: UInt64(bitPattern: $0)) }
    }
    static func number(_ sequence: SequenceNumber?) -> Int64? {
        (sequence?.rawValue).map(Int64.init(bitPattern:))
    }

    // MARK: The primary's side

    private static let targetColumns = [
        "address", "pool", "mode", "timeout_ms", "history_ms", "added_ns", "paused", "stale_ns",
        "stale_sequence", "stale_reason", "on_timeout", "armed", "interval_ms", "latency_budget_us",
        "rate",
        "rpo_ms", "rpo_bytes", "on_rpo", "whole", "keep_diverged", "compress",
    ]
    private static func arguments(_ target: TargetRecord) -> StatementArguments {
        [
            target.address, target.poolID, target.mode.rawValue, target.timeoutMs,
            target.historyMs, target.addedNs, target.isPaused, target.stale?.sinceNs,
            number(target.stale?.sequence), target.stale?.reason,
        ] + [
            target.onTimeout.rawValue, target.isArmed, target.intervalMs, target.latencyBudgetUs,
            target.rateBytesPerSecond, target.rpoMs, target.rpoBytes, target.onRPO.rawValue,
            target.isWhole, target.keepsDiverged, target.compress.rawValue,
        ]
    }

    package func insertTarget(_ target: TargetRecord) throws -> TargetID {
        let marks = Self.targetColumns.map { _ in "?" }.joined(separator: ", ")
        try execute(
            sql: """
                INSERT INTO targets (\(Self.targetColumns.joined(separator: ", ")))
                VALUES (\(marks))
                """, arguments: Self.arguments(target))
        return TargetID(rawValue: db.lastInsertedRowID)
    }
    package func updateTarget(_ target: TargetRecord) throws {
        let changes = Self.targetColumns.map { $0 + " = ?" }.joined(separator: ", ")
        try execute(
            sql: "UPDATE targets SET \(changes) WHERE id = ?",
            arguments: Self.arguments(target) + [target.id.rawValue])
    }
    static func stale(_ row: Row) -> TargetRecord.Stale? {
        guard let sinceNs = row["stale_ns"] as Int64? else { return nil }
        return TargetRecord.Stale(
            sinceNs: sinceNs, sequence: sequence(row["stale_sequence"] as Int64?) ?? .zero,
            reason: row["stale_reason"] ?? "")
    }
    package func deleteTarget(_ id: TargetID) throws {
        try execute(sql: "DELETE FROM targets WHERE id = ?", arguments: [id.rawValue])
        if try setting("fence.target") == String(id.rawValue) { try clearFence() }
    }

    package func clearFence() throws {
        try execute(sql: "DELETE FROM settings WHERE key IN ('fence.target', 'fence.reason')")
    }
    /// Why the pool takes no changes: a target was given to another primary, and is still one of ours.
    package func fence() throws -> String? { try setting("fence.reason") }
    package func setFence(by id: TargetID, reason: String) throws {
        try setSetting("fence.target", String(id.rawValue))
        try setSetting("fence.reason", reason)
    }
    package func targets() throws -> [TargetRecord] {
        try fetchAll(sql: "SELECT * FROM targets ORDER BY id") { row in
            let (address, modeText): (String, String) = (row["address"], row["mode"])
            guard let mode = TargetRecord.Mode(rawValue: modeText) else {
                throw CatalogError(
                    message: "target \(address) has the unknown mode '\(modeText)'", cause: "")
            }
            var target = TargetRecord(
                id: TargetID(rawValue: row["id"]), address: address, poolID: row["pool"],
                mode: mode, timeoutMs: row["timeout_ms"], historyMs: row["history_ms"],
                addedNs: row["added_ns"], isPaused: row["paused"], stale: Self.stale(row))
            target.onTimeout = try Self.choice(row, "on_timeout")
            target.isArmed = row["armed"]
            target.intervalMs = row["interval_ms"]
            target.latencyBudgetUs = row["latency_budget_us"]
            target.rateBytesPerSecond = row["rate"]
            target.rpoMs = row["rpo_ms"]
            target.rpoBytes = row["rpo_bytes"]
            target.onRPO = try Self.choice(row, "on_rpo")
            target.isWhole = row["whole"]
            target.keepsDiverged = row["keep_diverged"]
            target.compress = try Self.choice(row, "compress")
            return target
        }
    }

    private static func choice<T: RawRepresentable>(
        _ row: Row, _ column: String
    ) throws -> T where T.RawValue == String {
        let text: String = row[column]
        guard let choice = T(rawValue: text) else {
            throw CatalogError(
                message: "target \(row["address"] as String) has the unknown \(column) '\(text)'",
                cause: "")
        }
        return choice
    }
}
