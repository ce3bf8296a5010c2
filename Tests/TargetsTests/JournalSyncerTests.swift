import BlockCore
import Synchronization
import SystemIO
import TestSupport
import Testing

@testable import Targets

@Suite struct JournalSyncerTests {
    private static let piece = 4 << 20

    private func until(_ condition: () -> Bool) -> Bool {
        let deadline = ContinuousClock.now + .seconds(20)
        while !condition() {
            if ContinuousClock.now > deadline { return false }
            Pause.microseconds(200)
        }
        return true
    }

    /// Without anybody asking; and it is not said any more where the stream begins anew.
    @Test func whatWasAppendedIsSyncedBesideTheStream() {
        let count = Mutex(UInt64(0))
        let syncer = JournalSyncer {
            SequenceNumber(
                rawValue: count.withLock {
                    $0 += 10
                    return $0
                })
        }
        defer { syncer.stop() }
        syncer.appended(Self.piece - 1)
        #expect(syncer.durableThrough == nil)
        syncer.appended(1)
        #expect(until { syncer.durableThrough == SequenceNumber(rawValue: 10) })
        syncer.forget()
        #expect(syncer.durableThrough == nil)
        syncer.appended(Self.piece)
        #expect(until { syncer.durableThrough == SequenceNumber(rawValue: 20) })
    }

    @Test func stepByStepItSyncsWhatThereIs() {
        let syncer = JournalSyncer(onThread: false) { SequenceNumber(rawValue: 4) }
        #expect(!syncer.step())
        syncer.appended(1)
        #expect(syncer.step())
        #expect(syncer.durableThrough == SequenceNumber(rawValue: 4))
        #expect(!syncer.step())
    }

    @Test func aSyncThatFailsSaysNothing() {
        let count = Mutex(0)
        let syncer = JournalSyncer {
            count.withLock { $0 += 1 }
            return nil
        }
        syncer.appended(Self.piece)
        #expect(until { count.withLock { $0 } == 1 })
        syncer.stop()
        #expect(syncer.durableThrough == nil)
    }

    /// Before it is forgotten, the sync under way has ended: it says nothing about what comes.
    @Test func aSyncUnderWayIsWaitedFor() {
        let isIn = Mutex(false)
        let mayEnd = Mutex(false)
        let syncer = JournalSyncer {
            isIn.withLock { $0 = true }
            while !mayEnd.withLock({ $0 }) { Pause.microseconds(100) }
            return SequenceNumber(rawValue: 7)
        }
        defer { syncer.stop() }
        syncer.appended(Self.piece)
        #expect(until { isIn.withLock { $0 } })
        let ender = TestThread {
            Pause.microseconds(20_000)
            mayEnd.withLock { $0 = true }
        }
        syncer.forget()
        #expect(mayEnd.withLock { $0 })
        #expect(syncer.durableThrough == nil)
        try? ender.join()
    }
}
