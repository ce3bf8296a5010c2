// Which generations led here, which other copies there are, and what differs for single images of a
// target.

import BlockCore
import GRDB

/// Another copy of the same content, as far as this one heard of it.
package struct PeerRecord: Sendable, Hashable {
    package var poolID: String
    package var address: String
    /// When it was last heard of.
    package var seenNs: Int64
    /// Acknowledgements were given without it; nil while it was in step.
    package var stale: TargetRecord.Stale?

    package init(
        poolID: String, address: String, seenNs: Int64, stale: TargetRecord.Stale? = nil
    ) {
        self.poolID = poolID
        self.address = address
        self.seenNs = seenNs
        self.stale = stale
    }
}

/// To whom a pool is being handed over, and the generation that begins there.
package struct HandoverRecord: Sendable, Hashable {
    package var poolID: String
    package var address: String
    package var generationID: String

    package init(poolID: String, address: String, generationID: String) {
        self.poolID = poolID
        self.address = address
        self.generationID = generationID
    }
}

/// What is different for one image of a target; nil: as the target has it.
package struct TargetImageRecord: Sendable, Hashable {
    package var targetID: TargetID
    package var imageID: ImageID
    package var mode: String?
    package var onTimeout: String?

    package init(targetID: TargetID, imageID: ImageID, mode: String?, onTimeout: String?) {
        self.targetID = targetID
        self.imageID = imageID
        self.mode = mode
        self.onTimeout = onTimeout
    }
}

extension CatalogTransaction {
    // MARK: Generations

    package func history() throws -> GenerationHistory {
        GenerationHistory(
            try fetchAll(sql: "SELECT * FROM generations") { row in
                GenerationHistory.Entry(
                    generation: Generation(
                        number: UInt64(bitPattern: row["number"] as Int64), id: row["id"],
                        parentID: row["parent"],
                        startSequence: SequenceNumber(
                            rawValue: UInt64(bitPattern: row["start"] as Int64))),
                    poolID: row["pool"], begunNs: row["begun_ns"],
                    cause: GenerationHistory.Cause(rawValue: row["cause"]) ?? .unknown)
            })
    }

    /// What led to the content: where a pool begins to follow another, the other's.
    package func setHistory(_ history: GenerationHistory) throws {
        try execute(sql: "DELETE FROM generations")
        for entry in history.entries { try addGeneration(entry) }
    }

    package func addGeneration(_ entry: GenerationHistory.Entry) throws {
        let generation = entry.generation
        try execute(
            sql: """
                INSERT OR REPLACE INTO generations (number, id, parent, start, pool, begun_ns, cause)
                VALUES (?, ?, ?, ?, ?, ?, ?)
                """,
            arguments: [
                Int64(bitPattern: generation.number), generation.id, generation.parentID,
                Int64(bitPattern: generation.startSequence.rawValue), entry.poolID, entry.begunNs,
                entry.cause.rawValue,
            ])
    }

    /// For a catalog from before generations were kept: the one it is in, and the one before.
    func noteKnownGenerations() throws {
        guard try setting("pool.complete") == "1" else { return }
        let pool = try identity().id
        let replica = try replica()
        let generation =
            replica?.role == .replica ? replica?.generation : try poolState().generation
        guard let generation else { return }
        if let parent = generation.parentID {
            try addGeneration(
                .init(
                    generation: Generation(
                        number: generation.number - 1, id: parent, parentID: nil,
                        startSequence: .zero),
                    poolID: replica?.primaryPoolID ?? pool, begunNs: 0, cause: .unknown))
        }
        try addGeneration(
            .init(
                generation: generation,
                poolID: replica?.role == .replica ? replica?.primaryPoolID ?? pool : pool,
                begunNs: 0, cause: .unknown))
    }

    /// Ids of images and names that are given from here on were given by nobody else who went on from
    /// the same place.
    package func jumpIDs() throws {
        for table in ["images", "nodes"] {
            let last = try lastID(of: table)
            guard last < 1 << 62 else {
                throw CatalogError(message: "the pool has used up its ids (\(last))", cause: "")
            }
            let next = last >> 32 + 1
            try execute(sql: "DELETE FROM sqlite_sequence WHERE name = ?", arguments: [table])
            try execute(
                sql: "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
                arguments: [table, next << 32])
        }
    }

    // MARK: Handing over

    /// The pool is being handed over: until it is known how that ended, it takes no change.
    package func handover() throws -> HandoverRecord? {
        guard let pool = try setting("handover.pool"),
            let address = try setting("handover.address"),
            let id = try setting("handover.generation_id")
        else { return nil }
        return HandoverRecord(poolID: pool, address: address, generationID: id)
    }
    package func setHandover(_ record: HandoverRecord?) throws {
        try db.execute(sql: "DELETE FROM settings WHERE key LIKE 'handover.%'")
        guard let record else { return }
        try setSetting("handover.pool", record.poolID)
        try setSetting("handover.address", record.address)
        try setSetting("handover.generation_id", record.generationID)
    }

    // MARK: Peers

    package func peers() throws -> [PeerRecord] {
        try fetchAll(sql: "SELECT * FROM peers ORDER BY pool") { row in
            PeerRecord(
                poolID: row["pool"], address: row["address"], seenNs: row["seen_ns"],
                stale: Self.stale(row))
        }
    }
    package func setPeer(_ peer: PeerRecord) throws {
        try execute(
            sql: """
                INSERT OR REPLACE INTO peers (pool, address, seen_ns, stale_ns, stale_sequence,
                    stale_reason)
                VALUES (?, ?, ?, ?, ?, ?)
                """,
            arguments: [
                peer.poolID, peer.address, peer.seenNs, peer.stale?.sinceNs,
                Self.number(peer.stale?.sequence), peer.stale?.reason,
            ])
    }
    package func deletePeer(_ poolID: String) throws {
        try execute(sql: "DELETE FROM peers WHERE pool = ?", arguments: [poolID])
    }

    // MARK: Images of targets

    package func targetImages() throws -> [TargetImageRecord] {
        try fetchAll(sql: "SELECT * FROM target_images ORDER BY target, image") { row in
            TargetImageRecord(
                targetID: TargetID(rawValue: row["target"]),
                imageID: ImageID(rawValue: row["image"]), mode: row["mode"],
                onTimeout: row["on_timeout"])
        }
    }
    /// A record that differs in nothing is none.
    package func setTargetImage(_ record: TargetImageRecord) throws {
        guard record.mode != nil || record.onTimeout != nil else {
            return try execute(
                sql: "DELETE FROM target_images WHERE target = ? AND image = ?",
                arguments: [record.targetID.rawValue, record.imageID.rawValue])
        }
        try execute(
            sql: """
                INSERT OR REPLACE INTO target_images (target, image, mode, on_timeout)
                VALUES (?, ?, ?, ?)
                """,
            arguments: [
                record.targetID.rawValue, record.imageID.rawValue, record.mode, record.onTimeout,
            ])
    }
}
