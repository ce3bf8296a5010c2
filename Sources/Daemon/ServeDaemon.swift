// A server as a process:
//
//   starting ──listens──► serving ──SIGTERM, SIGINT──► ending: no more connections; what came is done; pools closed
//                          │   ▲
//                          └───┘ SIGHUP: settings and the key are read anew; the key also when it was changed
//
// The root is locked (ServedRoot.swift) from before it listens until the pools are closed: no two runs overlap.
// It remembers nothing but its pools: whoever was connected connects again to the next one, and goes on.

import BlockCore
import Identity
import Logging
import Pool
import Replication
import SystemIO
import Transport

package struct ServeRequest: Sendable {
    /// Pools are looked for, and made, below it.
    package var root: String
    package var listen: [HostPort]
    /// Whose key it shows, and whom it lets in; nil: nobody is asked for a key, on the loopback alone.
    package var identity: HostPlaces?
    /// How long a mirror keeps what it was.
    package var historyMs: Int64 = 3_600_000
    package var mostPools = 256
    /// How long a run of the server that ends on the same root is waited for.
    package var rootTimeoutMs: Int64 = 30_000
    package var limits = TransportLimits()
    /// Reads the settings anew; nil where there are none to read.
    package var reading: (@Sendable () throws -> ServeRequest)?

    package struct HostPlaces: Sendable, Equatable {
        package var stateDirectory: String
        package var authorizedPeersPath: String
        package init(stateDirectory: String, authorizedPeersPath: String) {
            self.stateDirectory = stateDirectory
            self.authorizedPeersPath = authorizedPeersPath
        }
    }

    package init(root: String, listen: [HostPort]) {
        self.root = root
        self.listen = listen
    }
}

package enum ServeDaemon {
    /// A connection that does not end is dropped after so long; a target's own work is waited for.
    private static let endingMs: Int64 = 5000
    /// What a connection may have under way: the least that the protocol knows, for the sake of many.
    private static let creditBytes: UInt64 = 16 << 20

    /// Serves until a signal ends it. Call on the process's first thread, before others start.
    /// - Parameter whenReady: told where it listens.
    package static func run(
        _ request: ServeRequest, whenReady: @escaping @Sendable ([HostPort]) -> Void
    ) throws {
        let orders = ServeOrders()
        // Signals first: every thread that starts later inherits the mask.
        _ = ProcessControl.handleTermination { number in
            orders.put(number == ProcessControl.reloadSignal ? .read : .stop)
        }
        ProcessPolicy.raiseFileLimit()
        guard let root = ProcessControl.realPath(request.root),
            try LinuxDisk().status(root)?.kind == .directory
        else { throw ControlFailure(.failed, "\(request.root) is no folder") }
        if PoolStore.isPool(root, disk: LinuxDisk()) {
            throw ControlFailure(
                .usage, "\(root) is a pool: what is served is the folder that pools are in")
        }
        guard
            let lock = try ServedRoot.take(
                root, timeoutMs: request.rootTimeoutMs, unless: { orders.isToStop })
        else { return }
        defer { lock.release() }
        let pools = ServedPools(
            root: root, historyMs: request.historyMs, mostPools: request.mostPools)
        let teller = NoticeTeller(request.identity.map { StateDirectory(path: $0.stateDirectory) })
        let (server, peers) = try start(request, pools, teller)
        whenReady(server.addresses)
        let live = LiveServer(request, server, pools)
        let watch = live.watchKey { orders.put(.readKey) }
        ProcessControl.notifyServiceManager("READY=1")
        serving: while true {
            switch orders.next() {
            case .read: live.readAll()
            case .readKey: live.readKey()
            case .stop: break serving
            }
        }
        ProcessControl.notifyServiceManager("STOPPING=1")
        watch?.end()
        server.shutDown(timeoutMs: endingMs)
        pools.close()
        peers?.close()
        teller.close()
    }

    private static func start(
        _ request: ServeRequest, _ pools: ServedPools, _ teller: NoticeTeller
    ) throws -> (TransportServer, AuthorizedPeers?) {
        let log = Logger(label: "doppel.serve")
        var options = TransportServer.Options(listen: request.listen, keys: nil)
        options.limits = request.limits
        options.connection.creditBytes = creditBytes
        guard let identity = request.identity else {
            let server = try TransportServer.start(
                options,
                TransportHost(
                    admits: { _ in false },
                    find: { (_, name) throws(TargetError) in try pools.find(name).replica },
                    visitor: { (_, name) throws(TargetError) in
                        try ServedVisitor(name, pools) { _ in true }
                    }, mayStay: { _, _, _ in true }, tell: { teller.tell($0) }))
            return (server, nil)
        }
        let state = StateDirectory(path: identity.stateDirectory)
        let keys = try TransportKeys(HostKeys(state).current())
        options.keys = keys
        let peers = try AuthorizedPeers(path: identity.authorizedPeersPath) { problems in
            for problem in problems { log.warning("\(problem)") }
        }
        for problem in peers.problems { log.warning("\(problem)") }
        let server = try TransportServer.start(
            options,
            TransportHost(
                admits: { peers.rights(of: $0) != nil },
                find: { (peer, name) throws(TargetError) in
                    guard let peer, let rights = peers.rights(of: peer),
                        rights.allows(.replicate, pool: name)
                    else {
                        throw TargetError(
                            .absent, "this host may not replicate to a pool '\(name)' there")
                    }
                    return try pools.find(name).replica
                },
                visitor: { (peer, name) throws(TargetError) in
                    // Asked anew for each request: rights may be taken back, or given.
                    let allows: @Sendable (Right) -> Bool = { right in
                        peer.flatMap { peers.rights(of: $0) }?.allows(right, pool: name) ?? false
                    }
                    guard allows(.read) else {
                        throw TargetError(.absent, "this host may not read a pool '\(name)' there")
                    }
                    return try ServedVisitor(name, pools, allows)
                },
                mayStay: { peer, name, use in
                    let needed: Right = use == .replica ? .replicate : .read
                    return peer.flatMap { peers.rights(of: $0) }?.allows(needed, pool: name)
                        ?? false
                }, tell: { teller.tell($0) }))
        peers.onChange { [weak server] in server?.recheck() }
        log.notice("this host is \(keys.fingerprint)")
        return (server, peers)
    }
}

/// Writes down who was not let in, on a thread of its own: connections wait for no disk. Who knocks faster than it
/// writes is told once.
private final class NoticeTeller: @unchecked Sendable {  // fields are under `lock`
    private static let mostWaiting = 64
    private let log = Logger(label: "doppel.serve")
    private let events: HostEvents?
    private let lock = Lock()
    private let changed = Condition()
    private var waiting: [TransportNotice] = []
    private var isOver = false
    private var thread: WorkerThread?

    init(_ state: StateDirectory?) {
        events = state.map { HostEvents($0) }
        thread = WorkerThread.start("doppel-notices") { [self] in
            while let notice = next() { write(notice) }
        }
    }

    func tell(_ notice: TransportNotice) {
        lock.withLock {
            guard waiting.count < Self.mostWaiting, !waiting.contains(notice) else { return }
            waiting.append(notice)
            changed.signal()
        }
    }

    private func next() -> TransportNotice? {
        lock.lock()
        defer { lock.unlock() }
        while waiting.isEmpty, !isOver { changed.wait(lock) }
        return waiting.isEmpty ? nil : waiting.removeFirst()
    }

    private func write(_ notice: TransportNotice) {
        var isNews = true
        do throws(IdentityError) {
            isNews = try events?.refused(notice.peer, from: notice.place, notice.reason) ?? true
        } catch { log.error("\(error)") }
        guard isNews else { return }
        let who = notice.peer.map { "\($0) from \(notice.place)" } ?? notice.place
        log.notice("\(notice.kind.rawValue): \(who): \(notice.reason)")
    }

    func close() {
        lock.withLock {
            isOver = true
            changed.signal()
        }
        thread?.join()
    }
}

/// What the one thread that changes the server is to do next.
private final class ServeOrders: @unchecked Sendable {  // `waiting` is under `lock`
    enum Order { case read, readKey, stop }
    private let lock = Lock()
    private let changed = Condition()
    private var waiting: [Order] = []

    func put(_ order: Order) {
        lock.withLock {
            guard !waiting.contains(order) else { return }
            waiting.append(order)
            changed.signal()
        }
    }
    var isToStop: Bool { lock.withLock { waiting.contains(.stop) } }
    func next() -> Order {
        lock.lock()
        defer { lock.unlock() }
        while waiting.isEmpty { changed.wait(lock) }
        // Whatever else is to be done does not matter then.
        if waiting.contains(.stop) { return .stop }
        return waiting.removeFirst()
    }
}
