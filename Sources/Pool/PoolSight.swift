// What a pool is to others: its id, its role, and the generations that led to its content. From its catalog
// where nobody holds it, otherwise from the file `role`, which its owner keeps.
//
// The file is written when the pool is opened (before anybody can find it in use), and before a change of
// role is committed. So while the pool is held the file may be ahead of the catalog by a change that is
// about to be made, never behind it; and who opens the pool after a crash mends it.

import BlockCore
import Foundation
import SystemIO

package struct PoolSight: Sendable, Hashable, Codable {
    package var poolID: String
    /// As a mirror has it; a pool that never was one is a primary.
    package var isReplica: Bool
    /// The pool that a mirror follows.
    package var primaryPoolID: String?
    package var history: GenerationHistory
    /// Somebody holds the pool: this is what its file says.
    package var isInUse = false

    private enum CodingKeys: CodingKey { case poolID, isReplica, primaryPoolID, history }

    package init(
        poolID: String, isReplica: Bool, primaryPoolID: String?, history: GenerationHistory
    ) {
        self.poolID = poolID
        self.isReplica = isReplica
        self.primaryPoolID = primaryPoolID
        self.history = history
    }

    package init(_ tx: CatalogTransaction) throws {
        let replica = try tx.replica()
        self.init(
            poolID: try tx.identity().id, isReplica: replica?.role == .replica,
            primaryPoolID: replica?.primaryPoolID, history: try tx.history())
    }

    // MARK: The file

    private static func path(_ pool: String) -> String { pool + "/role" }

    package static func inFile(of pool: String, disk: Disk) -> PoolSight? {
        guard let bytes = try? disk.readAll(path(pool)) else { return nil }
        return try? JSONDecoder().decode(PoolSight.self, from: Data(bytes))
    }

    /// Durably; nothing where it says so already.
    package func write(to pool: String, disk: Disk) throws(SystemError) {
        guard Self.inFile(of: pool, disk: disk) != self else { return }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
        guard let data = try? encoder.encode(self) else { return }
        try disk.writeDurably(Self.path(pool), contents: [UInt8](data))
    }

    // MARK: Looking

    /// Looks at a pool and changes nothing in it.
    /// - Parameter body: more to read, where the catalog can be.
    /// - Returns: nil where no pool is, or nothing can be said of it.
    package static func look(
        at path: String, disk: Disk, _ body: (CatalogTransaction) throws -> Void = { _ in }
    ) -> PoolSight? {
        guard PoolStore.isPool(path, disk: disk) else { return nil }
        guard let lock = try? PoolStore.takeLock(path: path, disk: disk, drainTimeoutMs: 0) else {
            var sight = inFile(of: path, disk: disk)
            sight?.isInUse = true
            return sight
        }
        defer { lock.release() }
        guard let catalog = try? Catalog.open(at: path + "/catalog.sqlite") else { return nil }
        defer { catalog.close() }
        return try? catalog.read { tx in
            try body(tx)
            return try PoolSight(tx)
        }
    }
}

extension PoolStore {
    /// Brings the file `role` in step with the catalog.
    package func writeRole() throws(SystemError) {
        guard let sight = try? catalog.read({ try PoolSight($0) }) else { return }
        try sight.write(to: path, disk: disk)
    }
}
