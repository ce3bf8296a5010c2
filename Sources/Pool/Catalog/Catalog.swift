// The one SQLite database of a pool: images and names, layers, snapshots, events.
//
// Invariants
//   C1 A write transaction is durable when `write` returns (WAL, synchronous=FULL): what is told
//      to anyone after it survives power loss.
//   C2 One process has it open (locking_mode=EXCLUSIVE: no shared memory file, no second writer).
//   C3 After a failed commit nothing more is written: the database may not be what it seems. A
//      full disk is not such a failure: what frees it must still be able to commit (G9).
//   C4 It is never on the path of a write, an fsync of data, or an acknowledgement of a stream.

import BlockCore
import GRDB
import Synchronization
import SystemIO

package struct CatalogError: Error, CustomStringConvertible, Sendable {
    package var message: String
    package var cause: String
    /// The disk had no room: nothing was changed, and the same may go through later.
    package var isNoSpace = false
    package var description: String { cause.isEmpty ? message : "\(message): \(cause)" }
}

package final class Catalog: Sendable {
    private let queue: DatabaseQueue
    private let latch = Latch()
    private let isClosed = Atomic(false)

    private final class Latch: @unchecked Sendable {  // `failure` is under `lock`
        private let lock = Lock()
        private var failure: String?
        var current: String? { lock.withLock { failure } }
        func set(_ text: String) { lock.withLock { if failure == nil { failure = text } } }
    }

    private let closes: Bool

    private init(queue: DatabaseQueue, closes: Bool = true) {
        self.queue = queue
        self.closes = closes
    }

    // MARK: Opening

    package static func create(
        at path: String, identity: PoolIdentity
    ) throws(CatalogError) -> Catalog {
        try make(identity: identity, closes: true) {
            try DatabaseQueue(path: path, configuration: configuration)
        }
    }

    /// For tests: the same code on a database in memory, whose commits are atomic. Closing leaves it
    /// as it is: whoever has it opens it again.
    package static func inMemory(identity: PoolIdentity) throws(CatalogError) -> Catalog {
        try make(identity: identity, closes: false) {
            var memory = Configuration()
            memory.foreignKeysEnabled = true
            return try DatabaseQueue(configuration: memory)
        }
    }

    private static func make(
        identity: PoolIdentity, closes: Bool, _ open: () throws -> DatabaseQueue
    ) throws(CatalogError) -> Catalog {
        do {
            let catalog = Catalog(queue: try open(), closes: closes)
            try catalog.queue.write { db in
                try CatalogSchema.create(in: db)
                try CatalogTransaction(db).setIdentity(identity)
            }
            return catalog
        } catch { throw CatalogError(message: "cannot create the catalog", cause: "\(error)") }
    }

    package static func open(at path: String) throws(CatalogError) -> Catalog {
        do {
            let queue = try DatabaseQueue(path: path, configuration: configuration)
            let version = try queue.read { try Int.fetchOne($0, sql: "PRAGMA user_version") ?? 0 }
            guard (1...CatalogSchema.version).contains(version) else {
                throw CatalogError(
                    message: "the catalog has format \(version), this Doppel knows "
                        + "\(CatalogSchema.version)", cause: "")
            }
            if version < CatalogSchema.version {
                try queue.write { try CatalogSchema.upgrade($0, from: version) }
            }
            return Catalog(queue: queue)
        } catch let error as CatalogError { throw error } catch {
            throw CatalogError(message: "cannot open the catalog \(path)", cause: "\(error)")
        }
    }

    private static var configuration: Configuration {
        var configuration = Configuration()
        configuration.foreignKeysEnabled = true
        configuration.prepareDatabase { db in
            try db.execute(sql: "PRAGMA locking_mode = EXCLUSIVE")
            // Exclusive before WAL: that order is what spares the shared-memory file.
            _ = try String.fetchOne(db, sql: "PRAGMA journal_mode = WAL")
            try db.execute(sql: "PRAGMA synchronous = FULL")
        }
        return configuration
    }

    // MARK: Transactions

    package var isFailed: Bool { latch.current != nil }

    package func read<T>(_ body: (CatalogTransaction) throws -> T) throws -> T {
        // There is one connection, for whoever reads and whoever writes (C2): what is read in one go
        // belongs together without a transaction. SQLite's own guard against changes here, query_only,
        // forgets every prepared statement each time it is set.
        try queue.unsafeRead { db in
            // Somebody may look into what was closed underneath.
            guard !isClosed.load(ordering: .relaxed) else {
                throw CatalogError(message: "the catalog is closed", cause: "")
            }
            let changes = db.totalChangesCount
            defer { assert(db.totalChangesCount == changes, "a read changed the catalog") }
            return try body(CatalogTransaction(db))
        }
    }

    /// What there is to do, whatever found no room.
    package static let fullMessage =
        "the store is full: delete snapshots (doppel snapshot delete) or free space"

    /// One transaction, durable on return. What `body` throws is thrown on; a failure of SQLite
    /// itself latches the catalog (C3).
    package func write<T>(_ body: (CatalogTransaction) throws -> T) throws -> T {
        if let failure = latch.current {
            throw CatalogError(
                message: "the catalog failed earlier and takes no changes; check the disk and "
                    + "open the pool again", cause: failure)
        }
        do {
            return try queue.write { try body(CatalogTransaction($0)) }
        } catch let error as DatabaseError {
            // A constraint is the caller's mistake, and a full disk undid the whole transaction:
            // both leave the database as it was. After anything else nobody knows (C3).
            let isWhole = [.SQLITE_CONSTRAINT, .SQLITE_FULL].contains(error.resultCode)
            if !isWhole { latch.set("\(error)") }
            let isNoSpace = error.resultCode == .SQLITE_FULL
            throw CatalogError(
                message: isNoSpace
                    ? Self.fullMessage
                    : "a change of the catalog failed", cause: "\(error)", isNoSpace: isNoSpace)
        }
    }

    package func close() {
        guard closes else { return }
        isClosed.store(true, ordering: .relaxed)
        try? queue.close()
    }
}
