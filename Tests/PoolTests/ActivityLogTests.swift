import Pool
import SystemIO
import TestSupport
import Testing

@Suite struct ActivityLogTests {
    private static let path = "/activity"

    private func log(on disk: SimulatedDisk) throws -> ActivityLog {
        try ActivityLog.create(disk: disk, path: Self.path)
    }

    private func marked(on disk: SimulatedDisk) throws -> [Int] {
        try #require(ActivityLog.parse(try disk.readAll(Self.path)))
    }

    @Test func whatIsMarkedIsThereAtTheNextOpen() throws {
        let disk = SimulatedDisk()
        let log = try log(on: disk)
        try log.activate(first: 3, last: 5)
        try log.activate([70, 4000])
        #expect(try marked(on: disk) == [3, 4, 5, 70, 4000])
        let (again, wasDamaged) = try ActivityLog.open(
            disk: disk, path: Self.path, imageSizeBytes: 1 << 40)
        #expect(!wasDamaged)
        #expect(again.regions == [3, 4, 5, 70, 4000])
        #expect(log.regions == again.regions)
    }

    @Test func whatIsInUseStaysAndTheRestGoes() throws {
        let disk = SimulatedDisk()
        let log = try log(on: disk)
        try log.activate(Array(0..<10))
        log.touch(first: 4, last: 6)
        let idle = log.retire(all: false)
        #expect(idle == [0, 1, 2, 3, 7, 8, 9])
        // One is written to again before the others are cleared.
        try log.activate(first: 8, last: 8)
        try log.clear(idle)
        #expect(try marked(on: disk) == [4, 5, 6, 8])
        // Nobody touched them since.
        #expect(log.retire(all: false) == [4, 5, 6, 8])
    }

    @Test func aFullLogMakesRoomOfWhatIsLongestUnused() throws {
        let disk = SimulatedDisk()
        let log = try log(on: disk)
        try log.activate(Array(0..<ActivityLog.regionLimit))
        log.touch(first: 0, last: 899)
        var settling: TestThread<Void>?
        log.waitForRoom {
            guard settling == nil else { return }
            settling = TestThread {
                let idle = log.retire(all: false)
                #expect(idle == Array(0..<132) + Array(900..<ActivityLog.regionLimit))
                try log.clear(idle)
                log.noteSettled()
            }
        }
        try settling?.join()
        try log.activate(first: 5000, last: 5000)
        #expect(try marked(on: disk) == Array(132..<900) + [5000])
    }

    @Test func whoGetsNoRoomGoesOn() throws {
        let disk = SimulatedDisk()
        let log = try log(on: disk)
        try log.activate(Array(0..<ActivityLog.regionLimit))
        // Nobody settles.
        log.waitForRoom {}
        try log.activate(first: 2000, last: 2000)
        #expect(log.activeCount == ActivityLog.regionLimit + 1)
    }

    @Test func whatAFailedSettlingLeftGoesWithTheNext() throws {
        let disk = SimulatedDisk()
        let log = try log(on: disk)
        try log.activate(Array(0..<20))
        // Taken out of service; then making the writes durable failed, and nothing was cleared.
        #expect(log.retire(all: false).count == 20)
        #expect(try marked(on: disk).count == 20)
        let again = log.retire(all: false)
        #expect(again == Array(0..<20))
        try log.clear(again)
        #expect(try marked(on: disk).isEmpty)
    }
}
