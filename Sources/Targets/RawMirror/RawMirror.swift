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
// Who may connect: RawMirror+Admission.swift. Snapshots are not kept. A mount never shows a raw mirror: it is read as it is, or made a pool of.

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
    private let lock = Lock()
    private var boundID: String?
    private var lastState: RawFolderState?

    private(set) var state: RawFolderState! {
        didSet { lock.withLock { lastState = state } }
    }
    private(set) var tree: RawTree?
    private var files: RawFiles!
    private var log: RawFolderNames.Log!
    private var holding: DiskLock?
    private var holdingInode: UInt64 = 0
    private var failure: TargetError?
    /// A sync failed: what is durable is not known any more.
    private var isUnsure = false
    /// Something after `position` is there, too.
    private var isPartial = false
    /// Everything up to here is there; nil: nothing is known.
    private(set) var position: SequenceNumber?
    private var hello: PrimaryHello?
    private var staging: Staging?

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

    /// Lays out a new mirror in a new or empty folder, bound to its primary.
    /// - Returns: its UUID.
    /// - Throws: `.absent` where something else is.
    package static func create(
        path: String, primaryPoolID: String, disk: Disk
    ) throws(TargetError) -> String {
        try TargetError.system { () throws(SystemError) in
            if try disk.status(path) == nil {
                try disk.createDirectory(path, mode: 0o755)
                try disk.syncDirectory(parentPath(path))
            }
        }
        let isThere = RawFolderState.isThere(path, disk: disk)
        let others = try TargetError.system { () throws(SystemError) in try disk.list(path) }
            .filter { $0.name != "lost+found" && $0.name != RawFolderState.folderName }
        guard !isThere, others.isEmpty else {
            throw TargetError(
                .absent,
                "\(path) is not empty (\(others.first?.name ?? "a raw mirror") is in it): a raw mirror "
                    + "needs a new or empty folder; `--seed` takes copies of the images that are there"
            )
        }
        return try TargetError.system { () throws(SystemError) in
            try RawFolderState.lay(path, primaryPoolID: primaryPoolID, disk: disk)
        }.id
    }

    // MARK: Connecting

    package func connect(_ hello: PrimaryHello) throws(TargetError) -> ReplicaReport {
        if failure != nil { disconnect() }
        staging = nil
        guard hello.poolID == primaryPoolID else {
            throw TargetError(.absent, "\(path) is a raw mirror of another pool")
        }
        if tree == nil { try open(hello) }
        return try guarded { (_) throws(TargetError) in
            try admit(hello)
            self.hello = hello
            if state.staging == nil, position != nil { _ = try flushFiles() }
            return ReplicaReport(
                incarnationID: state.incarnationID, generation: state.generation,
                checkpoint: position ?? .zero, snapshots: [],
                staging: state.staging.map { .init(id: $0.id, durableBatch: $0.durableBatch) },
                diverged: divergence(from: hello))
        }
    }

    private func open(_ hello: PrimaryHello) throws(TargetError) {
        if let sight = PoolSight.look(at: path, disk: disk) { try refuse(primary: sight, hello) }
        let found: RawFolderState?
        do throws(PoolError) { found = try RawFolderState.read(of: path, disk: disk) } catch {
            throw TargetError(error)
        }
        guard let found else {
            throw TargetError(
                .absent,
                "\(path) is no raw mirror of pool \(hello.poolID): not mounted, empty, or something else; "
                    + "nothing in it was touched")
        }
        if let bound = id, bound != found.id {
            throw TargetError(
                .absent,
                "\(path) is raw mirror \(found.id), not \(bound) that belongs here: nothing in it was "
                    + "touched")
        }
        // What is on its way into a pool must not come again, from its primary, under its name.
        guard Adoption.interruption(path, disk: disk) == nil else {
            throw TargetError(
                .absent,
                "\(path) is half way to a pool of its own: `doppel promote raw:\(path)` goes on with that"
            )
        }
        try check(hello, against: found)
        let held = try TargetError.system { () throws(SystemError) in
            try disk.tryLock(lockPath)
        }
        guard let held else {
            throw TargetError(.absent, "\(path) is being written by another process")
        }
        do throws(TargetError) { try open(found) } catch {
            held.release()
            tree = nil
            throw error
        }
        holding = held
        holdingInode = ((try? disk.status(lockPath)) ?? nil)?.inode ?? 0
        lock.withLock { boundID = found.id }
    }

    private func open(_ found: RawFolderState) throws(TargetError) {
        let tree = RawTree(path: path, disk: disk)
        let inode = try TargetError.system { () throws(SystemError) in
            try disk.status(RawFolderState.folder(of: path))?.inode
        }
        let isCopy = inode != found.folderInode
        let entries: [RawFolderNames.Entry]
        do throws(PoolError) {
            (entries, log) = try RawFolderNames.open(RawFolderNames.path(of: path), disk: disk)
        } catch { throw TargetError(error) }
        let sight = try tree.find(entries, isCopy: isCopy)
        var next = found
        // Somebody wrote to it, or it is a copy whose times say nothing, or what was synced is gone.
        let isWhole = sight.isWhole && !isCopy
        switch found.content {
        case .clean where sight.isUntouched, .based where isWhole: break
        default:
            next.content = .torn
            next.sinceNs = found.sinceNs ?? disk.now()
            next.staging = isWhole ? found.staging : nil
        }
        next.folderInode = inode ?? 0
        self.tree = tree
        files = RawFiles(tree)
        position = next.content == .torn ? nil : found.checkpoint
        isPartial = next.content == .based
        isUnsure = false
        if isCopy { try rewriteNames() }
        state = found
        try change { $0 = next }
    }

    private var lockPath: String { RawFolderState.folder(of: path) + "/lock" }

    /// Durably; where that fails it is as it was.
    func change(_ change: (inout RawFolderState) -> Void) throws(TargetError) {
        var next = state!
        change(&next)
        guard next != state else { return }
        try TargetError.system { () throws(SystemError) in try next.write(to: path, disk: disk) }
        state = next
    }

    /// Everything is durable, and that is what `names` says alone.
    private func rewriteNames() throws(TargetError) {
        let all = try tree!.entry()
        let names = RawFolderNames.path(of: path)
        log?.close()
        log = try TargetError.system { () throws(SystemError) in
            try RawFolderNames.begin(all, at: names, disk: disk)
        }
    }

    /// As its process would leave it.
    func abandon() {
        isUnsure = true
        disconnect()
    }

    package func disconnect() {
        if tree != nil, !isUnsure { settle() }
        files?.closeAll()
        log?.close()
        holding?.release()
        (tree, files, log, holding) = (nil, nil, nil, nil)
        (hello, staging, failure, position) = (nil, nil, nil, nil)
    }

    /// W1, W2: says what is there, if that is more than what was said last. What cannot be written down leaves
    /// it as it was.
    private func settle() {
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

    private func becomeClean(
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
    private func guarded<T>(
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
    private func flushFiles() throws(TargetError) -> SequenceNumber {
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
    private func requireInPlace() throws(TargetError) {
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

    private func forEach(
        in batch: RecordBatch,
        _ body: (StreamRecord, UnsafeRawBufferPointer) throws(TargetError) -> Void
    ) throws(TargetError) {
        for piece in batch.pieces { try RecordReader.forEach(in: piece, body) }
    }

    /// What names and images are about to be is durable before any of it is (F1).
    private func prepare(
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

    private func log(_ entry: RawFolderNames.Entry) throws(TargetError) {
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

    // MARK: Staging

    package func beginStaging(id: UInt64, shape: PoolShape) throws(TargetError) {
        try guarded { (tree) throws(TargetError) in
            staging = nil
            try requireInPlace()
            // W2: what it is based on is durable first.
            _ = try flushFiles()
            let (base, now) = (position, disk.now())
            try change {
                if $0.staging?.id != id { $0.staging = .init(id: id, durableBatch: 0) }
                $0.content = base == nil ? .torn : .based
                $0.checkpoint = base ?? .zero
                $0.sinceNs = $0.sinceNs ?? now
            }
            isPartial = true
            try bring(tree, into: shape)
            staging = Staging(
                id: id, shapeSequence: shape.sequence, structure: shape.sequence,
                lastBatch: state.staging?.durableBatch ?? 0)
        }
    }

    private func bring(_ tree: RawTree, into shape: PoolShape) throws(TargetError) {
        guard let puts = shape.names.withUnsafeBytes(NamesCodec.decode),
            puts.contains(where: {
                if case .put(let node) = $0 { node.id == .root } else { false }
            })
        else { throw TargetError(.damaged, "the names that arrived are no tree") }
        var wanted: Set<NodeID> = []
        for case .put(let node) in puts { wanted.insert(node.id) }
        let changes =
            tree.nodes.keys.filter { !wanted.contains($0) }.sorted().map { .remove($0) } + puts
        let images = Set(shape.images.map(\.id))
        let gone = tree.images.keys.filter { !images.contains($0) }.sorted()
        try log(try tree.prepare(changes, creating: shape.images.map(\.id), deleting: gone))
        try tree.arrange(changes)
        for image in shape.images {
            try files.resize(image.id, to: image.sizeBytes, ns: image.modifiedNs)
        }
        for image in gone {
            files.forget(image)
            try tree.delete(image)
        }
    }

    package func stage(_ batch: RecordBatch, number: UInt64) throws(TargetError) {
        try guarded { (tree) throws(TargetError) in
            var staging = try begun()
            try prepare(batch, after: staging.structure)
            let applier = RawApplier(tree, files, isStaging: true)
            try forEach(in: batch) { (record, payload) throws(TargetError) in
                guard record.kind != .barrier else { return }
                staging.highest = max(staging.highest, record.sequence)
                if record.isStructural {
                    guard record.sequence > staging.structure else { return }
                    staging.structure = record.sequence
                }
                try applier.apply(record, payload)
            }
            staging.lastBatch = max(staging.lastBatch, number)
            self.staging = staging
        }
    }

    package func syncStaging() throws(TargetError) {
        try guarded { (_) throws(TargetError) in
            let staging = try begun()
            try requireInPlace()
            _ = try flushFiles()
            try change { $0.staging?.durableBatch = staging.lastBatch }
        }
    }

    package func commitStaging(
        id: UInt64, at sequence: SequenceNumber, snapshot: SnapshotInfo?
    ) throws(TargetError) {
        try guarded { (_) throws(TargetError) in
            let staging = try begun()
            guard let hello, staging.id == id, sequence >= staging.shapeSequence,
                sequence >= staging.highest
            else {
                throw TargetError(
                    .io,
                    "\(path) has no staging \(id) that could be committed at \(sequence.rawValue)")
            }
            try requireInPlace()
            try becomeClean(at: sequence) {
                $0.generation = hello.generation
                $0.incarnationID = hello.incarnationID
                $0.history = hello.story
            }
            self.staging = nil
        }
    }

    private func begun() throws(TargetError) -> Staging {
        guard let staging else {
            throw TargetError(.io, "\(path) has no staging under way on this connection")
        }
        return staging
    }

    // MARK: Reading

    /// Of the files as they are now: what is staged is in them.
    package func blockHashes(
        of image: ImageID, in range: BlockRange
    ) throws(TargetError) -> [UInt64] {
        try guarded { (_) throws(TargetError) in try files.hashes(of: image, in: range) }
    }

    package func allocatedBlocks() throws(TargetError) -> [ImageID: BlockSet] {
        try guarded { (_) throws(TargetError) in try files.allocatedBlocks() }
    }

    package func read(
        _ range: BlockRange, of image: ImageID, into buffer: UnsafeMutableRawBufferPointer
    ) throws(TargetError) {
        try guarded { (_) throws(TargetError) in
            try files.read(
                image,
                into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<Int(range.lengthBytes)]),
                at: range.startByte)
        }
    }

    /// - Throws: `.damaged` where the files are of no one moment of the pool.
    package func shape() throws(TargetError) -> PoolShape {
        try guarded { (tree) throws(TargetError) in
            guard let position, !isPartial else {
                throw TargetError(.damaged, "\(path) is torn: it shows no moment of the pool")
            }
            let entry = try tree.entry()
            return PoolShape(
                sequence: position,
                images: entry.images.sorted { $0.key < $1.key }.map {
                    .init(id: $0, sizeBytes: $1.sizeBytes, modifiedNs: $1.modifyNs)
                }, names: NamesCodec.encode(entry.names))
        }
    }
}
