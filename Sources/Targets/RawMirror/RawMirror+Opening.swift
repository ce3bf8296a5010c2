// A raw mirror from a connection's beginning to its end: its folder is looked at, locked and let go of.

import BlockCore
import Pool
import Replication
import SystemIO

extension RawMirror {
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

    var lockPath: String { RawFolderState.folder(of: path) + "/lock" }

}
