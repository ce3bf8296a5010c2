// Which file of a raw mirror is what: `.doppel-mirror/names`.
//
//   magic    8   "DoppelRN"
//   entries      the first says everything, each later one what is about to change:
//     length   4   of the payload
//     payload
//     hash     8   XXH3-64 of length and payload, seeded with the hash of the entry before
//   a payload:
//     images   4   count, each: image 8, inode 8, size 8, modified 8 (nanoseconds since 1970)
//     gone     4   count, each: image 8
//     places   4   count, each: node 8, inode 8: of folders and symlinks
//     names        changes of names as NamesCodec has them
//
// All little-endian. Invariants
//   F1 An entry is durable before the change that it names is made. So a file that stands at a place which
//      no entry gives it, or has another inode, is somebody else's, and is left alone.
//   F2 The file is written anew only when all files and folders are synced: what entries before said is
//      over then. A torn tail names changes that were not begun.

import BlockCore
import SystemIO

package enum RawFolderNames {
    package struct File: Sendable, Hashable {
        package var inode: UInt64
        /// When it was last written down; checked where the mirror was left clean.
        package var sizeBytes: UInt64
        package var modifyNs: Int64
        package init(inode: UInt64, sizeBytes: UInt64 = 0, modifyNs: Int64 = 0) {
            self.inode = inode
            self.sizeBytes = sizeBytes
            self.modifyNs = modifyNs
        }
    }

    package struct Entry: Sendable, Hashable {
        package var names: [NameChange]
        package var images: [ImageID: File] = [:]
        package var gone: Set<ImageID> = []
        /// Inodes of folders and symlinks.
        package var places: [NodeID: UInt64] = [:]
        package init(names: [NameChange] = []) { self.names = names }
        package var isEmpty: Bool {
            names.isEmpty && images.isEmpty && gone.isEmpty && places.isEmpty
        }
    }

    private static let magic = Array("DoppelRN".utf8)
    private static let longestEntryBytes: UInt32 = 1 << 30

    package static func path(of folder: String) -> String {
        RawFolderState.folder(of: folder) + "/names"
    }

    // MARK: Writing

    /// Replaces all there is, durably.
    /// - Returns: where the next entry goes, and what its hash is seeded with.
    @discardableResult
    package static func write(
        _ all: Entry, to path: String, disk: Disk
    ) throws(SystemError) -> (end: UInt64, seed: UInt64) {
        let (bytes, hash) = encode(all, seed: 0)
        try disk.writeDurably(path, contents: magic + bytes)
        return (UInt64(magic.count + bytes.count), hash)
    }

    static func encode(_ entry: Entry, seed: UInt64) -> (bytes: [UInt8], hash: UInt64) {
        var body = ByteWriter(capacity: 64 + entry.images.count * 32)
        body.put(UInt32(entry.images.count))
        for (id, file) in entry.images.sorted(by: { $0.key < $1.key }) {
            body.put(id.rawValue)
            body.put(file.inode)
            body.put(file.sizeBytes)
            body.put(file.modifyNs)
        }
        body.put(UInt32(entry.gone.count))
        for id in entry.gone.sorted() { body.put(id.rawValue) }
        body.put(UInt32(entry.places.count))
        for (id, inode) in entry.places.sorted(by: { $0.key < $1.key }) {
            body.put(id.rawValue)
            body.put(inode)
        }
        body.append(NamesCodec.encode(entry.names))
        var writer = ByteWriter(capacity: body.bytes.count + 12)
        writer.put(UInt32(body.bytes.count))
        writer.append(body.bytes)
        let hash = writer.seal(seed: seed)
        return (writer.bytes, hash)
    }

    /// Appends entries, each durable when the call returns.
    package final class Log: @unchecked Sendable {  // one caller at a time
        private let file: DiskFile
        private var end: UInt64
        private var seed: UInt64

        init(_ file: DiskFile, end: UInt64, seed: UInt64) {
            self.file = file
            self.end = end
            self.seed = seed
        }

        /// - Throws: and the log is as before: what is written next goes to the same place.
        package func append(_ entry: Entry) throws(SystemError) {
            let (bytes, hash) = encode(entry, seed: seed)
            try bytes.withTypedBytes { (raw) throws(SystemError) in try file.write(raw, at: end) }
            try file.syncData()
            end += UInt64(bytes.count)
            seed = hash
        }

        package func close() { file.close() }
    }

    /// Everything is as `all` has it, durably; what follows is appended.
    package static func begin(
        _ all: Entry, at path: String, disk: Disk
    ) throws(SystemError) -> Log {
        let (end, seed) = try write(all, to: path, disk: disk)
        return Log(try disk.open(path, .readWrite), end: end, seed: seed)
    }

    // MARK: Reading

    /// - Returns: the entries up to a torn tail, and the log to go on with: the tail is cut off.
    /// - Throws: `.damaged` where not even the first entry is whole.
    package static func open(
        _ path: String, disk: Disk
    ) throws(PoolError) -> (entries: [Entry], log: Log) {
        do throws(SystemError) {
            let bytes = try disk.readAll(path)
            let (entries, end, seed) = decode(bytes)
            guard !entries.isEmpty else {
                throw SystemError(operation: "read", path: path, errno: 0)
            }
            let file = try disk.open(path, .readWrite)
            if end < UInt64(bytes.count) {
                try file.truncate(to: end)
                try file.syncData()
            }
            return (entries, Log(file, end: end, seed: seed))
        } catch {
            guard error.errno != 0 else {
                throw PoolError(.damaged, "\(path) says nothing one can trust")
            }
            throw PoolError(error)
        }
    }

    package static func decode(
        _ bytes: [UInt8]
    ) -> (entries: [Entry], end: UInt64, seed: UInt64) {
        var entries: [Entry] = []
        var (end, seed) = (magic.count, UInt64(0))
        guard bytes.starts(with: magic) else { return ([], 0, 0) }
        bytes.withUnsafeBytes { raw in
            while raw.count - end >= 12 {
                let start = end
                var reader = ByteReader(raw, at: start)
                let length = reader.take(UInt32.self)
                guard length <= longestEntryBytes, Int(length) <= raw.count - start - 12 else {
                    return
                }
                let payload = UnsafeRawBufferPointer(
                    rebasing: raw[start + 4..<start + 4 + Int(length)])
                reader.skip(Int(length))
                let hash = reader.take(UInt64.self)
                let covered = UnsafeRawBufferPointer(
                    rebasing: raw[start..<start + 4 + Int(length)])
                guard hash == blockHash(covered, seed: seed), let entry = entry(payload) else {
                    return
                }
                entries.append(entry)
                (end, seed) = (start + 12 + Int(length), hash)
            }
        }
        return (entries, UInt64(end), seed)
    }

    private static func entry(_ payload: UnsafeRawBufferPointer) -> Entry? {
        var reader = ByteReader(payload)
        func count(_ bytes: Int) -> Int? {
            guard reader.remaining >= 4 else { return nil }
            let count = Int(reader.take(UInt32.self))
            return count <= reader.remaining / bytes ? count : nil
        }
        var entry = Entry()
        guard let images = count(32) else { return nil }
        for _ in 0..<images {
            entry.images[ImageID(rawValue: reader.take())] = File(
                inode: reader.take(), sizeBytes: reader.take(), modifyNs: reader.take())
        }
        guard let gone = count(8) else { return nil }
        for _ in 0..<gone { entry.gone.insert(ImageID(rawValue: reader.take())) }
        guard let places = count(16) else { return nil }
        for _ in 0..<places { entry.places[NodeID(rawValue: reader.take())] = reader.take() }
        let rest = UnsafeRawBufferPointer(rebasing: payload[reader.position...])
        guard let names = NamesCodec.decode(rest) else { return nil }
        entry.names = names
        return entry
    }
}
