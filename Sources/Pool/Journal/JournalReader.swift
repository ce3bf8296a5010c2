import BlockCore
import SystemIO

/// Goes through a journal's frames in order while others are appended. One thread uses it.
package final class JournalReader {
    private let journal: Journal
    private var buffer = JournalBuffer()
    private var segment: JournalSegment?
    private var offset: UInt64 = 0
    private var droppedEnd: UInt64 = 0
    private var chain: UInt64 = 0
    private var last: SequenceNumber
    private let start: SequenceNumber
    private let endsWithItsStory: Bool
    private var isAtEnd = false

    init(journal: Journal, after sequence: SequenceNumber, endsWithItsStory: Bool = false) {
        self.journal = journal
        self.endsWithItsStory = endsWithItsStory
        start = sequence
        last = sequence
    }

    /// The next frame that holds something after where the reader began.
    /// - Parameter limit: durable; nothing after it is looked at.
    /// - Returns: nil when the frames up to `limit` were all returned.
    /// - Throws: `.damaged` when one of them is not there.
    package func next(through limit: SequenceNumber) throws(JournalError) -> JournalFrame? {
        while last < limit, !isAtEnd {
            guard let segment else {
                try moveOn()
                continue
            }
            guard let (header, next) = try segment.frame(at: offset, chain: chain, into: &buffer)
            else {
                try moveOn()
                continue
            }
            offset += header.totalBytes
            letGo(segment)
            chain = next
            guard header.last > start else { continue }
            last = header.last
            return JournalFrame(
                first: header.first, last: header.last, atNs: header.atNs,
                payload: UnsafeRawBufferPointer(buffer.space(Int(header.payloadBytes))))
        }
        return nil
    }

    private static let keptBytes: UInt64 = 4 << 20

    /// What was read is in the images next, and read again hardly ever; the journal's next pages find memory
    /// that was in use a moment ago, which is cheaper than any other.
    private func letGo(_ segment: JournalSegment) {
        guard offset - droppedEnd >= Self.keptBytes else { return }
        segment.file.dropCache(at: droppedEnd, length: offset - droppedEnd)
        droppedEnd = offset
    }

    /// Opens the segment after the one that was read to its end, or the first.
    private func moveOn() throws(JournalError) {
        let entries = journal.entries
        let entry: Journal.Entry?
        if let segment {
            entry = entries.first { $0.number > segment.header.number }
        } else {
            entry = entries.last { $0.startSequence <= start }
        }
        if entry == nil, endsWithItsStory, let segment, journal.isHistory(segment.header.number) {
            isAtEnd = true
            return
        }
        guard let entry, segment == nil || entry.number == segment!.header.number + 1 else {
            throw .damaged(
                path: segment?.path ?? journal.directory,
                reason: "what follows operation \(last.rawValue) is not there")
        }
        let (opened, first) = try JournalSegment.open(
            disk: journal.disk, path: entry.path, number: entry.number)
        if segment != nil, endsWithItsStory, opened.header.previousChain == 0 {
            isAtEnd = true
            return
        }
        if segment != nil, opened.header.previousChain != chain {
            throw .damaged(
                path: segment!.path, reason: "the frame at \(offset) no longer verifies")
        }
        segment = opened
        offset = JournalSegmentHeader.bytes
        droppedEnd = 0
        chain = first
    }
}
