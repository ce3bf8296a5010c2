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
        if let waitsFor { return "process \(pid) (\(command)), which \(waitsFor)" }
        return "process \(pid) (\(command))\(place)"
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
