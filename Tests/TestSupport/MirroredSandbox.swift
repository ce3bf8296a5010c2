// A pool with a mirror beside it, and a second mount point to look into that.

import Glibc

/// How a target stands, as programs read it.
package struct TargetLine: Decodable {
    package var address: String
    package var kind: String
    package var content: String?
    package var mode: String
    package var modeInForce: String
    package var timeoutMs: Int64
    package var state: String
    package var isInStep: Bool
    package var intervalMs: Int64?
    package var nextRunNs: Int64?
    package var rpoMs: Int64?
    package var rpoBytes: UInt64?
    package var onRPO: String?
    package var rpoPassedSinceNs: Int64?
    package var slowedToBytesPerSecond: UInt64?
    package var stoppedSinceNs: Int64?
    package var staleSinceNs: Int64?
    package var reason: String?
    package var durableSequence: UInt64
    package var checkpointNs: Int64?
    package var reachFromNs: Int64?
    package var lagBytes: UInt64
    package var lagMs: Int64
    package var dirtyBytes: UInt64
    package var suspectBytes: UInt64
    package var atRiskBytes: UInt64
    package var comparedBytes: UInt64
    package var resyncedBytes: UInt64
    package var rateBytesPerSecond: UInt64
    package var rateLimitBytesPerSecond: UInt64?
    package var compress: String?
    package var isCompressing: Bool?
    package var lineRawBytes: UInt64?
    package var lineSentBytes: UInt64?
    package var resyncDoneBytes: UInt64?
    package var resyncTotalBytes: UInt64?
    package var etaMs: Int64?
}
package struct ReplicaLine: Decodable {
    package var role: String
    package var primaryPool: String?
    package var shownNs: Int64?
    package var reachFromNs: Int64?
}
package struct EventLine: Decodable {
    package var kind: String
    package var subject: String
    package var message: String
}

extension Sandbox {
    /// Where the mirror is looked into.
    package var look: String { folder + "/look" }

    /// A mounted pool with the images named, each of 8 MiB, and a mirror that is in step.
    package static func withMirror(
        _ images: String..., at mirror: String? = nil, options: String = "timeout=500ms",
        body: (Sandbox) throws -> Void
    ) throws {
        try with(mirror: mirror) { box in
            try box.ok("init", box.pool)
            for image in images { try box.ok("create", box.pool, image, "--size", "8M") }
            try box.mount("--mirror", box.mirror + "," + options)
            try box.untilInStep()
            try body(box)
        }
    }

    package func status(of path: String? = nil) throws -> StatusLine {
        let outcome = try run("status", path ?? pool, "--json")
        guard let status = try? json(outcome.output, [StatusLine].self).first else {
            throw Unexpected("status: \(outcome)")
        }
        return status
    }

    package func target(_ address: String? = nil) throws -> TargetLine {
        let targets = try status().targets ?? []
        guard let found = targets.first(where: { $0.address == address ?? mirror }) else {
            throw Unexpected("there is no target \(address ?? mirror)")
        }
        return found
    }

    package func untilInStep(_ address: String? = nil) throws {
        try until("the target is in step", seconds: 40) { try target(address).isInStep }
    }
    package func untilDegraded() throws {
        try until("the target is degraded", seconds: 40) { try !target().isInStep }
    }

    /// Returns when the mirror holds what was written before.
    package func settle() throws { try ok("wait", pool, "--timeout", "50s") }

    package func lookIntoMirror(_ options: String...) throws {
        mkdir(look, 0o755)
        let outcome = try execute(
            [Self.binary, "mount", mirror, look] + options, input: "/dev/null")
        guard outcome.code == 0 else { throw Unexpected("mount of the mirror: \(outcome)") }
    }
    package func lookAway() throws { try ok("unmount", look) }

    /// Everything below the two folders, names and bytes.
    package func expectSame(_ one: String, _ other: String) throws {
        let outcome = try execute(["diff", "-r", one, other], input: "/dev/null")
        guard outcome.code == 0 else { throw Unexpected("\(one) is not \(other): \(outcome)") }
    }

    package func events() throws -> [EventLine] {
        try json(ok("events", pool, "--json"), [EventLine].self)
    }

    /// The errno of a write to an image's start, and of the fsync after it where the write went through.
    package func writeError(_ path: String) -> Int32 {
        let file = open(path, O_WRONLY | O_CLOEXEC)
        guard file >= 0 else { return errno }
        defer { close(file) }
        guard pwrite(file, "x", 1, 0) == 1 else { return errno }
        return fsync(file) == 0 ? 0 : errno
    }
}
