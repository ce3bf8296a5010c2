// What happened to this host's pairing, and who was refused: of no pool, so in no catalog. One JSON object a line, in two files
// of at most 1 MiB. Refusals are told once a minute for each address and reason: whoever knocks a thousand times a
// second fills no disk and hides nothing else.

import Foundation
import SystemIO

package struct HostEvent: Codable, Sendable, Hashable {
    package var atNs: Int64
    package var kind: String
    /// The peer's name, fingerprint or address.
    package var subject: String
    package var message: String
}

package final class HostEvents: @unchecked Sendable {  // `refusals` is under `lock`
    private struct Refusal {
        var toldNs: Int64
        var more = 0
    }

    private static let limitBytes: UInt64 = 1 << 20
    private static let quietNs: Int64 = 60_000_000_000
    /// Addresses that are remembered; beyond, they are told as one.
    private static let limitRefusals = 256

    private let state: StateDirectory
    private let lock = Lock()
    private var refusals: [String: Refusal] = [:]

    package init(_ state: StateDirectory) { self.state = state }

    private var path: String { state.file("events") }

    /// - Throws: what nobody could write down.
    package func record(_ kind: String, _ subject: String, _ message: String) throws(IdentityError)
    {
        let event = HostEvent(
            atNs: state.disk.now(), kind: kind, subject: subject, message: message)
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        // Numbers and texts alone: they can be encoded.
        guard let line = try? Array(encoder.encode(event)) + [0x0a] else { return }
        try state.withLock { () throws(IdentityError) in
            try system { () throws(SystemError) in try append(line) }
        }
    }

    private func append(_ line: [UInt8]) throws(SystemError) {
        let disk = state.disk
        if let status = try disk.status(path), status.sizeBytes > Self.limitBytes {
            try disk.rename(path, to: path + ".1")
        }
        let file = try disk.open(path, [.readWrite, .create], mode: 0o600)
        defer { file.close() }
        let end = try file.status().sizeBytes
        // What a loss of power cut off stays a line of its own.
        var last: [UInt8] = [0x0a]
        if end > 0 {
            _ = try last.withTypedMutableBytes { (raw) throws(SystemError) in
                try file.read(into: raw, at: end - 1)
            }
        }
        let whole = last == [0x0a] ? line : [0x0a] + line
        try whole.withTypedBytes { (bytes) throws(SystemError) in try file.write(bytes, at: end) }
        try file.sync()
    }

    /// Somebody was not let in, or not to what was asked for.
    /// - Parameters:
    ///   - host: where the connection came from, without the port.
    ///   - reason: the same words each time, so that it can be told once.
    /// - Returns: false where it was only counted.
    @discardableResult
    package func refused(
        _ peer: PeerFingerprint?, from host: String, _ reason: String
    ) throws(IdentityError) -> Bool {
        let nowNs = state.disk.monotonic()
        let more: Int? = lock.withLock {
            var key = host + " " + reason
            if refusals[key] == nil, refusals.count >= Self.limitRefusals {
                refusals = refusals.filter { nowNs - $0.value.toldNs < Self.quietNs }
                if refusals.count >= Self.limitRefusals { key = "" }
            }
            if let last = refusals[key], nowNs - last.toldNs < Self.quietNs {
                refusals[key]?.more += 1
                return nil
            }
            let more = refusals[key]?.more ?? 0
            refusals[key] = Refusal(toldNs: nowNs)
            return more
        }
        guard let more else { return false }
        let who = peer.map { "\($0) from \(host)" } ?? host
        let again = more > 0 ? " (and \(more) times more since the last event of this)" : ""
        try record("refused", who, reason + again)
        return true
    }

    /// The newest, oldest first.
    package func newest(_ limit: Int) throws(IdentityError) -> [HostEvent] {
        var events: [HostEvent] = []
        for file in [path + ".1", path] {
            let bytes: [UInt8]
            do throws(SystemError) { bytes = try state.disk.readAll(file) } catch {
                if error.isNotFound { continue }
                throw IdentityError(error)
            }
            // A line that a loss of power cut off is passed over.
            events += bytes.split(separator: 0x0a).compactMap {
                try? JSONDecoder().decode(HostEvent.self, from: Data($0))
            }
        }
        return events.suffix(max(limit, 0))
    }
}
