import BlockCore
import SystemIO

extension Journal {
    /// Opens the journal, or begins one. On return all that it holds is durable (J3).
    /// - Parameters:
    ///   - firstSegment: what is in segments before this one is history, not to be replayed.
    ///   - applied: frames up to here are not needed and not verified.
    /// - Throws: `.damaged` when something known durable does not verify, or when there is a gap
    ///   between `applied` and what the journal has.
    package static func open(
        disk: Disk, directory: String, options: JournalOptions, firstSegment: UInt64,
        applied: SequenceNumber
    ) throws(JournalError) -> Journal {
        let numbers = try segmentNumbers(disk: disk, directory: directory)
        var entries: [Entry] = []
        var chains: [UInt64] = []
        var headers: [JournalSegmentHeader] = []
        var damage: JournalError?
        for number in numbers {
            let path = "\(directory)/\(number)"
            if let last = entries.last, last.number + 1 != number {
                damage = .damaged(path: directory, reason: "segment \(last.number + 1) is missing")
                (entries, chains, headers) = ([], [], [])
            }
            let segment: JournalSegment
            let chain: UInt64
            do throws(JournalError) {
                (segment, chain) = try JournalSegment.open(disk: disk, path: path, number: number)
            } catch {
                // Without it there is nothing to tell before the next one. Whether that is history
                // alone shows below.
                guard case .damaged = error, number != numbers.last else { throw error }
                damage = error
                (entries, chains, headers) = ([], [], [])
                continue
            }
            headers.append(segment.header)
            chains.append(chain)
            entries.append(
                Entry(
                    number: number, startSequence: segment.header.startSequence,
                    createdNs: segment.header.createdNs, path: path))
            segment.file.close()
        }
        let live = entries.indices.filter { entries[$0].number >= firstSegment }
        guard let oldest = live.first, let newest = live.last else {
            return Journal(
                disk: disk, directory: directory, options: options, segments: entries,
                current: nil, chain: 0, firstSegment: firstSegment,
                nextNumber: max(firstSegment, (numbers.last ?? 0) + 1), lastSequence: applied)
        }
        guard entries[oldest].startSequence <= applied else {
            throw damage
                ?? .damaged(
                    path: directory,
                    reason: "what follows operation \(applied.rawValue) is missing up to "
                        + "\(entries[oldest].startSequence.rawValue)")
        }
        let start = live.last { entries[$0].startSequence <= applied } ?? oldest
        var opened: Opened?
        var backlogBytes: UInt64 = 0
        for index in start...newest {
            if let opened, headers[index].previousChain != opened.chain {
                throw .damaged(
                    path: entries[index - 1].path,
                    reason: "it was durable to its end and no longer verifies")
            }
            opened = try read(
                disk: disk, entry: entries[index], chain: chains[index], applied: applied)
            backlogBytes += opened!.backlogBytes
        }
        let journal = try finish(
            opened!, disk: disk, directory: directory, options: options, entries: entries,
            firstSegment: firstSegment)
        journal.backlogBytes = backlogBytes
        return journal
    }

    private struct Opened {
        var segment: JournalSegment
        var end: UInt64
        var chain: UInt64
        var last: SequenceNumber
        /// In frames that were not applied.
        var backlogBytes: UInt64 = 0
    }

    private static func segmentNumbers(
        disk: Disk, directory: String
    ) throws(JournalError) -> [UInt64] {
        try journaled { () throws(SystemError) in
            if try disk.status(directory) == nil {
                try disk.createDirectory(directory, mode: 0o700)
                try disk.syncDirectory(parentPath(directory))
            }
            return try disk.list(directory).compactMap { UInt64($0.name) }.sorted()
        }
    }

    /// Reads one segment up to where its whole frames end.
    private static func read(
        disk: Disk, entry: Entry, chain: UInt64, applied: SequenceNumber
    ) throws(JournalError) -> Opened {
        let (segment, _) = try JournalSegment.open(
            disk: disk, path: entry.path, number: entry.number)
        var opened = Opened(
            segment: segment, end: JournalSegmentHeader.bytes, chain: chain,
            last: entry.startSequence)
        var buffer = JournalBuffer()
        while let (header, next) = try segment.frame(
            at: opened.end, chain: opened.chain, into: &buffer)
        {
            opened.end += header.totalBytes
            opened.chain = next
            opened.last = header.last
            if header.last > applied { opened.backlogBytes += header.payloadBytes }
        }
        return opened
    }

    /// J1 and J3 for the last segment.
    private static func finish(
        _ last: Opened, disk: Disk, directory: String, options: JournalOptions, entries: [Entry],
        firstSegment: UInt64
    ) throws(JournalError) -> Journal {
        let file = last.segment.file
        var buffer = JournalBuffer()
        let tail = try last.segment.tail(from: last.end, buffer: &buffer)
        if tail.namesDurable {
            throw .damaged(
                path: last.segment.path,
                reason: "the frame at \(last.end) was durable and no longer verifies")
        }
        let capacity = try journaled { () throws(SystemError) in
            if tail.isWritten {
                try file.truncate(to: last.end)
                try file.sync()
                // Room again for what comes; without it the segment ends here.
                try? file.allocate(
                    at: 0, length: max(options.segmentBytes, last.end), keepSize: false)
            }
            try writeAgain(file, upTo: last.end)
            try file.sync()
            return try file.status().sizeBytes
        }
        let journal = Journal(
            disk: disk, directory: directory, options: options, segments: entries,
            current: Current(
                segment: last.segment, end: last.end, durableEnd: last.end, capacity: capacity),
            chain: last.chain, firstSegment: firstSegment,
            nextNumber: last.segment.header.number + 1, lastSequence: last.last)
        journal.wasTorn = tail.isWritten
        return journal
    }

    /// Where a sync failed before this open, the kernel shows what the disk has not, and calls it clean:
    /// another sync would do nothing. What is the same already loses nothing by being written.
    private static func writeAgain(_ file: DiskFile, upTo end: UInt64) throws(SystemError) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 1 << 20, alignment: 4096)
        defer { buffer.deallocate() }
        var position: UInt64 = 0
        while position < end {
            let count = min(end - position, UInt64(buffer.count))
            let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(count)])
            let got = try file.read(into: part, at: position)
            guard got > 0 else { return }
            try file.write(UnsafeRawBufferPointer(rebasing: part[..<got]), at: position)
            position += UInt64(got)
        }
    }

    /// Reads what follows `sequence`, which is in what a replay may read.
    package func reader(after sequence: SequenceNumber) -> JournalReader {
        JournalReader(journal: self, after: sequence)
    }

    /// Reads what follows `sequence` up to where the journal began anew.
    /// - Returns: nil when the journal does not reach back so far.
    package func historyReader(after sequence: SequenceNumber) -> JournalReader? {
        guard entries.contains(where: { $0.startSequence <= sequence }) else { return nil }
        return JournalReader(journal: self, after: sequence, endsWithItsStory: true)
    }
}
