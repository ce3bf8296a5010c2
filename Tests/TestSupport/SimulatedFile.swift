import Glibc
import SystemIO

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
        node.modifyNs = disk.tick()
        disk.noteChange()
        switch change {
        case .truncate: node.unsynced.append(change)
        case .write(let offset, let bytes):
            let sectors = sectors(offset, offset + UInt64(bytes.count))
            node.unsynced.append(
                .write(offset: sectors.lowerBound, bytes: node.now.bytes(sectors)))
        case .punch(let offset, let length):
            // Only whole sectors become a hole; beside it zeros are written into the page cache.
            let (sector, end) = (Content.sectorBytes, offset + length)
            let (first, last) = ((offset + sector - 1) / sector * sector, end / sector * sector)
            if first < last {
                node.unsynced.append(.punch(offset: first, length: last - first))
            }
            for edge in [offset, end] where edge % sector != 0 {
                let part = sectors(edge, edge + 1)
                if part.isEmpty { continue }
                node.unsynced.append(.write(offset: part.lowerBound, bytes: node.now.bytes(part)))
            }
        }
    }

    /// The whole sectors around a range, up to the file's end.
    private func sectors(_ start: UInt64, _ end: UInt64) -> Range<UInt64> {
        let sector = Content.sectorBytes
        let first = start / sector * sector
        return first..<max(first, min((end + sector - 1) / sector * sector, node.now.sizeBytes))
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
            try disk.checkSize(offset + UInt64(buffer.count), path)
            do throws(SystemError) {
                try disk.take(pages: pages(offset, UInt64(buffer.count)), of: node, path)
            } catch {
                let fits = try writeWhatFits(buffer, at: offset)
                if fits < buffer.count { throw error }
                return
            }
            let bytes = [UInt8](buffer)
            if disk.misbehaviour.punchesWhatIsCopied { punchWhatIsCopied(bytes, at: offset) }
            record(.write(offset: offset, bytes: bytes))
        }
    }

    /// A disk takes what it has room for before it says that it is full.
    private func writeWhatFits(
        _ buffer: UnsafeRawBufferPointer, at offset: UInt64
    ) throws(SystemError) -> Int {
        var done = 0
        while done < buffer.count {
            let position = offset + UInt64(done)
            let count = min(buffer.count - done, 4096 - Int(position % 4096))
            do throws(SystemError) {
                try disk.take(pages: pages(position, UInt64(count)), of: node, path)
            } catch { break }
            let part = UnsafeRawBufferPointer(rebasing: buffer[done..<done + count])
            record(.write(offset: position, bytes: [UInt8](part)))
            done += count
        }
        return done
    }

    override func syncData() throws(SystemError) {
        try disk.sync(path) {
            for change in node.unsynced { node.durable.apply(change) }
            node.unsynced = []
        } failing: {
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
        try locked("truncate") { () throws(SystemError) in
            try disk.checkSize(sizeBytes, path)
            truncateLocked(to: sizeBytes)
        }
    }

    override func punchHole(at offset: UInt64, length: UInt64) throws(SystemError) {
        try locked("punch hole in") { () throws(SystemError) in
            record(.punch(offset: offset, length: length))
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

    /// What is written is what another layer's file of the folder has there: a merge copies it.
    private func punchWhatIsCopied(_ bytes: [UInt8], at offset: UInt64) {
        guard path.hasSuffix(".data"), offset % 4096 == 0, bytes.count >= 4096 else { return }
        let range = offset..<offset + UInt64(bytes.count)
        for (name, other) in disk.siblings(of: path)
        where name.hasSuffix(".data") && other !== node && other.now.bytes(range) == bytes {
            other.durable.apply(.punch(offset: offset, length: UInt64(bytes.count)))
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
