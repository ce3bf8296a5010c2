import Glibc
import VirtualFS

/// The one place where a reason becomes a number that a program sees.
enum ErrnoTable {
    static func number(for code: FSErrorCode) -> Int32 {
        switch code {
        case .notFound: ENOENT
        case .exists: EEXIST
        case .notDirectory: ENOTDIR
        case .isDirectory: EISDIR
        case .notEmpty: ENOTEMPTY
        case .notPermitted: EPERM
        case .accessDenied: EACCES
        case .noSpace: ENOSPC
        case .io, .damaged: EIO
        case .readOnly: EROFS
        case .invalid: EINVAL
        case .nameTooLong: ENAMETOOLONG
        case .notSupported: EOPNOTSUPP
        case .noAttribute: ENODATA
        case .tooLarge: EFBIG
        case .busy: EBUSY
        case .stale: ESTALE
        case .crossDevice: EXDEV
        case .range: ERANGE
        case .badHandle: EBADF
        case .noSuchOffset: ENXIO
        }
    }
}
