import Pool
import Replication

extension TargetError {
    static func dirty<T>(_ body: () throws(DirtyFileError) -> T) throws(TargetError) -> T {
        do throws(DirtyFileError) { return try body() } catch {
            throw TargetError(error.isNoSpace ? .noSpace : .io, error.description)
        }
    }
}
