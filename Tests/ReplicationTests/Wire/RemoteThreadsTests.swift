import BlockCore
import SystemIO
import TestSupport
import Testing

@testable import Replication

/// The pair of `RemoteReplicaTests` with threads between its parts, as a transport has them. What it proves it proves
/// best under the thread sanitizer.
@Suite struct RemoteThreadsTests {
    /// Bytes on their way, and whoever waits for them.
    private final class Line: @unchecked Sendable {  // fields are under `lock`
        private let lock = Lock()
        private let changed = Condition()
        private var bytes: [UInt8] = []
        private var isClosed = false

        func put(_ more: [UInt8]) {
            lock.withLock {
                bytes += more
                changed.signal()
            }
        }
        func close() {
            lock.withLock {
                isClosed = true
                changed.signal()
            }
        }
        /// - Returns: nil when it is closed and empty; nothing after a while.
        func take(_ most: Int) -> [UInt8]? {
            lock.lock()
            defer { lock.unlock() }
            if bytes.isEmpty, !isClosed { _ = changed.wait(lock, timeoutMs: 20) }
            guard !bytes.isEmpty else { return isClosed ? nil : [] }
            let piece = Array(bytes.prefix(most))
            bytes.removeFirst(piece.count)
            return piece
        }
    }

    private final class Channel: WireChannel, @unchecked Sendable {  // the line has its own lock
        let up = Line()
        func send(_ pieces: [WirePiece]) { up.put(joined(pieces)) }
        var unsentBytes: Int { 0 }
        func close() { up.close() }
    }

    private final class ThreadedLink: WireLink, @unchecked Sendable {  // fields are under `lock`
        private let begun = ContinuousClock.now
        private let lock = Lock()
        private var threads: [WorkerThread] = []
        private let work = Bell()
        private let replica: ServedReplica
        private var challenge: UInt64 = 0

        init(_ target: any ReplicaTarget) {
            let work = work
            replica = ServedReplica(
                name: "vms", target: target, random: { .random(in: .min ... .max) },
                wake: { work.ring() })
            let replica = replica
            threads = [
                WorkerThread.start("performs") {
                    while work.wait(timeoutMs: 20) { while replica.performNext() {} }
                    while replica.performNext() {}
                }
            ]
        }

        var nowNs: Int64 {
            let (seconds, attoseconds) = (ContinuousClock.now - begun).components
            return 1_000_000_000 + seconds * 1_000_000_000 + attoseconds / 1_000_000_000
        }

        func wait(_ lock: Lock, _ changed: Condition) { changed.wait(lock) }

        func open(_ receiver: RemoteConnection) throws(TargetError) -> any WireChannel {
            let (channel, down, output, replica) = (Channel(), Line(), Bell(), replica)
            let challenge = lock.withLock {
                self.challenge += 1
                return self.challenge
            }
            let server = ServedConnection(
                ServerConnection(
                    options: .init(), instance: 1, challenge: challenge, now: nowNs),
                now: { [self] in nowNs },
                find: { (_) throws(TargetError) in replica },
                visitor: { (_) throws(TargetError) in throw TargetError(.absent, "") },
                kick: { output.ring() })
            let reads = WorkerThread.start("server reads") {
                while let bytes = channel.up.take(5000), !server.hasEnded {
                    bytes.withUnsafeBytes { if !$0.isEmpty { server.receive($0) } }
                    server.tick()
                }
                server.lost("the connection is closed")
                output.end()
            }
            let writes = WorkerThread.start("server writes") {
                var goesOn = true
                while goesOn {
                    goesOn = output.wait(timeoutMs: 20)
                    let (pieces, isLast) = server.takeOutput()
                    down.put(joined(pieces))
                    if isLast { goesOn = false }
                }
                down.close()
            }
            let hears = WorkerThread.start("client hears") {
                while let bytes = down.take(3000) {
                    bytes.withUnsafeBytes { if !$0.isEmpty { receiver.receive($0) } }
                    receiver.tick()
                }
                receiver.lost("the connection is closed")
            }
            lock.withLock { threads += [reads, writes, hears] }
            return channel
        }

        func end() {
            work.end()
            for thread in lock.withLock({ threads }) { thread.join() }
        }
    }

    @Test(arguments: [0, 3]) func aSessionWithThreads(bulk: Int) throws {
        let target = LogTarget()
        let link = ThreadedLink(target)
        var options = RemoteReplica.Options(pool: "vms")
        options.bulkConnections = bulk
        let replica = RemoteReplica(link, options: options, client: 1)
        var given: [UInt64] = []
        for round in 0..<4 as Range<UInt64> {
            let checkpoint = try replica.connect(WireSamples.hello).checkpoint.rawValue
            for next in checkpoint + 1...checkpoint + 60 {
                try withBatch(next, block: 0) { batch in
                    // Some wait, some do not.
                    if next % 7 == 0 {
                        try replica.append(batch)
                    } else {
                        try replica.send(batch, tellsReceived: next % 2 == 0)
                    }
                }
                given.append(next)
            }
            #expect(try replica.flush().rawValue == checkpoint + 60)
            try replica.beginStaging(id: round + 1, shape: WireSamples.shape)
            for number in 1...60 as ClosedRange<UInt64> {
                try withBatch(checkpoint + 61, block: number) {
                    try replica.stage($0, number: number)
                }
                given.append(number)
                if number % 20 == 0 { try replica.syncStaging() }
            }
            #expect(
                try replica.blockHashes(
                    of: ImageID(rawValue: 1), in: BlockRange(start: 0, count: 5)
                ).count == 5)
            try replica.commitStaging(
                id: round + 1, at: sequence(checkpoint + 61), snapshot: nil)
            // Every other time without a word.
            if round % 2 == 0 { replica.disconnect() }
        }
        replica.disconnect()
        link.end()
        #expect(target.taken == given)
        #expect(!target.isConnected)
    }

    private func withBatch(
        _ at: UInt64, block: UInt64, _ body: (RecordBatch) throws -> Void
    ) rethrows {
        let buffer = RecordBuffer(capacityBytes: 4096)
        buffer.append(
            StreamRecord(
                .zero, sequence: sequence(at), image: ImageID(rawValue: 1),
                range: BlockRange(start: block, count: 1))
        ) { _ in }
        try body(buffer.batch)
    }
}
