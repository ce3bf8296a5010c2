import GRDB
import TestSupport

@testable import Pool

/// Makes every commit of a catalog in memory a place where the power may go (`SimulatedDisk` D3),
/// and can take commits back, as a catalog would lose them that does not sync.
final class CatalogPower: TransactionObserver {
    private static let tables = [
        "settings", "images", "layers", "snapshots", "nodes", "snapshot_nodes", "merges", "events",
        "sqlite_sequence",
    ]
    typealias Tables = [String: [Row]]

    var disk: SimulatedDisk
    /// Seeded bug: a commit is durable only when the next one comes.
    private let forgetsLast: Bool
    private var before: Tables?
    private var latest: Tables?

    init(disk: SimulatedDisk, forgetsLast: Bool) {
        self.disk = disk
        self.forgetsLast = forgetsLast
    }

    func observes(eventsOfKind eventKind: DatabaseEventKind) -> Bool { false }
    func databaseDidChange(with event: DatabaseEvent) {}
    func databaseWillCommit() throws { try disk.commit("catalog") }
    func databaseDidCommit(_ db: Database) {
        guard forgetsLast else { return }
        before = latest
        latest = try? Self.read(db)
    }
    func databaseDidRollback(_ db: Database) {}

    private static func read(_ db: Database) throws -> Tables {
        var all: Tables = [:]
        for table in tables { all[table] = try Row.fetchAll(db, sql: "SELECT * FROM \(table)") }
        return all
    }

    /// What the next open finds in the catalog.
    func crash(_ catalog: Catalog) throws {
        guard let before else { return }
        try catalog.write { tx in
            try tx.db.execute(sql: "PRAGMA defer_foreign_keys = ON")
            for table in Self.tables { try tx.db.execute(sql: "DELETE FROM \(table)") }
            for table in Self.tables {
                for row in before[table]! {
                    let names = row.columnNames.joined(separator: ", ")
                    let marks = row.map { _ in "?" }.joined(separator: ", ")
                    try tx.db.execute(
                        sql: "INSERT INTO \(table) (\(names)) VALUES (\(marks))",
                        arguments: StatementArguments(row.databaseValues))
                }
            }
        }
    }
}
