// The pools below a folder, by name: each has a replica while somebody uses it.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import Transport

final class ServedPools: @unchecked Sendable {  // fields are under `lock`
    private let root: String
    private let historyMs: Int64
    private let mostPools: Int
    private let disk = LinuxDisk()
    private let lock = Lock()
    private var open: [String: ReplicaPerformer] = [:]
    private var isClosed = false

    init(root: String, historyMs: Int64, mostPools: Int) {
        self.root = root
        self.historyMs = historyMs
        self.mostPools = mostPools
    }

    /// Quick: the pool itself is opened when somebody connects to it.
    /// - Throws: `.absent`.
    func find(_ name: String) throws(TargetError) -> ServedReplica {
        guard RemoteAddress.isPoolName(name) else {
            throw TargetError(.absent, "'\(name)' can be no pool's name")
        }
        var retired: [ReplicaPerformer] = []
        defer { for each in retired { each.stop() } }
        return try lock.withLock { () throws(TargetError) in
            guard !isClosed else { throw TargetError(.absent, "the server shuts down") }
            if let found = open[name] { return found.replica }
            if open.count >= mostPools { retired = retireIdle() }
            guard open.count < mostPools else {
                throw TargetError(
                    .absent, "\(open.count) pools are in use there already, as many as may be")
            }
            let new = ReplicaPerformer(name: name, target: target(name))
            open[name] = new
            return new.replica
        }
    }

    /// Under the lock.
    private func retireIdle() -> [ReplicaPerformer] {
        let idle = open.filter { $0.value.replica.retire() }
        for name in idle.keys { open[name] = nil }
        return Array(idle.values)
    }

    private func target(_ name: String) -> ServedMirror {
        var options = MirrorOptions()
        options.historyMs = historyMs
        let (path, disk) = ("\(root)/\(name)", disk)
        var owner = PoolOwner.current()
        owner.writesMirror = true
        return ServedMirror(path: path, below: root, disk: disk, options: options) {
            [owner] () throws(PoolError) in
            // An owner that drains is waited for by trying again.
            try PoolStore.open(path: path, disk: disk, owner: owner, drainTimeoutMs: 0)
        }
    }

    /// Returns when all that came is done and every pool is closed. No connection is left.
    func close() {
        let all = lock.withLock {
            isClosed = true
            defer { open = [:] }
            return Array(open.values)
        }
        for each in all { each.stop() }
    }
}
