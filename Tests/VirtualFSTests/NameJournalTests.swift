import BlockCore
import Foundation
import Pool
import SystemIO
import Testing

@testable import VirtualFS

@Suite struct NameJournalTests {
    private func catalog() throws -> Catalog {
        try Catalog.inMemory(identity: PoolIdentity(id: "test", createdNs: 0))
    }
    private func node(_ id: UInt64, _ name: String = "n", image: Int64? = nil) -> NodeRecord {
        NodeRecord(
            id: NodeID(rawValue: id), parentID: .root, name: Array(name.utf8), kind: .file,
            mode: 0, uid: 0, gid: 0, accessNs: 0, modifyNs: 0, changeNs: 0,
            imageID: image.map { ImageID(rawValue: $0) })
    }
    private func journal(
        _ catalog: Catalog, delayMs: Int64 = 600_000, tickMs: Int64 = 600_000,
        tick: @escaping @Sendable () -> Bool = { false }
    ) -> NameJournal {
        let journal = NameJournal(
            catalog: catalog, disk: LinuxDisk(), delayMs: delayMs, tickMs: tickMs)
        journal.start(tick: tick)
        return journal
    }
    private func sequence(_ value: UInt64) -> SequenceNumber { SequenceNumber(rawValue: value) }
    private func ids(_ catalog: Catalog) throws -> [UInt64] {
        try catalog.read { try $0.nodes() }.map(\.id.rawValue)
    }

    @Test func commitsWhenSomebodyWaits() throws {
        let catalog = try catalog()
        let journal = journal(catalog)
        journal.queue([.put(node(2))], at: sequence(7))
        #expect(try ids(catalog) == [])
        let ticket = journal.queue([.put(node(3)), .remove(NodeID(rawValue: 2))], at: sequence(8))
        try journal.waitDurable(ticket)
        #expect(try ids(catalog) == [3])
        #expect(try catalog.read { try $0.namesSequence() } == sequence(8))
        try journal.stop()
    }

    @Test func commitsByItselfAfterTheDelay() throws {
        let catalog = try catalog()
        let journal = journal(catalog, delayMs: 20)
        journal.queue([.put(node(2))], at: sequence(1))
        let deadline = Date(timeIntervalSinceNow: 10)
        while try ids(catalog).isEmpty, Date() < deadline { Pause.microseconds(2000) }
        #expect(try ids(catalog) == [2])
        try journal.stop()
    }

    @Test(.timeLimit(.minutes(1))) func nothingToCommitIsNothingToWaitFor() throws {
        let catalog = try catalog()
        let journal = journal(catalog)
        try journal.waitDurable(journal.queue([], at: sequence(1)))
        try journal.waitDurable()
        try journal.stop()
    }

    @Test func stoppingCommitsTheRest() throws {
        let catalog = try catalog()
        let journal = journal(catalog)
        for id in 2..<100 { journal.queue([.put(node(UInt64(id)))], at: sequence(UInt64(id))) }
        try journal.stop()
        #expect(try ids(catalog) == Array(2..<100))
    }

    @Test(.timeLimit(.minutes(1))) func afterItsEndAWaitFailsInsteadOfHanging() throws {
        let journal = journal(try catalog())
        try journal.stop()
        let ticket = journal.queue([.put(node(2))], at: sequence(1))
        #expect(code { try journal.waitDurable(ticket) } == .io)
    }

    /// N3. A row that names a missing image is refused by the catalog: the stand-in for any failure.
    @Test func aFailedCommitLatches() throws {
        let catalog = try catalog()
        let journal = journal(catalog)
        let first = journal.queue([.put(node(2))], at: sequence(1))
        try journal.waitDurable(first)
        let bad = journal.queue([.put(node(3, image: 99))], at: sequence(2))
        #expect(code { try journal.waitDurable(bad) } == .io)
        let later = journal.queue([.put(node(4))], at: sequence(3))
        #expect(code { try journal.waitDurable(later) } == .io)
        #expect(code { try journal.waitDurable(first) } == .io, "fsync stays EIO for the pool")
        #expect(code { try journal.check(isFreeing: true) } == .io)
        #expect(code { try journal.stop() } == .io)
        #expect(try ids(catalog) == [2], "nothing after the failure: what is there is a prefix")
    }

    @Test func manyWaitersShareCommits() throws {
        let catalog = try catalog()
        let journal = journal(catalog)
        let threads = (0..<8).map { thread in
            WorkerThread.start("waiter") {
                for step in 0..<50 {
                    let id = UInt64(2 + thread * 50 + step)
                    let ticket = journal.queue([.put(self.node(id))], at: self.sequence(id))
                    do { try journal.waitDurable(ticket) } catch { Issue.record(error) }
                    let isThere = try? catalog.read { try $0.nodes() }.contains {
                        $0.id.rawValue == id
                    }
                    #expect(isThere == true, "durable on return")
                }
            }
        }
        threads.forEach { $0.join() }
        #expect(try ids(catalog).count == 400)
        try journal.stop()
    }

    @Test func ticksWhileAskedTo() throws {
        final class Count: @unchecked Sendable {  // under `lock`
            let lock = Lock()
            var value = 0
        }
        let count = Count()
        let journal = journal(try catalog(), tickMs: 5) {
            count.lock.withLock {
                count.value += 1
                return count.value < 3
            }
        }
        Pause.microseconds(30_000)
        #expect(count.lock.withLock { count.value } == 0)
        journal.startTicking()
        let deadline = Date(timeIntervalSinceNow: 10)
        while count.lock.withLock({ count.value }) < 3, Date() < deadline {
            Pause.microseconds(2000)
        }
        Pause.microseconds(50_000)
        #expect(count.lock.withLock { count.value } == 3, "no tick after it said no")
        try journal.stop()
    }
}
