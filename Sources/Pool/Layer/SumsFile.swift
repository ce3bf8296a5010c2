// Checksums of a sealed layer, `<layer id>.sums`: written once in the background, read on demand.
//
// Layout: 4 KiB header (magic, version, layer id, flags, hash), then pages of 4 KiB: 511 hashes of
// blocks and the page's own hash (seeded with the page's number). A hash of 0 means "not covered";
// a page of zeros (a hole) covers nothing.
//
// Invariants (G7)
//   S1 The file exists under its final name only after all of it was synced.
//   S2 A head has no sums: they are removed, durably, before a layer becomes writable.

import BlockCore
import SystemIO

package final class SumsFile: @unchecked Sendable {  // immutable but for the file's own content
    private static let magic: UInt64 = 0x3130_4d53_534c_5044
    package static let pageBytes = 4096
    package static let hashesPerPage: UInt64 = 511

    package let file: DiskFile
    private init(file: DiskFile) { self.file = file }

    package static func open(
        disk: Disk, path: String, layer: LayerID
    ) throws(LayerError) -> SumsFile? {
        guard try layered({ () throws(SystemError) in try disk.status(path) }) != nil else {
            return nil
        }
        let file = try layered { () throws(SystemError) in try disk.open(path, []) }
        var header = [UInt8](repeating: 0, count: 32)
        let got = try layered { () throws(SystemError) in
            try header.withTypedMutableBytes { (raw) throws(SystemError) in
                try file.read(into: raw, at: 0)
            }
        }
        let isValid = header.withUnsafeBytes { raw in
            var reader = ByteReader(raw)
            let magic = reader.take(UInt64.self)
            _ = reader.take(UInt64.self)
            let id = reader.take(Int64.self)
            return magic == Self.magic && id == layer.rawValue
                && reader.take(UInt64.self)
                    == blockHash(UnsafeRawBufferPointer(rebasing: raw[0..<24]))
        }
        guard got == 32, isValid else {
            throw .damaged(path: path, reason: "its header does not verify")
        }
        return SumsFile(file: file)
    }

    /// Hashes the given block ranges of `data` into a new file, and puts it in place durably.
    /// - Parameter shouldStop: asked now and then; true leaves nothing behind.
    package static func build(
        disk: Disk, path: String, layer: LayerID, data: DiskFile, covering ranges: [BlockRange],
        shouldStop: () -> Bool
    ) throws(LayerError) -> SumsFile? {
        let temporary = path + ".new"
        let finished = try layered { () throws(SystemError) -> Bool in
            let file = try disk.open(temporary, [.readWrite, .create, .truncate])
            var header = ByteWriter(capacity: 32)
            header.put(magic)
            header.put(UInt64(1))
            header.put(layer.rawValue)
            header.seal()
            try header.bytes.withTypedBytes { (raw) throws(SystemError) in
                try file.write(raw, at: 0)
            }
            var builder = PageBuilder(file: file)
            var buffer = [UInt8](repeating: 0, count: 1 << 20)
            for range in ranges {
                var block = range.start
                while block < range.end {
                    if shouldStop() { return false }
                    let count = min(range.end - block, 256)
                    try buffer.withTypedMutableBytes { (raw) throws(SystemError) in
                        let part = UnsafeMutableRawBufferPointer(
                            rebasing: raw[0..<Int(count) * 4096])
                        let got = try data.read(into: part, at: block << Geometry.blockShift)
                        if got < part.count {
                            UnsafeMutableRawBufferPointer(rebasing: part[got...])
                                .initializeMemory(as: UInt8.self, repeating: 0)
                        }
                        for index in 0..<Int(count) {
                            let bytes = UnsafeRawBufferPointer(
                                rebasing: part[index * 4096..<(index + 1) * 4096])
                            try builder.put(block + UInt64(index), hash: coveringHash(bytes))
                        }
                    }
                    block += count
                }
            }
            try builder.finish()
            try file.sync()
            try disk.rename(temporary, to: path)
            try disk.syncDirectory(parentPath(path))
            return true
        }
        guard finished else {
            try layered { () throws(SystemError) in try disk.removeFile(temporary) }
            return nil
        }
        return try open(disk: disk, path: path, layer: layer)
    }

    /// A block's hash; 0 is kept free for "not covered".
    private static func coveringHash(_ bytes: UnsafeRawBufferPointer) -> UInt64 {
        let hash = blockHash(bytes)
        return hash == 0 ? 1 : hash
    }

    private struct PageBuilder {
        let file: DiskFile
        var page: UInt64 = .max
        var bytes = [UInt8](repeating: 0, count: pageBytes)

        init(file: DiskFile) { self.file = file }

        mutating func put(_ block: UInt64, hash: UInt64) throws(SystemError) {
            let target = block / hashesPerPage
            if target != page {
                try finish()
                page = target
                bytes = [UInt8](repeating: 0, count: pageBytes)
            }
            bytes.withUnsafeMutableBytes {
                $0.storeBytes(
                    of: hash.littleEndian, toByteOffset: Int(block % hashesPerPage) * 8,
                    as: UInt64.self)
            }
        }

        mutating func finish() throws(SystemError) {
            guard page != .max else { return }
            let number = page
            bytes.withUnsafeMutableBytes { raw in
                let hash = blockHash(
                    UnsafeRawBufferPointer(rebasing: raw[0..<4088]), seed: number + 1)
                raw.storeBytes(of: hash.littleEndian, toByteOffset: 4088, as: UInt64.self)
            }
            try bytes.withTypedBytes { (raw) throws(SystemError) in
                try file.write(raw, at: UInt64(pageBytes) * (number + 1))
            }
        }
    }

    /// Verifies whole blocks that were read from the layer's data file.
    /// - Returns: how many of them were covered.
    /// - Throws: ``LayerError/checksumMismatch`` at the first block that is not what was sealed.
    @discardableResult
    package func verify(
        _ blocks: UnsafeRawBufferPointer, startingAt first: UInt64
    ) throws(LayerError) -> Int {
        var covered = 0
        let count = UInt64(blocks.count / 4096)
        var block = first
        var failure: LayerError?
        withUnsafeTemporaryAllocation(byteCount: Self.pageBytes, alignment: 8) { page in
            while block < first + count, failure == nil {
                let number = block / Self.hashesPerPage
                let stop = min(first + count, (number + 1) * Self.hashesPerPage)
                do throws(LayerError) {
                    if try load(number, into: page) {
                        for each in block..<stop {
                            let at = Int(each - first) * 4096
                            let bytes = UnsafeRawBufferPointer(rebasing: blocks[at..<at + 4096])
                            let stored = UInt64(
                                littleEndian: page.load(
                                    fromByteOffset: Int(each % Self.hashesPerPage) * 8,
                                    as: UInt64.self))
                            if stored == 0 { continue }
                            guard stored == Self.coveringHash(bytes) else {
                                throw .checksumMismatch(path: file.path, block: each)
                            }
                            covered += 1
                        }
                    }
                } catch { failure = error }
                block = stop
            }
        }
        if let failure { throw failure }
        return covered
    }

    /// Reads every covered block of a data file, also one past its end, and says whether it is what was
    /// sealed.
    /// - Parameter each: false ends it.
    /// - Returns: false when it was ended.
    package func verifyAll(
        of data: DiskFile, each: (_ block: UInt64, _ isGood: Bool) -> Bool
    ) throws(LayerError) -> Bool {
        let pages = try layered { () throws(SystemError) in try file.status().sizeBytes } / 4096
        guard pages > 1 else { return true }
        let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 8)
        let block = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
        defer {
            page.deallocate()
            block.deallocate()
        }
        var number: UInt64 = 0
        while number < pages - 1 {
            // Runs of blocks that are not covered are holes.
            let stored = try layered { () throws(SystemError) in
                try file.seekData(from: (number + 1) * 4096)
            }
            guard let stored else { return true }
            number = max(number, stored / 4096 - 1)
            defer { number += 1 }
            guard number < pages - 1, try load(number, into: page) else { continue }
            for index in 0..<Self.hashesPerPage {
                let stored = UInt64(
                    littleEndian: page.load(fromByteOffset: Int(index) * 8, as: UInt64.self))
                if stored == 0 { continue }
                let which = number * Self.hashesPerPage + index
                let got = try layered { () throws(SystemError) in
                    try data.read(into: block, at: which << Geometry.blockShift)
                }
                UnsafeMutableRawBufferPointer(rebasing: block[got...])
                    .initializeMemory(as: UInt8.self, repeating: 0)
                let isGood = Self.coveringHash(UnsafeRawBufferPointer(block)) == stored
                if !each(which, isGood) { return false }
            }
        }
        return true
    }

    /// - Returns: false for a page that covers nothing.
    private func load(
        _ number: UInt64, into page: UnsafeMutableRawBufferPointer
    ) throws(LayerError) -> Bool {
        let got = try layered { () throws(SystemError) in
            try file.read(into: page, at: UInt64(Self.pageBytes) * (number + 1))
        }
        if got == 0 { return false }
        guard got == Self.pageBytes else {
            throw .damaged(path: file.path, reason: "page \(number) is cut off")
        }
        let stored = UInt64(littleEndian: page.load(fromByteOffset: 4088, as: UInt64.self))
        if stored == 0, page.allSatisfy({ $0 == 0 }) { return false }
        let hash = blockHash(UnsafeRawBufferPointer(rebasing: page[0..<4088]), seed: number + 1)
        guard stored == hash else {
            throw .damaged(path: file.path, reason: "page \(number) does not verify")
        }
        return true
    }
}
