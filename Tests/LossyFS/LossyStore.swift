// The two states, without FUSE.
//
// What is promised, as far as a journaling file system promises it:
//   - fsync or fdatasync of a file makes its data and length durable, and nothing else: neither its
//     name nor any other file. (ext4 does more; a program must not count on it.)
//   - fsync of a folder makes all changes of names so far durable. They are a journal: a later
//     change is never durable without the earlier ones.
//   - All else may be lost, kept or torn at sectors of 512 bytes.

import Glibc

struct Errno: Error {
    var number: Int32
    init(_ number: Int32) { self.number = number }
}

struct LossyNode {
    enum Kind { case file, folder, link }
    var kind: Kind
    var mode: UInt32
    var uid: UInt32 = 0
    var gid: UInt32 = 0
    var accessed = timespec()
    var modified = timespec()
    var changed = timespec()
    var target: [UInt8] = []
    var entries: [[UInt8]: UInt64] = [:]
}

/// A file's bytes in both states. A page that is missing is a hole.
struct LossyContent {
    static let pageBytes = 4096
    var pages: [Int: [UInt8]] = [:]
    var size = 0
    private(set) var durablePages: [Int: [UInt8]] = [:]
    private(set) var durableSize = 0
    private var dirty: Set<Int> = []

    func read(_ count: Int, at offset: Int) -> [UInt8] {
        let end = min(size, offset + count)
        guard offset < end else { return [] }
        var result = [UInt8](repeating: 0, count: end - offset)
        var position = offset
        while position < end {
            let (index, start) = position.quotientAndRemainder(dividingBy: Self.pageBytes)
            let length = min(Self.pageBytes - start, end - position)
            if let page = pages[index] {
                let at = position - offset
                result.replaceSubrange(at..<at + length, with: page[start..<start + length])
            }
            position += length
        }
        return result
    }

    mutating func write(_ bytes: UnsafeRawBufferPointer, at offset: Int) {
        var done = 0
        while done < bytes.count {
            let (index, start) = (offset + done).quotientAndRemainder(dividingBy: Self.pageBytes)
            let length = min(Self.pageBytes - start, bytes.count - done)
            var page = pages.removeValue(forKey: index) ?? Self.emptyPage
            page.replaceSubrange(start..<start + length, with: bytes[done..<done + length])
            pages[index] = page
            dirty.insert(index)
            done += length
        }
        size = max(size, offset + bytes.count)
    }

    mutating func zero(from start: Int, to end: Int) {
        for index in pages.keys
        where index * Self.pageBytes < end && (index + 1) * Self.pageBytes > start {
            let low = max(start - index * Self.pageBytes, 0)
            let high = min(end - index * Self.pageBytes, Self.pageBytes)
            dirty.insert(index)
            if low == 0, high == Self.pageBytes {
                pages[index] = nil
            } else {
                pages[index]!.replaceSubrange(
                    low..<high, with: repeatElement(0, count: high - low))
            }
        }
    }

    mutating func resize(to newSize: Int) {
        if newSize < size { zero(from: newSize, to: .max - Self.pageBytes) }
        size = newSize
    }

    mutating func sync() {
        for index in dirty { durablePages[index] = pages[index] }
        durableSize = size
        dirty = []
    }

    /// What is dirty is lost, and yet counts as clean: the kernel does this when a sync fails.
    mutating func forgetDirty() {
        for index in dirty { pages[index] = durablePages[index] }
        dirty = []
    }

    /// The state after power loss; with `random`, some of what was not synced survives.
    mutating func drop(_ random: inout SeededRandom?) {
        if random != nil {
            let grown = random!.coin()
            for index in dirty.sorted() where random!.coin() {
                guard random!.next() % 8 == 0 else {
                    durablePages[index] = pages[index]
                    continue
                }
                var torn = durablePages[index] ?? Self.emptyPage
                let new = pages[index] ?? Self.emptyPage
                for sector in 0..<8 where random!.coin() {
                    let range = sector * 512..<(sector + 1) * 512
                    torn.replaceSubrange(range, with: new[range])
                }
                durablePages[index] = torn
            }
            if grown { durableSize = size }
        }
        pages = durablePages
        size = durableSize
        dirty = []
        // Past the end there is nothing, also after the file grows again.
        resize(to: size)
        zero(from: size, to: .max - Self.pageBytes)
        sync()
    }

    func seek(data: Bool, from offset: Int) -> Int? {
        guard offset < size else { return nil }
        var position = offset
        while position < size {
            let index = position / Self.pageBytes
            if (pages[index] != nil) == data { return position }
            if data {
                // Straight to the next page there is.
                guard let next = pages.keys.filter({ $0 > index }).min() else { return nil }
                position = next * Self.pageBytes
            } else {
                position = (index + 1) * Self.pageBytes
            }
        }
        return data ? nil : size
    }

    private static let emptyPage = [UInt8](repeating: 0, count: pageBytes)
}

/// SplitMix64: the same seed forgets the same things.
struct SeededRandom {
    private var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
    mutating func coin() -> Bool { next() & 1 == 0 }
}

/// Names and contents. Not for several threads at once.
struct LossyStore {
    static let root: UInt64 = 1
    private(set) var nodes: [UInt64: LossyNode]
    private var durableNodes: [UInt64: LossyNode]
    /// The tree after each change of names since the last durable one.
    private var journal: [[UInt64: LossyNode]] = []
    var contents: [UInt64: LossyContent] = [:]
    private var openCounts: [UInt64: Int] = [:]
    /// Open files that have lost their name.
    private var orphans: [UInt64: LossyNode] = [:]
    private var nextInode: UInt64 = 2
    private var passingSyncs = 0
    private var failingSyncs = 0
    private var failingWrites = 0
    private var spaceBytes: Int?
    /// Reading, writing and syncing wait until it is over.
    private(set) var hangs = false
    /// It begins when so many more syncs were begun.
    private var syncsUntilHang: Int?
    private var syncCount = 0
    /// The power goes when so many more syncs were done.
    private var syncsUntilOff: Int?
    /// The power is gone: nothing changes until `drop` brings back what is left.
    private(set) var isOff = false
    /// How long each write takes.
    private(set) var writeMs: UInt32 = 0

    init() {
        var node = LossyNode(kind: .folder, mode: 0o755)
        node.modified = Self.now
        nodes = [Self.root: node]
        durableNodes = nodes
    }

    static var now: timespec {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return time
    }

    // MARK: Names

    func node(_ inode: UInt64) throws(Errno) -> LossyNode {
        guard let node = nodes[inode] ?? orphans[inode] else { throw Errno(ESTALE) }
        return node
    }

    func child(_ parent: UInt64, _ name: [UInt8]) throws(Errno) -> UInt64 {
        let folder = try node(parent)
        guard folder.kind == .folder else { throw Errno(ENOTDIR) }
        guard let inode = folder.entries[name] else { throw Errno(ENOENT) }
        return inode
    }

    func requirePower() throws(Errno) { if isOff { throw Errno(EIO) } }

    private mutating func changeNames(_ body: (inout [UInt64: LossyNode]) -> Void) {
        body(&nodes)
        journal.append(nodes)
    }

    mutating func insert(
        _ parent: UInt64, _ name: [UInt8], _ node: LossyNode
    ) throws(Errno) -> UInt64 {
        try requirePower()
        guard name.count <= 255 else { throw Errno(ENAMETOOLONG) }
        guard let folder = nodes[parent] else { throw Errno(ESTALE) }
        guard folder.entries[name] == nil else { throw Errno(EEXIST) }
        let inode = nextInode
        nextInode += 1
        var node = node
        node.accessed = Self.now
        node.modified = node.accessed
        node.changed = node.accessed
        if node.kind == .file { contents[inode] = LossyContent() }
        changeNames {
            $0[inode] = node
            $0[parent]!.entries[name] = inode
            $0[parent]!.modified = node.modified
        }
        return inode
    }

    mutating func remove(_ parent: UInt64, _ name: [UInt8], isFolder: Bool) throws(Errno) {
        try requirePower()
        let inode = try child(parent, name)
        let gone = try node(inode)
        if isFolder {
            guard gone.kind == .folder else { throw Errno(ENOTDIR) }
            guard gone.entries.isEmpty else { throw Errno(ENOTEMPTY) }
        } else if gone.kind == .folder {
            throw Errno(EISDIR)
        }
        detach(inode, gone)
        changeNames {
            $0[parent]!.entries[name] = nil
            $0[parent]!.modified = Self.now
            $0[inode] = nil
        }
    }

    private mutating func detach(_ inode: UInt64, _ node: LossyNode) {
        if openCounts[inode, default: 0] > 0 { orphans[inode] = node }
    }

    mutating func rename(
        _ parent: UInt64, _ name: [UInt8], _ newParent: UInt64, _ newName: [UInt8], flags: UInt32
    ) throws(Errno) {
        let inode = try child(parent, name)
        guard flags <= 1 else { throw Errno(EINVAL) }
        guard nodes[newParent] != nil else { throw Errno(ESTALE) }
        var replaced: UInt64?
        if let other = nodes[newParent]!.entries[newName], other != inode {
            if flags == 1 { throw Errno(EEXIST) }
            let node = try node(other)
            if node.kind == .folder, !node.entries.isEmpty { throw Errno(ENOTEMPTY) }
            detach(other, node)
            replaced = other
        }
        changeNames {
            $0[parent]!.entries[name] = nil
            $0[newParent]!.entries[newName] = inode
            if let replaced { $0[replaced] = nil }
            $0[parent]!.modified = Self.now
            $0[newParent]!.modified = Self.now
        }
    }

    mutating func change(_ inode: UInt64, _ body: (inout LossyNode) -> Void) throws(Errno) {
        try requirePower()
        if orphans[inode] != nil { return body(&orphans[inode]!) }
        guard nodes[inode] != nil else { throw Errno(ESTALE) }
        changeNames { body(&$0[inode]!) }
    }

    mutating func opened(_ inode: UInt64) { openCounts[inode, default: 0] += 1 }

    mutating func closed(_ inode: UInt64) {
        openCounts[inode, default: 1] -= 1
        guard openCounts[inode] == 0 else { return }
        openCounts[inode] = nil
        orphans[inode] = nil
        collect()
    }

    /// Lets go of contents that no state of the tree can show any more.
    private mutating func collect() {
        guard journal.isEmpty else { return }
        for inode in Array(contents.keys)
        where nodes[inode] == nil && durableNodes[inode] == nil && openCounts[inode] == nil {
            contents[inode] = nil
        }
    }

    // MARK: Contents

    mutating func write(
        _ bytes: UnsafeRawBufferPointer, to inode: UInt64, at offset: Int
    ) throws(Errno) {
        try requirePower()
        guard contents[inode] != nil else { throw Errno(ESTALE) }
        if failingWrites > 0 {
            failingWrites -= 1
            throw Errno(EIO)
        }
        try checkSpace(bytes.count)
        contents[inode]!.write(bytes, at: offset)
        touch(inode)
    }

    func checkSpace(_ more: Int) throws(Errno) {
        if let spaceBytes, usedBytes + more > spaceBytes { throw Errno(ENOSPC) }
    }

    /// Times of writes are no change of names: they are lost without being missed.
    mutating func touch(_ inode: UInt64) {
        nodes[inode]?.modified = Self.now
        nodes[inode]?.changed = Self.now
    }

    var usedBytes: Int { contents.values.reduce(0) { $0 + $1.pages.count } * 4096 }
    var limitBytes: Int { spaceBytes ?? 1 << 40 }

    mutating func sync(_ inode: UInt64) throws(Errno) {
        let isFile = contents[inode] != nil
        guard isFile || nodes[inode] != nil else { throw Errno(ESTALE) }
        if let left = syncsUntilOff {
            isOff = left == 0
            syncsUntilOff = max(left - 1, 0)
        }
        try requirePower()
        if passingSyncs > 0 {
            passingSyncs -= 1
            if passingSyncs == 0 { failingSyncs = 1 }
        } else if failingSyncs > 0 {
            failingSyncs -= 1
            if isFile { contents[inode]!.forgetDirty() }
            throw Errno(EIO)
        }
        if isFile {
            contents[inode]!.sync()
        } else {
            durableNodes = nodes
            journal = []
            collect()
        }
    }

    /// One is about to begin.
    mutating func meetSync() {
        syncCount += 1
        guard let left = syncsUntilHang else { return }
        syncsUntilHang = left > 0 ? left - 1 : nil
        if left == 0 { hangs = true }
    }

    // MARK: Commands

    /// For who reads where commands are written: syncs so far, and whether it hangs.
    var standing: String { "\(syncCount) \(hangs ? "hangs" : "goes")\n" }

    mutating func obey(_ line: String) throws(Errno) {
        let words = line.split(whereSeparator: \.isWhitespace).map(String.init)
        switch (words.first, words.count) {
        case ("drop", 1): drop(nil)
        case ("drop", 2):
            guard let seed = UInt64(words[1]) else { throw Errno(EINVAL) }
            drop(SeededRandom(seed: seed))
        case ("sync-fails", 2):
            guard let count = Int(words[1]) else { throw Errno(EINVAL) }
            (passingSyncs, failingSyncs) = (0, count)
        case ("sync-passes", 2):
            guard let count = Int(words[1]), count > 0 else { throw Errno(EINVAL) }
            (passingSyncs, failingSyncs) = (count, 0)
        case ("write-fails", 2):
            guard let count = Int(words[1]) else { throw Errno(EINVAL) }
            failingWrites = count
        case ("slow", 2):
            guard let ms = UInt32(words[1]) else { throw Errno(EINVAL) }
            writeMs = ms
        case ("off", 2):
            guard let count = Int(words[1]), count >= 0 else { throw Errno(EINVAL) }
            syncsUntilOff = count
        case ("hang", 1): hangs = true
        case ("hang", 2):
            guard let count = Int(words[1]), count >= 0 else { throw Errno(EINVAL) }
            syncsUntilHang = count
        case ("go", 1): (hangs, syncsUntilHang) = (false, nil)
        case ("space", 2):
            guard words[1] == "-" || Int(words[1]) != nil else { throw Errno(EINVAL) }
            spaceBytes = Int(words[1])
        default: throw Errno(EINVAL)
        }
    }

    private mutating func drop(_ seeded: SeededRandom?) {
        (isOff, syncsUntilOff) = (false, nil)
        var random = seeded
        if random != nil {
            let kept = Int(random!.next() % UInt64(journal.count + 1))
            if kept > 0 { durableNodes = journal[kept - 1] }
        }
        nodes = durableNodes
        journal = []
        orphans = [:]
        for inode in contents.keys.sorted() {
            if nodes[inode] == nil {
                contents[inode] = nil
            } else {
                contents[inode]!.drop(&random)
            }
        }
    }
}
