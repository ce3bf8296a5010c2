// What `doppel check` says of a pool.

import BlockCore

/// Something in a pool that is not as it should be, for a person and for a program.
package struct Finding: Sendable, Hashable, Codable {
    package enum Severity: String, Sendable, Hashable, Codable {
        /// What the next open puts right, or what costs space alone.
        case note
        /// Nothing is lost, and something does not protect as it should.
        case degraded
        /// Something that was durable does not verify.
        case damaged
    }
    package enum Kind: String, Sendable, Hashable, Codable, CaseIterable {
        case catalog, row, cycle, name
        case dataMissing = "data-missing"
        case dataShort = "data-short"
        case mapMissing = "map-missing"
        case mapDamaged = "map-damaged"
        case sumsDamaged = "sums-damaged"
        case sumsMissing = "sums-missing"
        case activityMissing = "activity-missing"
        case activityDamaged = "activity-damaged"
        case block
        case unreadable
        case stray
        case pendingCut = "pending-cut"
        case merge
        case unclean
        case interrupted
    }

    package var kind: Kind
    package var severity: Severity
    /// The images and snapshots concerned, by name.
    package var subject: String
    package var file: String?
    package var problem: String
    package var meaning: String
    /// What `--repair` does about it; nil where there is nothing that it can do.
    package var repair: String?

    package init(
        kind: Kind, severity: Severity, subject: String, file: String?, problem: String,
        meaning: String, repair: String?
    ) {
        self.kind = kind
        self.severity = severity
        self.subject = subject
        self.file = file
        self.problem = problem
        self.meaning = meaning
        self.repair = repair
    }
}

/// A finding with what puts it right.
struct Diagnosis: Sendable {
    enum Action: Sendable {
        case rebuildCatalog
        case quarantine(String)
        /// A map is written anew from what verifies of it; `names` get "-salvaged" where commits are
        /// missing, so that nobody takes the result for the image that was.
        case rebuildMap(LayerRecord, LayerContents, MapCommit, isLossy: Bool)
        case nameImage(ImageID)
        case moveToRoot(NodeID)
        case clearSnapshotLayer(SnapshotID, NodeID)
    }
    var finding: Finding
    var action: Action?
    /// For a pool in use: the layer whose row must be the same still.
    var layer: LayerRecord?
}

package struct CheckReport: Sendable, Hashable, Codable {
    package var pool: String
    package var isMounted: Bool
    package var findings: [Finding] = []
    package var layersChecked = 0
    package var blocksRead: UInt64 = 0
    package var blocksVerified: UInt64 = 0
    /// What `--repair` did, and where it put what it replaced.
    package var repaired: [String] = []

    package init(pool: String, isMounted: Bool) {
        self.pool = pool
        self.isMounted = isMounted
    }

    package var worst: Finding.Severity? {
        for severity in [Finding.Severity.damaged, .degraded, .note]
        where findings.contains(where: { $0.severity == severity }) { return severity }
        return nil
    }
}
