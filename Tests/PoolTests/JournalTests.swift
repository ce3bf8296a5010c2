import BlockCore
import Glibc
import Synchronization
import SystemIO
import TestSupport
import Testing

@testable import Pool

@Suite struct JournalTests {
    /// Damage anywhere, and power that goes anywhere while it is cut off: everything before it is read, and
    /// the journal goes on from there.
    @Test(arguments: Seeds.run(12)) func whatIsLeftOfADamagedJournalIsRead(seed: UInt64) throws {
        let checked = try CheckedJournal(seed: seed)
        for number in 0..<40 {
            try checked.append()
            if number % 5 == 0 { try checked.sync() }
        }
        try checked.sync()
        let applied = SequenceNumber(rawValue: checked.frames[checked.random.below(10)].last)
        let entry = checked.journal.entries[checked.random.below(checked.journal.entries.count)]
        let file = try checked.disk.open(entry.path, [.readWrite], mode: 0o600)
        try checked.random.bytes(40).withTypedBytes {
            try file.write($0, at: UInt64(checked.random.below(20_000)))
        }
        try file.sync()
        try checked.disk.createDirectory("/kept", mode: 0o700)
        try checked.disk.syncDirectory("/")
        func examine() throws -> Journal.Salvage? {
            try Journal.examine(
                disk: checked.disk, directory: "/pool/journal", firstSegment: 1, applied: applied)
        }
        let first = try examine()
        var moved = 0
        for count in 1...50 {
            guard let found = try examine() else { break }
            #expect(found.last == first?.last, "seed \(seed)")
            checked.disk.powerOff(atSync: count)
            let disk = checked.disk
            do throws(JournalError) {
                try Journal.cutOff(found, disk: disk) { (path) throws(SystemError) in
                    #expect(!(try disk.readAll(path)).isEmpty)
                } move: { (path) throws(SystemError) in
                    moved += 1
                    try disk.rename(path, to: "/kept/\(moved)", noReplace: false)
                    try disk.syncDirectory("/kept")
                    try disk.syncDirectory("/pool/journal")
                }
            } catch { #expect(disk.isPoweredOff, "seed \(seed): \(error)") }
            disk.cancelPowerOff()
            checked.disk = disk.crash(&checked.random)
        }
        #expect(try examine() == nil, "seed \(seed)")
        checked.applied = applied.rawValue
        try checked.open()
        let last = first?.last ?? SequenceNumber(rawValue: checked.last)
        checked.frames.removeAll { $0.last <= applied.rawValue || $0.last > last.rawValue }
        #expect(try checked.read() == checked.frames, "seed \(seed)")
        checked.durable = checked.frames.count
        checked.last = last.rawValue
        try checked.append()
        try checked.sync()
        try checked.compare()
    }

    @Test(arguments: Seeds.run(25)) func aCrashLeavesAPrefixWithAllThatWasSynced(
        seed: UInt64
    ) throws {
        do {
            let journal = try CheckedJournal(seed: seed)
            // Each boundary once, from the first sync on.
            for count in 1...24 { try journal.runToCrash(atSync: count) }
        } catch { Issue.record("seed \(seed): \(error)") }
    }

    @Test func skippedSyncsAreFound() throws {
        var misbehaviour = SimulatedDisk.Misbehaviour()
        misbehaviour.skipsSync = { $0.hasPrefix("/pool/journal/") }
        let found = (1...40).contains { seed in
            do {
                let journal = try CheckedJournal(seed: UInt64(seed), misbehaviour: misbehaviour)
                for count in 1...24 { try journal.runToCrash(atSync: count) }
                return false
            } catch { return true }
        }
        #expect(found)
    }

    private func filled(frames: Int, syncEach: Bool = true) throws -> CheckedJournal {
        let journal = try CheckedJournal(seed: 1)
        for _ in 0..<frames {
            try journal.append()
            if syncEach { try journal.sync() }
        }
        return journal
    }

    private func flip(_ disk: Disk, _ path: String, at offset: UInt64) throws {
        let file = try disk.open(path, .readWrite)
        var byte: [UInt8] = [0]
        _ = try byte.withUnsafeMutableBytes { try file.read(into: $0, at: offset) }
        byte[0] ^= 1
        try byte.withUnsafeBytes { try file.write($0, at: offset) }
    }

    /// Any byte of a frame that a later frame knows durable.
    @Test func damageBeforeADurableFrameIsAnError() throws {
        for offset in [4096, 4100, 4096 + 50, 4096 + 79, 4096 + 90] as [UInt64] {
            let journal = try filled(frames: 5)
            try flip(journal.disk, "/pool/journal/1", at: offset)
            #expect(throws: JournalError.self) { try journal.open() }
        }
        let journal = try filled(frames: 5)
        try flip(journal.disk, "/pool/journal/1", at: 20)
        #expect(throws: JournalError.self, "the header") { try journal.open() }
    }

    @Test func aMissingOrShortSegmentIsAnError() throws {
        let journal = try filled(frames: 200)
        let count = journal.journal.entries.count
        try #require(count > 3)
        try flip(journal.disk, "/pool/journal/2", at: 4100)
        #expect(throws: JournalError.self) { try journal.open() }
        try flip(journal.disk, "/pool/journal/2", at: 4100)
        try journal.open()
        try journal.compare()
        try journal.disk.removeFile("/pool/journal/2")
        #expect(throws: JournalError.self) { try journal.open() }
    }

    @Test func whatIsMissingAfterTheOwnersCheckpointIsAnError() throws {
        let journal = try filled(frames: 200)
        let later = SequenceNumber(rawValue: journal.frames[180].last)
        try journal.journal.free(through: later, keepingAfter: later)
        #expect(journal.journal.entries[0].number > 1)
        #expect(throws: JournalError.self) { try journal.open() }
    }

    @Test func aTornTailIsCutBeforeAnythingFollows() throws {
        let journal = try filled(frames: 5)
        let before = journal.frames
        for _ in 0..<3 { try journal.append() }
        // The first of the three is lost, the two after it are there whole.
        let end = 4096 + before.reduce(0) { $0 + 80 + ($1.bytes.count + 7) & ~7 }
        try flip(journal.disk, "/pool/journal/1", at: UInt64(end) + 85)
        try journal.open()
        #expect(journal.journal.wasTorn)
        journal.frames = before
        journal.last = before.last!.last
        try journal.compare()
        try journal.append()
        try journal.sync()
        try journal.open()
        try journal.compare()
    }

    @Test func aFailedSyncLatches() throws {
        let journal = try filled(frames: 3)
        journal.disk.failSyncs { $0.hasPrefix("/pool/journal/") }
        try journal.append()
        #expect(throws: JournalError.self) { try journal.sync() }
        journal.disk.failSyncs { _ in false }
        #expect(throws: JournalError.self) { try journal.sync() }
        #expect(throws: JournalError.self) { try journal.append() }
    }

    /// The kernel tells of a failed write-back once: of two syncs at a time one hears that all is well.
    @Test func ofTwoSyncsAtATimeNoneConfirmsWhatTheOtherLost() throws {
        let journal = try filled(frames: 3)
        try journal.append()
        let before = journal.journal.durableSequence
        let inside = Mutex(0)
        let failures = Mutex(0)
        let second = Mutex<TestThread<SequenceNumber>?>(nil)
        let pool = journal.journal!
        journal.disk.whileSyncing { path in
            guard path.hasPrefix("/pool/journal/") else { return }
            let isFirst = inside.withLock { count in
                count += 1
                return count == 1
            }
            guard isFirst else {
                while failures.withLock({ $0 }) == 0 { Pause.microseconds(100) }
                return
            }
            second.withLock { $0 = TestThread { try pool.sync() } }
            // Where it is let in beside this one, it is here soon.
            for _ in 0..<500 where inside.withLock({ $0 }) < 2 {
                Pause.microseconds(100)
            }
        }
        journal.disk.failSyncs { path in
            guard path.hasPrefix("/pool/journal/") else { return false }
            return failures.withLock { count in
                count += 1
                return count == 1
            }
        }
        #expect(throws: JournalError.self) { try pool.sync() }
        #expect(throws: JournalError.self) { _ = try second.withLock { $0! }.join() }
        #expect(pool.durableSequence == before)
    }

    @Test func whatIsLeftToApplyIsKnownAtOnce() throws {
        let journal = try filled(frames: 12)
        try journal.sync()
        journal.applied = journal.frames[6].last
        try journal.open()
        let left = journal.frames[7...].reduce(0) { $0 + $1.bytes.count }
        #expect(journal.journal.backlogBytes == UInt64(left))
    }

    /// The kernel goes on showing what a sync failed to write, and calls it clean. Who opens the journal sees
    /// it, applies it, and may not lose it again.
    @Test(arguments: Seeds.run(4)) func whatAnOpenFoundAfterAFailedSyncStays(seed: UInt64) throws {
        let journal = try filled(frames: 3)
        journal.random = SeededRandom(seed: seed)
        journal.disk.failSyncs { $0.hasPrefix("/pool/journal/") }
        try journal.append()
        try journal.append()
        #expect(throws: JournalError.self) { try journal.sync() }
        journal.disk.failSyncs { _ in false }
        try journal.open()
        #expect(try journal.read() == journal.frames, "seed \(seed)")
        for _ in 0..<3 {
            journal.disk = journal.disk.crash(&journal.random)
            try journal.open()
            #expect(try journal.read() == journal.frames, "seed \(seed)")
        }
        journal.durable = journal.frames.count
        try journal.append()
        try journal.sync()
        try journal.compare()
    }

    /// A full disk takes nothing, keeps everything, and goes on when there is room: history first.
    @Test func aFullDiskTakesNothing() throws {
        let journal = try filled(frames: 3)
        journal.disk.limitSpace(toBytes: 160_000)
        let error = #expect(throws: JournalError.self) {
            for _ in 0..<400 {
                try journal.append()
                try journal.sync()
            }
        }
        guard case .system(let system)? = error, system.isNoSpace else {
            Issue.record("\(String(describing: error))")
            return
        }
        journal.frames.removeLast()
        try journal.compare()
        // What is applied is kept as history, until the room is needed.
        try journal.open()
        let count = journal.journal.entries.count
        journal.applied = journal.last
        journal.frames = []
        journal.durable = 0
        try journal.journal.free(
            through: SequenceNumber(rawValue: journal.applied), keepingAfter: .zero)
        #expect(journal.journal.entries.count == count)
        #expect(throws: JournalError.self) { for _ in 0..<30 { try journal.append() } }
        journal.frames.removeLast()
        #expect(try journal.journal.freeHistory())
        for _ in 0..<30 {
            try journal.append()
            try journal.sync()
        }
        try journal.compare()
    }

    @Test func segmentsAreUsedAgain() throws {
        let journal = try filled(frames: 1)
        for _ in 0..<300 {
            try journal.append()
            try journal.sync()
            journal.applied = journal.last
            journal.frames = []
            journal.durable = 0
            let through = SequenceNumber(rawValue: journal.applied)
            try journal.journal.free(through: through, keepingAfter: through)
        }
        #expect(journal.journal.entries.count == 1)
        #expect(journal.journal.entries[0].number > 5)
        #expect(try journal.disk.list("/pool/journal").count == 2)
        try journal.open()
        try journal.compare()
    }

    @Test func onARealDisk() throws {
        let path = "/tmp/doppel-journal-\(getpid())-\(UInt32.random(in: 0...(.max)))"
        let disk: Disk = LinuxDisk()
        try disk.createDirectory(path)
        defer {
            for name in (try? disk.list(path + "/journal")) ?? [] {
                try? disk.removeFile(path + "/journal/" + name.name)
            }
            try? disk.removeDirectory(path + "/journal")
            try? disk.removeDirectory(path)
        }
        func open() throws -> Journal {
            try Journal.open(
                disk: disk, directory: path + "/journal",
                options: JournalOptions(segmentBytes: 1 << 20), firstSegment: 1, applied: .zero)
        }
        var journal = try open()
        var sequence: UInt64 = 0
        var random = SeededRandom(seed: 3)
        var written: [[UInt8]] = []
        for _ in 0..<40 {
            let bytes = random.bytes(100_001)
            sequence += 1
            try bytes.withUnsafeBytes { raw in
                try journal.append(
                    [
                        UnsafeRawBufferPointer(rebasing: raw[..<70_000]),
                        UnsafeRawBufferPointer(rebasing: raw[70_000...]),
                    ], first: SequenceNumber(rawValue: sequence),
                    last: SequenceNumber(rawValue: sequence))
            }
            written.append(bytes)
        }
        #expect(try journal.sync().rawValue == 40)
        journal = try open()
        #expect(!journal.wasTorn)
        #expect(journal.sequence.rawValue == 40)
        let reader = journal.reader(after: SequenceNumber(rawValue: 7))
        var found: [[UInt8]] = []
        while let frame = try reader.next(through: journal.durableSequence) {
            found.append([UInt8](frame.payload))
        }
        #expect(found == Array(written[7...]))
    }
}
