// Checksums of a sealed layer, `<layer id>.sums`: filled in the background, read on demand.
//
// Layout: 4 KiB header (magic, version, flags, layer id, hash), then pages of 512 bytes: 63 hashes of
// blocks and the page's own hash (seeded with the page's number). A hash of 0 means "not covered"; a
// page of zeros (a hole) covers nothing.
//
// Invariants (G7)
//   S1 A page is one sector, so that a page written in place is old or new after a crash, never torn.
//   S2 A head has no sums: they are removed, durably, before a layer becomes writable.
//   S3 A hash stands for a block only while that block's content cannot change; a merge replaces it
//      while the block is hidden, durably before the block is shown.
//   S4 A file whose header does not say "incomplete" covers every block of its layer.

import BlockCore
import Synchronization
import SystemIO

package final class SumsFile: @unchecked Sendable {  // pages change under `lock`
    private static let magic: UInt64 = 0x3130_4d53_534c_5044  // "DPLSSM01"
    private static let version: UInt32 = 2
    static let pagesOffset: UInt64 = 4096
    static let pageBytes = 512
    static let hashesPerPage: UInt64 = 63

    package let file: DiskFile
    private let layer: LayerID
    private let lock = Lock()
    private let complete: Atomic<Bool>

    private init(file: DiskFile, layer: LayerID, isComplete: Bool) {
        self.file = file
        self.layer = layer
        complete = Atomic(isComplete)
    }

    /// Whether every block of the layer is covered (S4).
    package var isComplete: Bool { complete.load(ordering: .acquiring) }

    // MARK: Opening and creating

    package static func open(
        disk: Disk, path: String, layer: LayerID, readOnly: Bool = false
    ) throws(LayerError) -> SumsFile? {
        guard try layered({ () throws(SystemError) in try disk.status(path) }) != nil else {
            return nil
        }
        let file = try layered { () throws(SystemError) in
            try disk.open(path, readOnly ? [] : .readWrite)
        }
        var header = [UInt8](repeating: 0, count: 32)
        let got = try layered { () throws(SystemError) in
            try header.withTypedMutableBytes { (raw) throws(SystemError) in
                try file.read(into: raw, at: 0)
            }
        }
        let flags: UInt32? = header.withUnsafeBytes { raw in
            var reader = ByteReader(raw)
            let magic = reader.take(UInt64.self)
            let version = reader.take(UInt32.self)
            let flags = reader.take(UInt32.self)
            let id = reader.take(Int64.self)
            let hash = blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<24]))
            return magic == Self.magic && version == Self.version && id == layer.rawValue
                && reader.take(UInt64.self) == hash ? flags : nil
        }
        guard got == 32, let flags else {
            throw .damaged(path: path, reason: "its header does not verify")
        }
        return SumsFile(file: file, layer: layer, isComplete: flags & 1 == 0)
    }

    /// A new file that covers nothing yet, put in place durably.
    package static func create(
        disk: Disk, path: String, layer: LayerID
    ) throws(LayerError) -> SumsFile {
        let temporary = path + ".new"
        do throws(LayerError) {
            try layered { () throws(SystemError) in
                let file = try disk.open(temporary, [.readWrite, .create, .truncate])
                defer { file.close() }
                let sums = SumsFile(file: file, layer: layer, isComplete: false)
                try sums.writeHeader(isComplete: false)
                try file.sync()
                try disk.rename(temporary, to: path)
                try disk.syncDirectory(parentPath(path))
            }
        } catch {
            try? disk.removeFile(temporary)
            throw error
        }
        // Opened by its name, so that what is said of it later names it.
        guard let sums = try open(disk: disk, path: path, layer: layer) else {
            throw .damaged(path: path, reason: "it is gone")
        }
        return sums
    }

    private func writeHeader(isComplete: Bool) throws(SystemError) {
        var header = ByteWriter(capacity: 32)
        header.put(Self.magic)
        header.put(Self.version)
        header.put(UInt32(isComplete ? 0 : 1))
        header.put(layer.rawValue)
        header.seal()
        try header.bytes.withTypedBytes { (raw) throws(SystemError) in try file.write(raw, at: 0) }
    }

    /// Says durably whether every block is covered; what was set before the call is durable first.
    package func setComplete(_ isComplete: Bool) throws(LayerError) {
        guard isComplete != self.isComplete else { return }
        try layered { () throws(SystemError) in
            if isComplete { try file.syncData() }
            try writeHeader(isComplete: isComplete)
            try file.syncData()
        }
        complete.store(isComplete, ordering: .releasing)
    }

    // MARK: Hashes

    /// A block's hash; 0 is kept free for "not covered".
    package static func hash(ofBlock bytes: UnsafeRawBufferPointer) -> UInt64 {
        let hash = blockHash(bytes)
        return hash == 0 ? 1 : hash
    }

    /// The hashes of a run of blocks, 0 where one is not covered.
    package func hashes(
        of range: BlockRange, into hashes: UnsafeMutableBufferPointer<UInt64>
    ) throws(LayerError) {
        try forEachPage(of: range) { (number, blocks, page) throws(LayerError) in
            let isThere = try load(number, into: page)
            for block in blocks.start..<blocks.end {
                hashes[Int(block - range.start)] = isThere ? Self.entry(block, in: page) : 0
            }
        }
    }

    /// Replaces the hashes of a run of blocks (S3); not durable before ``sync()``.
    package func set(
        _ hashes: UnsafeBufferPointer<UInt64>, startingAt first: UInt64
    ) throws(LayerError) {
        let range = BlockRange(start: first, count: UInt64(hashes.count))
        try forEachPage(of: range) { (number, blocks, page) throws(LayerError) in
            lock.lock()
            defer { lock.unlock() }
            if try !loadLocked(number, into: page) {
                page.initializeMemory(as: UInt8.self, repeating: 0)
            }
            for block in blocks.start..<blocks.end {
                page.storeBytes(
                    of: hashes[Int(block - first)].littleEndian,
                    toByteOffset: Int(block % Self.hashesPerPage) * 8, as: UInt64.self)
            }
            page.storeBytes(
                of: Self.hash(ofPage: page, number).littleEndian, toByteOffset: 504,
                as: UInt64.self)
            try layered { () throws(SystemError) in
                try file.write(UnsafeRawBufferPointer(page), at: Self.offset(number))
            }
        }
    }

    /// The blocks are not covered any more, however many; not durable before ``sync()``.
    package func clear(_ range: BlockRange) throws(LayerError) {
        let firstPage = (range.start + Self.hashesPerPage - 1) / Self.hashesPerPage
        let endPage = range.end / Self.hashesPerPage
        guard firstPage < endPage else { return try clearEdge(range.start, range.end) }
        try clearEdge(range.start, firstPage * Self.hashesPerPage)
        try layered { () throws(SystemError) in
            lock.lock()
            defer { lock.unlock() }
            try file.punchHole(
                at: Self.offset(firstPage),
                length: (endPage - firstPage) * UInt64(Self.pageBytes))
        }
        try clearEdge(endPage * Self.hashesPerPage, range.end)
    }

    private func clearEdge(_ start: UInt64, _ end: UInt64) throws(LayerError) {
        guard start < end else { return }
        let none = [UInt64](repeating: 0, count: Int(end - start))
        var failure: LayerError?
        none.withUnsafeBufferPointer { hashes in
            do throws(LayerError) { try set(hashes, startingAt: start) } catch { failure = error }
        }
        if let failure { throw failure }
    }

    package func sync() throws(LayerError) {
        try layered { () throws(SystemError) in try file.syncData() }
    }

    // MARK: Pages

    static func offset(_ number: UInt64) -> UInt64 {
        pagesOffset + UInt64(pageBytes) * number
    }

    static func entry(_ block: UInt64, in page: UnsafeMutableRawBufferPointer) -> UInt64 {
        UInt64(
            littleEndian: page.load(
                fromByteOffset: Int(block % hashesPerPage) * 8, as: UInt64.self))
    }

    private static func hash(ofPage page: UnsafeMutableRawBufferPointer, _ number: UInt64) -> UInt64
    {
        blockHash(UnsafeRawBufferPointer(rebasing: page[0..<504]), seed: number + 1)
    }

    func forEachPage(
        of range: BlockRange,
        _ body: (UInt64, BlockRange, UnsafeMutableRawBufferPointer) throws(LayerError) -> Void
    ) throws(LayerError) {
        var failure: LayerError?
        withUnsafeTemporaryAllocation(byteCount: Self.pageBytes, alignment: 8) { page in
            var block = range.start
            do throws(LayerError) {
                while block < range.end {
                    let number = block / Self.hashesPerPage
                    let stop = min(range.end, (number + 1) * Self.hashesPerPage)
                    try body(number, BlockRange(start: block, count: stop - block), page)
                    block = stop
                }
            } catch { failure = error }
        }
        if let failure { throw failure }
    }

    /// - Returns: false for a page that covers nothing.
    func load(
        _ number: UInt64, into page: UnsafeMutableRawBufferPointer
    ) throws(LayerError) -> Bool {
        do throws(LayerError) { return try loadLocked(number, into: page) } catch {
            // It may have been half written at that moment.
            lock.lock()
            defer { lock.unlock() }
            return try loadLocked(number, into: page)
        }
    }

    private func loadLocked(
        _ number: UInt64, into page: UnsafeMutableRawBufferPointer
    ) throws(LayerError) -> Bool {
        let got = try layered { () throws(SystemError) in
            try file.read(into: page, at: Self.offset(number))
        }
        if got == 0 { return false }
        guard got == Self.pageBytes else {
            throw .damaged(path: file.path, reason: "page \(number) is cut off")
        }
        let stored = UInt64(littleEndian: page.load(fromByteOffset: 504, as: UInt64.self))
        if stored == 0, page.allSatisfy({ $0 == 0 }) { return false }
        guard stored == Self.hash(ofPage: page, number) else {
            throw .damaged(path: file.path, reason: "page \(number) does not verify")
        }
        return true
    }
}
