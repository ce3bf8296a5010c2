// What is left of a journal that does not verify: everything up to the damage. What comes after it cannot be
// replayed, for a part is missing before; it is set aside and never thrown away.
//
//   copied     the damaged segment as it is, into quarantine/     crash: copied again
//   moved      the segments after it, the newest first            crash: the rest is moved
//   cut        the damaged segment ends before the damage         crash: done
//
// Until it is cut the journal still counts as damaged, and the same is done again.

import BlockCore
import SystemIO

extension Journal {
    package struct Salvage: Sendable, Hashable {
        /// Everything up to here is there.
        package var last: SequenceNumber
        /// What the journal held beyond that, as far as it can be told: its bytes.
        package var lostBytes: UInt64
        package var reason: String
        /// Cut off at ``end``; nil where none of it is of use.
        var damaged: (path: String, end: UInt64)?
        var doomed: [String] = []

        package static func == (one: Self, other: Self) -> Bool {
            one.last == other.last && one.reason == other.reason
        }
        package func hash(into hasher: inout Hasher) { hasher.combine(last) }
    }

    /// Looks for damage in what a replay reads, and changes nothing.
    /// - Returns: nil where all of it verifies.
    package static func examine(
        disk: Disk, directory: String, firstSegment: UInt64, applied: SequenceNumber
    ) throws(JournalError) -> Salvage? {
        let numbers = try journaled { () throws(SystemError) in
            try disk.status(directory) == nil
                ? [] : try disk.list(directory).compactMap { UInt64($0.name) }.sorted()
        }.filter { $0 >= firstSegment }
        var walk = SalvageWalk(disk: disk, directory: directory, applied: applied)
        // What is before the last one that begins at or before `applied` is not needed.
        var start = numbers.startIndex
        for index in numbers.indices {
            let path = "\(directory)/\(numbers[index])"
            do throws(JournalError) {
                let (segment, _) = try JournalSegment.open(
                    disk: disk, path: path, number: numbers[index])
                segment.file.close()
                if segment.header.startSequence <= applied { start = index }
            } catch { guard case .damaged = error else { throw error } }
        }
        for number in numbers[start...] {
            try walk.visit(number, isNewest: number == numbers.last)
        }
        return walk.result
    }

    /// - Parameters:
    ///   - copy: keeps a copy of a file, durably.
    ///   - move: takes a file away, durably.
    package static func cutOff(
        _ salvage: Salvage, disk: Disk, copy: (String) throws(SystemError) -> Void,
        move: (String) throws(SystemError) -> Void
    ) throws(JournalError) {
        try journaled { () throws(SystemError) in
            if let damaged = salvage.damaged { try copy(damaged.path) }
            for path in salvage.doomed.reversed() { try move(path) }
            guard let damaged = salvage.damaged else { return }
            let file = try disk.open(damaged.path, .readWrite)
            defer { file.close() }
            try file.truncate(to: damaged.end)
            try file.sync()
        }
    }
}

/// Goes through the segments in order, up to the first that does not verify.
private struct SalvageWalk {
    let disk: Disk
    let directory: String
    let applied: SequenceNumber
    private var before: (path: String, end: UInt64, chain: UInt64, number: UInt64)?
    private var last: SequenceNumber
    private(set) var result: Journal.Salvage?

    init(disk: Disk, directory: String, applied: SequenceNumber) {
        self.disk = disk
        self.directory = directory
        self.applied = applied
        last = applied
    }

    mutating func visit(_ number: UInt64, isNewest: Bool) throws(JournalError) {
        let path = "\(directory)/\(number)"
        if result != nil { return try doom(path) }
        let segment: JournalSegment
        let first: UInt64
        do throws(JournalError) {
            (segment, first) = try JournalSegment.open(disk: disk, path: path, number: number)
        } catch {
            guard case .damaged(_, let reason) = error else { throw error }
            fail(reason)
            return try doom(path)
        }
        defer { segment.file.close() }
        if let before {
            guard before.number + 1 == number, segment.header.previousChain == before.chain else {
                // The one before ends too early, or one is missing.
                let size = (try? disk.status(before.path))??.sizeBytes ?? before.end
                fail("what follows operation \(last.rawValue) does not verify")
                result?.damaged = (before.path, before.end)
                result?.lostBytes += size - min(before.end, size)
                return try doom(path)
            }
        } else if segment.header.startSequence > applied {
            fail("what follows operation \(applied.rawValue) is missing")
            return try doom(path)
        }
        var (end, chain) = (JournalSegmentHeader.bytes, first)
        var buffer = JournalBuffer()
        while let (header, next) = try segment.frame(at: end, chain: chain, into: &buffer) {
            end += header.totalBytes
            chain = next
            last = max(last, header.last)
        }
        before = (path, end, chain, number)
        guard isNewest, try segment.tail(from: end, buffer: &buffer).namesDurable else { return }
        let size = try journaled { () throws(SystemError) in try segment.file.status().sizeBytes }
        fail("the frame at \(end) was durable and no longer verifies")
        result?.damaged = (path, end)
        result?.lostBytes += size - min(end, size)
    }

    private mutating func fail(_ reason: String) {
        result = Journal.Salvage(last: last, lostBytes: 0, reason: reason)
    }

    private mutating func doom(_ path: String) throws(JournalError) {
        result?.doomed.append(path)
        let disk = disk
        result?.lostBytes += try journaled { () throws(SystemError) in
            try disk.status(path)?.sizeBytes ?? 0
        }
    }
}
