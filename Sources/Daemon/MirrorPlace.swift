import BlockCore
import Pool
import Replication
import SystemIO
import Targets

/// Where a mirror may be laid out.
struct MirrorPlace {
    /// The UUID of the mirror, which the target is bound to.
    var id: String
    /// It was a mirror of this pool before.
    var hasContent: Bool
    /// What the person should know.
    var note: String?

    /// A new mirror in a new or empty directory; one of this pool is taken as it is.
    /// - Throws: where something else is.
    static func prepare(_ place: TargetAddress, for store: PoolStore) throws -> MirrorPlace {
        let disk = LinuxDisk()
        let path = place.path
        if place.isRaw { return try prepareRaw(path, store, disk) }
        let isThere = PoolStore.isPool(path, disk: disk)
        if !isThere {
            do throws(TargetError) {
                try MirrorTarget.create(path: path, primaryPoolID: store.identity.id, disk: disk)
            } catch { throw ControlFailure(.failed, error.message) }
        }
        return MirrorPlace(id: try identify(path, store), hasContent: isThere)
    }

    /// A new pool behind a server, where none has that name; one that is a mirror of this pool is taken as it is.
    static func prepare(
        _ place: RemoteAddress, for store: PoolStore, timeoutMs: Int64, _ access: RemoteAccess
    ) throws -> MirrorPlace {
        do throws(TargetError) {
            let replica = try access.replica(
                place, of: store, mirrorID: nil, timeoutMs: timeoutMs, laysOut: true)
            defer { replica.disconnect() }
            let report = try replica.connect(try TargetHub.hello(of: store))
            guard let id = report.poolID else {
                throw TargetError(.io, "the server does not say which pool it has")
            }
            return MirrorPlace(id: id, hasContent: report.incarnationID != nil)
        } catch { throw ControlFailure(.failed, "\(place.text): \(error.message)") }
    }

    /// - Throws: where the place is the pool's own.
    static func requireApart(_ path: String, _ store: PoolStore) throws {
        if path == store.path || path.hasPrefix(store.path + "/")
            || store.path.hasPrefix(path + "/")
        {
            throw ControlFailure(.usage, "\(path) and the pool \(store.path) lie in each other")
        }
    }

    private static func prepareRaw(
        _ path: String, _ store: PoolStore, _ disk: LinuxDisk
    ) throws -> MirrorPlace {
        if PoolStore.isPool(path, disk: disk) {
            throw ControlFailure(
                .failed, "\(path) is a pool: as a target it is \(path), without raw:")
        }
        do {
            if let state = try RawFolderState.read(of: path, disk: disk) {
                guard state.primaryPoolID == store.identity.id else {
                    throw ControlFailure(.failed, "\(path) is a raw mirror, but not of this pool")
                }
                return MirrorPlace(id: state.id, hasContent: true)
            }
            let id = try RawMirror.create(
                path: path, primaryPoolID: store.identity.id, disk: disk)
            return MirrorPlace(id: id, hasContent: false)
        } catch let error as TargetError { throw ControlFailure(.failed, error.message) }
    }

    private static func identify(_ path: String, _ store: PoolStore) throws -> String {
        var unfinished: String?
        let found = PoolSight.look(at: path, disk: LinuxDisk()) {
            unfinished = try $0.unfinishedCopy()
        }
        guard let sight = found else {
            throw ControlFailure(.failed, "\(path) is a pool that cannot be looked into")
        }
        if let unfinished {
            throw ControlFailure(.failed, PoolStore.unfinishedCopy(path, of: unfinished))
        }
        let history = try store.catalog.read { try $0.history() }
        // A mirror of the pool that this one was promoted from follows this one as well.
        let isOurs =
            sight.primaryPoolID == store.identity.id
            || sight.history.current.map { history.contains($0.id) } ?? false
        guard sight.isReplica, isOurs else {
            throw ControlFailure(
                .failed,
                "\(path) is a pool, but no mirror of this one; a mirror needs a new or empty directory"
            )
        }
        guard !sight.isInUse else { throw ControlFailure(.inUse, "the pool \(path) is in use") }
        return sight.poolID
    }

    static func warning(_ address: String, for store: PoolStore) -> String? {
        let disk = LinuxDisk()
        let place = TargetAddress(address)
        guard place.remote == nil else { return nil }
        let path = place.path
        guard let there = try? disk.status(path), let here = try? disk.status(store.path),
            there.device == here.device
        else { return nil }
        return "\(path) is on the same file system as the pool: a mirror there survives a mistake, "
            + "not the disk"
    }
}
