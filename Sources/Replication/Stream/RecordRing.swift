// The memory of the write stream: encoded records one after another, the oldest given up for new.
//
// A place is counted from the ring's beginning and never goes back; its offset in memory is the
// place modulo the capacity. A record lies in one piece: where it does not fit before the end of the
// memory, a length of 0 says that the rest is skipped.
//
//     memory   ... │ freed │ held: oldest ......... ready │ being filled ...... end │ freed ...
//
// Invariants
//   R1 Everything but the payload of a record, and its ready mark, is written under the stream's
//      lock. A record's header is complete from the moment it is in the ring.
//   R2 A payload is written by its one writer outside the lock, and read only after `markReady`.
//   R3 What is held (from `limit` of `place` on) and what is not ready yet is not overwritten.

import BlockCore
import Synchronization
import SystemIO

/// The bytes; every function may be called without the lock for places that are held.
struct RingMemory: Sendable {
    /// The last word of a header, zero in a record as it travels, is 1 here until it is ready.
    private static let readyOffset = 60

    private let memory: LazyMemory
    let capacityBytes: UInt64

    /// - Parameter capacityBytes: a multiple of 8, as every record's length is.
    init(capacityBytes: Int) {
        self.capacityBytes = UInt64(capacityBytes)
        memory = LazyMemory(lengthBytes: capacityBytes)
    }

    func free() { memory.free() }

    @inline(__always)
    fileprivate func pointer(_ place: UInt64) -> UnsafeMutableRawPointer {
        memory.base + Int(place % capacityBytes)
    }
    @inline(__always)
    fileprivate func left(_ place: UInt64) -> UInt64 { capacityBytes - place % capacityBytes }

    private func readyMark(_ place: UInt64) -> UnsafeMutablePointer<Atomic<UInt32>> {
        // The ring's own bytes, 8-aligned like every record.
        (pointer(place) + Self.readyOffset).assumingMemoryBound(to: Atomic<UInt32>.self)
    }
    @inline(__always)
    func markReady(_ place: UInt64) {
        readyMark(place).pointee.store(0, ordering: .sequentiallyConsistent)
    }
    fileprivate func markUnready(_ place: UInt64) {
        readyMark(place).pointee.store(1, ordering: .relaxed)
    }
    func isReady(_ place: UInt64) -> Bool {
        readyMark(place).pointee.load(ordering: .sequentiallyConsistent) == 0
    }

    private func length(_ place: UInt64) -> UInt64 {
        UInt64(UInt32(littleEndian: pointer(place).load(as: UInt32.self)))
    }
    fileprivate func markSkipped(_ place: UInt64) {
        pointer(place).storeBytes(of: 0, as: UInt32.self)
    }

    /// Where the record at or after `place` begins; `place` itself when it is `end`.
    func begin(_ place: UInt64, end: UInt64) -> UInt64 {
        place < end && length(place) == 0 ? place + left(place) : place
    }

    func header(_ place: UInt64) -> StreamRecord {
        StreamRecord(
            encodedHere: UnsafeRawBufferPointer(
                start: pointer(place), count: StreamRecord.headerBytes))
    }
    func payload(_ place: UInt64, _ record: StreamRecord) -> UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(
            start: pointer(place) + StreamRecord.headerBytes, count: record.payloadBytes)
    }
    fileprivate func whole(_ place: UInt64, _ bytes: Int) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: pointer(place), count: bytes)
    }

    /// Calls `body` with each record from a place on, until it returns false.
    func forEach(from: UInt64, to end: UInt64, _ body: (UInt64, StreamRecord) -> Bool) {
        var place = begin(from, end: end)
        while place < end {
            let record = header(place)
            guard body(place, record) else { return }
            place = begin(place + UInt64(record.totalBytes), end: end)
        }
    }

    /// Copies the records between two places, without what is skipped.
    func copy(from: UInt64, to end: UInt64, into buffer: UnsafeMutableRawPointer) -> Int {
        var done = 0
        var place = begin(from, end: end)
        while place < end {
            var stop = place
            let memoryEnd = place + left(place)
            while stop < end, stop < memoryEnd, length(stop) > 0 { stop += length(stop) }
            (buffer + done).copyMemory(from: pointer(place), byteCount: Int(stop - place))
            done += Int(stop - place)
            place = begin(stop, end: end)
        }
        return done
    }
}

/// Where records begin and end; all of it is under the stream's lock.
struct RecordRing {
    let memory: RingMemory
    private(set) var oldest: UInt64 = 0
    private(set) var end: UInt64 = 0
    /// Everything before is ready, as far as anybody looked.
    private var ready: UInt64 = 0
    /// Everything after this sequence is in the ring.
    private(set) var floor: SequenceNumber

    init(memory: RingMemory, lastSequence: SequenceNumber) {
        self.memory = memory
        floor = lastSequence
    }

    /// Makes room, giving up the oldest records as far as `limit`.
    /// - Returns: the place; nil when what is held leaves no room.
    mutating func place(bytes: Int, holding limit: UInt64) -> UInt64? {
        let left = memory.left(end)
        let skip = left < UInt64(bytes) ? left : 0
        while end + skip + UInt64(bytes) - oldest > memory.capacityBytes {
            let first = memory.begin(oldest, end: end)
            guard first < min(limit, end) else { return nil }
            let record = memory.header(first)
            // What was skipped while nobody streamed came after these.
            floor = max(floor, record.sequence)
            oldest = first + UInt64(record.totalBytes)
        }
        if skip > 0 { memory.markSkipped(end) }
        return end + skip
    }

    /// - Returns: where the payload goes.
    mutating func add(_ record: StreamRecord, at place: UInt64) -> UnsafeMutableRawBufferPointer {
        let whole = memory.whole(place, record.totalBytes)
        record.encodeHeader(into: whole)
        memory.markUnready(place)
        end = place + UInt64(record.totalBytes)
        return UnsafeMutableRawBufferPointer(rebasing: whole[StreamRecord.headerBytes...])
    }

    /// Nobody wants the record: it is not kept. (What is there stays, for it may be being filled.)
    mutating func skip(_ sequence: SequenceNumber) { floor = sequence }

    /// Looks how far the records are ready.
    mutating func advanceReady() -> UInt64 {
        ready = max(ready, oldest)
        while ready < end {
            let place = memory.begin(ready, end: end)
            guard place < end, memory.isReady(place) else { break }
            ready = place + UInt64(memory.header(place).totalBytes)
        }
        return ready
    }

    /// The place after the last record at or before `sequence`; nil when records after it are gone.
    func place(after sequence: SequenceNumber) -> UInt64? {
        guard sequence >= floor else { return nil }
        var result = oldest
        memory.forEach(from: oldest, to: end) { place, record in
            if record.sequence > sequence { return false }
            result = place + UInt64(record.totalBytes)
            return true
        }
        return result
    }
}
