// A file system in memory that forgets what was not synced.
//
// What a crash leaves
//   D1 A file has its content as of its last sync; of the changes since, each is kept, lost, or (a
//      write) kept in some of its 512-byte sectors. A kept sector has what the file showed when the
//      change was made: the page cache never writes a sector's newer bytes without its older ones.
//   D2 A folder has its entries as of its last sync; of the changes of names since, each is kept or
//      lost. Syncing a file does not make its name durable.

import Glibc
import SystemIO

/// A simulated file system, with the faults that a test asks for.
package final class SimulatedDisk: Disk, @unchecked Sendable {  // all state is under `lock`
    /// What a disk or a program with a bug does; see docs/testing.md.
    package struct Misbehaviour: Sendable {
        /// Syncs of these paths report success and do nothing.
        package var skipsSync: @Sendable (String) -> Bool = { _ in false }
        /// Holes are durable before anything synced later or earlier.
        package var punchesAtOnce = false
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
    private var nextID: UInt64 = 2
    private var clock: Int64
    private var isOff = false
    private var syncsUntilOff: Int?
    private var syncs = 0
    private var failingSyncs: @Sendable (String) -> Bool = { _ in false }
    private var freeBytes = Int.max
    private var whenOff: @Sendable () -> Void = {}
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
    }

    // MARK: Faults

    /// The n-th sync from now (1 is the next) does nothing, and everything fails from then on.
    /// - Parameter then: called once, at that moment, without the disk's lock.
    package func powerOff(atSync count: Int, then: @escaping @Sendable () -> Void = {}) {
        lock.withLock {
            syncsUntilOff = count
            whenOff = then
        }
    }
    package func cancelPowerOff() { lock.withLock { syncsUntilOff = nil } }
    package var isPoweredOff: Bool { lock.withLock { isOff } }
    package var syncCount: Int { lock.withLock { syncs } }

    package func failSyncs(_ matching: @escaping @Sendable (String) -> Bool) {
        lock.withLock { failingSyncs = matching }
    }
    /// Space left for pages that have none yet; what is freed counts again.
    package func limitSpace(toBytes bytes: Int) { lock.withLock { freeBytes = bytes } }
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

    func giveBack(_ node: Node, where isFreed: (UInt64) -> Bool) {
        let freed = node.allocated.filter(isFreed)
        node.allocated.subtract(freed)
        if freeBytes < .max { freeBytes += freed.count * Content.pageBytes }
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

    func sync(_ path: String, _ body: () -> Void) throws(SystemError) {
        lock.lock()
        let outcome = beginSync(path)
        if outcome == .does { body() }
        let hook = whenOff
        lock.unlock()
        switch outcome {
        case .does, .skips: return
        case .fails: throw failure("sync", path)
        case .ends:
            hook()
            throw failure("sync", path)
        }
    }

    // MARK: Names

    private func parts(_ path: String) -> [String] {
        path.split(separator: "/").map(String.init)
    }

    private func find(_ path: String) -> Node? {
        var node = root
        for part in parts(path) {
            guard let next = node.entries[part] else { return nil }
            node = next
        }
        return node
    }

    private func place(
        _ operation: String, _ path: String
    ) throws(SystemError) -> (Node, String) {
        try check(operation, path)
        guard let name = parts(path).last, let parent = find(parentPath(path)), parent.isDirectory
        else { throw failure(operation, path, ENOENT) }
        return (parent, name)
    }

    private func change(_ entries: [(directory: Node, name: String, node: Node?)]) {
        for entry in entries { entry.directory.entries[entry.name] = entry.node }
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
        guard let node = find(path), node.isDirectory else { throw failure("list", path, ENOENT) }
        return node.entries.sorted { $0.key < $1.key }.map {
            DirectoryEntry(name: $0.key, kind: $0.value.isDirectory ? .directory : .file)
        }
    }

    package override func status(_ path: String) throws(SystemError) -> FileStatus? {
        lock.lock()
        defer { lock.unlock() }
        try check("stat", path)
        return find(path).map(Self.status)
    }

    static func status(_ node: Node) -> FileStatus {
        FileStatus(
            kind: node.isDirectory ? .directory : .file, sizeBytes: node.now.sizeBytes,
            allocatedBytes: UInt64(node.allocated.count * Content.pageBytes), inode: node.id,
            modifyNs: node.modifyNs)
    }

    package override func fileSystemStatus(_ path: String) throws(SystemError) -> FileSystemStatus {
        let free = UInt64(min(spaceLeftBytes, 1 << 40))
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

/// An open file of a ``SimulatedDisk``.
final class SimulatedFile: DiskFile, @unchecked Sendable {  // `node` is under disk.lock
    let disk: SimulatedDisk
    let node: SimulatedDisk.Node

    init(disk: SimulatedDisk, node: SimulatedDisk.Node, path: String) {
        self.disk = disk
        self.node = node
        super.init(path: path)
    }

    private func locked<T>(
        _ operation: String, _ body: () throws(SystemError) -> T
    ) throws(SystemError) -> T {
        disk.lock.lock()
        defer { disk.lock.unlock() }
        try disk.check(operation, path)
        return try body()
    }

    private func pages(_ offset: UInt64, _ length: UInt64) -> ClosedRange<UInt64> {
        offset / 4096...(offset + max(length, 1) - 1) / 4096
    }

    private func record(_ change: Change) {
        node.now.apply(change)
        node.unsynced.append(change)
        node.modifyNs = disk.tick()
    }

    override func read(
        into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(SystemError) -> Int {
        try locked("read") { () throws(SystemError) in node.now.read(into: buffer, at: offset) }
    }

    override func write(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(SystemError) {
        try locked("write") { () throws(SystemError) in
            guard buffer.count > 0 else { return }
            try disk.take(pages: pages(offset, UInt64(buffer.count)), of: node, path)
            record(.write(offset: offset, bytes: [UInt8](buffer)))
        }
    }

    override func syncData() throws(SystemError) {
        try disk.sync(path) {
            for change in node.unsynced { node.durable.apply(change) }
            node.unsynced = []
        }
    }
    override func sync() throws(SystemError) { try syncData() }

    func truncateLocked(to sizeBytes: UInt64) {
        record(.truncate(sizeBytes))
        let end = (sizeBytes + 4095) / 4096
        disk.giveBack(node) { $0 >= end }
    }

    override func truncate(to sizeBytes: UInt64) throws(SystemError) {
        try locked("truncate") { () throws(SystemError) in truncateLocked(to: sizeBytes) }
    }

    override func punchHole(at offset: UInt64, length: UInt64) throws(SystemError) {
        try locked("punch hole in") { () throws(SystemError) in
            let change = Change.punch(offset: offset, length: length)
            record(change)
            if disk.misbehaviour.punchesAtOnce { node.durable.apply(change) }
            let (first, end) = ((offset + 4095) / 4096, (offset + length) / 4096)
            disk.giveBack(node) { $0 >= first && $0 < end }
        }
    }

    override func zeroRange(at offset: UInt64, length: UInt64) throws(SystemError) {
        try locked("zero range in") { () throws(SystemError) in
            guard length > 0 else { return }
            try disk.take(pages: pages(offset, length), of: node, path)
            record(.punch(offset: offset, length: length))
            if offset + length > node.now.sizeBytes { record(.truncate(offset + length)) }
        }
    }

    override func allocate(
        at offset: UInt64, length: UInt64, keepSize: Bool
    ) throws(SystemError) {
        try locked("allocate") { () throws(SystemError) in
            guard length > 0 else { return }
            try disk.take(pages: pages(offset, length), of: node, path)
            if !keepSize, offset + length > node.now.sizeBytes {
                record(.truncate(offset + length))
            }
        }
    }

    override func seekData(from offset: UInt64) throws(SystemError) -> UInt64? {
        try locked("seek data in") { () throws(SystemError) in
            node.now.seek(data: true, from: offset)
        }
    }

    override func seekHole(from offset: UInt64) throws(SystemError) -> UInt64? {
        try locked("seek hole in") { () throws(SystemError) in
            if offset >= node.now.sizeBytes { return nil }
            return node.now.seek(data: false, from: offset) ?? node.now.sizeBytes
        }
    }

    override func status() throws(SystemError) -> FileStatus {
        try locked("stat") { () throws(SystemError) in SimulatedDisk.status(node) }
    }

    override func setTimes(accessNs: Int64, modifyNs: Int64) throws(SystemError) {
        try locked("set times of") { () throws(SystemError) in node.modifyNs = modifyNs }
    }
}

/// A change of a file since its last sync.
enum Change {
    case write(offset: UInt64, bytes: [UInt8])
    case truncate(UInt64)
    case punch(offset: UInt64, length: UInt64)
}

/// A sparse file's bytes. What is past the size is zero.
struct Content {
    static let pageBytes = 4096
    static let sectorBytes: UInt64 = 512
    var pages: [UInt64: [UInt8]] = [:]
    var sizeBytes: UInt64 = 0

    mutating func apply(_ change: Change) {
        switch change {
        case .write(let offset, let bytes):
            bytes.withUnsafeBytes { put($0, at: offset) }
            sizeBytes = max(sizeBytes, offset + UInt64(bytes.count))
        case .truncate(let size):
            if size < sizeBytes { erase(from: size, to: sizeBytes) }
            sizeBytes = size
        case .punch(let offset, let length):
            erase(from: offset, to: min(offset + length, sizeBytes))
        }
    }

    private func forEachPage(
        from start: UInt64, to end: UInt64, _ body: (UInt64, Range<Int>) -> Void
    ) {
        var position = start
        while position < end {
            let page = position / 4096
            let stop = min(end, (page + 1) * 4096)
            body(page, Int(position - page * 4096)..<Int(stop - page * 4096))
            position = stop
        }
    }

    private mutating func put(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) {
        var done = 0
        while done < bytes.count {
            let position = offset + UInt64(done)
            let inPage = Int(position % 4096)
            let count = min(bytes.count - done, 4096 - inPage)
            pages[position / 4096, default: [UInt8](repeating: 0, count: 4096)]
                .withUnsafeMutableBytes {
                    UnsafeMutableRawBufferPointer(rebasing: $0[inPage..<inPage + count])
                        .copyMemory(
                            from: UnsafeRawBufferPointer(rebasing: bytes[done..<done + count]))
                }
            done += count
        }
    }

    private mutating func erase(from start: UInt64, to end: UInt64) {
        guard start < end else { return }
        // A file may be cut from far beyond its pages.
        let (first, last) = (start / 4096, (end + 4095) / 4096)
        if last - first > UInt64(pages.count) {
            for page in pages.keys where page * 4096 >= start && (page + 1) * 4096 <= end {
                pages[page] = nil
            }
            for page in [start / 4096, (end - 1) / 4096] { eraseInside(page, start, end) }
        } else {
            for page in first..<last { eraseInside(page, start, end) }
        }
    }

    private mutating func eraseInside(_ page: UInt64, _ start: UInt64, _ end: UInt64) {
        guard pages[page] != nil else { return }
        let from = max(start, page * 4096) - page * 4096
        let to = min(end, (page + 1) * 4096) - page * 4096
        guard from < to else { return }
        // The tail of a file's last page is zero anyway.
        if from == 0, to == 4096 || end >= sizeBytes {
            pages[page] = nil
            return
        }
        _ = pages[page]!.withUnsafeMutableBytes {
            UnsafeMutableRawBufferPointer(rebasing: $0[Int(from)..<Int(to)])
                .initializeMemory(as: UInt8.self, repeating: 0)
        }
    }

    func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int {
        guard offset < sizeBytes, buffer.count > 0 else { return 0 }
        let count = Int(min(UInt64(buffer.count), sizeBytes - offset))
        var done = 0
        forEachPage(from: offset, to: offset + UInt64(count)) { page, range in
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[done..<done + range.count])
            if let bytes = pages[page] {
                bytes.withUnsafeBytes {
                    part.copyMemory(from: UnsafeRawBufferPointer(rebasing: $0[range]))
                }
            } else {
                part.initializeMemory(as: UInt8.self, repeating: 0)
            }
            done += range.count
        }
        return count
    }

    func seek(data wantsData: Bool, from offset: UInt64) -> UInt64? {
        var position = offset
        while position < sizeBytes {
            if (pages[position / 4096] != nil) == wantsData { return position }
            position = (position / 4096 + 1) * 4096
        }
        return nil
    }

    // MARK: Crash

    static func surviving(
        _ durable: Content, _ changes: [Change], _ random: inout SeededRandom
    ) -> Content {
        if changes.isEmpty { return durable }
        var shown = durable
        var result = durable
        for change in changes {
            shown.apply(change)
            let fate = random.below(3)
            if fate == 0 { continue }
            switch change {
            case .truncate: result.apply(change)
            case .punch(let offset, let length):
                result.apply(change)
                // Bytes beside the hole in its first and last sector are those of that moment.
                for edge in [offset, offset + length] where edge % sectorBytes != 0 {
                    result.keepSector(edge / sectorBytes, of: shown, upTo: result.sizeBytes)
                }
            case .write(let offset, let bytes):
                let end = offset + UInt64(bytes.count)
                for sector in offset / sectorBytes...(end - 1) / sectorBytes
                where fate == 1 || random.chance(50) {
                    result.keepSector(sector, of: shown, upTo: max(end, result.sizeBytes))
                }
            }
        }
        // What was kept of a sector past the size is not there.
        let end = (result.sizeBytes + 4095) & ~4095
        if result.sizeBytes < end {
            let size = result.sizeBytes
            result.sizeBytes = end
            result.apply(.truncate(size))
        }
        return result
    }

    private mutating func keepSector(_ sector: UInt64, of other: Content, upTo limit: UInt64) {
        let offset = sector * Self.sectorBytes
        let end = min(offset + Self.sectorBytes, limit)
        guard offset < end else { return }
        var bytes = [UInt8](repeating: 0, count: Int(end - offset))
        _ = bytes.withUnsafeMutableBytes { other.read(into: $0, at: offset) }
        apply(.write(offset: offset, bytes: bytes))
    }
}
