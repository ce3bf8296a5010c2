import Glibc

package enum TestFolders {
    /// In memory, where there is enough of it: what opens pools, or programs that do, sync hundreds of times, and
    /// what survives a loss of power other disks show. A long run stands on a real one.
    package static let quick: String = {
        var figures = statvfs()
        guard getenv("DOPPEL_SOAK") == nil, access("/dev/shm", W_OK) == 0,
            statvfs("/dev/shm", &figures) == 0,
            UInt64(figures.f_bavail) * UInt64(figures.f_frsize) >= 4 << 30
        else { return "/tmp" }
        return "/dev/shm"
    }()

    package static let real = getenv("TMPDIR").map { String(cString: $0) } ?? "/tmp"
}

/// - Parameter place: the disk that it is on.
/// - Returns: the path of a new folder; whoever asks for it removes it.
package func makeTemporaryFolder(
    in place: String = TestFolders.real, called name: String = "doppel"
) throws -> String {
    var name = Array("\(place)/\(name)-XXXXXX".utf8CString)
    guard mkdtemp(&name) != nil else { throw Failure("mkdtemp: errno \(errno)") }
    return name.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
}
