import Glibc

/// Why a mount could not be made, or not be taken away.
package struct MountError: Error, CustomStringConvertible, Sendable {
    package enum Kind: Sendable, Hashable {
        /// The mount point is missing or not a directory.
        case badMountPoint
        /// Something is served there already; mounting again would hide it.
        case alreadyMounted
        /// An option that neither the kernel nor libfuse takes.
        case badOption
        /// The user may not mount here, or not with these options.
        case notPermitted
        /// Programs hold files, directories or mounts below the mount point.
        case busy
        /// The kernel or libfuse refused for another reason.
        case failed
    }

    package var kind: Kind
    package var path: String
    package var errno: Int32
    package var message: String

    package init(_ kind: Kind, path: String, errno: Int32 = 0, _ message: String) {
        self.kind = kind
        self.path = path
        self.errno = errno
        self.message = message
    }

    package var description: String {
        errno == 0
            ? "\(path): \(message)" : "\(path): \(message) (\(String(cString: strerror(errno))))"
    }
}
