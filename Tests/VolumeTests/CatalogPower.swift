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

    /// Seeded bugs: commits that are durable only when the next one comes.
    enum Forgets {
        case nothing, everyCommit, switchesOfHeads, removalsOfLayers

        func isForgotten(_ old: Tables, _ new: Tables) -> Bool {
            func column(_ name: String, of table: String, in tables: Tables) -> [Int64: Int64?] {
                Dictionary(uniqueKeysWithValues: tables[table]!.map { ($0["id"], $0[name]) })
            }
            switch self {
            case .nothing: return false
            case .everyCommit: return true
            case .switchesOfHeads:
                let heads = column("head", of: "images", in: old)
                let isSwitched = column("head", of: "images", in: new).contains { image, head in
                    heads[image].map { $0 != nil && $0 != head } ?? false
                }
                return isSwitched || new["snapshots"]!.count > old["snapshots"]!.count
            case .removalsOfLayers:
                let left = column("image", of: "layers", in: new)
                return column("image", of: "layers", in: old).keys.contains { left[$0] == nil }
            }
        }
    }

    var disk: SimulatedDisk
    /// Commits that go through before the disk is full, and how many then meet a full disk.
    private var isFull: (after: Int, times: Int)?
    /// Called with the number of each commit since it was set.
    private var whenCommitting: ((Int) throws -> Void)?
    private var commits = 0
    private let forgets: Forgets
    /// What a crash brings back.
    private var before: Tables?
    private var latest: Tables?

    init(disk: SimulatedDisk, forgets: Forgets) {
        self.disk = disk
        self.forgets = forgets
    }

    func observes(eventsOfKind eventKind: DatabaseEventKind) -> Bool { false }
    func databaseDidChange(with event: DatabaseEvent) {}
    func databaseWillCommit() throws {
        commits += 1
        try whenCommitting?(commits)
        if let isFull, commits > isFull.after, commits <= isFull.after + isFull.times {
            throw DatabaseError(resultCode: .SQLITE_FULL, message: "for the test")
        }
        try disk.commit("catalog")
    }

    /// The catalog meets a full disk at some of its next commits.
    func fill(
        after: Int, times: Int, whenCommitting: ((Int) throws -> Void)? = nil
    ) {
        isFull = (after, times)
        commits = 0
        self.whenCommitting = whenCommitting
    }
    func makeRoom() {
        isFull = nil
        whenCommitting = nil
    }
    func databaseDidCommit(_ db: Database) {
        guard forgets != .nothing, let now = try? Self.read(db) else { return }
        let isForgotten = latest.map { forgets.isForgotten($0, now) } ?? false
        // A cut has two commits before it begins.
        let oldest = forgets == .switchesOfHeads ? before : nil
        before = isForgotten ? oldest ?? latest : nil
        latest = now
    }
    func databaseDidRollback(_ db: Database) {}

    private static func read(_ db: Database) throws -> Tables {
        var all: Tables = [:]
        for table in tables { all[table] = try Row.fetchAll(db, sql: "SELECT * FROM \(table)") }
        return all
    }

    /// What the next open finds in the catalog.
    func crash(_ catalog: Catalog) throws {
        makeRoom()
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
