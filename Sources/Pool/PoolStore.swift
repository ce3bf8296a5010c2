// A pool directory, opened by its one owner.
//
//   pool/  README  catalog.sqlite  images/<id>/...  quarantine/  reserve  lock
//
// Invariants
//   P1 `lock` is held (by the kernel, for this process) as long as a PoolStore is open writable; a
//      dead owner has let go of it, whatever became of its pid. Its text only informs people.
//   P2 The catalog says "not clean" durably before anything else is changed, and "clean" only as
//      the last step of a close that made everything durable.
//   P3 Nothing is deleted that does not verify: it moves to quarantine/, with an event.
//   P4 `catalog.sqlite` appears by rename, complete and synced, after everything it names: a
//      directory that has it is a whole pool, one that has not is none.

import BlockCore
import Synchronization
import SystemIO

package struct PoolError: Error, CustomStringConvertible, Sendable {
    package enum Kind: Sendable, Hashable { case inUse, notAPool, exists, damaged, io, refused }
    package var kind: Kind
    package var message: String
    /// With `.inUse`: what the owner wrote about itself.
    package var owner: PoolOwner?

    package init(_ kind: Kind, _ message: String, owner: PoolOwner? = nil) {
        self.kind = kind
        self.message = message
        self.owner = owner
    }
    package init(_ error: SystemError) { self.init(.io, error.description) }
    package var description: String { message }
}

// Unchecked: `owner` and `lock` are under `guardLock`.
package final class PoolStore: @unchecked Sendable {
    package let disk: Disk
    package let path: String
    package let catalog: Catalog
    package let identity: PoolIdentity
    /// The pool was not closed cleanly the last time.
    package let wasUnclean: Bool
    private let hasUnrecovered = Atomic(false)
    let reserveLoan = ReserveLoan()
    private let guardLock = Lock()
    private var lock: DiskLock?
    private var owner: PoolOwner

    /// Opens on a catalog that is open already; `open` does this after it took the lock.
    package init(
        disk: Disk, path: String, catalog: Catalog, lock: DiskLock?, owner: PoolOwner
    ) throws(PoolError) {
        self.disk = disk
        self.path = path
        self.catalog = catalog
        self.lock = lock
        self.owner = owner
        do {
            let (identity, state) = try catalog.read { (try $0.identity(), try $0.poolState()) }
            self.identity = identity
            wasUnclean = !state.cleanlyClosed
            try catalog.write { tx in
                var next = state
                if !state.cleanlyClosed {
                    next.incarnation += 1
                    next.incarnationID = PoolStore.randomID()
                    try tx.addEvent(
                        EventRecord(
                            atNs: disk.now(), kind: "unclean-open", subject: path,
                            message: "the pool was not closed cleanly; incarnation "
                                + "\(next.incarnation) begins"))
                }
                next.cleanlyClosed = false
                try tx.setPoolState(next)
                try tx.noteBoot(disk.bootID(), state)
            }
        } catch { throw PoolError(.damaged, "\(path): \(error)") }
    }

    // MARK: Creating and opening

    /// Makes an empty pool of a new or empty directory, or finishes making one.
    /// - Parameter fill: further rows of the transaction that makes it complete.
    package static func initialize(
        path: String, disk: Disk, fill: (CatalogTransaction) throws -> Void = { _ in }
    ) throws(PoolError) {
        if isPool(path, disk: disk) { throw PoolError(.exists, "\(path) is a pool already") }
        do throws(SystemError) {
            if try disk.status(path) == nil {
                try disk.createDirectory(path, mode: 0o700)
                try disk.syncDirectory(parentPath(path))
            }
        } catch { throw PoolError(error) }
        if let interrupted = Adoption.interruption(path, disk: disk) {
            throw PoolError(.exists, interrupted)
        }
        guard try isEmptyOrHalfMade(path, disk: disk) else {
            throw PoolError(
                .exists,
                "\(path) is not empty; `doppel adopt \(path)` turns a folder of images into a pool")
        }
        try lay(path: path, disk: disk, fill: fill)
    }

    /// Nothing but what an interrupted `initialize` leaves, and what a new file system has.
    private static func isEmptyOrHalfMade(_ path: String, disk: Disk) throws(PoolError) -> Bool {
        do throws(SystemError) {
            for entry in try disk.list(path) {
                let inside = path + "/" + entry.name
                switch entry.name {
                case "images", "quarantine", "lost+found":
                    guard entry.kind == .directory, try disk.list(inside).isEmpty else {
                        return false
                    }
                case "README", "README.new":
                    let text = try disk.readSmall(inside, limit: readmeStart.utf8.count)
                    guard readmeStart.utf8.starts(with: text) else { return false }
                case let name where name.hasPrefix(newCatalogName): continue
                default: return false
                }
            }
            return true
        } catch { throw PoolError(error) }
    }

    /// Puts the pool's own files into a directory. The catalog is made complete under another name
    /// and then renamed: a directory with a `catalog.sqlite` is a whole pool (P4).
    /// - Parameter fill: further rows of the one transaction that makes the catalog complete.
    package static func lay(
        path: String, disk: Disk, fill: (CatalogTransaction) throws -> Void = { _ in }
    ) throws(PoolError) {
        let catalogPath = path + "/" + newCatalogName
        do throws(SystemError) {
            for directory in ["images", "quarantine"]
            where try disk.status(path + "/" + directory) == nil {
                try disk.createDirectory(path + "/" + directory, mode: 0o700)
            }
            for suffix in ["", "-wal", "-journal"]
            where try disk.status(catalogPath + suffix) != nil {
                try disk.removeFile(catalogPath + suffix)
            }
            try disk.writeDurably(
                path + "/README",
                contents: Array(
                    """
                    \(readmeStart): disk images with their snapshots and block maps.
                    Do not edit, move or delete anything in here by hand. To use it:
                        doppel mount \(path) /some/mount/point
                    To get plain files back: doppel eject, or doppel export.

                    """.utf8), mode: 0o600)
        } catch { throw PoolError(error) }
        let root = NodeRecord(
            id: .root, parentID: nil, name: [], kind: .directory, mode: 0o755,
            uid: ProcessControl.userID, gid: ProcessControl.groupID, accessNs: disk.now(),
            modifyNs: disk.now(), changeNs: disk.now())
        do {
            let catalog = try Catalog.create(
                at: catalogPath,
                identity: PoolIdentity(id: randomUUID(), createdNs: disk.now()))
            defer { catalog.close() }
            try catalog.write { tx in
                try initializeRows(tx, root: root)
                try fill(tx)
            }
        } catch { throw PoolError(.io, "cannot create the catalog of \(path): \(error)") }
        do throws(SystemError) {
            // Closing moved everything from the log into the database and removed the log; a log
            // that is still there would be left behind by the rename.
            guard try disk.status(catalogPath + "-wal") == nil else {
                throw SystemError(operation: "close", path: catalogPath, errno: 5)
            }
            let file = try disk.open(catalogPath, .readWrite)
            defer { file.close() }
            try file.sync()
            try disk.syncDirectory(path)
            try disk.rename(catalogPath, to: path + "/catalog.sqlite")
            try disk.syncDirectory(path)
        } catch { throw PoolError(error) }
    }

    private static var newCatalogName: String { "catalog.sqlite.new" }
    private static var readmeStart: String { "This is a Doppel pool" }

    package static func initializeRows(_ tx: CatalogTransaction, root: NodeRecord) throws {
        try tx.upsertNode(root)
        let generation = Generation(
            number: 1, id: randomID(), parentID: nil, startSequence: .zero)
        try tx.addGeneration(
            .init(
                generation: generation, poolID: try tx.identity().id, begunNs: root.changeNs,
                cause: .initial))
        try tx.setPoolState(
            PoolState(
                cleanlyClosed: true, generation: generation,
                incarnation: 1, incarnationID: randomID(), lastSequence: .zero))
        try tx.setSetting("pool.complete", "1")
    }

    /// What to do with a pool that was not copied to its end.
    package static func unfinishedCopy(_ path: String, of source: String) -> String {
        "\(path) is an unfinished copy of \(source): `doppel clone-pool \(source) \(path)` goes on with it. "
            + "Until then it is nothing that could be used; it may be removed"
    }

    package static func isPool(_ path: String, disk: Disk) -> Bool {
        ((try? disk.status(path + "/catalog.sqlite")) ?? nil) != nil
    }

    /// Opens the pool and becomes its owner.
    /// - Parameters:
    ///   - drainTimeoutMs: how long to wait for an owner that says it is draining.
    ///   - goesOn: with a copy that was not finished; anybody else is refused.
    /// - Throws: ``PoolError`` `.inUse` with what the owner wrote about itself.
    package static func open(
        path: String, disk: Disk, owner: PoolOwner = .current(), drainTimeoutMs: Int64 = 30_000,
        goesOn: Bool = false
    ) throws(PoolError) -> PoolStore {
        guard isPool(path, disk: disk) else {
            throw PoolError(
                .notAPool,
                Adoption.interruption(path, disk: disk)
                    ?? "\(path) is not a pool; `doppel init` makes one")
        }
        let lock = try takeLock(path: path, disk: disk, drainTimeoutMs: drainTimeoutMs)
        do {
            makeRoomToOpen(path: path, disk: disk, owner: owner)
            let catalog = try Catalog.open(at: path + "/catalog.sqlite")
            guard try catalog.read({ try $0.setting("pool.complete") }) == "1" else {
                throw PoolError(
                    .damaged, "the catalog of \(path) is not complete: was it edited by hand?")
            }
            if !goesOn, let source = try catalog.read({ try $0.unfinishedCopy() }) {
                catalog.close()
                throw PoolError(.refused, unfinishedCopy(path, of: source))
            }
            Adoption.discardStages(path, disk: disk)
            let store = try PoolStore(
                disk: disk, path: path, catalog: catalog, lock: lock, owner: owner)
            store.removeStrayFiles()
            // On a full disk others learn less of it.
            try? store.writeRole()
            return store
        } catch let error as PoolError {
            lock.release()
            throw error
        } catch {
            lock.release()
            throw PoolError(.damaged, "cannot open the pool \(path): \(error)")
        }
    }

    /// Writes who owns the pool. On a full disk the reserve is given up first: the catalog needs room
    /// too before the pool is open and can delete anything. It is taken back once there is room again.
    private static func makeRoomToOpen(path: String, disk: Disk, owner: PoolOwner) {
        let available = (try? disk.fileSystemStatus(path))?.availableBytes ?? 0
        if available < 1 << 20 { releaseReserve(path: path, disk: disk) }
        writeOwner(owner, path: path, disk: disk)
    }

    /// Nothing is decided by the text, but the way to the control socket is in it: it must get through
    /// on a full disk too, where the file that is there is written over.
    private static func writeOwner(_ owner: PoolOwner, path: String, disk: Disk) {
        let bytes = owner.bytes
        do throws(SystemError) {
            try disk.writeDurably(path + "/owner", contents: bytes)
        } catch {
            guard error.isNoSpace, let file = try? disk.open(path + "/owner", .readWrite) else {
                return
            }
            defer { file.close() }
            try? bytes.withTypedBytes { raw throws(SystemError) in try file.write(raw, at: 0) }
            try? file.truncate(to: UInt64(bytes.count))
            try? file.sync()
        }
    }

    static func takeLock(
        path: String, disk: Disk, drainTimeoutMs: Int64
    ) throws(PoolError) -> DiskLock {
        let started = disk.monotonic()
        let deadline = started + drainTimeoutMs * 1_000_000
        while true {
            do throws(SystemError) {
                if let lock = try disk.tryLock(path + "/lock") { return lock }
            } catch { throw PoolError(error) }
            let owner = readOwner(path: path, disk: disk)
            // An owner takes its text away a moment before it lets go of the lock.
            let limit = owner == nil ? min(deadline, started + 2_000_000_000) : deadline
            guard owner?.isDraining ?? true, disk.monotonic() < limit else {
                let who = owner.map { " by \($0.summary)" } ?? ""
                let advice = owner?.advice.map { ". \($0)" } ?? ""
                throw PoolError(.inUse, "the pool \(path) is in use\(who)\(advice)", owner: owner)
            }
            Pause.microseconds(20_000)
        }
    }

    package static func readOwner(path: String, disk: Disk) -> PoolOwner? {
        (try? disk.readAll(path + "/owner")).flatMap(PoolOwner.init(bytes:))
    }

    // MARK: Owner

    /// Tells others who holds the pool: where it is mounted, which socket it listens on.
    package func updateOwner(_ change: (inout PoolOwner) -> Void) {
        guardLock.withLock {
            change(&owner)
            Self.writeOwner(owner, path: path, disk: disk)
        }
    }

    /// Lets the next open wait instead of failing.
    package func markDraining() { updateOwner { $0.isDraining = true } }

    /// The disk did not give back something that an unclean end may have left torn. Whatever is settled until the
    /// pool is closed: the next open has to look at it again, or would call it damaged.
    package func noteUnrecovered() { hasUnrecovered.store(true, ordering: .relaxed) }

    /// - Parameter clean: everything is durable; the next open has nothing to mend.
    package func close(clean: Bool, lastSequence: SequenceNumber) throws(PoolError) {
        var failure: PoolError?
        if clean, !hasUnrecovered.load(ordering: .relaxed) {
            do {
                try catalog.write { tx in
                    var state = try tx.poolState()
                    state.cleanlyClosed = true
                    state.lastSequence = lastSequence
                    try tx.setPoolState(state)
                }
            } catch { failure = PoolError(.io, "cannot close \(path): \(error)") }
        }
        catalog.close()
        guardLock.withLock {
            if lock != nil { try? disk.removeFile(path + "/owner") }
            lock?.release()
            lock = nil
        }
        if let failure { throw failure }
    }

    // MARK: Paths

    package func imageDirectory(_ image: ImageID) -> String { "\(path)/images/\(image.rawValue)" }
    package func dataPath(image: ImageID, layer: LayerID) -> String {
        "\(imageDirectory(image))/\(layer.rawValue).data"
    }
    package func mapPath(image: ImageID, layer: LayerID) -> String {
        "\(imageDirectory(image))/\(layer.rawValue).map"
    }
    package func sumsPath(image: ImageID, layer: LayerID) -> String {
        "\(imageDirectory(image))/\(layer.rawValue).sums"
    }
    package func dirtyPath(target: TargetID) -> String {
        "\(path)/targets/\(target.rawValue)/dirty"
    }
    package func activityPath(image: ImageID) -> String { imageDirectory(image) + "/activity" }

    /// For a person without Doppel: which image a directory holds. Best effort and not synced, for it
    /// is never read back.
    package func describe(image: ImageID, name: String, sizeBytes: UInt64) {
        let text = "name: \(name)\nsize: \(sizeBytes) bytes\n"
        let path = imageDirectory(image) + "/image.txt"
        guard let file = try? disk.open(path + ".new", [.readWrite, .create, .truncate]) else {
            return
        }
        defer { file.close() }
        do throws(SystemError) {
            try Array(text.utf8).withTypedBytes { (raw) throws(SystemError) in
                try file.write(raw, at: 0)
            }
            try disk.rename(path + ".new", to: path)
        } catch { try? disk.removeFile(path + ".new") }
    }

    package static func randomID() -> String {
        SystemRandom.bytes(16).map { hex($0) }.joined()
    }
    package static func randomUUID() -> String {
        var bytes = SystemRandom.bytes(16)
        bytes[6] = bytes[6] & 0x0f | 0x40
        bytes[8] = bytes[8] & 0x3f | 0x80
        let text = bytes.map { hex($0) }
        return [0..<4, 4..<6, 6..<8, 8..<10, 10..<16].map { text[$0].joined() }
            .joined(separator: "-")
    }
    private static func hex(_ byte: UInt8) -> String {
        let digits = Array("0123456789abcdef")
        return String([digits[Int(byte >> 4)], digits[Int(byte & 15)]])
    }
}
