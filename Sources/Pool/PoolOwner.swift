import Foundation
import SystemIO

/// What the process that holds a pool says of itself: for messages, for finding its socket, and for
/// waiting while it drains. Never used to decide whether it lives; the kernel's lock does that.
package struct PoolOwner: Codable, Sendable, Hashable {
    package var pid: Int32
    package var command: String
    package var socketPath: String?
    package var mountPoint: String?
    package var isDraining: Bool
    /// The pool is a mirror, and this is its primary's daemon, which writes to it.
    package var writesMirror: Bool?
    /// The pool is a mirror, and this is the server that its primary is connected to.
    package var isServer: Bool?
    /// Before the pool is served: what it waits for, for people.
    package var waitsFor: String?

    package init(
        pid: Int32, command: String, socketPath: String? = nil, mountPoint: String? = nil,
        isDraining: Bool = false, writesMirror: Bool? = nil
    ) {
        self.pid = pid
        self.command = command
        self.socketPath = socketPath
        self.mountPoint = mountPoint
        self.isDraining = isDraining
        self.writesMirror = writesMirror
    }

    package static func current() -> PoolOwner {
        PoolOwner(
            pid: ProcessInfo.processInfo.processIdentifier,
            command: ProcessInfo.processInfo.processName)
    }

    package var summary: String {
        let place = mountPoint.map { ", mounted at \($0)" } ?? ""
        if isServer ?? false {
            return
                "`doppel serve` (process \(pid)): it is a mirror, and its primary is connected and writes to it"
        }
        if let waitsFor { return "process \(pid) (\(command)), which \(waitsFor)" }
        return "process \(pid) (\(command))\(place)"
    }

    /// What who wants the pool can do; nil where the owner's name says it.
    package var advice: String? {
        guard isServer ?? false else { return nil }
        return
            "`doppel status doppel://HOST:PORT/POOL` asks the server how it stands, and `doppel failover` has it "
            + "promoted. To look into it, or to promote it, here: stop the server, or unmount the primary; one that is "
            + "gone is noticed within seconds"
    }

    var bytes: [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return (try? encoder.encode(self)).map { [UInt8]($0) } ?? []
    }

    init?(bytes: [UInt8]) {
        guard let owner = try? JSONDecoder().decode(PoolOwner.self, from: Data(bytes)) else {
            return nil
        }
        self = owner
    }
}
