/// A change of a file since its last sync. A write has whole sectors, as the file showed them when it
/// was made: each may reach the disk without the changes before it.
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

    func bytes(_ range: Range<UInt64>) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(range.upperBound - range.lowerBound))
        _ = bytes.withUnsafeMutableBytes { read(into: $0, at: range.lowerBound) }
        return bytes
    }

    // MARK: Crash

    static func surviving(
        _ durable: Content, _ changes: [Change], _ random: inout SeededRandom
    ) -> Content {
        var result = durable
        for change in changes {
            let fate = random.below(3)
            if fate == 0 { continue }
            guard case .write(let offset, let bytes) = change else {
                result.apply(change)
                continue
            }
            if fate == 1 {
                result.keep(bytes, at: offset)
                continue
            }
            for start in stride(from: 0, to: bytes.count, by: Int(sectorBytes))
            where random.chance(50) {
                let sector = bytes[start..<min(start + Int(sectorBytes), bytes.count)]
                result.keep(Array(sector), at: offset + UInt64(start))
            }
        }
        return result
    }

    /// Sectors as the page cache wrote them: behind the end that the file had then, they are zero.
    private mutating func keep(_ bytes: [UInt8], at offset: UInt64) {
        apply(.write(offset: offset, bytes: bytes))
        let end = offset + UInt64(bytes.count)
        let rest = (Self.sectorBytes - end % Self.sectorBytes) % Self.sectorBytes
        if rest > 0 { apply(.punch(offset: end, length: rest)) }
    }
}
