// What changes of a server while it runs. Nothing of it ends a session: what a peer may do does
// (authorized_peers, which is always read anew), and that a key is not accepted any more where it was pinned.
//
//   key              whoever connects from now on is shown the new one
//   limits, rate     from now on; nobody who is connected is sent away, a rate holds at once
//   root, listen, keys or none, where the state is    at the next start; it is said so

import BlockCore
import Identity
import Logging
import SystemIO
import Transport

final class LiveServer {
    private let server: TransportServer
    private let pools: ServedPools
    private let log = Logger(label: "doppel.serve")
    private var inForce: ServeRequest

    init(_ request: ServeRequest, _ server: TransportServer, _ pools: ServedPools) {
        inForce = request
        self.server = server
        self.pools = pools
    }

    /// - Parameter tell: called when the key may have changed, from a thread of its own.
    /// - Returns: nil where no key is shown.
    func watchKey(_ tell: @escaping @Sendable () -> Void) -> FolderWatch? {
        guard let identity = inForce.identity,
            let watch = try? FolderWatch(path: identity.stateDirectory)
        else { return nil }
        // Where the system tells of nothing it is looked at, now and then.
        WorkerThread.start("doppel-key") {
            while watch.wait(timeoutMs: 10_000) != .ended { tell() }
        }.detach()
        return watch
    }

    func readAll() {
        defer { readKey() }
        guard let reading = inForce.reading else { return }
        do { change(to: try reading()) } catch {
            log.error("the settings are as they were, for they cannot be read: \(error)")
        }
    }

    private func change(to new: ServeRequest) {
        if new.limits != inForce.limits { server.change(limits: new.limits) }
        if new.mostPools != inForce.mostPools { pools.change(mostPools: new.mostPools) }
        let isOther =
            new.root != inForce.root || new.listen != inForce.listen
            || new.identity != inForce.identity || new.historyMs != inForce.historyMs
        if isOther {
            let words =
                "of the settings the folder, the addresses, the state directory and the list of peers hold "
                + "from the next start on"
            log.warning("\(words)")
        }
        inForce.limits = new.limits
        inForce.mostPools = new.mostPools
        log.notice("the settings were read")
    }

    /// One that cannot be read, for it is being changed or is not trusted, leaves the present one in use.
    func readKey() {
        guard let identity = inForce.identity else { return }
        do {
            let state = StateDirectory(path: identity.stateDirectory)
            guard let key = try HostKeys(state).existing(), key.fingerprint != server.fingerprint
            else {
                return
            }
            server.change(keys: try TransportKeys(key))
            log.notice("this host is \(key.fingerprint) from now on; sessions that there are go on")
        } catch { log.error("the key is as it was, for it cannot be read: \(error)") }
    }
}
