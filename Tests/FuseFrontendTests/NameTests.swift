import Glibc
import MountCalls
import TestSupport
import Testing

/// Names, attributes and what a file system says about itself.
@Suite(.enabled(if: hasFuse)) struct NameTests {
    @Test func foldersAndLinks() throws {
        try Mount.with { mount in
            #expect(mkdir(mount.file("db"), 0o750) == 0)
            #expect(error(mkdir(mount.file("db"), 0o750)) == EEXIST)
            try TestFile(mount.file("db/data.raw")).write([1, 2, 3], at: 0)
            #expect(symlink("db/data.raw", mount.file("link")) == 0)
            #expect(try contents(mount.file("link")) == [1, 2, 3])
            #expect(try status(mount.file("link")).st_mode & S_IFMT == S_IFLNK)
            #expect(try names(in: mount.path) == ["db", "link"])
            #expect(error(rmdir(mount.file("db"))) == ENOTEMPTY)
            #expect(error(unlink(mount.file("db"))) == EISDIR)
            #expect(error(rmdir(mount.file("link"))) == ENOTDIR)
            #expect(error(unlink(mount.file("nothing"))) == ENOENT)
            #expect(try status(mount.file("db")).st_mode & 0o7777 == 0o750)
            #expect(try status(mount.path).st_nlink == 3)
            #expect(unlink(mount.file("db/data.raw")) == 0)
            #expect(rmdir(mount.file("db")) == 0)
            #expect(try names(in: mount.path) == ["link"])
        }
    }

    @Test func aLargeFolderIsListedWhole() throws {
        try Mount.with { mount in
            var expected: [String] = []
            for index in 0..<700 {
                let name = "file-with-a-rather-long-name-so-that-it-takes-several-replies-\(index)"
                expected.append(name)
                if index.isMultiple(of: 10) {
                    mkdir(mount.file(name), 0o755)
                } else {
                    symlink("x", mount.file(name))
                }
            }
            #expect(try names(in: mount.path) == expected.sorted())
            let (code, output) = try run(["ls", "-l", mount.path])
            #expect(code == 0)
            #expect(output.split(separator: "\n").count == 701)
        }
    }

    @Test func renameInItsModes() throws {
        try Mount.with { mount in
            let (a, b) = (mount.file("a"), mount.file("b"))
            try TestFile(a).write([1], at: 0)
            try TestFile(b).write([2], at: 0)
            #expect(mc_rename(a, b, UInt32(MC_NOREPLACE)) == -EEXIST)
            #expect(mc_rename(a, b, UInt32(MC_EXCHANGE)) == 0)
            #expect(try contents(a) == [2])
            #expect(try contents(b) == [1])
            #expect(mc_rename(a, mount.file("none"), UInt32(MC_EXCHANGE)) == -ENOENT)
            #expect(mc_rename(a, b, UInt32(MC_WHITEOUT)) == -EINVAL)
            let replaced = try TestFile(b, O_RDONLY)
            #expect(mc_rename(a, b, 0) == 0)
            #expect(try contents(b) == [2])
            #expect(try replaced.read(1, at: 0) == [1], "what was replaced while open stays")
            #expect(openError(a, O_RDONLY) == ENOENT)
            #expect(mc_rename(b, mount.file("c"), UInt32(MC_NOREPLACE)) == 0)
            #expect(mkdir(mount.file("d"), 0o755) == 0)
            #expect(mc_rename(mount.file("d"), mount.file("d/e"), 0) == -EINVAL)
            #expect(mc_rename(mount.file("c"), mount.file("d"), 0) == -EISDIR)
            #expect(mc_rename(mount.file("d"), mount.file("c"), 0) == -ENOTDIR)
            #expect(mc_rename(mount.file("c"), mount.file("d/c"), 0) == 0)
            #expect(try names(in: mount.path) == ["d"])
        }
    }

    @Test func aFileUnlinkedWhileOpenLivesOn() throws {
        try Mount.with { mount in
            let file = try TestFile(mount.file("a.img"))
            try file.write(pattern(100_000), at: 0)
            #expect(unlink(mount.file("a.img")) == 0)
            #expect(openError(mount.file("a.img"), O_RDONLY) == ENOENT)
            #expect(try file.read(100_000, at: 0) == pattern(100_000))
            try file.write([1], at: 200_000)
            try file.sync()
            #expect(file.size == 200_001)
            var now = stat()
            #expect(fstat(file.fd, &now) == 0 && now.st_nlink == 0)
            // A new one of the same name is another file.
            try TestFile(mount.file("a.img")).write([7], at: 0)
            #expect(try status(mount.file("a.img")).st_ino != now.st_ino)
            #expect(try file.read(1, at: 0) == [pattern(1)[0]])
        }
    }

    @Test func modesOwnersAndTimesAreKept() throws {
        try Mount.with { mount in
            let path = mount.file("a.img")
            _ = try TestFile(path, mode: 0o640)
            #expect(try status(path).st_mode & 0o7777 == 0o640)
            #expect(chmod(path, 0o604) == 0)
            if geteuid() == 0 { #expect(chown(path, 107, 108) == 0) }
            var times = [
                timespec(tv_sec: 1_000_000_000, tv_nsec: 123_456_789),
                timespec(tv_sec: -5, tv_nsec: 1),
            ]
            #expect(utimensat(AT_FDCWD, path, &times, 0) == 0)
            for isRemounted in [false, true] {
                if isRemounted { try mount.remount() }
                let now = try status(path)
                #expect(now.st_mode & 0o7777 == 0o604)
                if geteuid() == 0 { #expect(now.st_uid == 107 && now.st_gid == 108) }
                #expect(now.st_atim.tv_sec == 1_000_000_000)
                #expect(now.st_atim.tv_nsec == 123_456_789)
                #expect(now.st_mtim.tv_sec == -5 && now.st_mtim.tv_nsec == 1)
            }
            // A write moves the time on.
            try TestFile(path).write([1], at: 0)
            #expect(try status(path).st_mtim.tv_sec > 1_000_000_000)
        }
    }

    @Test func aNewOwnerInheritsNoPrivileges() throws {
        guard geteuid() == 0 else { return }
        try Mount.with { mount in
            let path = mount.file("a")
            _ = try TestFile(path)
            #expect(chmod(path, 0o6775) == 0)
            #expect(chown(path, 107, 108) == 0)
            #expect(try status(path).st_mode & 0o7777 == 0o775)
        }
    }

    @Test func extendedAttributes() throws {
        try Mount.with { mount in
            let path = mount.file("a.img")
            _ = try TestFile(path)
            let value = pattern(300)
            #expect(mc_setxattr(path, "user.note", value, 300, 1) == 0)
            #expect(mc_setxattr(path, "user.note", value, 300, 1) == -EEXIST)
            #expect(mc_setxattr(path, "user.other", value, 300, 2) == -ENODATA)
            #expect(mc_setxattr(path, "user.empty", value, 0, 0) == 0)
            #expect(mc_setxattr(path, "trusted.x", value, 3, 0) == -EOPNOTSUPP)
            #expect(mc_getxattr(path, "user.note", nil, 0) == 300)
            var buffer = [UInt8](repeating: 0, count: 400)
            #expect(mc_getxattr(path, "user.note", &buffer, 10) == -Int64(ERANGE))
            #expect(mc_getxattr(path, "user.note", &buffer, 400) == 300)
            #expect(Array(buffer[..<300]) == value)
            #expect(mc_getxattr(path, "user.empty", &buffer, 400) == 0)
            #expect(mc_getxattr(path, "user.none", &buffer, 400) == -Int64(ENODATA))
            try mount.remount()
            var list = [CChar](repeating: 0, count: 400)
            let count = Int(mc_listxattr(path, &list, 400))
            let text = String(
                decoding: list[..<max(count, 0)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
            #expect(text.split(separator: "\0").sorted() == ["user.empty", "user.note"])
            #expect(mc_removexattr(path, "user.note") == 0)
            #expect(mc_removexattr(path, "user.note") == -ENODATA)
        }
    }

    @Test func whatIsNotSupportedSaysSo() throws {
        try Mount.with { mount in
            let path = mount.file("a.img")
            _ = try TestFile(path)
            #expect(error(link(path, mount.file("b.img"))) == EPERM)
            #expect(error(mknod(mount.file("dev"), S_IFBLK | 0o600, 0x0801)) == EPERM)
            #expect(error(mkfifo(mount.file("fifo"), 0o600)) == EPERM)
            #expect(error(mknod(mount.file("plain"), S_IFREG | 0o600, 0)) == 0)
            #expect(try names(in: mount.path) == ["a.img", "plain"])
        }
    }

    @Test func figuresAreTheStores() throws {
        try Mount.with { mount in
            var (here, below) = (statvfs(), statvfs())
            #expect(statvfs(mount.path, &here) == 0)
            #expect(statvfs(mount.pool, &below) == 0)
            #expect(here.f_namemax == 255)
            #expect(
                UInt64(here.f_blocks) * UInt64(here.f_frsize)
                    == UInt64(below.f_blocks) * UInt64(below.f_frsize))
            #expect(
                UInt64(here.f_bavail) * UInt64(here.f_frsize)
                    <= UInt64(below.f_blocks) * UInt64(below.f_frsize))
        }
    }
}
