import Glibc
import MountCalls

// MARK: Files

/// An open file that closes itself.
package final class TestFile {
    package let fd: Int32

    package init(
        _ path: String, _ flags: Int32 = O_RDWR | O_CREAT, mode: Int32 = 0o644, direct: Bool = false
    )
        throws
    {
        fd = mc_open(path, flags, mode, direct ? Int32(MC_DIRECT) : 0)
        if fd < 0 { throw Failure("open \(path): errno \(-fd)") }
    }
    deinit { if fd >= 0 { close(fd) } }

    package func write(_ bytes: [UInt8], at offset: Int) throws {
        let count = pwrite(fd, bytes, bytes.count, offset)
        guard count == bytes.count else { throw Failure("pwrite: \(count), errno \(errno)") }
    }
    package func read(_ count: Int, at offset: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xee, count: count)
        let got = pread(fd, &bytes, count, offset)
        guard got >= 0 else { throw Failure("pread: errno \(errno)") }
        return Array(bytes[..<got])
    }
    package func sync() throws {
        guard fsync(fd) == 0 else { throw Failure("fsync: errno \(errno)") }
    }
    /// Writes to places all over a file of 8 MiB of zeros, and syncs nothing.
    /// - Returns: what is in it.
    package func writeAtRandom(count: Int) throws -> [UInt8] {
        var model = [UInt8](repeating: 0, count: 8 << 20)
        var random = SeededRandom(seed: Seeds.run(1)[0])
        for number in 0..<count {
            let offset = random.below(1024) * 8192 + random.below(4096)
            let content = pattern(1 + random.below(4096), seed: UInt8(truncatingIfNeeded: number))
            try write(content, at: offset)
            model.replaceSubrange(offset..<offset + content.count, with: content)
        }
        return model
    }
    package var size: Int {
        var status = stat()
        return fstat(fd, &status) == 0 ? status.st_size : -1
    }
}

/// The errno an attempt to open gives; 0 when it opens.
package func openError(_ path: String, _ flags: Int32, mode: Int32 = 0o644) -> Int32 {
    let fd = mc_open(path, flags, mode, 0)
    if fd >= 0 {
        close(fd)
        return 0
    }
    return -fd
}

/// The errno of a call that says -1.
package func error(_ result: Int32) -> Int32 { result == 0 ? 0 : errno }

package func status(_ path: String) throws -> stat {
    var status = stat()
    guard lstat(path, &status) == 0 else { throw Failure("lstat \(path): errno \(errno)") }
    return status
}

package func names(in path: String) throws -> [String] {
    guard let folder = opendir(path) else { throw Failure("opendir \(path): errno \(errno)") }
    defer { closedir(folder) }
    var names: [String] = []
    while let entry = readdir(folder) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
}

package func contents(_ path: String) throws -> [UInt8] {
    let file = try TestFile(path, O_RDONLY)
    // To the end, not by its size: the kernel's own files say 0.
    var bytes: [UInt8] = []
    while true {
        let more = try file.read(max(file.size - bytes.count, 65536), at: bytes.count)
        if more.isEmpty { return bytes }
        bytes += more
    }
}

/// Bytes that tell where they belong.
package func pattern(_ count: Int, seed: UInt8 = 1) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) ^ seed }
}
