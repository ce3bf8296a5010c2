import Pool
import Replication
import SystemIO
import Volume

extension TargetError {
    init(_ error: VolumeError) {
        let kind: Kind =
            switch error.kind {
            case .noSpace: .noSpace
            case .damaged, .checksum, .invalid, .notFound, .exists, .tooLarge: .damaged
            case .io, .latched, .readOnly, .busy: .io
            }
        self.init(kind, error.description, errno: error.errno == 0 ? nil : error.errno)
    }

    init(_ error: JournalError) {
        switch error {
        case .system(let system), .latched(let system):
            self.init(
                system.isNoSpace ? .noSpace : .io, error.description, errno: system.errno)
        case .damaged: self.init(.damaged, error.description)
        case .outOfOrder: self.init(.io, error.description)
        }
    }

    init(_ error: PoolError) {
        let kind: Kind =
            switch error.kind {
            case .inUse, .notAPool, .exists, .refused: .absent
            case .damaged: .damaged
            case .io: .io
            }
        self.init(kind, error.description)
    }
}

extension TargetError {
    @inline(__always)
    static func volume<T>(_ body: () throws(VolumeError) -> T) throws(TargetError) -> T {
        do throws(VolumeError) { return try body() } catch { throw TargetError(error) }
    }
    @inline(__always)
    static func journal<T>(_ body: () throws(JournalError) -> T) throws(TargetError) -> T {
        do throws(JournalError) { return try body() } catch { throw TargetError(error) }
    }
    static func system<T>(_ body: () throws(SystemError) -> T) throws(TargetError) -> T {
        do throws(SystemError) { return try body() } catch {
            throw TargetError(
                error.isNoSpace ? .noSpace : .io, error.description, errno: error.errno)
        }
    }
    /// What a sync that failed leaves is not known: no room made later mends it.
    static func synced<T>(_ body: () throws(SystemError) -> T) throws(TargetError) -> T {
        do throws(SystemError) { return try body() } catch {
            throw TargetError(.io, error.description, errno: error.errno)
        }
    }
    static func pool<T>(_ body: () throws(PoolError) -> T) throws(TargetError) -> T {
        do throws(PoolError) { return try body() } catch { throw TargetError(error) }
    }
}
