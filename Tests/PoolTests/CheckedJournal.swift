// The journal on a disk that forgets, beside a list of what was appended.

import BlockCore
import SystemIO
import TestSupport

@testable import Pool

struct JournalViolation: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

final class CheckedJournal {
    struct Frame: Equatable {
        var first: UInt64
        var last: UInt64
        var bytes: [UInt8]
    }

    static let options = JournalOptions(segmentBytes: 24 << 10)
    var random: SeededRandom
    var disk: SimulatedDisk
    var journal: Journal!
    /// Everything after `applied`, in order; the first `durable` of it must stay.
    var frames: [Frame] = []
    var durable = 0
    /// What its owner keeps elsewhere, atomically.
    var applied: UInt64 = 0
    var firstSegment: UInt64 = 1
    var last: UInt64 = 0

    init(seed: UInt64, misbehaviour: SimulatedDisk.Misbehaviour = .init()) throws {
        random = SeededRandom(seed: seed)
        disk = SimulatedDisk(misbehaviour: misbehaviour)
        try disk.createDirectory("/pool", mode: 0o700)
        try disk.syncDirectory("/")
        try open()
    }

    func open() throws {
        journal = try Journal.open(
            disk: disk, directory: "/pool/journal", options: Self.options,
            firstSegment: firstSegment, applied: SequenceNumber(rawValue: applied))
    }

    func step() throws {
        switch random.below(100) {
        case 0..<60: try append()
        case 60..<80: try sync()
        case 80..<90: try apply()
        case 90..<93: restart()
        default: try compare()
        }
    }

    func append() throws {
        let first = last + 1 + UInt64(random.below(3))
        let frame = Frame(
            first: first, last: first + UInt64(random.below(5)),
            bytes: random.bytes(
                random.chance(3) ? 40_000 : 1 + random.below(random.chance(20) ? 9000 : 600)))
        let split = random.chance(30) ? random.below(frame.bytes.count) : 0
        try frame.bytes.withUnsafeBytes { raw in
            let pieces =
                split == 0
                ? [raw]
                : [
                    UnsafeRawBufferPointer(rebasing: raw[..<split]),
                    UnsafeRawBufferPointer(rebasing: raw[split...]),
                ]
            // It may be there even if its append does not return.
            frames.append(frame)
            try journal.append(
                pieces, first: SequenceNumber(rawValue: frame.first),
                last: SequenceNumber(rawValue: frame.last))
        }
        last = frame.last
    }

    func sync() throws {
        let returned = try journal.sync()
        guard returned.rawValue == last else {
            throw JournalViolation("sync says \(returned) and \(last) was appended")
        }
        durable = frames.count
    }

    /// Its owner has some of the durable frames elsewhere now.
    private func apply() throws {
        guard durable > 0 else { return }
        let count = 1 + random.below(durable)
        applied = frames[count - 1].last
        frames.removeFirst(count)
        durable -= count
        let through = SequenceNumber(rawValue: applied)
        try journal.free(through: through, keepingAfter: through)
    }

    private func restart() {
        // As after a resync: the owner's checkpoint is somewhere else, maybe further back.
        applied = random.chance(50) ? last + 100 : last / 2
        firstSegment = journal.nextSegment
        journal.restart(after: SequenceNumber(rawValue: applied))
        last = applied
        frames = []
        durable = 0
    }

    func read() throws -> [Frame] {
        var found: [Frame] = []
        let reader = journal.reader(after: SequenceNumber(rawValue: applied))
        while let frame = try reader.next(through: journal.durableSequence) {
            found.append(
                Frame(
                    first: frame.first.rawValue, last: frame.last.rawValue,
                    bytes: [UInt8](frame.payload)))
        }
        return found
    }

    func compare() throws {
        // A full segment is synced before the next begins.
        durable = max(durable, frames.prefix { $0.last <= journal.durableSequence.rawValue }.count)
        guard try read() == Array(frames[..<durable]) else {
            throw JournalViolation("the journal does not read as what was synced")
        }
    }

    func runToCrash(atSync count: Int) throws {
        disk.powerOff(atSync: count)
        do {
            for _ in 0..<400 { try step() }
            disk.cancelPowerOff()
        } catch {
            guard disk.isPoweredOff else { throw error }
        }
        while true {
            disk = disk.crash(&random)
            if random.chance(30) { disk.powerOff(atSync: 1 + random.below(3)) }
            do {
                try open()
                disk.cancelPowerOff()
                if !disk.isPoweredOff { break }
            } catch {
                guard disk.isPoweredOff else {
                    throw JournalViolation("the journal does not open after a crash: \(error)")
                }
            }
        }
        let found = try read()
        guard found.count >= durable else {
            throw JournalViolation("\(durable) frames were synced, \(found.count) are there")
        }
        guard found == Array(frames.prefix(found.count)) else {
            throw JournalViolation("what is there is not a prefix of what was appended")
        }
        frames = found
        durable = found.count
        last = found.last?.last ?? applied
    }
}
