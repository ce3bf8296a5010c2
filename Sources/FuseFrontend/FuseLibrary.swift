import CFuse

/// The libfuse that this process runs with, which may be newer than the one it was built with.
package enum FuseLibrary {
    package static var version: String { fuse_pkgversion().map { String(cString: $0) } ?? "?" }
}
