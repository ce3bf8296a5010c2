// The durable dirty set of one target, `targets/<target id>/dirty`: which blocks it may lack, leg by
// leg, and what is not known of it.
//
// A change is what came to the legs since the last one, appended and synced: where a terabyte is dirty
// at random the whole is 40 MiB, and what settles at a time is a few regions, so writing the whole each
// time would be a hundred times more. When the file has grown to more than twice what its content needs
// (and 8 MiB), its owner writes it anew, whole. The content is not kept in memory here: it is in the
// legs that it was taken from.
//
//   header │ change │ change │ ...      a change: frames of extents; its last frame closes it and
//                                       lists the legs that there are
//
// Invariants
//   F1 What `append` or `rewrite` returned for is there at every later open, or opening is an error:
//      never silently less. Each frame says up to where the file was durable when it was written.
//   F2 A change is there as a whole or not at all: blocks leave only with the leg that had them, whose
//      number is not in the list any more.
//   F3 What follows the last closed change is cut, and the cut synced, before anything is appended.
//   F4 After a failure the file takes nothing until it was written anew.

import BlockCore
import SystemIO

// Unchecked: one caller at a time, who also decides the order in which legs are taken and written.
package final class DirtyFile: @unchecked Sendable {
    private static let slackBytes: UInt64 = 8 << 20

    private let disk: Disk
    private let path: String
    private let target: TargetID
    private var file: DiskFile
    private var nonce: UInt64
    private var chain: UInt64
    private var end: UInt64
    /// Bytes that the content needed when it was last written whole.
    private var wholeBytes: UInt64
    private var hasFailed = false

    private init(
        disk: Disk, path: String, target: TargetID, file: DiskFile, nonce: UInt64, chain: UInt64,
        end: UInt64, wholeBytes: UInt64
    ) {
        self.disk = disk
        self.path = path
        self.target = target
        self.file = file
        self.nonce = nonce
        self.chain = chain
        self.end = end
        self.wholeBytes = wholeBytes
    }

    package var lengthBytes: UInt64 { end }
    /// The next change should be a ``rewrite(_:)``.
    package var wantsRewrite: Bool { hasFailed || end > 2 * wholeBytes + Self.slackBytes }

    package func close() { file.close() }

    // MARK: Opening

    /// - Returns: nil when there is none.
    package static func open(
        disk: Disk, path: String, target: TargetID
    ) throws(DirtyFileError) -> (file: DirtyFile, state: DirtyFileState)? {
        guard try dirtied({ () throws(SystemError) in try disk.status(path) }) != nil else {
            return nil
        }
        let file = try dirtied { () throws(SystemError) in try disk.open(path, .readWrite) }
        do throws(DirtyFileError) {
            var reader = try DirtyFileReader(file: file, path: path, target: target)
            try reader.readAll()
            try reader.cutTail()
            let dirty = DirtyFile(
                disk: disk, path: path, target: target, file: file, nonce: reader.nonce,
                chain: reader.closedChain, end: reader.closedEnd, wholeBytes: reader.closedEnd)
            return (dirty, reader.state)
        } catch {
            file.close()
            throw error
        }
    }

    /// A new file with this content. One that is there is replaced, at once.
    package static func create(
        disk: Disk, path: String, target: TargetID, _ state: DirtyFileState
    ) throws(DirtyFileError) -> DirtyFile {
        try dirtied { () throws(SystemError) in
            var missing: [String] = []
            var directory = parentPath(path)
            while try disk.status(directory) == nil {
                missing.append(directory)
                directory = parentPath(directory)
            }
            for directory in missing.reversed() {
                try disk.createDirectory(directory, mode: 0o700)
                try disk.syncDirectory(parentPath(directory))
            }
        }
        let (file, writer) = try writeWhole(state, disk: disk, path: path, target: target)
        return DirtyFile(
            disk: disk, path: path, target: target, file: file, nonce: writer.nonce,
            chain: writer.chain, end: writer.end, wholeBytes: writer.end)
    }

    /// Nothing is known to be lacking any more, or nobody asks: the target is removed.
    package static func remove(disk: Disk, path: String) throws(SystemError) {
        for path in [path + ".new", path] where try disk.status(path) != nil {
            try disk.removeFile(path)
        }
        let directory = parentPath(path)
        guard try disk.status(directory) != nil else { return }
        try disk.removeDirectory(directory)
        try disk.syncDirectory(parentPath(directory))
    }

    // MARK: Writing

    /// Adds the blocks of each leg to those it has, and drops the legs that are not in the list. On
    /// return it is durable.
    package func append(_ state: DirtyFileState) throws(DirtyFileError) {
        guard !hasFailed else {
            throw .system(SystemError(operation: "append to", path: path, errno: 5))
        }
        hasFailed = true
        var writer = DirtyFileWriter(file: file, nonce: nonce, chain: chain, end: end)
        try dirtied { () throws(SystemError) in
            try writer.write(state)
            try file.syncData()
        }
        chain = writer.chain
        end = writer.end
        hasFailed = false
    }

    /// Replaces all of it at once. On return it is durable.
    package func rewrite(_ whole: DirtyFileState) throws(DirtyFileError) {
        hasFailed = true
        let (new, writer) = try Self.writeWhole(whole, disk: disk, path: path, target: target)
        file.close()
        file = new
        nonce = writer.nonce
        chain = writer.chain
        end = writer.end
        wholeBytes = writer.end
        hasFailed = false
    }

    private static func writeWhole(
        _ state: DirtyFileState, disk: Disk, path: String, target: TargetID
    ) throws(DirtyFileError) -> (DiskFile, DirtyFileWriter) {
        try dirtied { () throws(SystemError) in
            let new = path + ".new"
            let nonce = SystemRandom.bytes(8).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
            let (header, chain) = DirtyFileHeader(target: target, nonce: nonce).encoded()
            let file = try disk.open(new, [.readWrite, .create, .truncate])
            var writer = DirtyFileWriter(
                file: file, nonce: nonce, chain: chain, end: DirtyFileHeader.bytes)
            do throws(SystemError) {
                try header.withTypedBytes { (raw) throws(SystemError) in
                    try file.write(raw, at: 0)
                }
                try writer.write(state)
                try file.sync()
            } catch {
                file.close()
                try? disk.removeFile(new)
                throw error
            }
            file.close()
            try disk.rename(new, to: path)
            try disk.syncDirectory(parentPath(path))
            return (try disk.open(path, .readWrite), writer)
        }
    }
}

/// Writes one change.
struct DirtyFileWriter {
    let file: DiskFile
    let nonce: UInt64
    private(set) var chain: UInt64
    private(set) var end: UInt64
    private let durableEnd: UInt64
    private var extents = ByteWriter(capacity: 4096)
    private var extentCount: UInt64 = 0

    init(file: DiskFile, nonce: UInt64, chain: UInt64, end: UInt64) {
        self.file = file
        self.nonce = nonce
        self.chain = chain
        self.end = end
        durableEnd = end
    }

    mutating func write(_ state: DirtyFileState) throws(SystemError) {
        for leg in state.legs {
            for image in leg.blocks.keys.sorted() {
                try DirtyExtent.forEach(of: leg.blocks[image]!, leg: leg.number, image: image) {
                    (extent) throws(SystemError) in try put(extent)
                }
            }
        }
        var list = ByteWriter(capacity: 64 + 24 * state.legs.count)
        list.put(state.acknowledged.rawValue)
        list.put(state.incarnation)
        list.put(UInt64(state.legs.count))
        for leg in state.legs {
            list.put(leg.number)
            list.put(leg.cut?.rawValue ?? 0)
            list.put(
                UInt64(
                    (leg.cut == nil ? 0 : 1) | (leg.hasNameChanges ? 2 : 0)
                        | (leg.isUnknown ? 4 : 0)))
        }
        if 8 + extents.bytes.count + list.bytes.count > DirtyFrameHeader.maxPayloadBytes {
            try endFrame(closing: nil)
        }
        try endFrame(closing: list.bytes)
    }

    private mutating func put(_ extent: DirtyExtent) throws(SystemError) {
        if 8 + extents.bytes.count + extent.encodedBytes > DirtyFrameHeader.maxPayloadBytes {
            try endFrame(closing: nil)
        }
        extent.encode(into: &extents)
        extentCount += 1
    }

    private mutating func endFrame(closing list: [UInt8]?) throws(SystemError) {
        var payload = ByteWriter(capacity: 8 + extents.bytes.count + (list?.count ?? 0))
        payload.put(extentCount)
        payload.append(extents.bytes)
        if let list { payload.append(list) }
        let header = DirtyFrameHeader(
            payloadBytes: UInt64(payload.bytes.count), durableEnd: durableEnd, closes: list != nil,
            chain: chain,
            payloadHash: payload.bytes.withUnsafeBytes { blockHash($0, seed: chain) })
        let (bytes, next) = header.encoded(nonce: nonce)
        var frame = bytes + payload.bytes
        frame.append(
            contentsOf: repeatElement(0, count: Int(header.totalBytes) - frame.count))
        let place = end
        try frame.withTypedBytes { (raw) throws(SystemError) in try file.write(raw, at: place) }
        chain = next
        end += header.totalBytes
        extents = ByteWriter(capacity: 4096)
        extentCount = 0
    }
}
