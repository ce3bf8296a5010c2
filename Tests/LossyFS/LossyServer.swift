import CFuse
import Glibc
import SystemIO

enum LossyServer {
    static func main(_ arguments: [String]) -> Int32 {
        guard arguments.count == 1 else {
            say("error usage: LossyFS MOUNTPOINT")
            return 2
        }
        let mountPoint = arguments[0]
        let fileSystem = LossyFileSystem()
        let words = ["LossyFS", "-o", "fsname=lossy", "-o", "subtype=lossy"]
        var argv: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        var table = LossyOperations.make()
        let session = argv.withUnsafeMutableBufferPointer { buffer in
            var arguments = fuse_args(
                argc: Int32(words.count), argv: buffer.baseAddress, allocated: 0)
            return fuse_session_new(
                &arguments, &table, MemoryLayout<fuse_lowlevel_ops>.size,
                Unmanaged.passUnretained(fileSystem).toOpaque())
        }
        guard let session, fuse_session_mount(session, mountPoint) == 0 else {
            say("error cannot mount at \(mountPoint)")
            return 1
        }
        _ = WorkerThread.start("input") {
            while readLine() != nil {}
            try? fileSystem.with { (store) throws(Errno) in try store.obey("go") }
            if cfuse_umount(mountPoint, Int32(CFUSE_UMOUNT_LAZY)) != 0 {
                unmountAsUser(mountPoint)
            }
        }
        say("ready")
        let result = cfuse_loop(session, 64, 2)
        fuse_session_unmount(session)
        fuse_session_destroy(session)
        withExtendedLifetime(fileSystem) {}
        return result == 0 ? 0 : 1
    }

    /// Not root: only the set-user-ID helper may unmount.
    private static func unmountAsUser(_ mountPoint: String) {
        let text = ["fusermount3", "-uz", mountPoint]
        var words: [UnsafeMutablePointer<CChar>?] = text.map { strdup($0) } + [nil]
        var pid: pid_t = 0
        posix_spawnp(&pid, "fusermount3", nil, nil, &words, environ)
    }

    private static func say(_ line: String) {
        let bytes = Array((line + "\n").utf8)
        _ = write(1, bytes, bytes.count)
    }
}
