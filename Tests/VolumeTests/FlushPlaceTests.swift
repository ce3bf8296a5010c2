import BlockCore
import Pool
import Replication
import Synchronization
import SystemIO
import TestSupport
import Testing
import Volume

/// What a flush says that it holds.
@Suite struct FlushPlaceTests {
    /// A commit says up to where its head has everything. Were there a cut between the head and that place, what
    /// came after the cut, and is in another head, would be said to be durable in this one.
    @Test func noCutComesBetweenAFlushesHeadAndItsPlace() throws {
        let pool = try CheckedPool(seed: 1, options: .init(imageCount: 1))
        let volume = pool.volume
        let image = try volume.image(try #require(volume.imageIDs.first))
        try [1, 2, 3].withUnsafeBytes { _ = try image.write($0, at: 0) }
        let stream = volume.attachStream()
        let target = TargetID(rawValue: 1)
        stream.attachTracking(target)

        let begun = Atomic<Int>(0)
        let done = Atomic<Int>(0)
        let isOver = Atomic<Bool>(false)
        // As a cut does, it waits until nobody has the lock of the cuts.
        let cuts = TestThread {
            while !isOver.load(ordering: .acquiring) {
                begun.add(1, ordering: .relaxed)
                _ = volume.attachStream()
                done.add(1, ordering: .relaxed)
                Pause.microseconds(200)
            }
        }
        // Who asks for a place in the sequence waits meanwhile.
        let flush = Mutex<TestThread<Void>?>(nil)
        let isHeldBack = stream.withLegs(target) { _ in
            flush.withLock { $0 = TestThread { try image.flush() } }
            var (last, since) = (-1, 0)
            for _ in 0..<5000 {
                let now = done.load(ordering: .relaxed)
                since = now == last && begun.load(ordering: .relaxed) > now ? since + 1 : 0
                if since > 150 { return true }
                last = now
                Pause.microseconds(1000)
            }
            return false
        }
        isOver.store(true, ordering: .releasing)
        try flush.withLock { $0! }.join()
        try cuts.join()
        #expect(isHeldBack == true, "a cut was made while a flush asked for its place")
    }
}
