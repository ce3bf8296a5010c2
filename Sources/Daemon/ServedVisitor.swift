// Somebody who is connected to a server to ask about one pool, or to have it changed, and is not its primary.
//
//   a session has the pool            what is open is looked at, beside the session
//   nobody has it, or a daemon of     asked like any local pool (`PoolAccess`), in a turn of its own: who connects
//   this machine that it is mounted   as its primary meanwhile waits for that
//   by

import BlockCore
import Identity
import Pool
import Replication
import SystemIO
import Targets
import Transport

final class ServedVisitor: PoolVisitor {
    let name: String
    let pools: ServedPools
    private let allows: @Sendable (Right) -> Bool
    private let disk = LinuxDisk()
    private let copy = HeldCopy()

    /// What is copied by this visitor.
    private final class HeldCopy: @unchecked Sendable {  // one caller at a time, as the visitor
        var copy: MirrorCopy?
    }

    /// - Parameter allows: what the peer may do with the pool now.
    init(
        _ name: String, _ pools: ServedPools, _ allows: @escaping @Sendable (Right) -> Bool
    ) throws(TargetError) {
        guard RemoteAddress.isPoolName(name) else {
            throw TargetError(.absent, "'\(name)' can be no pool's name")
        }
        self.name = name
        self.pools = pools
        self.allows = allows
        try pools.visitorCame()
    }

    func end() {
        copy.copy?.release()
        copy.copy = nil
        pools.visitorWent()
    }

    // MARK: Answering

    func answer(_ query: WireQuery) throws(TargetError) -> WireReply {
        switch query {
        case .control(let text):
            var reply: ControlReply
            do {
                let request = try JSONLine.decode(ControlRequest.self, text)
                reply = ControlReply(id: request.id)
                do { reply.result = try perform(request) } catch {
                    reply.error = PoolSession.failure(error)
                }
            } catch {
                reply = ControlReply(
                    error: ControlFailure(.usage, "the request is not understood: \(error)"))
            }
            return .answered(JSONLine.encode(reply))
        case .shape(let leg): return .shape(try opened().shape(Int(clamping: leg)))
        case .blocks(let leg): return .blocks(try opened().blocks(Int(clamping: leg)))
        case .hashes(let leg, let image, let range):
            return .hashes(try opened().hashes(Int(clamping: leg), of: image, in: range))
        case .read(let leg, let range, let image):
            let copy = try opened()
            return try .content(range, of: image) { (place) throws(TargetError) in
                try copy.read(Int(clamping: leg), range, of: image, into: place)
            }
        }
    }

    private func opened() throws(TargetError) -> MirrorCopy {
        guard allows(.read) else {
            throw TargetError(.absent, "this host may not read '\(name)' there any more")
        }
        guard let copy = copy.copy else { throw TargetError(.io, "no copy was opened") }
        return copy
    }

    private func openCopy() throws -> ControlResult {
        copy.copy?.release()
        copy.copy = nil
        let opened = try withPool { open in
            try open.copy()
        } aloneWith: { served in
            try served.mirror.copyAlone()
        }
        copy.copy = opened
        var result = ControlResult()
        result.source = opened.info
        return result
    }

    private func perform(_ request: ControlRequest) throws -> ControlResult {
        let verb = request.execute
        guard let right = verb.remoteRight else {
            throw ControlFailure(
                .usage, "'\(verb.rawValue)' is not done for somebody on another machine")
        }
        guard allows(right) else {
            throw ControlFailure.notPermitted(verb.rawValue, right, pool: name)
        }
        guard PoolStore.isPool(path, disk: disk) else {
            throw ControlFailure(.failed, "there is no pool '\(name)'")
        }
        switch verb {
        case .copyOpen: return try openCopy()
        case .sight: return try sight()
        case .handoverOutcome: return try outcome(request.arguments ?? ControlArguments())
        case .promote: return try promote(request.arguments ?? ControlArguments())
        default:
            return try withPool { open in
                try open.perform(verb)
            } alone: {
                try PoolAccess.perform(request, on: path, keepsHistory: true)
            }
        }
    }

    var path: String { pools.path(name) }

    /// - Parameters:
    ///   - inSession: while a primary writes to it.
    ///   - alone: while no session of the server has it.
    func withPool<T>(
        inSession: (OpenMirror) throws -> T, alone: () throws -> T
    ) throws -> T {
        try withPool(inSession: inSession, aloneWith: { _ in try alone() })
    }

    private func withPool<T>(
        inSession: (OpenMirror) throws -> T, aloneWith alone: (ServedPools.Served) throws -> T
    ) throws -> T {
        // A session may begin or end between two looks; connecting takes its time.
        let deadlineNs = disk.monotonic() + 10_000_000_000
        while disk.monotonic() < deadlineNs {
            let served = try pools.find(name)
            settle(served.mirror)
            if let found = try served.mirror.look(inSession) { return found }
            if let found = try served.replica.inTurn({ try alone(served) }) { return found }
            Pause.microseconds(20_000)
        }
        throw ControlFailure(
            .inUse, "'\(name)' is being connected to or let go of all the time: try again")
    }

    /// What is on record there a moment ago is in what is shown, unless more comes all the time.
    private func settle(_ mirror: ServedMirror) {
        for _ in 0..<50 {
            guard mirror.look({ $0.unappliedBytes > 0 && $0.record.staging == nil }) ?? false else {
                return
            }
            Pause.microseconds(10_000)
        }
    }
}

extension OpenMirror {
    fileprivate func perform(_ verb: ControlCommand) throws -> ControlResult {
        var result = ControlResult()
        switch verb {
        case .status: result.status = try status()
        case .list: result.images = try images()
        case .snapshotList:
            result.snapshots = try volume.snapshots().map(PoolSession.info)
        default:
            throw ControlFailure(
                .inUse, "\(store.path) is written to by its primary: '\(verb.rawValue)' has to wait"
            )
        }
        return result
    }

    private func images() throws -> [ImageInfo] {
        let nodes = try names()
        let paths = NameTreePaths(nodes.map(\.node))
        return nodes.filter { $0.node.parentID != nil && $0.node.id != .root }.map { node in
            var state = "ok"
            if let image = node.node.imageID {
                if volume.damagedImage(image) != nil {
                    state = "damaged"
                } else if (try? volume.image(image))?.latchedFailure != nil {
                    state = "latched"
                }
            }
            return ImageInfo(
                path: paths.path(of: node.node.id), kind: "\(node.node.kind)",
                sizeBytes: node.sizeBytes, allocatedBytes: allocatedBytes(of: node),
                modifiedNs: node.node.modifyNs, state: state)
        }.sorted { $0.path < $1.path }
    }

    private func status() throws -> StatusInfo {
        let record = record
        let files = try images().filter { $0.kind == "file" }
        let (state, peers) = try rows { (try $0.poolState(), try $0.peers()) }
        let damaged = files.filter { $0.state == "damaged" }.map(\.path)
        let latched = files.filter { $0.state == "latched" }.map(\.path)
        var problems = damaged + latched
        if store.catalog.isFailed {
            problems.append(
                "the catalog failed: the mirror takes no changes before it is opened anew")
        }
        var replica = ReplicaInfo(role: "replica")
        replica.primaryPool = record.primaryPoolID
        replica.checkpointSequence = checkpoint.rawValue
        replica.shownNs = files.map(\.modifiedNs).max()
        replica.reachFromNs = try reachNs()
        if hasPrimary { replica.isConnected = true }
        replica.isResyncing = record.staging != nil
        replica.heardNs = record.heardNs
        replica.copies = peers.filter { $0.poolID != store.identity.id }.map(CopyInfo.init)
        let free = (try? store.disk.fileSystemStatus(store.path))?.availableBytes ?? 0
        return StatusInfo(
            pool: store.path, id: store.identity.id,
            state: !damaged.isEmpty ? "damaged" : problems.isEmpty ? "healthy" : "degraded",
            mountPoint: nil, ownerPID: ProcessControl.processID,
            generation: record.generation?.number ?? state.generation.number,
            incarnation: state.incarnation, sequence: checkpoint.rawValue, images: files.count,
            snapshots: try volume.snapshots().count,
            sizeBytes: files.reduce(0) { $0 + $1.sizeBytes }, storeFreeBytes: free,
            reserveBytes: store.reserveBytes,
            uncoveredLayers: (try? volume.uncoveredLayers().count) ?? 0, latchedImages: latched,
            damagedImages: damaged, pendingMerges: (try? volume.pendingMerges()) ?? 0, jobs: [],
            problems: problems, replica: replica, targets: [], waitingRequests: 0)
    }
}
