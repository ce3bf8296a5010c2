import Glibc
import MountCalls
import TestSupport
import Testing

/// What the mount promises beyond reading and writing; see docs/semantics.md.
@Suite(.enabled(if: hasFuse, "needs /dev/fuse")) struct MountSemanticsTests {
    @Test func inodeNumbersSurviveRemountsAndAreNotUsedTwice() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            mkdir(box.mountPoint + "/d", 0o755)
            _ = try TestFile(box.mountPoint + "/d/b.img")
            try box.ok("snapshot", "create", box.pool, "one")
            let paths = ["", "/a.img", "/d", "/d/b.img", "/.snapshots/one/a.img"]
            func numbers() throws -> [UInt64] {
                try paths.map { UInt64(try status(box.mountPoint + $0).st_ino) }
            }
            let before = try numbers()
            #expect(Set(before).count == paths.count)
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            #expect(try numbers() == before)
            try box.killDaemon()
            try box.mount()
            #expect(try numbers() == before, "after a kill")
            #expect(unlink(box.mountPoint + "/d/b.img") == 0)
            for round in 0..<3 {
                _ = try TestFile(box.mountPoint + "/new\(round)")
                let number = UInt64(try status(box.mountPoint + "/new\(round)").st_ino)
                #expect(!before.contains(number))
                try box.ok("unmount", box.mountPoint)
                try box.mount()
            }
        }
    }

    @Test func statusIsMadeAnewAtEachOpen() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            let path = box.mountPoint + "/.doppel/status.json"
            func snapshots() throws -> Int {
                let text = String(decoding: try contents(path), as: UTF8.self)
                return try box.json(text, StatusLine.self).snapshots
            }
            #expect(try snapshots() == 0)
            try box.ok("snapshot", "create", box.pool, "one")
            #expect(try snapshots() == 1)
            #expect(openError(path, O_RDWR) == EROFS)
            #expect(error(unlink(path)) == EROFS)
            #expect(error(chmod(path, 0o777)) == EROFS)
        }
    }

    /// What is in the kernel's cache of a snapshot is read without anybody's help, also after the file
    /// was closed; an image without cache asks each time.
    @Test func snapshotsStayInTheKernelsCache() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount("--cache", "none")
            try TestFile(box.mountPoint + "/a.img").write(pattern(1 << 20), at: 0)
            try box.ok("snapshot", "create", box.pool, "one")
            let path = box.mountPoint + "/.snapshots/one/a.img"
            _ = try contents(path)
            let file = try TestFile(path, O_RDONLY)
            let pid = try box.daemon()
            kill(pid, SIGSTOP)
            defer { kill(pid, SIGCONT) }
            try box.until("it stopped") { box.read("/proc/\(pid)/stat").contains(") T ") }
            let fd = file.fd
            let reader = TestThread {
                var bytes = [UInt8](repeating: 0, count: 1 << 20)
                return pread(fd, &bytes, bytes.count, 0) == bytes.count ? bytes : []
            }
            // A read that needs the daemon would wait for it: this one must be over before.
            let answer = Answer()
            let waiter = TestThread { answer.put(try reader.join()) }
            let isThere = (try? box.until("an answer", seconds: 10) { answer.bytes != nil }) != nil
            kill(pid, SIGCONT)
            try waiter.join()
            #expect(isThere, "the daemon was asked")
            #expect(answer.bytes == pattern(1 << 20))
        }
    }

    /// A folder that is removed while somebody stands in it answers like any other file system's.
    @Test func aRemovedFolderThatIsOpenIsEmptyAndDead() throws {
        try Sandbox.withPool("a.img") { box in
            try box.mount()
            let path = box.mountPoint + "/d"
            #expect(mkdir(path, 0o755) == 0)
            let folder = try TestFile(path, O_RDONLY | O_DIRECTORY)
            #expect(rmdir(path) == 0)
            #expect(openat(folder.fd, "x", O_RDWR | O_CREAT, 0o644) == -1 && errno == ENOENT)
            var status = stat()
            #expect(fstat(folder.fd, &status) == 0 || errno == ESTALE)
            #expect(fsync(folder.fd) == 0 || errno == ESTALE)
            // The same name is another folder.
            #expect(mkdir(path, 0o755) == 0)
            _ = try TestFile(path + "/x")
            #expect(openat(folder.fd, "x", O_RDONLY) == -1 && (errno == ENOENT || errno == ESTALE))

            // A folder of a snapshot that is deleted.
            try box.ok("snapshot", "create", box.pool, "one")
            let old = try TestFile(box.mountPoint + "/.snapshots/one/d", O_RDONLY | O_DIRECTORY)
            #expect(faccessat(old.fd, "x", F_OK, 0) == 0)
            try box.ok("snapshot", "delete", box.pool, "one")
            try box.ok("snapshot", "create", box.pool, "one")
            #expect(openat(old.fd, "x", O_RDONLY) == -1 && (errno == ESTALE || errno == ENOENT))
        }
    }
}

private final class Answer: @unchecked Sendable {  // one thread writes, once; the other looks
    private var value: [UInt8]?
    private var mutex = pthread_mutex_t()
    init() { pthread_mutex_init(&mutex, nil) }
    func put(_ bytes: [UInt8]) {
        pthread_mutex_lock(&mutex)
        value = bytes
        pthread_mutex_unlock(&mutex)
    }
    var bytes: [UInt8]? {
        pthread_mutex_lock(&mutex)
        defer { pthread_mutex_unlock(&mutex) }
        return value
    }
}
