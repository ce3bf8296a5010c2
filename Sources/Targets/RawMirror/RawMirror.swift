// A raw mirror as a target: plain files under the images' names, written in place.
//
//   closed ── connect ──► clean ── append ──► torn ──────────── disconnect ──► clean
//     ▲                     │                  │ anything fails, but syncs
//     │                     │                  └──────────────────────────────► based
//     │                     └ beginStaging ──► based, or torn where it was not whole
//     │                                          └── commitStaging ──► clean
//     └── from any: power goes, or a sync fails: what `state.json` said last is what is there
//
// Invariants
//   W1 `state.json` says that the mirror is not clean, durably, before the first change after it was; it says
//      that it is clean only when all files and names are durable, at the end of a connection that brought
//      no error, or of a staging.
//   W2 *based* on C: everything up to C is durable, and what else is there came after C. Who goes on from C
//      brings all of that again, so C is reported as the checkpoint. *Torn*: nothing is known; zero is
//      reported, and the primary compares everything.
//   W3 There is no journal: an acknowledgement of durability says that the files were synced. What the power
//      leaves of what came after it is any part of that.
//   W4 No file is written, moved or removed but those that `RawFolderNames` names (F1).
//
// Here: what it says of itself (W1, W2), and the stream. From connect to disconnect: RawMirror+Opening.swift; who
// may connect: RawMirror+Admission.swift. Snapshots are not kept. A mount never shows a raw mirror: it is read as it
// is, or made a pool of.

import BlockCore
import Pool
import Replication
import SystemIO

package final class RawMirror: ReplicaTarget, @unchecked Sendable {
    // One caller at a time but for what is under `lock`.
    struct Staging {
        var id: UInt64
        var shapeSequence: SequenceNumber
        /// Names up to here are in place.
        var structure: SequenceNumber
        var lastBatch: UInt64
        var highest = SequenceNumber.zero
    }

    package let path: String
    package let primaryPoolID: String
    let disk: Disk
    let lock = Lock()
    var boundID: String?
    private var lastState: RawFolderState?

    var state: RawFolderState! {
        didSet { lock.withLock { lastState = state } }
    }
    var tree: RawTree?
    var files: RawFiles!
    var log: RawFolderNames.Log!
    var holding: DiskLock?
    var holdingInode: UInt64 = 0
    var failure: TargetError?
    /// A sync failed: what is durable is not known any more.
    var isUnsure = false
    /// Something after `position` is there, too.
    var isPartial = false
    /// Everything up to here is there; nil: nothing is known.
    var position: SequenceNumber?
    var hello: PrimaryHello?
    var staging: Staging?

    /// - Parameter id: the UUID that the mirror had at the first contact; nil before.
    package init(path: String, primaryPoolID: String, id: String?, disk: Disk) {
        self.path = path
        self.primaryPoolID = primaryPoolID
        boundID = id
        self.disk = disk
    }

    package var id: String? { lock.withLock { boundID } }
    /// What its folder says of it, as far as it was opened; asks nothing of its disk, which may hang.
    package var lastKnown: RawFolderState? { lock.withLock { lastState } }

    /// Durably; where that fails it is as it was.
    func change(_ change: (inout RawFolderState) -> Void) throws(TargetError) {
        var next = state!
        change(&next)
        guard next != state else { return }
        try TargetError.system { () throws(SystemError) in try next.write(to: path, disk: disk) }
        state = next
    }

    /// Everything is durable, and that is what `names` says alone.
    func rewriteNames() throws(TargetError) {
        let all = try tree!.entry()
        let names = RawFolderNames.path(of: path)
        log?.close()
        log = try TargetError.system { () throws(SystemError) in
            try RawFolderNames.begin(all, at: names, disk: disk)
        }
    }

    /// W1, W2: says what is there, if that is more than what was said last. What cannot be written down leaves
    /// it as it was.
    func settle() {
        // A staging says what it needs as it goes; and what is clean already stays so.
        guard state.staging == nil, state.content != .clean, let position else { return }
        do throws(TargetError) {
            _ = try flushFiles()
            if !isPartial, failure == nil {
                try becomeClean(at: position)
            } else {
                try change {
                    $0.content = .based
                    $0.checkpoint = position
                }
            }
        } catch {}
    }

    func becomeClean(
        at sequence: SequenceNumber, also: (inout RawFolderState) -> Void = { _ in }
    ) throws(TargetError) {
        _ = try flushFiles()
        try files.settleTimes()
        try rewriteNames()
        try change {
            $0.content = .clean
            $0.sinceNs = nil
            $0.checkpoint = sequence
            $0.staging = nil
            also(&$0)
        }
        position = sequence
        isPartial = false
    }

    /// What fails breaks the mirror until it is opened anew; a full disk does not.
    func guarded<T>(
        _ body: (RawTree) throws(TargetError) -> T
    ) throws(TargetError) -> T {
        if let failure { throw failure }
        guard let tree else { throw TargetError(.absent, "\(path) is not open") }
        do throws(TargetError) { return try body(tree) } catch {
            switch error.kind {
            case .noSpace, .fenced, .splitBrain: break
            case .absent, .io, .damaged: failure = error
            }
            throw error
        }
    }

    // MARK: Changing

    /// W1.
    private func becomeTorn() throws(TargetError) {
        guard state.content != .torn else { return }
        let now = disk.now()
        try change {
            $0.content = .torn
            $0.sinceNs = $0.sinceNs ?? now
        }
    }

    /// On return all that was taken is durable.
    func flushFiles() throws(TargetError) -> SequenceNumber {
        do throws(TargetError) {
            try files.sync()
            try tree!.sync()
        } catch {
            isUnsure = true
            throw error
        }
        return position ?? .zero
    }

    /// Files that were deleted underfoot take and sync everything, for nobody.
    func requireInPlace() throws(TargetError) {
        guard let now = (try? disk.status(lockPath)) ?? nil, now.inode == holdingInode else {
            throw TargetError(
                .absent,
                "\(path) was removed or replaced while it was in use: nothing is written to what is "
                    + "left of it")
        }
    }

    package func append(_ batch: RecordBatch) throws(TargetError) {
        try guarded { (tree) throws(TargetError) in
            guard state.staging == nil, let position, state.incarnationID == hello?.incarnationID,
                state.incarnationID != nil, batch.firstSequence > position
            else {
                throw TargetError(
                    .io, "the stream does not go on from what \(path) has: it needs a resync")
            }
            try RecordReader.check(batch)
            try becomeTorn()
            isPartial = true
            try prepare(batch, after: .zero)
            let applier = RawApplier(tree, files, isStaging: false)
            try forEach(in: batch) { (record, payload) throws(TargetError) in
                try applier.apply(record, payload)
                self.position = record.sequence
            }
            isPartial = false
        }
    }

    func forEach(
        in batch: RecordBatch,
        _ body: (StreamRecord, UnsafeRawBufferPointer) throws(TargetError) -> Void
    ) throws(TargetError) {
        for piece in batch.pieces { try RecordReader.forEach(in: piece, body) }
    }

    /// What names and images are about to be is durable before any of it is (F1).
    func prepare(
        _ batch: RecordBatch, after structure: SequenceNumber
    ) throws(TargetError) {
        var names: [NameChange] = []
        var created: [ImageID] = []
        var deleted: [ImageID] = []
        try forEach(in: batch) { (record, payload) throws(TargetError) in
            guard record.sequence > structure else { return }
            switch record.kind {
            case .names: names += try RawApplier.names(record, payload)
            case .imageCreated: created.append(record.image)
            case .imageDeleted: deleted.append(record.image)
            default: return
            }
        }
        try log(try tree!.prepare(names, creating: created, deleting: deleted))
    }

    func log(_ entry: RawFolderNames.Entry) throws(TargetError) {
        guard !entry.isEmpty else { return }
        try TargetError.system { () throws(SystemError) in try log.append(entry) }
    }

    /// Only a flush knows: its files are synced one by one.
    package var durableThrough: SequenceNumber? { nil }

    package func flush() throws(TargetError) -> SequenceNumber {
        try guarded { (_) throws(TargetError) in
            guard state.staging == nil else { return position ?? .zero }
            try requireInPlace()
            return try flushFiles()
        }
    }

}
