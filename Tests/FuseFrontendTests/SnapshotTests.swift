import Glibc
import MountCalls
import TestSupport
import Testing

/// The dot folders of the mount, and what the kernel is told when they or images change behind it.
@Suite(.enabled(if: hasFuse)) struct SnapshotTests {
    @Test(arguments: ["none", "read"])
    func aSnapshotIsAReadOnlyFolder(cache: String) throws {
        try Mount.with(cache: cache) { mount in
            mkdir(mount.file("db"), 0o750)
            let file = try TestFile(mount.file("db/a.img"), mode: 0o640)
            try file.write(pattern(300_000), at: 0)
            var times = [timespec(tv_sec: 1000, tv_nsec: 5), timespec(tv_sec: 2000, tv_nsec: 6)]
            futimens(file.fd, &times)
            symlink("a.img", mount.file("db/link"))
            try mount.tell("snapshot one")
            try file.write(pattern(300_000, seed: 9), at: 0)
            #expect(ftruncate(file.fd, 1000) == 0)
            #expect(unlink(mount.file("db/link")) == 0)

            let old = mount.file(".snapshots/one/db/a.img")
            #expect(try contents(old) == pattern(300_000))
            let now = try status(old)
            #expect(now.st_mtim.tv_sec == 2000 && now.st_mtim.tv_nsec == 6)
            #expect(now.st_size == 300_000)
            #expect(now.st_mode & S_IFMT == S_IFREG)
            #expect(try contents(mount.file(".snapshots/one/db/link")) == pattern(300_000))
            #expect(try names(in: mount.file(".snapshots")) == ["one"])
            #expect(try names(in: mount.file(".snapshots/one/db")) == ["a.img", "link"])
            // Content that does not change may be mapped and sought in.
            let snapshot = try TestFile(old, O_RDONLY)
            let map = try #require(mmap(nil, 300_000, PROT_READ, MAP_SHARED, snapshot.fd, 0))
            #expect(map != MAP_FAILED)
            #expect(map.load(fromByteOffset: 299_999, as: UInt8.self) == pattern(300_000)[299_999])
            munmap(map, 300_000)
            #expect(mc_seek_data(snapshot.fd, 0) == 0)

            #expect(openError(old, O_RDWR) == EROFS)
            #expect(openError(mount.file(".snapshots/one/new"), O_RDWR | O_CREAT) == EROFS)
            #expect(error(unlink(old)) == EROFS)
            #expect(error(mkdir(mount.file(".snapshots/one/d"), 0o755)) == EROFS)
            #expect(error(chmod(old, 0o777)) == EROFS)
            #expect(error(truncate(old, 0)) == EROFS)
            #expect(mc_setxattr(old, "user.x", [1], 1, 0) == -EROFS)
        }
    }

    @Test func dotFoldersAreReachableButNotListed() throws {
        try Mount.with { mount in
            #expect(try names(in: mount.path) == [])
            #expect(try names(in: mount.file(".snapshots")) == [])
            #expect(try names(in: mount.file(".doppel")) == ["status.json"])
            let text = String(
                decoding: try contents(mount.file(".doppel/status.json")), as: UTF8.self)
            #expect(text.hasPrefix("{") && text.contains("state"))
            #expect(openError(mount.file(".doppel/status.json"), O_RDWR) == EROFS)
            #expect(error(mkdir(mount.file(".snapshots"), 0o755)) == EEXIST)
            #expect(error(rmdir(mount.file(".snapshots"))) != 0)
            try mount.remount(options: ["snapdir=visible"])
            #expect(try names(in: mount.path) == [".doppel", ".snapshots"])
        }
    }

    @Test func aDeletedSnapshotIsGoneAtOnce() throws {
        try Mount.with { mount in
            try TestFile(mount.file("a.img")).write(pattern(5000), at: 0)
            try mount.tell("snapshot one")
            let path = mount.file(".snapshots/one/a.img")
            do {
                let held = try TestFile(path, O_RDONLY)
                #expect(try held.read(5000, at: 0) == pattern(5000))
                #expect(mount.refusal("delete-snapshot one") != nil, "it is being read")
            }
            // The kernel tells of a close in its own time.
            var refusal = mount.refusal("delete-snapshot one")
            for _ in 0..<50 where refusal != nil {
                usleep(20_000)
                refusal = mount.refusal("delete-snapshot one")
            }
            #expect(refusal == nil)
            #expect(openError(path, O_RDONLY) == ENOENT)
            #expect(openError(mount.file(".snapshots/one"), O_RDONLY) == ENOENT)
            #expect(try names(in: mount.file(".snapshots")) == [])
            #expect(try contents(mount.file("a.img")) == pattern(5000))
        }
    }

    @Test(arguments: ["none", "read"])
    func aRestoreIsSeenAtOnce(cache: String) throws {
        try Mount.with(cache: cache) { mount in
            let path = mount.file("a.img")
            try TestFile(path).write(pattern(50_000), at: 0)
            try mount.tell("snapshot one")
            try TestFile(path).write(pattern(60_000, seed: 3), at: 0)
            #expect(try contents(path) == pattern(60_000, seed: 3))
            try mount.tell("restore a.img one")
            #expect(try status(path).st_size == 50_000)
            #expect(try contents(path) == pattern(50_000))
        }
    }

    @Test func aResizeFromOutsideIsSeenAtOnce() throws {
        try Mount.with { mount in
            let path = mount.file("a.img")
            try TestFile(path).write(pattern(5000), at: 0)
            #expect(try status(path).st_size == 5000)
            try mount.tell("resize a.img 1048576")
            #expect(try status(path).st_size == 1 << 20)
        }
    }

    @Test func whatAMappingHoldsIsInTheSnapshot() throws {
        try Mount.with(cache: "read") { mount in
            let file = try TestFile(mount.file("a.img"))
            try file.write(pattern(8192), at: 0)
            let map = try #require(mmap(nil, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0))
            #expect(map != MAP_FAILED)
            defer { munmap(map, 8192) }
            map.storeBytes(of: 0x77, toByteOffset: 4100, as: UInt8.self)
            try mount.tell("snapshot one")
            #expect(try contents(mount.file(".snapshots/one/a.img"))[4100] == 0x77)
        }
    }

    @Test func cpKeepsHolesOfASnapshot() throws {
        try Mount.with { mount in
            let file = try TestFile(mount.file("a.img"))
            ftruncate(file.fd, 256 << 20)
            try file.write(pattern(4096), at: 100 << 20)
            try mount.tell("snapshot one")
            let copy = mount.folder + "/copy.img"
            let (code, output) = try run([
                "cp", "--sparse=auto", mount.file(".snapshots/one/a.img"), copy,
            ])
            #expect(code == 0, "\(output)")
            #expect(try status(copy).st_size == 256 << 20)
            #expect(try status(copy).st_blocks * 512 < 4 << 20)
            #expect(try TestFile(copy, O_RDONLY).read(4096, at: 100 << 20) == pattern(4096))
        }
    }
}
