// Reading for a resync: a chunk by several threads, and the next one while the present is staged.
//
//   session's thread   ─ wait A ─┬─ stage stream, A, stream ─┬─ wait B ─┬─ stage stream, B, stream ─
//   readers            read A    └─ read B                   ┘          └─ read C
//
// Invariants
//   A1 All parts of a chunk count as read between two moments: `from`, taken before the first read
//      begins, and `through`, taken when the last has ended.
//   A2 A read that was begun and not staged yet holds the stream back: nothing after its `from` is
//      staged before its blocks are (`limit`). So an older content never lands on a newer one.
//   A3 A chunk is read ahead after the one before it was read, so that one's `through` is not after
//      this one's `from`, and A2 lets it be staged whole.
//   A4 What was read ahead is staged only if it is just what is asked for next, of the same leg's
//      end; otherwise it is dropped. A cut, a barrier, or the stream's own records may come between.
//
// The session's thread alone calls this; readers touch nothing but their part.

import BlockCore
import SystemIO

/// A chunk on its way.
final class ChunkRead: @unchecked Sendable {  // each part is its reader's; the rest is under `lock`
    struct Part {
        var chunk: BlockChunk
        var records: RecordBuffer
    }

    let chunk: BlockChunk
    let end: LegEnd
    let from: SequenceNumber
    let parts: [Part]
    private let lock = Lock()
    private let finished = Condition()
    private var unfinished: Int
    private var through = SequenceNumber.zero
    private var failure: TargetError?

    init(_ chunk: BlockChunk, of end: LegEnd, from: SequenceNumber, parts: [Part]) {
        self.chunk = chunk
        self.end = end
        self.from = from
        self.parts = parts
        unfinished = parts.count
    }

    /// - Parameter readers: nil: the caller reads.
    func begin(_ source: any SessionSource, _ readers: Readers?) {
        guard let readers else { return parts.forEach { read($0, source) } }
        for index in parts.indices { readers.begin { [self] in read(parts[index], source) } }
    }

    private func read(_ part: Part, _ source: any SessionSource) {
        var (snapshot, sequence) = (SnapshotInfo?.none, from)
        if case .snapshot(let info) = end { (snapshot, sequence) = (info, info.sequence) }
        let result = Result { [snapshot, sequence] () throws(TargetError) in
            try source.read(part.chunk, in: snapshot, at: sequence, into: part.records)
        }
        lock.withLock {
            switch result {
            case .success(let last): through = max(through, last)
            case .failure(let error): failure = error
            }
            unfinished -= 1
            finished.broadcast()
        }
    }

    /// Returns when all parts are there.
    /// - Returns: the last change that may be in them.
    func wait() throws(TargetError) -> SequenceNumber {
        lock.lock()
        defer { lock.unlock() }
        while unfinished > 0 { finished.wait(lock) }
        if let failure { throw failure }
        return max(from, through)
    }
}

final class ReadAhead {
    private let source: any SessionSource
    private let stream: WriteStream
    private let readers: Readers
    private let partCount: Int
    private var next: ChunkRead?
    private var spare: [RecordBuffer] = []

    /// - Parameter readers: 0: everything is read when it is asked for, ahead or not.
    init(_ source: any SessionSource, _ stream: WriteStream, readers: Int, name: String) {
        self.source = source
        self.stream = stream
        self.readers = Readers(count: readers, name: name)
        partCount = max(readers, 1)
    }

    /// A2; nil where nothing is under way, or it is read from a snapshot.
    var limit: SequenceNumber? { next?.end == .head ? next?.from : nil }

    /// What was begun for these blocks, or is now.
    /// - Parameter alone: readers would take processors that others need.
    func take(_ chunk: BlockChunk, of end: LegEnd, alone: Bool) -> ChunkRead {
        if let begun = next, begun.chunk == chunk, begun.end == end {
            next = nil
            return begun
        }
        drop()
        return read(chunk, of: end, alone: alone)
    }

    func begin(_ chunk: BlockChunk, of end: LegEnd) {
        drop()
        next = read(chunk, of: end, alone: false)
    }

    private func read(_ chunk: BlockChunk, of end: LegEnd, alone: Bool) -> ChunkRead {
        let from = stream.lastSequence  // A1
        let parts = chunk.split(into: alone ? 1 : partCount).map {
            ChunkRead.Part(chunk: $0, records: buffer())
        }
        let read = ChunkRead(chunk, of: end, from: from, parts: parts)
        read.begin(source, alone ? nil : readers)
        return read
    }

    private func buffer() -> RecordBuffer {
        guard let buffer = spare.popLast() else { return RecordBuffer(capacityBytes: 64 << 10) }
        buffer.clear()
        return buffer
    }

    /// Its memory may be used again; it was waited for.
    func recycle(_ read: ChunkRead) { spare += read.parts.map(\.records) }

    /// Forgets what was read ahead.
    func drop() {
        guard let begun = next else { return }
        next = nil
        // Its readers must be gone before what they read from is.
        _ = try? begun.wait()
        recycle(begun)
    }

    func end() {
        drop()
        readers.end()
    }
}
