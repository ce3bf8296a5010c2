// A target's journal: batches of records in order, checksummed, in segments of preallocated space. It
// does not know what the records are.
//
// Invariants
//   J1 What `sync` returned for is there at every later open, or opening is an error: never silently
//      older data. Each frame says up to where its segment was durable when it was written.
//   J2 A segment begins only after the one before is durable to its end, and has its name only when its
//      header is durable: a numbered file that does not verify is damage, not a crash.
//   J3 What follows the last whole frame is cut, and the cut synced, before anything is appended; what
//      is left is synced before anybody is told of it.
//   J4 After a failed sync nothing more is taken.
//   J5 Segments go oldest first, each durably, and never the last: the numbers have no gap.
//
//   append ─► written ── sync ──► durable ── free(through:keepingAfter:) ──► history ──► gone

import BlockCore
import SystemIO

package final class Journal: @unchecked Sendable {  // see the locks below
    struct Entry {
        var number: UInt64
        var startSequence: SequenceNumber
        var createdNs: Int64
        var path: String
    }

    struct Current {
        var segment: JournalSegment
        var end: UInt64
        var durableEnd: UInt64
        var capacity: UInt64
    }

    let disk: Disk
    package let directory: String
    package let options: JournalOptions
    /// Held across changes of the directory: a new segment, a freed one. Taken before `lock`.
    private let structure = Lock()
    /// One sync at a time; held across it. Taken before `lock`.
    private let syncing = Lock()
    /// Guards what follows; a leaf.
    private let lock = Lock()
    private var segments: [Entry] = []
    /// The segment that is appended to; nil when the next append begins one.
    private var current: Current?
    private var chain: UInt64 = 0
    private var nextNumber: UInt64
    private var lastSequence: SequenceNumber
    private var durable: SequenceNumber
    private var freeable = SequenceNumber.zero
    /// Segments before this one told another story: nobody replays them.
    private var firstSegment: UInt64
    private var failure: SystemError?
    /// Opening cut something off.
    package internal(set) var wasTorn = false
    /// What opening found that was not applied.
    package internal(set) var backlogBytes: UInt64 = 0

    init(
        disk: Disk, directory: String, options: JournalOptions, segments: [Entry],
        current: Current?, chain: UInt64, firstSegment: UInt64, nextNumber: UInt64,
        lastSequence: SequenceNumber
    ) {
        self.disk = disk
        self.directory = directory
        self.options = options
        self.segments = segments
        self.current = current
        self.chain = chain
        self.firstSegment = firstSegment
        self.nextNumber = nextNumber
        self.lastSequence = lastSequence
        durable = lastSequence
    }

    /// The last one appended.
    package var sequence: SequenceNumber { lock.withLock { lastSequence } }
    package var durableSequence: SequenceNumber { lock.withLock { durable } }
    /// Everything after it that ever was in the journal still is, but for where it began anew.
    package var startSequence: SequenceNumber {
        lock.withLock { segments.first?.startSequence ?? lastSequence }
    }
    /// Where what a replay may read begins.
    package var storyStart: SequenceNumber {
        lock.withLock {
            segments.first { $0.number >= firstSegment }?.startSequence ?? lastSequence
        }
    }
    func isHistory(_ segment: UInt64) -> Bool { lock.withLock { segment < firstSegment } }
    var entries: [Entry] { lock.withLock { segments } }
    var nextPath: String { directory + "/next" }

    // MARK: Appending: one caller at a time; anybody may sync meanwhile

    /// Takes a batch; on return it survives the process, not the power.
    /// - Parameter pieces: one or two.
    /// - Throws: `.system` with ENOSPC when there is no room for another segment: nothing was taken,
    ///   and the same may go through later.
    package func append(
        _ pieces: [UnsafeRawBufferPointer], first: SequenceNumber, last: SequenceNumber
    ) throws(JournalError) {
        precondition((1...2).contains(pieces.count), "a frame has room for one split")
        let before = sequence
        if let failure = lock.withLock({ failure }) { throw .latched(failure) }
        guard first > before, last >= first else { throw .outOfOrder(first, after: before) }
        let payloadBytes = UInt64(pieces.reduce(0) { $0 + $1.count })
        var header = JournalFrameHeader(
            payloadBytes: payloadBytes, splitBytes: UInt64(pieces[0].count), first: first,
            last: last, atNs: disk.now(), durableEnd: 0, chain: 0, payloadHash: 0)
        var now = try place(for: header.totalBytes)
        header.durableEnd = now.durableEnd
        header.chain = chain
        header.payloadHash = JournalFrameHeader.hash(of: pieces, chain: chain)
        let (bytes, next) = header.encoded(nonce: now.segment.header.nonce)
        try journaled { () throws(SystemError) in
            try bytes.withTypedBytes { (raw) throws(SystemError) in
                try now.segment.file.write(pieces: [raw] + pieces, at: now.end)
            }
        }
        now.end += header.totalBytes
        lock.withLock {
            if let current { now.durableEnd = max(now.durableEnd, current.durableEnd) }
            current = now
            chain = next
            lastSequence = last
        }
    }

    private func place(for bytes: UInt64) throws(JournalError) -> Current {
        if let current = lock.withLock({ current }), current.end + bytes <= current.capacity {
            return current
        }
        _ = try sync()
        return try begin(roomFor: bytes)
    }

    /// Makes the next segment (J2). All before is durable.
    private func begin(roomFor bytes: UInt64) throws(JournalError) -> Current {
        structure.lock()
        defer { structure.unlock() }
        let (number, start) = lock.withLock { (nextNumber, lastSequence) }
        let path = "\(directory)/\(number)"
        let header = JournalSegmentHeader(
            number: number, nonce: Self.nonce(), previousChain: chain, startSequence: start,
            createdNs: disk.now())
        let (encoded, first) = header.encoded()
        let capacity = max(options.segmentBytes, JournalSegmentHeader.bytes + bytes)
        do throws(SystemError) {
            let file = try disk.open(nextPath, [.readWrite, .create])
            try file.allocate(at: 0, length: capacity, keepSize: false)
            try encoded.withTypedBytes { (raw) throws(SystemError) in try file.write(raw, at: 0) }
            try file.sync()
            file.close()
            try disk.rename(nextPath, to: path)
            try disk.syncDirectory(directory)
        } catch {
            if error.isNoSpace { try? disk.removeFile(nextPath) }
            throw .system(error)
        }
        let (segment, _) = try JournalSegment.open(disk: disk, path: path, number: number)
        let now = Current(
            segment: segment, end: JournalSegmentHeader.bytes,
            durableEnd: JournalSegmentHeader.bytes, capacity: capacity)
        lock.withLock {
            segments.append(
                Entry(
                    number: number, startSequence: start, createdNs: header.createdNs, path: path))
            current = now
            chain = first
            nextNumber = number + 1
        }
        return now
    }

    /// Everything appended before the call survives power loss.
    /// - Returns: the last sequence of it.
    package func sync() throws(JournalError) -> SequenceNumber {
        // The kernel tells of a failed write-back once for each open file: of two syncs at a time one
        // would hear that all is well.
        syncing.lock()
        defer { syncing.unlock() }
        let (now, last, failed) = lock.withLock { (current, lastSequence, failure) }
        if let failed { throw .latched(failed) }
        guard let now, last > durableSequence else { return durableSequence }
        do throws(SystemError) { try now.segment.file.syncData() } catch {
            lock.withLock { failure = error }
            throw .system(error)
        }
        return lock.withLock {
            // Somebody else may have synced more meanwhile, and gone on to the next segment.
            durable = max(durable, last)
            if current?.segment === now.segment {
                current!.durableEnd = max(current!.durableEnd, now.end)
            }
            return durable
        }
    }

    /// The number that the next segment will have.
    package var nextSegment: UInt64 { lock.withLock { nextNumber } }

    /// From here on the journal tells another story, which begins after `sequence` with the segment
    /// ``nextSegment``: what is there becomes history. The owner has noted that number durably, and
    /// opens the journal with it.
    package func restart(after sequence: SequenceNumber) {
        lock.withLock {
            current = nil
            chain = 0
            lastSequence = sequence
            durable = sequence
            freeable = sequence
            firstSegment = nextNumber
        }
    }

    private static func nonce() -> UInt64 {
        SystemRandom.bytes(8).reduce(0) { $0 << 8 | UInt64($1) }
    }

    // MARK: Freeing

    /// Segments that hold nothing after `history` go, those up to `sequence` also when the disk has no
    /// room for what comes. One of them becomes the next segment, so that a busy journal writes to the
    /// same blocks again.
    /// - Parameters:
    ///   - sequence: nobody needs what is up to here for recovery.
    ///   - history: at most `sequence`.
    package func free(
        through sequence: SequenceNumber, keepingAfter history: SequenceNumber
    ) throws(JournalError) {
        lock.withLock { freeable = max(freeable, sequence) }
        _ = try freeSegments(through: history)
    }

    /// Gives up the history: the disk has no room for what comes.
    package func freeHistory() throws(JournalError) -> Bool {
        try freeSegments(through: .init(rawValue: .max))
    }

    private func freeSegments(through limit: SequenceNumber) throws(JournalError) -> Bool {
        structure.lock()
        defer { structure.unlock() }
        var hasFreed = false
        while let oldest = lock.withLock({ freeableSegment(through: limit) }) {
            do throws(SystemError) {
                let size = try disk.status(oldest.path)?.sizeBytes
                if size == options.segmentBytes, try disk.status(nextPath) == nil {
                    try disk.rename(oldest.path, to: nextPath)
                } else {
                    try disk.removeFile(oldest.path)
                }
                try disk.syncDirectory(directory)
            } catch { throw .system(error) }
            lock.withLock { _ = segments.removeFirst() }
            hasFreed = true
        }
        return hasFreed
    }

    private func freeableSegment(through limit: SequenceNumber) -> Entry? {
        guard segments.count > 1 else { return nil }
        let next = segments[1]
        if next.number > firstSegment, next.startSequence > freeable { return nil }
        // A story that went further than the one that replaced it is no history of anything.
        let isRefuted = segments.last!.startSequence < next.startSequence
        return isRefuted || next.startSequence <= limit ? segments[0] : nil
    }
}
