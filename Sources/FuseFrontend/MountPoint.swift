// The place in the tree where a pool appears: finding it, freeing it from a dead predecessor,
// taking a mount away.

import CFuse
import Glibc

enum MountPoint {
    /// The absolute path without symbolic links, also when what is mounted there is dead.
    static func canonical(_ path: String) throws(MountError) -> String {
        if let resolved = realpath(path, nil) {
            defer { free(resolved) }
            return String(cString: resolved)
        }
        let reason = errno
        guard reason == ENOTCONN || reason == EACCES || reason == EIO else {
            throw MountError(.badMountPoint, path: path, errno: reason, "cannot be used")
        }
        // Only the last component can be the dead mount itself.
        let trimmed = trimSlashes(path)
        let cut = trimmed.lastIndex(of: "/")
        let parent = cut.map { $0 == trimmed.startIndex ? "/" : String(trimmed[..<$0]) } ?? "."
        let name = cut.map { trimmed[trimmed.index(after: $0)...] } ?? trimmed[...]
        guard let resolved = realpath(parent, nil) else {
            throw MountError(.badMountPoint, path: path, errno: errno, "cannot be used")
        }
        defer { free(resolved) }
        let base = String(cString: resolved)
        return base == "/" ? "/\(name)" : "\(base)/\(name)"
    }

    private static func trimSlashes(_ path: String) -> String {
        var result = Substring(path)
        while result.count > 1, result.last == "/" { result.removeLast() }
        return String(result)
    }

    /// Removes mounts whose daemon has died, and makes sure that nothing else is in the way.
    /// - Parameter path: canonical.
    static func prepare(_ path: String) throws(MountError) {
        // Several may be stacked: each crash followed by a careless mount leaves one.
        for _ in 0..<16 {
            guard isDead(path) else { break }
            do throws(MountError) { try unmount(path, lazily: false) } catch {
                // Somebody still has a file of the dead mount open; it answers nothing any more,
                // so letting go of its name loses nothing.
                try unmount(path, lazily: true)
            }
        }
        var status = stat()
        guard stat(path, &status) == 0 else {
            throw MountError(.badMountPoint, path: path, errno: errno, "cannot be used")
        }
        guard status.st_mode & S_IFMT == S_IFDIR else {
            throw MountError(.badMountPoint, path: path, errno: ENOTDIR, "cannot be used")
        }
        // A mount on top would hide this one and leave its users on a pool nobody sees.
        if let there = MountTable.top(at: path), there.isFuse {
            throw MountError(
                .alreadyMounted, path: path,
                "\(there.source) (\(there.type)) is mounted here already")
        }
    }

    /// Whether a FUSE file system is mounted here whose daemon is gone.
    static func isDead(_ path: String) -> Bool {
        guard let there = MountTable.top(at: path), there.isFuse else { return false }
        // Not stat: for seconds the kernel would answer that from what it remembers.
        var figures = statvfs()
        return statvfs(path, &figures) != 0 && (errno == ENOTCONN || errno == ECONNABORTED)
    }

    /// Takes the topmost mount away, as root directly, else through fusermount3.
    /// - Throws: ``MountError`` `.busy` while something in it is in use, unless `lazily`.
    static func unmount(_ path: String, lazily: Bool) throws(MountError) {
        if geteuid() == 0 {
            var flags = Int32(CFUSE_UMOUNT_NOFOLLOW)
            if lazily { flags |= Int32(CFUSE_UMOUNT_LAZY) }
            let result = -cfuse_umount(path, flags)
            switch result {
            case 0: return
            case EBUSY: throw busy(path)
            default:
                throw MountError(.failed, path: path, errno: result, "cannot be unmounted")
            }
        }
        let arguments = ["fusermount3", lazily ? "-uz" : "-u", "--", path]
        let (status, output) = try run(arguments, for: path)
        guard status != 0 else { return }
        // fusermount3 has one exit code for everything; in the C locale its reason is this word.
        if output.contains("busy") { throw busy(path) }
        throw MountError(
            .failed, path: path, output.isEmpty ? "fusermount3 failed (\(status))" : output)
    }

    private static func busy(_ path: String) -> MountError {
        MountError(
            .busy, path: path, errno: EBUSY,
            "in use: a program has a file or a folder of it open (try `fuser -vm`)")
    }

    /// Runs a program found in PATH and collects what it says on standard error.
    private static func run(
        _ arguments: [String], for path: String
    ) throws(MountError) -> (status: Int32, output: String) {
        var ends: [Int32] = [0, 0]
        let piped = cfuse_pipe(&ends)
        guard piped == 0 else {
            throw MountError(.failed, path: path, errno: -piped, "no pipe for fusermount3")
        }
        defer { close(ends[0]) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[1], 2)
        var words: [UnsafeMutablePointer<CChar>?] = arguments.map { strdup($0) } + [nil]
        let search = getenv("PATH").map { String(cString: $0) } ?? "/usr/bin:/bin:/usr/sbin:/sbin"
        var environment: [UnsafeMutablePointer<CChar>?] =
            [strdup("PATH=\(search)"), strdup("LC_ALL=C"), nil]
        defer { for word in words + environment { free(word) } }
        var pid: pid_t = 0
        let result = posix_spawnp(&pid, arguments[0], &actions, nil, &words, &environment)
        close(ends[1])
        guard result == 0 else {
            throw MountError(
                .failed, path: path, errno: result, "cannot run fusermount3 (package fuse3)")
        }
        var output: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 1024)
        while true {
            let count = Glibc.read(ends[0], &buffer, buffer.count)
            if count > 0 { output += buffer[..<count] }
            if count == 0 || (count < 0 && errno != EINTR) { break }
        }
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0, errno == EINTR {}
        let text = String(decoding: output, as: UTF8.self)
        return ((status >> 8) & 0xff | (status & 0x7f), text.filter { $0 != "\n" })
    }
}
