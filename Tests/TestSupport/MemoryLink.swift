// Remote replicas and the servers they speak to, in one thread: bytes go through pipes in memory, in order, in pieces
// of any size; each pipe can be stopped, in one direction, or cut. Time passes when nothing else happens.

import BlockCore
import Replication
import SystemIO

package final class MemoryLink: WireLink, @unchecked Sendable {  // one thread
    package final class Pipe: WireChannel, @unchecked Sendable {  // one thread
        package let client: RemoteConnection
        package fileprivate(set) var server: ServedConnection?
        package fileprivate(set) var toServer: [UInt8] = []
        package fileprivate(set) var toClient: [UInt8] = []
        fileprivate var isClosedByClient = false
        fileprivate var isClosedByServer = false
        /// What is sent stays where it is.
        package var stopsToServer = false
        package var stopsToClient = false
        /// Only so much of what comes next goes through.
        package var lastBytesToServer: Int?

        fileprivate init(_ client: RemoteConnection) { self.client = client }

        package func send(_ pieces: [WirePiece]) {
            guard !isClosedByClient else { return }
            for piece in pieces { piece.withBytes { toServer.append(contentsOf: $0) } }
        }
        package var unsentBytes: Int { toServer.count }
        package func close() { isClosedByClient = true }
        package var isOpen: Bool { !isClosedByClient || !isClosedByServer }
    }

    package private(set) var nowNs: Int64 = 1_000_000_000
    package private(set) var pipes: [Pipe] = []
    package var random: SeededRandom
    package var serverOptions = ServerConnection.Options()
    /// Nobody listens.
    package var isDown = false
    /// Asks the targets for what they were asked to do; false: they hang.
    package var performs = true
    private let replicas: [String: ServedReplica]
    private var challenges: UInt64 = 0

    /// - Parameter targets: by the names of their pools.
    package init(seed: UInt64, _ targets: [String: any ReplicaTarget]) {
        random = SeededRandom(seed: seed)
        replicas = Dictionary(
            uniqueKeysWithValues: targets.sorted { $0.key < $1.key }.enumerated().map {
                let token = UInt64($0.offset) + 0x7000
                return (
                    $0.element.key,
                    ServedReplica(
                        name: $0.element.key, target: $0.element.value, random: { token }, wake: {})
                )
            })
    }

    package func open(_ receiver: RemoteConnection) throws(TargetError) -> any WireChannel {
        guard !isDown else { throw TargetError(.absent, "nobody listens") }
        let pipe = Pipe(receiver)
        challenges += 1
        let replicas = replicas
        pipe.server = ServedConnection(
            ServerConnection(
                options: serverOptions, instance: 1, challenge: challenges, now: nowNs),
            now: { [unowned self] in nowNs },
            find: { (name) throws(TargetError) in
                guard let found = replicas[name] else {
                    throw TargetError(.absent, "there is no pool '\(name)'")
                }
                return found
            },
            visitor: { (_) throws(TargetError) in
                throw TargetError(.absent, "nobody answers here")
            }, kick: {})
        pipes.append(pipe)
        return pipe
    }

    package func wait(_ lock: Lock, _ changed: Condition) {
        lock.unlock()
        if !turn() { pass(ms: 100) }
        lock.lock()
    }

    package func pass(ms: Int64) {
        nowNs += ms * 1_000_000
        for pipe in pipes {
            pipe.client.tick()
            pipe.server?.tick()
        }
    }

    /// Until nothing moves.
    package func settle() { while turn() {} }

    /// Moves something of everything, and performs something.
    /// - Returns: false where nothing moved.
    package func turn() -> Bool {
        var hasMoved = false
        for pipe in pipes {
            if moveToServer(pipe) { hasMoved = true }
            if moveToClient(pipe) { hasMoved = true }
        }
        pipes.removeAll { !$0.isOpen && $0.toClient.isEmpty }
        guard performs else { return hasMoved }
        for replica in replicas.values {
            for _ in 0..<1 + random.below(3) where replica.performNext() { hasMoved = true }
        }
        return hasMoved
    }

    private func piece(_ bytes: inout [UInt8]) -> [UInt8] {
        let most = random.chance(30) ? 1 + random.below(50) : 1 + random.below(1 << 17)
        let piece = Array(bytes.prefix(most))
        bytes.removeFirst(piece.count)
        return piece
    }

    private func moveToServer(_ pipe: Pipe) -> Bool {
        guard !pipe.stopsToServer, let server = pipe.server else { return false }
        if !pipe.toServer.isEmpty {
            var bytes = piece(&pipe.toServer)
            if let last = pipe.lastBytesToServer {
                bytes = Array(bytes.prefix(last))
                pipe.lastBytesToServer = last - bytes.count
                guard !bytes.isEmpty else { return false }
            }
            bytes.withUnsafeBytes { server.receive($0) }
            return true
        }
        guard pipe.isClosedByClient, !server.hasEnded, pipe.toServer.isEmpty else { return false }
        server.lost("the connection is closed")
        return true
    }

    private func moveToClient(_ pipe: Pipe) -> Bool {
        guard let server = pipe.server else { return false }
        let output = server.takeOutput()
        for piece in output.pieces {
            piece.withBytes { pipe.toClient.append(contentsOf: $0) }
        }
        pipe.isClosedByServer = output.isLast
        guard !pipe.stopsToClient else { return false }
        if !pipe.toClient.isEmpty {
            let bytes = piece(&pipe.toClient)
            bytes.withUnsafeBytes { pipe.client.receive($0) }
            return true
        }
        guard output.isLast, !pipe.client.hasEnded else { return false }
        pipe.client.lost("the connection is closed")
        return true
    }
}
