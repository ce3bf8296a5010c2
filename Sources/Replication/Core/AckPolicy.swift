// What an acknowledgement promises, and what happens when it cannot be had.
//
//     mode        a write waits for   an fsync waits for (beside the local disk)
//     async       nothing             nothing
//     flush       nothing             durable
//     semi-sync   received            received
//     sync        written             durable

import BlockCore

/// How far a target has a record. What is durable is written, what is written is received.
package enum AckPoint: UInt8, Sendable, Hashable, Comparable, CaseIterable {
    /// In its memory.
    case received
    /// In its journal's file: survives its process.
    case written
    /// Survives its power loss.
    case durable

    package static func < (one: AckPoint, other: AckPoint) -> Bool { one.rawValue < other.rawValue }
}

/// What an acknowledgement waits for.
package enum ReplicationMode: String, Sendable, Codable, CaseIterable {
    case async
    case flush
    case semiSync = "semi-sync"
    case sync

    package var writePoint: AckPoint? {
        switch self {
        case .async, .flush: nil
        case .semiSync: .received
        case .sync: .written
        }
    }
    package var flushPoint: AckPoint? {
        switch self {
        case .async: nil
        case .semiSync: .received
        case .flush, .sync: .durable
        }
    }
    package var isWaitedFor: Bool { flushPoint != nil }
    /// Somebody waits for less than durable.
    package var hearsOfWrites: Bool { writePoint != nil || flushPoint == .received }
}

/// What becomes of who waits for a target that makes no progress.
package enum TimeoutReaction: String, Sendable, Codable, CaseIterable {
    /// It goes on without the target, when it is written down that the target is stale.
    case degrade
    /// It goes on waiting, and writes that come later are held before they change anything.
    case block
    /// It hears EIO, and so does what comes later, before it changes anything.
    case fail
}

package struct AckPolicy: Sendable, Hashable, Codable {
    package var mode: ReplicationMode
    package var onTimeout: TimeoutReaction

    package init(_ mode: ReplicationMode, onTimeout: TimeoutReaction = .degrade) {
        self.mode = mode
        self.onTimeout = onTimeout
    }
}

/// How one target is waited for, and where single images have it otherwise.
package struct TargetPolicy: Sendable, Hashable {
    package var all: AckPolicy
    package var images: [ImageID: AckPolicy]

    package init(_ all: AckPolicy, images: [ImageID: AckPolicy] = [:]) {
        self.all = all
        self.images = images
    }

    /// - Parameter image: nil for what belongs to no image: folders.
    @inline(__always)
    package func policy(for image: ImageID?) -> AckPolicy {
        guard let image, !images.isEmpty else { return all }
        return images[image] ?? all
    }

    private func contains(_ matches: (AckPolicy) -> Bool) -> Bool {
        matches(all) || images.values.contains(where: matches)
    }
    /// Somebody waits for it.
    package var isWaitedFor: Bool { contains { $0.mode.isWaitedFor } }
    /// Somebody goes on without it after the timeout.
    package var isLeftBehind: Bool {
        contains { $0.mode.isWaitedFor && $0.onTimeout == .degrade }
    }
    /// Somebody stands still rather than go on without it.
    package var hasStandstill: Bool {
        contains { $0.mode.isWaitedFor && $0.onTimeout != .degrade }
    }
    /// Somebody waits for less than durable.
    package var hearsOfWrites: Bool {
        contains { $0.mode.hearsOfWrites }
    }
}
