// The first messages of a connection: what both sides speak, then who is who. A hello, and the refusal of one, look
// the same in all versions of the protocol.

import BlockCore

package enum WireRole: UInt8, Sendable, CaseIterable {
    /// Carries the session: connecting, the stream, and whatever has one order.
    case ordered = 1
    /// Carries batches of a staging, and what is read, for a session that there is.
    case bulk = 2
    /// Asks about a pool, or has it changed, without being its primary.
    case control = 3
}

/// What a side is able to. A bit that is not known to both is not in force.
package struct WireFeatures: OptionSet, Sendable, Hashable {
    package let rawValue: UInt64
    package init(rawValue: UInt64) { self.rawValue = rawValue }
    /// Bodies of frames with records may be compressed, in both directions.
    package static let compressedFrames = WireFeatures(rawValue: 1)
    package static let known: WireFeatures = [.compressedFrames]
}

package struct WireHello: Sendable, Hashable {
    package var versions: ClosedRange<UInt16> = WireFormat.versions
    package var role: WireRole
    package var features: WireFeatures = .known
    /// The longest message that it takes.
    package var longestMessageBytes: UInt32
    /// It says something at least so often.
    package var heartbeatMs: UInt32
    /// For people.
    package var software: String
}

package struct WireWelcome: Sendable, Hashable {
    package var version: UInt16
    package var features: WireFeatures
    package var longestMessageBytes: UInt32
    package var heartbeatMs: UInt32
    /// Bytes of frames with records that may be under way, to begin with.
    package var creditBytes: UInt64
    /// Requests that may wait for their answers.
    package var mostRequests: UInt32
    /// This run of the server.
    package var instance: UInt64
    /// What comes next has to show that it comes after this.
    package var challenge: UInt64
    package var software: String
}

/// Asks for a session, on an ordered connection.
package struct WireConnect: Sendable, Hashable {
    package var challenge: UInt64
    /// This run of the client, and which of its attempts this is: an older one never comes after a newer.
    package var client: UInt64
    package var attempt: UInt64
    /// The pool that is asked for, as the server names it.
    package var pool: String
    package var hello: PrimaryHello
}

package struct WireConnected: Sendable, Equatable {
    /// Which session of the pool this is, in this run of the server.
    package var epoch: UInt64
    /// Shown by the bulk connections of the session.
    package var token: UInt64
    package var report: ReplicaReport
}

/// Adds a bulk connection to a session.
package struct WireAttach: Sendable, Hashable {
    package var challenge: UInt64
    package var epoch: UInt64
    package var token: UInt64
    package var pool: String
}

/// Comes to a pool, on a control connection. What it may there is asked with each of its requests.
package struct WireEnter: Sendable, Hashable {
    package var challenge: UInt64
    package var pool: String
}

extension WireHello {
    static let longestSoftwareBytes = 64

    package func encoded() -> WireWriter {
        var writer = WireWriter("hello")
        writer.put(WireFormat.magic)
        writer.put(versions.lowerBound)
        writer.put(versions.upperBound)
        writer.put(role.rawValue)
        writer.putZeros(3)
        writer.put(features.rawValue)
        writer.put(longestMessageBytes)
        writer.put(heartbeatMs)
        writer.putZeros(8)
        writer.put(cutText: software, longestBytes: Self.longestSoftwareBytes)
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "hello")
        try reader.takeMagic()
        let (low, high): (UInt16, UInt16) = (
            try reader.take("versions"), try reader.take("versions")
        )
        guard low > 0, low <= high else {
            throw reader.error(.malformed, "versions", at: 8, "\(low) to \(high)")
        }
        versions = low...high
        guard let role = WireRole(rawValue: try reader.take("role")) else {
            throw reader.error(.unknown, "role", at: 12, "it is none")
        }
        self.role = role
        try reader.takeZeros(3, "zero")
        features = WireFeatures(rawValue: try reader.take("features"))
        longestMessageBytes = try reader.takeLongestMessage()
        heartbeatMs = try reader.takeHeartbeat()
        try reader.takeZeros(8, "zero")
        software = try reader.takeText(longestBytes: Self.longestSoftwareBytes, "software")
        try reader.requireEnd()
    }
}

extension WireReader {
    fileprivate mutating func takeMagic() throws(WireError) {
        guard try take("magic", as: UInt64.self) == WireFormat.magic else {
            throw error(.unknown, "magic", at: 0, "this is not Doppel's protocol")
        }
    }
    fileprivate mutating func takeLongestMessage() throws(WireError) -> UInt32 {
        let at = position
        let bytes: UInt32 = try take("longestMessage")
        guard bytes >= WireFormat.longestFragmentBytes else {
            throw error(.malformed, "longestMessage", at: at, "\(bytes) bytes are too few")
        }
        return bytes
    }
    fileprivate mutating func takeHeartbeat() throws(WireError) -> UInt32 {
        let at = position
        let ms: UInt32 = try take("heartbeat")
        guard (20...60_000).contains(ms) else {
            throw error(.malformed, "heartbeat", at: at, "every \(ms) ms")
        }
        return ms
    }
}

extension WireWelcome {
    package func encoded() -> WireWriter {
        var writer = WireWriter("welcome")
        writer.put(WireFormat.magic)
        writer.put(version)
        writer.putZeros(6)
        writer.put(features.rawValue)
        writer.put(longestMessageBytes)
        writer.put(heartbeatMs)
        writer.put(creditBytes)
        writer.put(mostRequests)
        writer.putZeros(4)
        writer.put(instance)
        writer.put(challenge)
        writer.put(cutText: software, longestBytes: WireHello.longestSoftwareBytes)
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "welcome")
        try reader.takeMagic()
        version = try reader.take("version")
        guard WireFormat.versions.contains(version) else {
            throw reader.error(.version, "version", at: 8, "version \(version) is not spoken here")
        }
        try reader.takeZeros(6, "zero")
        features = WireFeatures(rawValue: try reader.take("features"))
        guard WireFeatures.known.isSuperset(of: features) else {
            throw reader.error(.unknown, "features", at: 16, "one was not offered")
        }
        longestMessageBytes = try reader.takeLongestMessage()
        heartbeatMs = try reader.takeHeartbeat()
        creditBytes = try reader.take("credit")
        mostRequests = try reader.take("mostRequests")
        // Less would let no request, or no batch, through at all.
        guard mostRequests > 0, (UInt64(WireFormat.longestBodyBytes) * 2...1 << 40) ~= creditBytes
        else {
            throw reader.error(
                .malformed, "credit", at: 32, "\(creditBytes) bytes, \(mostRequests) requests")
        }
        try reader.takeZeros(4, "zero")
        instance = try reader.take("instance")
        challenge = try reader.take("challenge")
        software = try reader.takeText(
            longestBytes: WireHello.longestSoftwareBytes, "software")
        try reader.requireEnd()
    }
}

extension WireConnect {
    package func encoded() throws(WireError) -> WireWriter {
        var writer = WireWriter("connect", capacity: 512)
        writer.put(challenge)
        writer.put(client)
        writer.put(attempt)
        try writer.put(text: pool, longestBytes: WireFormat.longestNameBytes, "pool")
        try writer.put(id: hello.poolID, "poolID")
        try writer.put(hello.generation, "generation")
        writer.put(hello.incarnation)
        try writer.put(id: hello.incarnationID, "incarnationID")
        var flags: UInt8 = hello.keepsDiverged ? 1 : 0
        flags |= hello.address == nil ? 0 : 2
        flags |= hello.laysOut ? 4 : 0
        flags |= hello.mirrorID == nil ? 0 : 8
        flags |= hello.givenThrough == nil ? 0 : 16
        flags |= hello.droppedCuts.isEmpty ? 0 : 32
        writer.put(flags)
        if let address = hello.address {
            try writer.put(text: address, longestBytes: WireFormat.longestNameBytes, "address")
        }
        if let mirrorID = hello.mirrorID { try writer.put(id: mirrorID, "mirrorID") }
        if let given = hello.givenThrough { writer.put(given.rawValue) }
        if !hello.droppedCuts.isEmpty {
            try writer.put(count: hello.droppedCuts.count, "droppedCuts")
            for cut in hello.droppedCuts {
                writer.put(cut.after.rawValue)
                writer.put(cut.through.rawValue)
            }
        }
        try writer.put(count: hello.history.entries.count, "history")
        for entry in hello.history.entries { try writer.put(entry) }
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "connect")
        challenge = try reader.take("challenge")
        client = try reader.take("client")
        attempt = try reader.take("attempt")
        pool = try reader.takeText(longestBytes: WireFormat.longestNameBytes, "pool")
        let poolID = try reader.takeID("poolID")
        let generation = try reader.takeGeneration("generation")
        let incarnation: UInt64 = try reader.take("incarnation")
        let incarnationID = try reader.takeID("incarnationID")
        let flags = try reader.takeFlags(63, "flags")
        let address =
            flags & 2 == 0
            ? nil : try reader.takeText(longestBytes: WireFormat.longestNameBytes, "address")
        let mirrorID = flags & 8 == 0 ? nil : try reader.takeID("mirrorID")
        let given = flags & 16 == 0 ? nil : try reader.takeSequence("givenThrough")
        let droppedCuts = flags & 32 == 0 ? [] : try reader.takeDroppedCuts()
        let count = try reader.takeCount(elementBytes: 34, "history")
        var entries: [GenerationHistory.Entry] = []
        entries.reserveCapacity(count)
        for _ in 0..<count {
            let at = reader.position
            let entry = try reader.takeHistoryEntry()
            if let last = entries.last?.generation.number, last > entry.generation.number {
                throw reader.error(.malformed, "history", at: at, "it is not in order")
            }
            entries.append(entry)
        }
        try reader.requireEnd()
        hello = PrimaryHello(
            poolID: poolID, generation: generation, incarnation: incarnation,
            incarnationID: incarnationID, history: GenerationHistory(entries), address: address)
        hello.keepsDiverged = flags & 1 != 0
        hello.laysOut = flags & 4 != 0
        hello.mirrorID = mirrorID
        hello.givenThrough = given
        hello.droppedCuts = droppedCuts
    }
}

extension WireReader {
    fileprivate mutating func takeDroppedCuts() throws(WireError) -> [DroppedCut] {
        let count = try takeCount(elementBytes: 16, "droppedCuts")
        var cuts: [DroppedCut] = []
        cuts.reserveCapacity(count)
        for _ in 0..<count {
            let after = try takeSequence("droppedCuts")
            cuts.append(DroppedCut(after: after, through: try takeSequence("droppedCuts")))
        }
        return cuts
    }
}

extension WireConnected {
    package func encoded() throws(WireError) -> WireWriter {
        var writer = WireWriter("connected", capacity: 512)
        writer.put(epoch)
        writer.put(token)
        try writer.put(report)
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "connected")
        epoch = try reader.take("epoch")
        token = try reader.take("token")
        report = try reader.takeReport()
        try reader.requireEnd()
    }
}

extension WireAttach {
    package func encoded() throws(WireError) -> WireWriter {
        var writer = WireWriter("attach")
        writer.put(challenge)
        writer.put(epoch)
        writer.put(token)
        try writer.put(text: pool, longestBytes: WireFormat.longestNameBytes, "pool")
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "attach")
        challenge = try reader.take("challenge")
        epoch = try reader.take("epoch")
        token = try reader.take("token")
        pool = try reader.takeText(longestBytes: WireFormat.longestNameBytes, "pool")
        try reader.requireEnd()
    }
}

extension WireEnter {
    package func encoded() throws(WireError) -> WireWriter {
        var writer = WireWriter("enter")
        writer.put(challenge)
        try writer.put(text: pool, longestBytes: WireFormat.longestNameBytes, "pool")
        return writer
    }

    package init(decoding body: UnsafeRawBufferPointer) throws(WireError) {
        var reader = WireReader(body, "enter")
        challenge = try reader.take("challenge")
        pool = try reader.takeText(longestBytes: WireFormat.longestNameBytes, "pool")
        try reader.requireEnd()
    }
}
