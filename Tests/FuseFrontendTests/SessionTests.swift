import Glibc
import MountCalls
import TestSupport
import Testing

@testable import FuseFrontend

/// The life of a mount: options, dead mounts, busy ones, locks between programs.
@Suite(.enabled(if: hasFuse)) struct SessionTests {
    @Test func theMountTableNamesPoolAndType() throws {
        try Mount.with { mount in
            let place = try #require(MountTable.top(at: try MountPoint.canonical(mount.path)))
            #expect(place.type == "fuse.doppel")
            #expect(place.source == mount.pool)
        }
    }

    @Test func aBusyMountIsServedUntilItIsFree() throws {
        try Mount.with { mount in
            do {
                let file = try TestFile(mount.file("a.img"))
                #expect(mount.refusal("unmount")?.contains("in use") == true)
                try mount.tell("stop")
                usleep(300_000)
                try file.write(pattern(10_000), at: 0)
                #expect(try file.read(10_000, at: 0) == pattern(10_000))
            }
            try mount.waitForEnd()
            #expect(MountTable.top(at: mount.path) == nil)
        }
    }

    @Test func aForcedUnmountLetsOpenFilesFinish() throws {
        try Mount.with { mount in
            do {
                let file = try TestFile(mount.file("a.img"))
                try mount.tell("force")
                #expect(MountTable.top(at: mount.path) == nil)
                try file.write([1, 2, 3], at: 0)
                try file.sync()
            }
            try mount.waitForEnd()
        }
    }

    @Test func anAbortEndsEverything() throws {
        try Mount.with { mount in
            let file = try TestFile(mount.file("a.img"))
            try mount.tell("abort")
            try mount.waitForEnd()
            #expect(pwrite(file.fd, [1], 1, 0) == -1)
        }
    }

    @Test func aDeadMountIsCleared() throws {
        try Mount.with { mount in
            let held = try TestFile(mount.file("a.img"))
            try held.write(pattern(5000), at: 0)
            try held.sync()
            mount.kill()
            #expect(openError(mount.file("a.img"), O_RDONLY) == ENOTCONN)
            try withExtendedLifetime(held) { try mount.serveAgain() }
            #expect(try contents(mount.file("a.img")) == pattern(5000))
            let here = MountTable.read().filter { $0.path == mount.path }
            #expect(here.count == 1, "the dead mount is gone, not covered")
        }
    }

    /// For seconds the kernel tells of the folder what it remembers.
    @Test func aDeadMountIsKnownAtOnce() throws {
        try Mount.with { mount in
            let path = try MountPoint.canonical(mount.path)
            #expect(!MountPoint.isDead(path))
            _ = try status(path)
            mount.kill()
            #expect(MountPoint.isDead(path))
        }
    }

    @Test func aLiveMountIsNotCovered() throws {
        try Mount.with { mount in
            #expect(throws: MountError.self) { try MountSession.prepare(mountPoint: mount.path) }
            do throws(MountError) { try MountSession.prepare(mountPoint: mount.path) } catch {
                #expect(error.kind == .alreadyMounted)
            }
        }
    }

    @Test func optionsReachTheKernel() throws {
        try Mount.with(options: ["noatime", "noexec", "x-systemd.automount", "_netdev", "nofail"]) {
            mount in
            let line = try run(["findmnt", "-no", "OPTIONS", mount.path]).output
            #expect(line.contains("noatime") && line.contains("noexec"))
            try TestFile(mount.file("a.img")).write([1], at: 0)
            try mount.remount(options: ["ro"])
            #expect(openError(mount.file("a.img"), O_RDWR) == EROFS)
            #expect(try contents(mount.file("a.img")) == [1])
        }
    }

    @Test func wordsOfAnOptionListAreToldApart() {
        #expect(MountOptions.split(#"ro,fsname=a\,b,,x\\y"#) == ["ro", "fsname=a,b", #"x\y"#])
        var options = MountOptions()
        for word in ["rw", "allow_other", "default_permissions", "noatime", "noauto", "x-foo=1"] {
            let isTaken = options.accept(word)
            #expect(isTaken)
        }
        for word in ["cache=none", "fsname=other", "nonsense"] {
            let isTaken = options.accept(word)
            #expect(!isTaken)
        }
        let words = options.arguments(poolPath: #"/p,q\r"#).joined(separator: " ")
        #expect(words.contains(#"fsname=/p\,q\\r"#))
        #expect(words.contains("default_permissions"))
        #expect(!words.contains("noauto"))
    }

    @Test func linesOfTheMountTableAreRead() throws {
        let line =
            "36 35 0:52 / /mnt/a\\040b rw,noatime shared:1 - fuse.doppel /pool rw,user_id=0\n"
        let place = try #require(MountTable.parse(line))
        #expect(place.path == "/mnt/a b")
        #expect(place.device == "0:52" && place.connection == "52")
        #expect(place.isFuse && place.source == "/pool")
        #expect(MountTable.parse("nonsense") == nil)
    }

    @Test func theProcessThatWritesIsKnown() throws {
        try Mount.with { mount in
            let file = try TestFile(mount.file("a.img"))
            #expect(try mount.tell("writers a.img").contains("process \(getpid())"))
            withExtendedLifetime(file) {}
        }
    }

    @Test(.enabled(if: access("/usr/bin/qemu-io", X_OK) == 0))
    func qemuLocksImages() throws {
        try Mount.with { mount in
            // qemu-io itself keeps others out of a qcow2 file, and shares a raw one.
            let path = mount.file("a.qcow2")
            let made = try run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"])
            #expect(made.code == 0, "\(made.output)")
            // The first one holds its lock while the second one tries.
            let first = """
                (echo 'write -P 0x5a 0 64k'; sleep 3; echo quit) | qemu-io -f qcow2 "$0"
                """
            let holder = TestThread { try run(["sh", "-c", first, path]) }
            sleep(1)
            let second = try run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", path])
            #expect(second.code != 0)
            #expect(second.output.contains("Failed to get \"write\" lock"))
            let result = try holder.join()
            #expect(result.code == 0, "\(result.output)")
            let third = try run(["qemu-io", "-f", "qcow2", "-c", "read -P 0x5a 0 64k", path])
            #expect(third.code == 0 && !third.output.contains("failed"), "\(third.output)")

            // A virtual machine holds this byte of a raw image: nobody else may write.
            let raw = try TestFile(mount.file("a.img"))
            ftruncate(raw.fd, 1 << 20)
            chmod(mount.path, 0o755)
            chmod(mount.folder, 0o755)
            chmod(mount.file("a.img"), 0o666)
            #expect(mc_lock_byte(raw.fd, 201) == 0)
            for prefix in Self.users {
                let refused = try run(
                    prefix + ["qemu-io", "-f", "raw", "-c", "write 0 64k", mount.file("a.img")])
                #expect(refused.code != 0)
                #expect(refused.output.contains("Failed to get \"write\" lock"), "\(prefix)")
            }
        }
    }

    /// As ourselves and, where we may, as somebody else.
    private static var users: [[String]] {
        guard geteuid() == 0, access("/usr/bin/setpriv", X_OK) == 0 else { return [[]] }
        return [[], ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]]
    }

    @Test func aSlowSyncStopsNobody() throws {
        try Mount.with { mount in
            // Many syncs at once, and a reader in between that must go on.
            let files = try (0..<8).map { try TestFile(mount.file("\($0).img")) }
            let writers = files.map { file in
                let fd = file.fd
                return TestThread {
                    for index in 0..<40 {
                        _ = pwrite(fd, pattern(4096), 4096, index * 4096)
                        guard fsync(fd) == 0 else { throw Failure("fsync: \(errno)") }
                    }
                }
            }
            for _ in 0..<100 { _ = try status(mount.file("0.img")) }
            for writer in writers { try writer.join() }
            for file in files { #expect(file.size == 40 * 4096) }
        }
    }
}
