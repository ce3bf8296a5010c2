// What a server gives to whom, so that nobody has it all. Connections that have not shown a key yet are counted apart:
// they take nothing from those that have.

import BlockCore
import Identity
import Replication
import SystemIO

package struct TransportLimits: Sendable, Hashable {
    package var connections = 128
    package var connectionsOfAPeer = 64
    /// Credit for records, and answers that wait, of all connections together. A long message (a pool's names)
    /// comes on top while it is read: at most 64 MiB in an ordered connection.
    package var memoryBytes: UInt64 = 2 << 30
    /// That have not shown a key; the oldest goes when another comes.
    package var handshakes = 64
    /// What one peer may send, in all its connections.
    package var bytesPerSecond: UInt64?
    package init() {}
}

/// The connections of a server.
final class ConnectionRegistry: @unchecked Sendable {  // fields are under `lock`
    private struct Admitted {
        var channel: ServerChannel
        var peer: PeerFingerprint?
        var memoryBytes: UInt64
    }
    private let lock = Lock()
    private var limits: TransportLimits
    private let changed = Condition()
    private var isClosed = false
    /// In the order that they came.
    private var handshaking: [ServerChannel] = []
    private var admitted: [ObjectIdentifier: Admitted] = [:]
    private var memoryBytes: UInt64 = 0
    private var throttles: [PeerFingerprint?: PeerThrottle] = [:]

    init(_ limits: TransportLimits) { self.limits = limits }

    /// - Returns: false when the server takes no more.
    func began(_ channel: ServerChannel) -> Bool {
        let (isTaken, surplus) = lock.withLock { () -> (Bool, ServerChannel?) in
            guard !isClosed else { return (false, nil) }
            handshaking.append(channel)
            return (true, handshaking.count > limits.handshakes ? handshaking.removeFirst() : nil)
        }
        surplus?.drop()
        return isTaken
    }

    /// It has shown its key, where one is asked for.
    /// - Throws: `.limit`.
    func admit(
        _ channel: ServerChannel, _ peer: PeerFingerprint?, memoryBytes bytes: UInt64
    ) throws(WireError) {
        try lock.withLock { () throws(WireError) in
            handshaking.removeAll { $0 === channel }
            let ofPeer = admitted.values.count { $0.peer == peer }
            if let reason = reason(ofPeer, bytes) {
                throw WireError(.limit, "connection", at: 0, reason)
            }
            memoryBytes += bytes
            admitted[ObjectIdentifier(channel)] = Admitted(
                channel: channel, peer: peer, memoryBytes: bytes)
        }
    }

    private func reason(_ ofPeer: Int, _ bytes: UInt64) -> String? {
        if isClosed { return "the server shuts down" }
        if ofPeer >= limits.connectionsOfAPeer {
            return "this host has \(ofPeer) connections already, as many as the server gives to one"
        }
        if admitted.count >= limits.connections {
            return "the server has \(admitted.count) connections already, as many as it takes"
        }
        if memoryBytes + bytes > limits.memoryBytes {
            return "the server has no memory left for another connection (of "
                + "\(ByteSize(bytes: limits.memoryBytes)))"
        }
        return nil
    }

    func ended(_ channel: ServerChannel) {
        lock.withLock {
            handshaking.removeAll { $0 === channel }
            if let gone = admitted.removeValue(forKey: ObjectIdentifier(channel)) {
                memoryBytes -= gone.memoryBytes
                if !admitted.values.contains(where: { $0.peer == gone.peer }) {
                    throttles[gone.peer] = nil
                }
            }
            changed.broadcast()
        }
    }

    /// Who is connected already stays.
    func change(_ new: TransportLimits) {
        lock.withLock {
            if new.bytesPerSecond != limits.bytesPerSecond { throttles = [:] }
            limits = new
        }
    }

    func throttle(of peer: PeerFingerprint?) -> PeerThrottle? {
        lock.withLock {
            guard let bytesPerSecond = limits.bytesPerSecond else { return nil }
            if let known = throttles[peer] { return known }
            let new = PeerThrottle(bytesPerSecond: bytesPerSecond)
            throttles[peer] = new
            return new
        }
    }

    /// All that there are.
    var channels: [ServerChannel] {
        lock.withLock { handshaking + admitted.values.map(\.channel) }
    }
    var admittedCount: Int { lock.withLock { admitted.count } }
    var handshakingCount: Int { lock.withLock { handshaking.count } }

    /// Nothing more is taken.
    func close() { lock.withLock { isClosed = true } }

    /// - Returns: false when some are left after so long.
    func waitUntilEmpty(timeoutMs: Int64) -> Bool {
        let deadlineNs = WakeTimer.nowNs + timeoutMs * 1_000_000
        lock.lock()
        defer { lock.unlock() }
        while !handshaking.isEmpty || !admitted.isEmpty {
            let leftMs = (deadlineNs - WakeTimer.nowNs) / 1_000_000
            guard leftMs > 0 else { return false }
            _ = changed.wait(lock, timeoutMs: leftMs)
        }
        return true
    }
}

/// Bytes a second of one peer; what it sent beyond that stays with it, for nobody reads it.
final class PeerThrottle: @unchecked Sendable {  // `bucket` is under `lock`
    private let lock = Lock()
    private var bucket: TokenBucket
    /// What a connection reads in one go: the share of a fiftieth of a second, or less; a power of two, as buffers are.
    /// Who reads more has to pause for as long.
    let pieceBytes: Int
    /// A connection in which nothing is read for long counts as suspect, then as lost, on both sides. A peer with so
    /// many connections that their turns are further apart gets more than its rate.
    private static let longestPauseNs: Int64 = 1_000_000_000

    init(bytesPerSecond: UInt64) {
        bucket = TokenBucket(bytesPerSecond: bytesPerSecond)
        let share = min(max(bytesPerSecond / 50, 4 << 10), 512 << 10)
        pieceBytes = 1 << (UInt64.bitWidth - 1 - share.leadingZeroBitCount)
    }

    /// Each connection of the peer has its turn: what one of them read is paid for after what others read before.
    /// - Returns: when something may be read again.
    func charge(_ bytes: Int, nowNs: Int64) -> Int64 {
        lock.withLock {
            bucket.charge(UInt64(bytes), nowNs: nowNs, mostNs: Self.longestPauseNs)
        }
    }
}
