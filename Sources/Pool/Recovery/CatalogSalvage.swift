// Reads what can be read of a damaged catalog into a new one.
//
// A page that SQLite cannot make sense of ends the walk through its table: each table is walked from
// both ends, so that what lies before and behind a bad page is kept. An index that contradicts its
// table costs nothing: the new catalog has indexes of its own.

import BlockCore
import Foundation
import GRDB

enum CatalogSalvage {
    /// Every table of a new catalog, with the columns that its rows are ordered by.
    private static func tables(_ db: Database) throws -> [(name: String, key: String)] {
        let names = try String.fetchAll(
            db, sql: "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rootpage"
        ).filter { !$0.hasPrefix("sqlite_") }
        return try names.map { name in
            (name, try db.primaryKey(name).columns.joined(separator: ", "))
        }
    }

    /// - Parameters:
    ///   - source: a copy; it is opened for writing, as SQLite wants it after a crash.
    ///   - atLeast: the highest ids that files in the pool bear: they are not handed out again.
    /// - Returns: tables of which rows may be missing; nil when too little is left for a pool.
    static func rebuild(
        from source: String, to target: String, atLeast: (image: Int64, layer: Int64)
    ) -> [String]? {
        var configuration = Configuration()
        configuration.foreignKeysEnabled = false
        guard let old = try? DatabaseQueue(path: source, configuration: configuration),
            let new = try? DatabaseQueue(path: target, configuration: configuration)
        else { return nil }
        defer {
            try? old.close()
            try? new.close()
        }
        var incomplete: [String] = []
        do {
            try new.write { try CatalogSchema.create(in: $0) }
            for table in try new.read(tables) where isThere(table.name, in: old) {
                let (rows, isWhole) = walk(table, in: old)
                if !isWhole { incomplete.append(table.name) }
                try new.write { db in
                    for row in rows {
                        let names = row.columnNames.map { "\"\($0)\"" }.joined(separator: ", ")
                        let marks = row.columnNames.map { _ in "?" }.joined(separator: ", ")
                        try db.execute(
                            sql: "INSERT OR IGNORE INTO \(table.name) (\(names)) VALUES (\(marks))",
                            arguments: StatementArguments(row.databaseValues))
                    }
                }
            }
            let sequence = walk(("sqlite_sequence", "rowid"), in: old).rows
            return try new.write { db in
                for (table, floor) in [
                    ("images", atLeast.image), ("layers", atLeast.layer), ("nodes", 0),
                    ("snapshots", 0), ("targets", 0),
                ] {
                    let known =
                        sequence.first { ($0["name"] as String?) == table }?["seq"] as Int64? ?? 0
                    let inTable =
                        try Int64.fetchOne(db, sql: "SELECT max(id) FROM \(table)") ?? 0
                    try db.execute(
                        sql: "DELETE FROM sqlite_sequence WHERE name = ?", arguments: [table])
                    try db.execute(
                        sql: "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
                        arguments: [table, max(known, inTable, floor)])
                }
                return try isPool(db) ? incomplete : nil
            }
        } catch { return nil }
    }

    /// A catalog of an earlier version lacks tables, and nothing of it is lost by that.
    private static func isThere(_ table: String, in queue: DatabaseQueue) -> Bool {
        (try? queue.read { try $0.tableExists(table) }) ?? true
    }

    private static func isPool(_ db: Database) throws -> Bool {
        let identity = try? CatalogTransaction(db).identity()
        let nodes = try Int.fetchOne(db, sql: "SELECT count(*) FROM nodes WHERE id = 1") ?? 0
        return identity != nil && nodes == 1
    }

    private static func walk(
        _ table: (name: String, key: String), in queue: DatabaseQueue
    ) -> (rows: [Row], isWhole: Bool) {
        func read(_ order: String) -> (rows: [Row], isWhole: Bool) {
            var rows: [Row] = []
            do {
                try queue.read { db in
                    let cursor = try Row.fetchCursor(
                        db, sql: "SELECT * FROM \(table.name) NOT INDEXED ORDER BY \(order)")
                    while let row = try cursor.next() { rows.append(row.copy()) }
                }
                return (rows, true)
            } catch { return (rows, false) }
        }
        let forward = read(table.key)
        if forward.isWhole { return forward }
        let descending = table.key.split(separator: ",").map { "\($0) DESC" }
        let backward = read(descending.joined(separator: ", "))
        return (forward.rows + backward.rows, false)
    }
}

extension Catalog {
    /// What SQLite itself finds wrong with the database, at most a few lines.
    func integrityProblems() -> [String] {
        do {
            return try read { tx in
                try String.fetchAll(tx.db, sql: "PRAGMA integrity_check(10)").filter { $0 != "ok" }
            }
        } catch { return ["\(error)"] }
    }
}
