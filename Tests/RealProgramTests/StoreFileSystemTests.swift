import Glibc
import TestSupport
import Testing

/// A pool on file systems with something special: XFS shares blocks and has files of any size, ext4 has
/// neither. Each is made in a sparse file on a loop device.
@Suite(.enabled(if: Machine.canMountGuests, "needs root, /dev/fuse and loop devices"))
struct StoreFileSystemTests {
    private func withStore(_ fileSystem: String, _ body: (Sandbox) throws -> Void) throws {
        let outer = try makeTemporaryFolder()
        let disk = GuestDisk(fileSystem, at: outer + "/store")
        defer {
            disk.detach()
            _ = try? run(["rm", "-rf", "--one-file-system", outer])
        }
        guard try run(["truncate", "-s", "400M", outer + "/disk"]).code == 0 else {
            throw Failure("no disk for the store")
        }
        try disk.attach(outer + "/disk")
        try disk.format()
        try disk.mount()
        try Sandbox.with(pool: outer + "/store/pool") { box in
            try box.ok("init", box.pool)
            try body(box)
        }
        try disk.unmount()
    }

    private func bytesFree(_ path: String) throws -> UInt64 {
        sync()
        var status = statvfs()
        guard statvfs(path, &status) == 0 else { throw Failure("statvfs \(path): errno \(errno)") }
        return UInt64(status.f_bfree) * UInt64(status.f_frsize)
    }

    /// Import and export of a pool that is not mounted share blocks with the file: three times 64 MiB
    /// take the space of one.
    @Test(.enabled(if: Machine.canMount("xfs"))) func copiesShareBlocksWhereTheFileSystemCan()
        throws
    {
        try withStore("xfs") { box in
            let store = parent(of: box.pool)
            let count = 64 << 20
            let raw = try box.makeFile(store + "/in.raw", count: count)
            let before = try bytesFree(store)
            try box.ok("import", box.pool, raw, "--as", "a.img")
            try box.ok("export", box.pool, "a.img", store + "/out.raw")
            let used = before - min(before, try bytesFree(store))
            #expect(used < UInt64(count) / 2, "\(used) bytes for two copies of \(count)")
            #expect(try box.shell("cmp '\(raw)' '\(store)/out.raw'").code == 0)
            // What is written afterwards is the writer's own.
            try box.mount()
            try box.write("mine", to: box.mountPoint + "/a.img", at: 12_345)
            #expect(try box.shell("cmp '\(raw)' '\(store)/out.raw'").code == 0)
            #expect(try box.shell("cmp -s '\(raw)' '\(box.mountPoint)/a.img'").code == 1)
            try box.ok("unmount", box.mountPoint)
        }
    }

    @Test(.enabled(if: Machine.canMount("xfs"))) func imagesOfUpTo64TiB() throws {
        try withStore("xfs") { box in
            let most: off_t = 64 << 40
            try box.ok("create", box.pool, "big.img", "--size", "64T")
            let refused = try box.run("create", box.pool, "more.img", "--size", "\(most + 1)")
            #expect(refused.code == 1 && refused.errors.contains("64 TiB"), "\(refused)")
            try box.mount()
            let path = box.mountPoint + "/big.img"
            try box.write("tail", to: path, at: most - 4)
            try box.write("odd", to: path, at: most / 2 + 4095)
            try box.ok("snapshot", "create", box.pool, "one")
            try box.write("TAIL", to: path, at: most - 4)
            try expectNothingBeyond(most, path)
            // Not a multiple of a block, and back.
            try box.ok("resize", box.pool, "big.img", "\(most - 3)", "--shrink")
            try box.ok("resize", box.pool, "big.img", "64T")
            try box.ok("unmount", box.mountPoint)
            try box.mount()
            #expect(try box.text(path, count: 4, at: most - 4) == "T\0\0\0")
            #expect(try box.text(path, count: 3, at: most / 2 + 4095) == "odd")
            let old = box.mountPoint + "/.snapshots/one/big.img"
            #expect(try box.text(old, count: 4, at: most - 4) == "tail")
            let images = try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self)
            #expect(images.first?.sizeBytes == UInt64(most))
            #expect((images.first?.allocatedBytes ?? .max) < 1 << 20)
            try box.ok("unmount", box.mountPoint)
        }
    }

    private func expectNothingBeyond(_ most: off_t, _ path: String) throws {
        let file = try TestFile(path)
        #expect(pwrite(file.fd, "x", 1, most) == -1 && errno == EFBIG)
        #expect(ftruncate(file.fd, most + 1) == -1 && errno == EFBIG)
    }

    /// The store's own limit is said as such.
    @Test(.enabled(if: Machine.canMount("ext4"))) func aStoreThatHasNoSuchFilesSaysSo() throws {
        try withStore("ext4") { box in
            let refused = try box.run("create", box.pool, "big.img", "--size", "40T")
            #expect(refused.code == 1)
            #expect(refused.errors.contains("XFS"), "\(refused)")
            #expect(try box.json(box.ok("list", box.pool, "--json"), [ImageLine].self).isEmpty)
            try box.ok("create", box.pool, "small.img", "--size", "3T")
        }
    }

    private func parent(of path: String) -> String {
        String(path[..<(path.lastIndex(of: "/") ?? path.endIndex)])
    }
}
