// What goes over the control socket: one JSON object a line, in the manner of QEMU's QMP.
//
//   -> {"execute":"snapshot-create","arguments":{"name":"before-upgrade"},"id":1}
//   <- {"event":"JOB_PROGRESS","data":{"job":3,"kind":"scrub",...}}     (long work alone)
//   <- {"return":{...},"id":1}   or   {"error":{"class":"InUse","message":"...","exitCode":3},"id":1}

import Foundation
import Identity
import Pool

package enum ControlCommand: String, Codable, Sendable, CaseIterable {
    case status, list, create, resize, rename, delete, restore, clone, scrub, check, merge, unmount
    case snapshotCreate = "snapshot-create"
    case snapshotList = "snapshot-list"
    case snapshotDelete = "snapshot-delete"
    case snapshotDiff = "snapshot-diff"
    case events
    case jobList = "job-list"
    case jobCancel = "job-cancel"
    case targetAdd = "target-add"
    case targetSet = "target-set"
    case targetList = "target-list"
    case targetPause = "target-pause"
    case targetResume = "target-resume"
    case targetRemove = "target-remove"
    case wait
    case failover
    /// Makes a primary of a mirror; on a socket there is no mirror to be promoted.
    case promote
    /// What a pool is to others.
    case sight
    /// How a handover ended; one that has not ended well by now never does.
    case handoverOutcome = "handover-outcome"
    /// Of two pools that both are primaries, this one goes on.
    case targetResolve = "target-resolve"
    /// Shows a mirror, which the daemon is writing to, as it is now or was.
    case mirrorMount = "mirror-mount"
    /// Keeps a mirror as it is now, for whoever asked, as long as he is connected.
    case copyOpen = "copy-open"

    /// Changes nothing of the pool.
    var onlyLooks: Bool {
        switch self {
        case .status, .list, .snapshotList, .events, .jobList: true
        default: false
        }
    }

    /// What somebody on another machine has to be allowed to ask for it; nil: nobody there can.
    var remoteRight: Right? {
        switch self {
        case .status, .list, .snapshotList, .sight, .copyOpen: .read
        case .failover, .promote, .handoverOutcome: .admin
        default: nil
        }
    }
}

package struct ControlArguments: Codable, Sendable, Hashable {
    package var path: String?
    package var newPath: String?
    package var name: String?
    package var names: [String]?
    package var snapshot: String?
    package var otherSnapshot: String?
    package var sizeBytes: UInt64?
    package var force: Bool?
    package var limit: Int?
    /// With `events`: what came after this one, the oldest first.
    package var after: Int64?
    package var job: Int?
    package var target: TargetSpecification?
    package var timeoutMs: Int64?
    package var mountPoint: String?
    /// Of a promotion: says what would be, and changes nothing.
    package var dryRun: Bool?
    /// Of a promotion: also where the mirror's journal is damaged.
    package var acceptsDamage: Bool?
    /// Of a handover: the generation that it begins.
    package var generationID: String?
    /// Of a handover: the mirror's own id, whom it has to follow, and how far it has to be.
    package var poolID: String?
    package var primaryPoolID: String?
    package var sequence: UInt64?
    /// A moment, nanoseconds since 1970.
    package var atNs: Int64?
    package init() {}
}

package struct ControlRequest: Codable, Sendable, Hashable {
    package var execute: ControlCommand
    package var arguments: ControlArguments?
    package var id: Int?
    package init(_ execute: ControlCommand, _ fill: (inout ControlArguments) -> Void = { _ in }) {
        self.execute = execute
        var arguments = ControlArguments()
        fill(&arguments)
        self.arguments = arguments
    }
}

/// Exit codes of the command line, by kind.
package enum ExitKind: Int32, Codable, Sendable {
    case ok = 0, failed = 1, usage = 2, inUse = 3, degraded = 4, damaged = 5
}

package struct ControlFailure: Error, Codable, Sendable, Hashable, CustomStringConvertible {
    package var kind: String
    package var message: String
    package var exitCode: Int32
    /// Of a pool that was handed over: where the primary is now.
    package var primary: String?

    package init(_ exit: ExitKind, _ message: String) {
        kind = "\(exit)"
        exitCode = exit.rawValue
        self.message = message
    }
    package var description: String { message }

    /// The request came too late and nothing was done: whoever opens the pool next can do it.
    package static let draining: ControlFailure = {
        var failure = ControlFailure(.inUse, "the daemon is draining")
        failure.kind = "draining"
        return failure
    }()

    /// Nothing was done: the mirror is between two tries to be a target. Its primary's daemon has it again in a moment,
    /// or whoever asked can open it himself.
    package static func mirrorNotOpen(_ address: String) -> ControlFailure {
        var failure = ControlFailure(.inUse, "\(address) is not open as a target now; try again")
        failure.kind = "mirrorNotOpen"
        return failure
    }
    package var isMirrorNotOpen: Bool { kind == "mirrorNotOpen" }

    /// - Parameter verb: as on the command line.
    package static func notPermitted(_ verb: String, _ right: Right, pool: String) -> ControlFailure
    {
        var failure = ControlFailure(
            .failed,
            "this host may not ask for '\(verb)' of '\(pool)' there: that takes the right "
                + "'\(right.rawValue)' (doppel pair --accept LINE --pools ... --right \(right.rawValue))"
        )
        failure.kind = "notPermitted"
        return failure
    }

    /// What was asked for is the business of the pool that took this one's place.
    package static func handedOver(_ pool: String, to primary: String) -> ControlFailure {
        var failure = ControlFailure(.failed, Handover.reason(pool, primary))
        failure.kind = "handedOver"
        failure.primary = primary
        return failure
    }

    private enum CodingKeys: String, CodingKey { case kind = "class", message, exitCode, primary }
}

/// Long work under way.
package struct JobInfo: Codable, Sendable, Hashable {
    package var job: Int
    package var kind: String
    package var phase: String
    package var doneBytes: UInt64
    package var totalBytes: UInt64
    package var elapsedMs: Int64
    /// From the rate so far; nil before there is one.
    package var etaMs: Int64?
}

/// What a connection hears beside the replies to its requests.
package struct ControlEvent: Codable, Sendable, Hashable {
    package enum Name: String, Codable, Sendable {
        case started = "JOB_STARTED"
        case progress = "JOB_PROGRESS"
        case ended = "JOB_ENDED"
    }
    package var event: Name
    package var data: JobInfo
}

package struct ImageInfo: Codable, Sendable, Hashable {
    package var path: String
    package var kind: String
    package var sizeBytes: UInt64
    package var allocatedBytes: UInt64
    package var modifiedNs: Int64
    /// "ok", "latched" (a sync failed: fsync fails), "damaged" (EIO until it was repaired).
    package var state: String
}

package struct SnapshotInfo: Codable, Sendable, Hashable {
    package var name: String
    package var createdNs: Int64
    package var sequence: UInt64
    package var origin: String
}

package struct DiffInfo: Codable, Sendable, Hashable {
    package var path: String
    /// "added", "removed", "changed", "resized".
    package var change: String
    package var changedBytes: UInt64
}

package struct EventInfo: Codable, Sendable, Hashable {
    package var id: Int64
    package var atNs: Int64
    package var kind: String
    package var subject: String
    package var message: String
}

package struct StatusInfo: Codable, Sendable, Hashable {
    package var pool: String
    package var id: String
    /// "healthy", "degraded" or "damaged".
    package var state: String
    package var mountPoint: String?
    package var ownerPID: Int32?
    package var generation: UInt64
    package var incarnation: UInt64
    package var sequence: UInt64
    package var images: Int
    package var snapshots: Int
    package var sizeBytes: UInt64
    package var storeFreeBytes: UInt64
    package var reserveBytes: UInt64
    /// Sealed layers whose blocks have no checksums yet.
    package var uncoveredLayers: Int
    /// Images whose last sync failed: their fsync fails until the pool was checked and opened anew.
    package var latchedImages: [String]
    /// Images that answer EIO because something of them does not verify.
    package var damagedImages: [String]
    /// Layers of deleted snapshots that are still to be merged away.
    package var pendingMerges: Int
    package var jobs: [JobInfo]
    package var problems: [String]
    package var replica: ReplicaInfo
    package var targets: [TargetInfo]
    /// Writes and fsyncs that wait for targets now.
    package var waitingRequests: Int
}

package struct ScrubInfo: Codable, Sendable, Hashable {
    package var blocksRead: UInt64
    package var blocksCovered: UInt64
    package var damaged: [String]
}

/// What a command returns; the fields that belong to it are set.
package struct ControlResult: Codable, Sendable, Hashable {
    package var text: String?
    package var status: StatusInfo?
    package var images: [ImageInfo]?
    package var snapshots: [SnapshotInfo]?
    package var snapshot: SnapshotInfo?
    package var diff: [DiffInfo]?
    package var scrub: ScrubInfo?
    package var events: [EventInfo]?
    package var check: CheckReport?
    package var jobs: [JobInfo]?
    package var targets: [TargetInfo]?
    package var failover: FailoverInfo?
    package var promotion: PromotionInfo?
    package var sight: SeenPool?
    package var source: CloneSourceInfo?
    package init() {}
}

package struct ControlReply: Codable, Sendable {
    package var result: ControlResult?
    package var error: ControlFailure?
    package var id: Int?
    private enum CodingKeys: String, CodingKey { case result = "return", error, id }
    package init(result: ControlResult? = nil, error: ControlFailure? = nil, id: Int? = nil) {
        self.result = result
        self.error = error
        self.id = id
    }
}

package enum JSONLine {
    package static func encode(_ value: some Encodable, pretty: Bool = false) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting =
            pretty
            ? [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted]
            : [.sortedKeys, .withoutEscapingSlashes]
        // Only our own value types come here, and all of them can be encoded.
        return (try? encoder.encode(value)).map { [UInt8]($0) } ?? []
    }
    package static func decode<T: Decodable>(_ type: T.Type, _ bytes: [UInt8]) throws -> T {
        try JSONDecoder().decode(type, from: Data(bytes))
    }
}
