// The pools below a folder, by name: each has a replica while somebody uses it.
//
// Visitors (`ServedVisitor`) look at pools, or change their role; none is left when the pools are closed.

import BlockCore
import Pool
import Replication
import SystemIO
import Targets
import Transport

final class ServedPools: @unchecked Sendable {  // fields are under `lock`
    private let root: String
    private let historyMs: Int64
    private var mostPools: Int
    private let disk = LinuxDisk()
    private let lock = Lock()
    private var open: [String: Served] = [:]
    private var isClosed = false
    private var visitors = 0
    /// Generations that no mirror here is to begin any more; the oldest first.
    private var calledOff: [String] = []
    private static let mostCalledOff = 4096
    private let visitorLeft = Condition()

    /// A pool that somebody uses.
    struct Served {
        fileprivate var performer: ReplicaPerformer
        var mirror: ServedMirror
        var replica: ServedReplica { performer.replica }
    }

    init(root: String, historyMs: Int64, mostPools: Int) {
        self.root = root
        self.historyMs = historyMs
        self.mostPools = mostPools
    }

    /// Quick: the pool itself is opened when somebody connects to it.
    /// - Throws: `.absent`.
    func find(_ name: String) throws(TargetError) -> Served {
        guard RemoteAddress.isPoolName(name) else {
            throw TargetError(.absent, "'\(name)' can be no pool's name")
        }
        var retired: [Served] = []
        defer { for each in retired { each.performer.stop() } }
        return try lock.withLock { () throws(TargetError) in
            guard !isClosed else { throw TargetError(.absent, "the server shuts down") }
            if let found = open[name] { return found }
            if open.count >= mostPools { retired = retireIdle() }
            guard open.count < mostPools else {
                throw TargetError(
                    .absent, "\(open.count) pools are in use there already, as many as may be")
            }
            let mirror = target(name)
            let new = Served(
                performer: ReplicaPerformer(name: name, target: mirror), mirror: mirror)
            open[name] = new
            return new
        }
    }

    /// Under the lock.
    private func retireIdle() -> [Served] {
        let idle = open.filter { $0.value.replica.retire() }
        for name in idle.keys { open[name] = nil }
        return Array(idle.values)
    }

    /// From now on; those that are open stay.
    func change(mostPools: Int) { lock.withLock { self.mostPools = mostPools } }

    /// Where a pool of that name is, or would be.
    func path(_ name: String) -> String { "\(root)/\(name)" }

    // MARK: Promotions

    /// Whoever asked for this generation was told that it did not begin: from here on it never does. In memory: a
    /// request never outlives the run of the server that it was sent to, and the next run waits for that one's end
    /// (ServedRoot.swift).
    func callOff(_ generationID: String) {
        lock.withLock {
            guard !calledOff.contains(generationID) else { return }
            calledOff.append(generationID)
            if calledOff.count > Self.mostCalledOff { calledOff.removeFirst() }
        }
    }
    func isCalledOff(_ generationID: String) -> Bool {
        lock.withLock { calledOff.contains(generationID) }
    }

    // MARK: Visitors

    /// - Throws: `.absent` where the server shuts down.
    func visitorCame() throws(TargetError) {
        try lock.withLock { () throws(TargetError) in
            guard !isClosed else { throw TargetError(.absent, "the server shuts down") }
            visitors += 1
        }
    }
    func visitorWent() {
        lock.withLock {
            visitors -= 1
            visitorLeft.broadcast()
        }
    }
    private func waitForVisitors() {
        lock.lock()
        defer { lock.unlock() }
        isClosed = true
        while visitors > 0 { visitorLeft.wait(lock) }
    }

    private func target(_ name: String) -> ServedMirror {
        var options = MirrorOptions()
        options.historyMs = historyMs
        // The right `replicate` is to append, and no more.
        options.keepsHistory = true
        let (path, disk) = (path(name), disk)
        var owner = PoolOwner.current()
        owner.writesMirror = true
        owner.isServer = true
        return ServedMirror(path: path, below: root, disk: disk, options: options) {
            [owner] () throws(PoolError) in
            // An owner that drains is waited for by trying again.
            try PoolStore.open(path: path, disk: disk, owner: owner, drainTimeoutMs: 0)
        }
    }

    /// Returns when all that came is done and every pool is closed. No connection is left.
    func close() {
        waitForVisitors()
        let all = lock.withLock {
            defer { open = [:] }
            return Array(open.values)
        }
        for each in all { each.performer.stop() }
    }
}
