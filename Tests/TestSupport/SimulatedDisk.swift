// A file system in memory that forgets what was not synced.
//
// What a crash leaves
//   D1 A file has its content as of its last sync; of the changes since, each is kept, lost, or (a
//      write) kept in some of its 512-byte sectors. A kept sector has what the file showed when the
//      change was made: the page cache never writes a sector's newer bytes without its older ones.
//      After a sync that failed, the changes before it are shown and never become durable, and a later
//      sync succeeds: so do the kernel's.
//   D2 A folder has its entries as of its last sync; of the changes of names since, each is kept or
//      lost. Syncing a file does not make its name durable.
//   D3 Commits of the catalog, which is not on this disk, pass `commit`: they are boundaries like
//      syncs, so that the power may go before or after each.

import Glibc
import SystemIO

/// A simulated file system, with the faults that a test asks for.
package final class SimulatedDisk: Disk, @unchecked Sendable {  // all state is under `lock`
    /// What a disk or a program with a bug does; see docs/testing.md.
    package struct Misbehaviour: Sendable {
        /// Syncs of these paths report success and do nothing.
        package var skipsSync: @Sendable (String) -> Bool = { _ in false }
        /// What a merge copied is a durable hole in its source before the copy is durable.
        package var punchesWhatIsCopied = false
        package init() {}
    }

    final class Node {
        let id: UInt64
        let isDirectory: Bool
        var entries: [String: Node] = [:]
        var durableEntries: [String: Node] = [:]
        var now = Content()
        var durable = Content()
        var unsynced: [Change] = []
        /// Pages that have space, written or not.
        var allocated: Set<UInt64> = []
        var modifyNs: Int64 = 0
        var locked = false

        init(id: UInt64, isDirectory: Bool) {
            self.id = id
            self.isDirectory = isDirectory
        }
    }

    struct NameChange {
        var entries: [(directory: Node, name: String, node: Node?)]
    }

    let lock = Lock()
    private var root: Node
    private var unsyncedNames: [NameChange] = []
    /// Folders by path, as far as somebody looked.
    private var folders: [String: Node] = [:]
    private var changes = 0
    private var boots = 1
    private var nextID: UInt64 = 2
    private var clock: Int64
    private var isOff = false
    private var syncsUntilOff: Int?
    private var syncs = 0
    private var failingSyncs: @Sendable (String) -> Bool = { _ in false }
    private var failingOpens: @Sendable (String) -> Bool = { _ in false }
    private var beforeSync: ((String) -> Void)?
    private var freeBytes = Int.max
    private var shownFreeBytes: Int?
    private var largestFileBytes = UInt64.max
    package let misbehaviour: Misbehaviour

    package init(misbehaviour: Misbehaviour = Misbehaviour()) {
        self.misbehaviour = misbehaviour
        root = Node(id: 1, isDirectory: true)
        clock = 1_700_000_000_000_000_000
    }

    private init(crashed: SimulatedDisk, root: Node) {
        misbehaviour = crashed.misbehaviour
        self.root = root
        nextID = crashed.nextID
        clock = crashed.clock + 1_000_000_000
        freeBytes = crashed.freeBytes
        changes = crashed.changes + 1
        boots = crashed.boots + 1
    }

    package override func bootID() -> String? { "boot \(lock.withLock { boots })" }

    // MARK: Faults

    /// The n-th sync or commit from now (1 is the next) does nothing, and everything fails from then
    /// on.
    package func powerOff(atSync count: Int) { lock.withLock { syncsUntilOff = count } }
    package func cancelPowerOff() { lock.withLock { syncsUntilOff = nil } }
    package var isPoweredOff: Bool { lock.withLock { isOff } }
    package var syncCount: Int { lock.withLock { syncs } }
    /// Grows with everything that another look at the disk might find changed.
    package var changeCount: Int { lock.withLock { changes } }

    /// What others do while a sync is waited for; called before each, without a lock.
    package func whileSyncing(_ body: ((_ path: String) -> Void)?) {
        lock.withLock { beforeSync = body }
    }

    package func failSyncs(_ matching: @escaping @Sendable (String) -> Bool) {
        lock.withLock { failingSyncs = matching }
    }
    /// Files that are there, and cannot be opened.
    package func failOpens(_ matching: @escaping @Sendable (String) -> Bool) {
        lock.withLock { failingOpens = matching }
    }
    /// Space left for pages that have none yet; what is freed counts again.
    /// - Parameter shown: what the disk says it has; others may take it in the next moment.
    package func limitSpace(toBytes bytes: Int, showing shown: Int? = nil) {
        lock.withLock {
            freeBytes = bytes
            shownFreeBytes = shown
        }
    }
    /// No file grows past this: EFBIG.
    package func limitFiles(toBytes bytes: UInt64) { lock.withLock { largestFileBytes = bytes } }
    package var spaceLeftBytes: Int { lock.withLock { freeBytes } }

    /// Ends this disk and returns what the next open may find.
    package func crash(_ random: inout SeededRandom) -> SimulatedDisk {
        lock.lock()
        defer { lock.unlock() }
        isOff = true
        for change in unsyncedNames where random.chance(50) { apply(change) }
        unsyncedNames = []
        var copies: [UInt64: Node] = [:]
        let copy = Self.survivor(of: root, &copies, &random)
        return SimulatedDisk(crashed: self, root: copy)
    }

    private static func survivor(
        of node: Node, _ copies: inout [UInt64: Node], _ random: inout SeededRandom
    ) -> Node {
        if let known = copies[node.id] { return known }
        let copy = Node(id: node.id, isDirectory: node.isDirectory)
        copies[node.id] = copy
        copy.modifyNs = node.modifyNs
        for (name, child) in node.durableEntries.sorted(by: { $0.key < $1.key }) {
            copy.entries[name] = survivor(of: child, &copies, &random)
        }
        copy.durableEntries = copy.entries
        copy.durable = Content.surviving(node.durable, node.unsynced, &random)
        copy.now = copy.durable
        copy.allocated = Set(copy.now.pages.keys)
        return copy
    }

    // MARK: Called by files, with `lock` held

    func failure(_ operation: String, _ path: String, _ errno: Int32 = EIO) -> SystemError {
        SystemError(operation: operation, path: path, errno: errno)
    }

    func check(_ operation: String, _ path: String) throws(SystemError) {
        if isOff { throw failure(operation, path) }
    }

    func noteChange() { changes += 1 }

    func tick() -> Int64 {
        clock += 1000
        return clock
    }

    func take(pages: some Sequence<UInt64>, of node: Node, _ path: String) throws(SystemError) {
        let new = pages.filter { !node.allocated.contains($0) }
        if new.isEmpty { return }
        guard new.count * Content.pageBytes <= freeBytes else {
            throw failure("write", path, ENOSPC)
        }
        freeBytes -= new.count * Content.pageBytes
        node.allocated.formUnion(new)
    }

    func checkSize(_ end: UInt64, _ path: String) throws(SystemError) {
        if end > largestFileBytes { throw failure("write", path, EFBIG) }
    }

    func giveBack(_ node: Node, where isFreed: (UInt64) -> Bool) {
        let freed = node.allocated.filter(isFreed)
        node.allocated.subtract(freed)
        // Without a limit it does not matter how much there is.
        let (sum, isOver) = freeBytes.addingReportingOverflow(freed.count * Content.pageBytes)
        freeBytes = isOver ? .max : sum
    }

    // MARK: Syncs

    private enum SyncOutcome { case does, skips, fails, ends }

    private func beginSync(_ path: String) -> SyncOutcome {
        if isOff { return .fails }
        syncs += 1
        if let left = syncsUntilOff {
            if left <= 1 {
                isOff = true
                syncsUntilOff = nil
                return .ends
            }
            syncsUntilOff = left - 1
        }
        if failingSyncs(path) { return .fails }
        return misbehaviour.skipsSync(path) ? .skips : .does
    }

    func sync(
        _ path: String, _ body: () -> Void, failing: () -> Void = {}
    ) throws(SystemError) {
        let others = lock.withLock { isOff ? nil : beforeSync }
        others?(path)
        lock.lock()
        let outcome = beginSync(path)
        if outcome == .does { body() }
        if outcome == .fails, !isOff { failing() }
        lock.unlock()
        switch outcome {
        case .does, .skips: return
        case .fails, .ends: throw failure("sync", path)
        }
    }

    /// Something beside this disk is about to become durable, all of it or nothing (D3).
    package func commit(_ what: String) throws(SystemError) {
        try sync(what) { changes += 1 }
    }

    // MARK: Names

    /// A folder, from its path.
    private func find(_ path: String) -> Node? {
        if let known = folders[path] { return known }
        var node = root
        for part in path.split(separator: "/") {
            guard let next = node.entries[String(part)] else { return nil }
            node = next
        }
        guard node.isDirectory else { return nil }
        folders[path] = node
        return node
    }

    private func findEntry(_ path: String) -> Node? {
        let (folder, name) = Self.split(path)
        return name.isEmpty ? find(path) : find(folder)?.entries[name]
    }

    private static func split(_ path: String) -> (folder: String, name: String) {
        guard let slash = path.utf8.lastIndex(of: UInt8(ascii: "/")) else { return ("", path) }
        return (String(path[..<slash]), String(path[path.utf8.index(after: slash)...]))
    }

    /// The folder of a file, with it. Called with `lock` held.
    func siblings(of path: String) -> [String: Node] {
        find(Self.split(path).folder)?.entries ?? [:]
    }

    private func place(
        _ operation: String, _ path: String
    ) throws(SystemError) -> (Node, String) {
        try check(operation, path)
        let (folder, name) = Self.split(path)
        guard !name.isEmpty, let parent = find(folder), parent.isDirectory else {
            throw failure(operation, path, ENOENT)
        }
        return (parent, name)
    }

    private func change(_ entries: [(directory: Node, name: String, node: Node?)]) {
        for entry in entries {
            let old = entry.directory.entries[entry.name]
            if old?.isDirectory ?? false || entry.node?.isDirectory ?? false { folders = [:] }
            entry.directory.entries[entry.name] = entry.node
        }
        changes += 1
        unsyncedNames.append(NameChange(entries: entries))
    }

    private func apply(_ change: NameChange) {
        for entry in change.entries { entry.directory.durableEntries[entry.name] = entry.node }
    }

    package override func open(
        _ path: String, _ options: OpenOptions, mode: UInt32
    ) throws(SystemError) -> DiskFile {
        lock.lock()
        defer { lock.unlock() }
        let (parent, name) = try place("open", path)
        if let node = parent.entries[name] {
            if node.isDirectory { throw failure("open", path, EISDIR) }
            if failingOpens(path) { throw failure("open", path, EIO) }
            if options.contains(.exclusive) { throw failure("open", path, EEXIST) }
            let file = SimulatedFile(disk: self, node: node, path: path)
            if options.contains(.truncate) { file.truncateLocked(to: 0) }
            return file
        }
        guard options.contains(.create) else { throw failure("open", path, ENOENT) }
        let node = Node(id: nextID, isDirectory: false)
        nextID += 1
        change([(parent, name, node)])
        return SimulatedFile(disk: self, node: node, path: path)
    }

    package override func createDirectory(_ path: String, mode: UInt32) throws(SystemError) {
        lock.lock()
        defer { lock.unlock() }
        let (parent, name) = try place("create directory", path)
        if parent.entries[name] != nil { throw failure("create directory", path, EEXIST) }
        let node = Node(id: nextID, isDirectory: true)
        nextID += 1
        change([(parent, name, node)])
    }

    package override func removeFile(_ path: String) throws(SystemError) {
        lock.lock()
        defer { lock.unlock() }
        let (parent, name) = try place("remove", path)
        guard let node = parent.entries[name] else { throw failure("remove", path, ENOENT) }
        if node.isDirectory { throw failure("remove", path, EISDIR) }
        change([(parent, name, nil)])
        giveBack(node) { _ in true }
    }

    package override func removeDirectory(_ path: String) throws(SystemError) {
        lock.lock()
        defer { lock.unlock() }
        let (parent, name) = try place("remove directory", path)
        guard let node = parent.entries[name] else { throw failure("remove", path, ENOENT) }
        if !node.entries.isEmpty { throw failure("remove directory", path, ENOTEMPTY) }
        change([(parent, name, nil)])
    }

    package override func rename(
        _ from: String, to: String, noReplace: Bool
    ) throws(SystemError) {
        lock.lock()
        defer { lock.unlock() }
        let (parent, name) = try place("rename", from)
        let (newParent, newName) = try place("rename", to)
        guard let node = parent.entries[name] else { throw failure("rename", from, ENOENT) }
        if noReplace, newParent.entries[newName] != nil { throw failure("rename", to, EEXIST) }
        change([(parent, name, nil), (newParent, newName, node)])
    }

    package override func syncDirectory(_ path: String) throws(SystemError) {
        let node = lock.withLock { find(path) }
        guard let node else { throw failure("sync directory", path, ENOENT) }
        try sync(path) {
            var rest: [NameChange] = []
            for change in unsyncedNames {
                if change.entries.contains(where: { $0.directory === node }) {
                    apply(change)
                } else {
                    rest.append(change)
                }
            }
            unsyncedNames = rest
        }
    }

    package override func list(_ path: String) throws(SystemError) -> [DirectoryEntry] {
        lock.lock()
        defer { lock.unlock() }
        try check("list", path)
        guard let node = find(path) else { throw failure("list", path, ENOENT) }
        return node.entries.sorted { $0.key < $1.key }.map {
            DirectoryEntry(name: $0.key, kind: $0.value.isDirectory ? .directory : .file)
        }
    }

    package override func status(_ path: String) throws(SystemError) -> FileStatus? {
        lock.lock()
        defer { lock.unlock() }
        try check("stat", path)
        return findEntry(path).map(Self.status)
    }

    static func status(_ node: Node) -> FileStatus {
        FileStatus(
            kind: node.isDirectory ? .directory : .file, sizeBytes: node.now.sizeBytes,
            allocatedBytes: UInt64(node.allocated.count * Content.pageBytes), inode: node.id,
            modifyNs: node.modifyNs)
    }

    package override func fileSystemStatus(_ path: String) throws(SystemError) -> FileSystemStatus {
        let free = UInt64(min(lock.withLock { shownFreeBytes ?? freeBytes }, 1 << 40))
        return FileSystemStatus(
            totalBytes: 1 << 40, freeBytes: free, availableBytes: free, totalFiles: 1 << 20,
            freeFiles: 1 << 20)
    }

    package override func tryLock(_ path: String) throws(SystemError) -> DiskLock? {
        let file = try open(path, [.readWrite, .create], mode: 0o600)
        guard let node = (file as? SimulatedFile)?.node else { return nil }
        return lock.withLock {
            if node.locked { return nil }
            node.locked = true
            return SimulatedLock(disk: self, node: node)
        }
    }

    /// Time goes by.
    package func advance(ns: Int64) { lock.withLock { clock += ns } }

    package override func now() -> Int64 { lock.withLock { tick() } }
    package override func monotonic() -> Int64 { lock.withLock { tick() } }
}

private final class SimulatedLock: DiskLock, @unchecked Sendable {  // `node` is under disk.lock
    let disk: SimulatedDisk
    let node: SimulatedDisk.Node
    init(disk: SimulatedDisk, node: SimulatedDisk.Node) {
        self.disk = disk
        self.node = node
    }
    override func release() { disk.lock.withLock { node.locked = false } }
    deinit { disk.lock.withLock { node.locked = false } }
}
