import Glibc
import SystemIO
import Testing

@testable import Daemon

/// A clock that goes when it is told to.
private final class ClockDisk: Disk, @unchecked Sendable {  // used by one thread
    var nowNs: Int64 = 0
    override func now() -> Int64 { nowNs }
    override func monotonic() -> Int64 { nowNs }
}

/// Long work as who asked for it sees it.
@Suite struct JobTests {
    private final class Heard: @unchecked Sendable {  // used by one thread
        var events: [ControlEvent] = []
        var listens = true
    }

    private func run(
        _ body: (Job, ClockDisk, Heard) throws -> Void
    ) throws -> [ControlEvent] {
        let clock = ClockDisk()
        let heard = Heard()
        try JobTable(disk: clock).run(
            "scrub",
            {
                heard.events.append($0)
                return heard.listens
            }
        ) { job in try body(job, clock, heard) }
        return heard.events
    }

    @Test func progressTellsTheTimeLeft() throws {
        let events = try run { job, clock, _ in
            for second in 1...4 {
                clock.nowNs = Int64(second) * 1_000_000_000
                let goesOn = job.progress(
                    phase: "verifying", doneBytes: UInt64(second) << 20, totalBytes: 16 << 20)
                #expect(goesOn)
            }
        }
        #expect(
            events.map(\.event) == [.started, .progress, .progress, .progress, .progress, .ended])
        let last = try #require(events.dropLast().last?.data)
        #expect(last.kind == "scrub" && last.phase == "verifying")
        #expect(last.doneBytes == 4 << 20 && last.totalBytes == 16 << 20)
        #expect(last.elapsedMs == 4000)
        // The phase began at the first word of it: 3 s for 4 MiB, 12 MiB are left.
        #expect(last.etaMs == 9000)
    }

    /// Not one message a block.
    @Test func aListenerHearsFiveTimesASecondAtMost() throws {
        let events = try run { job, clock, _ in
            for step in 1...1000 {
                clock.nowNs = Int64(step) * 1_000_000
                _ = job.progress(phase: "p", doneBytes: UInt64(step), totalBytes: 1000)
            }
        }
        #expect(events.count { $0.event == .progress } == 5)
    }

    @Test func aJobEndsWhenNobodyListensAnyMore() throws {
        #expect(throws: ControlFailure.self) {
            _ = try run { job, clock, heard in
                heard.listens = false
                clock.nowNs = 1_000_000_000
                _ = job.progress(phase: "p", doneBytes: 1, totalBytes: 3)
                #expect(!job.progress(phase: "p", doneBytes: 2, totalBytes: 3))
            }
        }
    }

    @Test func aJobIsListedAndCancelledByItsNumber() throws {
        let table = JobTable(disk: ClockDisk())
        do {
            try table.run("check", { _ in true }) { job in
                #expect(table.list.map(\.kind) == ["check"])
                try table.cancel(job.number)
                #expect(!job.progress(phase: "p", doneBytes: 1, totalBytes: 2))
            }
            Issue.record("a cancelled job said that it was done")
        } catch let failure as ControlFailure {
            #expect(failure.kind == "cancelled")
        }
        #expect(table.list.isEmpty)
        #expect(throws: ControlFailure.self) { try table.cancel(1) }
    }
}
