// The content of a raw mirror's files.
//
// Files stay open from the first write on, until the next sync or as long as there are not too many. A file that
// is closed was synced before: what failed to be written is never found out by somebody else.

import BlockCore
import Pool
import Replication
import SystemIO
import Volume

final class RawFiles {
    private static let longestPieceBytes: UInt64 = 1 << 20

    private struct Open {
        var file: DiskFile
        var isUnsynced = false
        var usedAt: UInt64
    }

    private let tree: RawTree
    private let maxOpen: Int
    private var open: [ImageID: Open] = [:]
    private var uses: UInt64 = 0
    /// When the primary last changed them; settled when the mirror is clean.
    private var modifiedNs: [ImageID: Int64] = [:]

    init(_ tree: RawTree, maxOpen: Int = 128) {
        self.tree = tree
        self.maxOpen = maxOpen
    }

    func has(_ image: ImageID) -> Bool { tree.images[image] != nil }

    /// - Throws: `.absent` where another file has taken its place.
    private func file(_ image: ImageID) throws(TargetError) -> DiskFile {
        uses += 1
        if let known = open[image] {
            open[image]!.usedAt = uses
            return known.file
        }
        if open.count >= maxOpen, let oldest = open.min(by: { $0.value.usedAt < $1.value.usedAt }) {
            try sync(oldest.key)
            close(oldest.key)
        }
        let path = tree.path(of: image)
        let file = try TargetError.system { () throws(SystemError) in
            try tree.disk.open(path, .readWrite)
        }
        do throws(TargetError) {
            let status = try TargetError.system { () throws(SystemError) in try file.status() }
            guard status.inode == tree.images[image]?.inode else { throw tree.replaced(path) }
        } catch {
            file.close()
            throw error
        }
        open[image] = Open(file: file, usedAt: uses)
        return file
    }

    private func changing(
        _ image: ImageID, at ns: Int64, _ body: (DiskFile) throws(SystemError) -> Void
    ) throws(TargetError) {
        let file = try file(image)
        open[image]!.isUnsynced = true
        modifiedNs[image] = ns
        try TargetError.system { () throws(SystemError) in try body(file) }
    }

    // MARK: Changing

    func write(
        _ bytes: UnsafeRawBufferPointer, to image: ImageID, at offset: UInt64, ns: Int64
    ) throws(TargetError) {
        try changing(image, at: ns) { (file) throws(SystemError) in
            try file.write(bytes, at: offset)
        }
    }

    func zero(_ range: BlockRange, of image: ImageID, ns: Int64) throws(TargetError) {
        try changing(image, at: ns) { (file) throws(SystemError) in
            let size = try file.status().sizeBytes
            guard range.startByte < size else { return }
            let length = min(range.lengthBytes, size - range.startByte)
            do throws(SystemError) {
                try file.punchHole(at: range.startByte, length: length)
            } catch {
                guard error.isUnsupported else { throw error }
                try writeZeros(file, at: range.startByte, length)
            }
        }
    }

    /// Where the file system has no holes.
    private func writeZeros(
        _ file: DiskFile, at offset: UInt64, _ length: UInt64
    ) throws(SystemError) {
        let zeros = [UInt8](repeating: 0, count: Int(min(length, Self.longestPieceBytes)))
        var done: UInt64 = 0
        while done < length {
            let count = min(length - done, UInt64(zeros.count))
            try zeros.withTypedBytes { (raw) throws(SystemError) in
                try file.write(
                    UnsafeRawBufferPointer(rebasing: raw[..<Int(count)]), at: offset + done)
            }
            done += count
        }
    }

    func resize(_ image: ImageID, to sizeBytes: UInt64, ns: Int64) throws(TargetError) {
        try changing(image, at: ns) { (file) throws(SystemError) in
            guard try file.status().sizeBytes != sizeBytes else { return }
            try file.truncate(to: sizeBytes)
        }
    }

    /// The image is about to be deleted.
    func forget(_ image: ImageID) {
        close(image)
        modifiedNs[image] = nil
    }

    // MARK: Durability

    /// All that was written is durable on return.
    func sync() throws(TargetError) {
        for id in open.keys.sorted() { try sync(id) }
    }

    private func sync(_ image: ImageID) throws(TargetError) {
        guard let each = open[image], each.isUnsynced else { return }
        try tree.requireInPlace(image)
        try TargetError.synced { () throws(SystemError) in try each.file.syncData() }
        open[image]!.isUnsynced = false
    }

    /// The times of the last changes, as the primary has them; all that was written is durable.
    func settleTimes() throws(TargetError) {
        for (id, ns) in modifiedNs.sorted(by: { $0.key < $1.key }) where has(id) {
            let file = try file(id)
            try TargetError.synced { () throws(SystemError) in
                // A time that cannot be had there is no loss.
                try? file.setTimes(accessNs: ns, modifyNs: ns)
                try file.sync()
            }
            open[id]?.isUnsynced = false
        }
        modifiedNs = [:]
    }

    private func close(_ image: ImageID) { open.removeValue(forKey: image)?.file.close() }

    /// What was not synced is not known to be there.
    func closeAll() {
        for id in Array(open.keys) { close(id) }
    }

    // MARK: Reading

    /// - Returns: a hash for each block; of zeros where there is no image, or behind its end.
    func hashes(of image: ImageID, in range: BlockRange) throws(TargetError) -> [UInt64] {
        let file = has(image) ? try file(image) : nil
        return try BlockHashes.of(range, toleratesRot: true) {
            (buffer, offset) throws(VolumeError) in
            guard let file else { return 0 }
            do throws(SystemError) { return try file.read(into: buffer, at: offset) } catch {
                // What cannot be read is written anew.
                throw VolumeError(.checksum, error.description)
            }
        }
    }

    /// What is behind the image's end is zeros.
    func read(
        _ image: ImageID, into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
    ) throws(TargetError) {
        var got = 0
        if has(image) {
            let file = try file(image)
            got = try TargetError.system { () throws(SystemError) in
                try file.read(into: buffer, at: offset)
            }
        }
        UnsafeMutableRawBufferPointer(rebasing: buffer[got...])
            .initializeMemory(as: UInt8.self, repeating: 0)
    }

    func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        var result: [ImageID: BlockSet] = [:]
        for id in tree.images.keys.sorted() {
            let file = try file(id)
            result[id] = try TargetError.system { () throws(SystemError) in
                try Self.allocated(file)
            }
        }
        return result
    }

    private static func allocated(_ file: DiskFile) throws(SystemError) -> BlockSet {
        var blocks = BlockSet()
        var position: UInt64 = 0
        while let start = try file.seekData(from: position) {
            var end = try file.status().sizeBytes
            if let hole = try file.seekHole(from: start) { end = hole }
            guard end > start else { break }
            let first = start >> Geometry.blockShift
            blocks.insert(
                BlockRange(start: first, count: Geometry.blockCount(sizeBytes: end) - first))
            position = end
        }
        return blocks
    }
}
