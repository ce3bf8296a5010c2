import CLinux
import Glibc

/// A system call that failed: what was tried, on which path, and the kernel's answer.
public struct SystemError: Error, CustomStringConvertible, Sendable, Hashable {
    public var operation: String
    public var path: String
    public var errno: Int32

    public init(operation: String, path: String, errno: Int32) {
        self.operation = operation
        self.path = path
        self.errno = errno
    }

    public var isConnectionRefused: Bool { errno == ECONNREFUSED }
    public var isNoSpace: Bool { errno == ENOSPC || errno == EDQUOT }
    /// The file would pass what its file system, or a limit of the process, lets it have.
    public var isTooLarge: Bool { errno == EFBIG }
    public var isNotFound: Bool { errno == ENOENT }
    public var isExisting: Bool { errno == EEXIST }
    public static let existing = EEXIST
    public var isInvalid: Bool { errno == EINVAL }
    /// The file system has no such operation.
    public var isUnsupported: Bool { errno == EOPNOTSUPP || errno == ENOSYS }

    public var description: String {
        "\(operation) \(path): \(SystemError.message(errno)) (errno \(errno))"
    }

    public static func message(_ errno: Int32) -> String {
        String(cString: strerror(errno))
    }
}

/// Turns the shim's `-errno` convention into a typed throw.
@inline(__always)
func checked(
    _ result: Int32, _ operation: @autoclosure () -> String, _ path: String
) throws(SystemError) {
    if result < 0 { throw SystemError(operation: operation(), path: path, errno: -result) }
}
