// Who may do what, as authorized_peers has it now.
//
//   the file changes ──► read, checked, in force ──► everybody who listens is told ──► sessions end
//
// A file that is not there, cannot be read or is not trusted grants nothing. In force is always what
// one reading of the file said, also after a restart.

import SystemIO

package final class AuthorizedPeers: PeerAuthority, ServerKeys, @unchecked Sendable {
    // `now`, `listeners` are under `lock`; `thread` is written before anybody else has this object

    /// One reading of the file.
    private struct Reading: Sendable {
        var byKey: [PeerFingerprint: PinnedPeer] = [:]
        var problems: [String] = []
    }

    package let path: String
    private let disk: Disk
    private let watch: FolderWatch
    private let lock = Lock()
    private var now: Reading
    private var listeners: [@Sendable () -> Void] = []
    private let whenProblems: @Sendable ([String]) -> Void
    private var thread: WorkerThread?

    /// - Parameters:
    ///   - checkEveryMs: how often to look where the system does not tell of changes.
    ///   - whenProblems: hears what is wrong with the file, each time that this changes.
    /// - Throws: where the system has no more of what is needed to wait.
    package init(
        path: String, disk: Disk = LinuxDisk(), checkEveryMs: Int32 = 1000,
        whenProblems: @escaping @Sendable ([String]) -> Void = { _ in }
    ) throws(IdentityError) {
        self.path = path
        self.disk = disk
        self.whenProblems = whenProblems
        // From here on no change is missed; what it was before is read below.
        watch = try system { () throws(SystemError) in
            try FolderWatch(path: parentPath(ProcessControl.realPath(path) ?? path))
        }
        now = Self.read(path, disk)
        if !now.problems.isEmpty { whenProblems(now.problems) }
        thread = WorkerThread.start("doppel-peers") { [self] in
            while watch.wait(timeoutMs: checkEveryMs) != .ended { reload() }
        }
    }

    /// Nothing is looked at any more. Not from a listener.
    package func close() {
        watch.end()
        thread?.join()
    }

    package func rights(of peer: PeerFingerprint) -> PeerRights? {
        lock.withLock { now.byKey[peer]?.rights }
    }

    package func keys(ofServerAt host: String, port: Int) -> Set<PeerFingerprint> {
        let peers = lock.withLock { now.byKey.values }
        return Set(
            peers.filter { peer in peer.hosts.contains { $0.matches(host, port: port) } }
                .map(\.fingerprint))
    }

    /// What the file calls a key.
    package func name(of peer: PeerFingerprint) -> String? {
        lock.withLock { now.byKey[peer]?.name }
    }

    /// What is wrong with the file: lines that grant nothing, or that none does.
    package var problems: [String] { lock.withLock { now.problems } }

    package func onChange(_ body: @escaping @Sendable () -> Void) {
        lock.withLock { listeners.append(body) }
    }

    private func reload() {
        let new = Self.read(path, disk)
        let (told, hasProblems) = lock.withLock { () -> ([@Sendable () -> Void], Bool) in
            let isOther = new.byKey != now.byKey
            let hasProblems = new.problems != now.problems
            now = new
            return (isOther ? listeners : [], hasProblems)
        }
        for each in told { each() }
        if hasProblems { whenProblems(new.problems) }
    }

    private static func read(_ path: String, _ disk: Disk) -> Reading {
        var reading = Reading()
        do throws(IdentityError) {
            let list = PeerList(try readTrusted(path, isSecret: false, disk: disk) ?? [])
            for peer in list.peers { reading.byKey[peer.fingerprint] = peer }
            reading.problems = list.mistakes.map { "\(path), \($0)" }
        } catch {
            reading.problems = [error.message]
        }
        return reading
    }
}
