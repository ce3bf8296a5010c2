import Glibc
import MountCalls
import TestSupport
import Testing

/// Bytes of images through the mount.
@Suite(.enabled(if: hasFuse)) struct ContentTests {
    @Test(arguments: ["none", "read"])
    func readsAndWritesAnywhere(cache: String) throws {
        try Mount.with(cache: cache) { mount in
            let file = try TestFile(mount.file("a.img"))
            try file.write(pattern(10_000), at: 3)
            #expect(try file.read(10_000, at: 3) == pattern(10_000))
            #expect(try file.read(3, at: 0) == [0, 0, 0])
            try file.write([9], at: 5_000_000)
            #expect(file.size == 5_000_001)
            #expect(try file.read(4096, at: 4_000_000) == Array(repeating: 0, count: 4096))
            #expect(try file.read(100, at: 5_000_000) == [9])
            #expect(try file.read(100, at: 6_000_000) == [])
            // More than one request each way.
            let large = pattern(3 << 20, seed: 7)
            try file.write(large, at: 777)
            #expect(try file.read(3 << 20, at: 777) == large)
        }
    }

    @Test func openFlagsMeanWhatTheySay() throws {
        try Mount.with { mount in
            let path = mount.file("a.img")
            #expect(openError(path, O_RDWR) == ENOENT)
            #expect(openError(path, O_RDWR | O_CREAT | O_EXCL) == 0)
            #expect(openError(path, O_RDWR | O_CREAT | O_EXCL) == EEXIST)
            try TestFile(path).write(pattern(100), at: 0)
            let reader = try TestFile(path, O_RDONLY)
            #expect(pwrite(reader.fd, [1], 1, 0) == -1 && errno == EBADF)
            let writer = try TestFile(path, O_WRONLY)
            var byte: UInt8 = 0
            #expect(pread(writer.fd, &byte, 1, 0) == -1 && errno == EBADF)
            #expect(openError(mount.path, O_RDWR) == EISDIR)
            #expect(openError(path, O_RDONLY | O_DIRECTORY) == ENOTDIR)
            #expect(openError(path + "/x", O_RDONLY) == ENOTDIR)
            #expect(
                openError(mount.file(String(repeating: "n", count: 256)), O_RDONLY) == ENAMETOOLONG)
            #expect(
                openError(mount.file(String(repeating: "n", count: 255)), O_RDWR | O_CREAT) == 0)
            _ = try TestFile(path, O_RDWR | O_TRUNC)
            #expect(try status(path).st_size == 0)
        }
    }

    @Test(arguments: ["none", "read"])
    func directIOWorks(cache: String) throws {
        try Mount.with(cache: cache) { mount in
            let file = try TestFile(mount.file("a.img"), direct: true)
            var memory: UnsafeMutableRawPointer?
            posix_memalign(&memory, 4096, 8192)
            let buffer = try #require(memory)
            defer { free(buffer) }
            memset(buffer, 0x5a, 8192)
            #expect(pwrite(file.fd, buffer, 8192, 4096) == 8192)
            memset(buffer, 0, 8192)
            #expect(pread(file.fd, buffer, 8192, 4096) == 8192)
            #expect(buffer.load(fromByteOffset: 8191, as: UInt8.self) == 0x5a)
            // Seen through a handle without the flag, and the other way round.
            let plain = try TestFile(mount.file("a.img"))
            #expect(try plain.read(1, at: 4096) == [0x5a])
            try plain.write([0x11], at: 4097)
            #expect(pread(file.fd, buffer, 4096, 4096) == 4096)
            #expect(buffer.load(fromByteOffset: 1, as: UInt8.self) == 0x11)
        }
    }

    @Test(arguments: ["none", "read"])
    func mappingsAreCoherent(cache: String) throws {
        try Mount.with(cache: cache) { mount in
            if cache == "none", try mount.tell("mapping") == "false" { return }
            let file = try TestFile(mount.file("a.img"))
            try file.write(pattern(64 << 10), at: 0)
            let map = try #require(
                mmap(nil, 64 << 10, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0))
            #expect(map != MAP_FAILED)
            defer { munmap(map, 64 << 10) }
            #expect(map.load(fromByteOffset: 5000, as: UInt8.self) == pattern(5001)[5000])
            map.storeBytes(of: 0xab, toByteOffset: 5000, as: UInt8.self)
            #expect(msync(map, 64 << 10, MS_SYNC) == 0)
            #expect(try TestFile(mount.file("a.img")).read(1, at: 5000) == [0xab])
            // A private mapping keeps its changes to itself.
            let own = try #require(mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.fd, 0))
            #expect(own != MAP_FAILED)
            own.storeBytes(of: 0xcd, toByteOffset: 0, as: UInt8.self)
            munmap(own, 4096)
            #expect(try file.read(1, at: 0) == [pattern(1)[0]])
        }
    }

    @Test(arguments: ["none", "read"])
    func appendsGoToTheEnd(cache: String) throws {
        try Mount.with(cache: cache) { mount in
            let path = mount.file("log")
            let a = try TestFile(path, O_WRONLY | O_CREAT | O_APPEND)
            let b = try TestFile(path, O_WRONLY | O_APPEND)
            for index in 0..<20 {
                let file = index.isMultiple(of: 2) ? a : b
                #expect(Glibc.write(file.fd, [UInt8(index)], 1) == 1)
            }
            #expect(try contents(path) == (0..<20).map { UInt8($0) })
        }
    }

    @Test(arguments: ["none", "read"])
    func truncateCutsAndGrows(cache: String) throws {
        try Mount.with(cache: cache) { mount in
            let file = try TestFile(mount.file("a.img"))
            try file.write(pattern(20_000), at: 0)
            #expect(ftruncate(file.fd, 5001) == 0)
            #expect(file.size == 5001)
            #expect(try file.read(20_000, at: 0) == Array(pattern(20_000)[..<5001]))
            #expect(truncate(mount.file("a.img"), 20_000) == 0)
            #expect(
                try file.read(20_000, at: 0)
                    == Array(pattern(20_000)[..<5001]) + Array(repeating: 0, count: 14_999))
            // Within what ext4 takes for one file; 64 TiB is where Doppel itself ends.
            #expect(ftruncate(file.fd, 8 << 40) == 0)
            #expect(file.size == 8 << 40)
            try file.write([1], at: 8 << 40 - 1)
            #expect(try file.read(10, at: 8 << 40 - 1) == [1])
            #expect(ftruncate(file.fd, 64 << 40 + 1) == -1 && errno == EFBIG)
            #expect(pwrite(file.fd, [1], 1, 64 << 40) == -1 && errno == EFBIG)
        }
    }

    @Test(arguments: ["none", "read"])
    func fallocateInItsModes(cache: String) throws {
        try Mount.with(cache: cache) { mount in
            let file = try TestFile(mount.file("a.img"))
            try file.write(pattern(100_000), at: 0)
            let (keep, punch, zero) = (
                Int32(MC_KEEP_SIZE), Int32(MC_PUNCH_HOLE), Int32(MC_ZERO_RANGE)
            )
            #expect(mc_fallocate(file.fd, punch | keep, 5_000, 50_000) == 0)
            var expected = pattern(100_000)
            expected.replaceSubrange(5_000..<55_000, with: Array(repeating: 0, count: 50_000))
            #expect(try file.read(100_000, at: 0) == expected)
            #expect(mc_fallocate(file.fd, zero | keep, 90_000, 50_000) == 0)
            expected.replaceSubrange(90_000..<100_000, with: Array(repeating: 0, count: 10_000))
            #expect(file.size == 100_000)
            #expect(try file.read(200_000, at: 0) == expected)
            #expect(mc_fallocate(file.fd, zero, 90_000, 50_000) == 0)
            #expect(file.size == 140_000)
            #expect(mc_fallocate(file.fd, keep, 0, 1 << 20) == 0)
            #expect(file.size == 140_000)
            #expect(mc_fallocate(file.fd, 0, 0, 1 << 20) == 0)
            #expect(file.size == 1 << 20)
            #expect(try Array(file.read(1 << 20, at: 0)[..<90_000]) == Array(expected[..<90_000]))
            #expect(mc_fallocate(file.fd, Int32(MC_COLLAPSE), 0, 4096) == -EOPNOTSUPP)
            #expect(mc_fallocate(file.fd, 0, 0, 0) == -EINVAL)
        }
    }

    @Test func holesAreFound() throws {
        try Mount.with { mount in
            let file = try TestFile(mount.file("a.img"))
            #expect(ftruncate(file.fd, 64 << 20) == 0)
            try file.write(pattern(65536), at: 16 << 20)
            try file.sync()
            #expect(mc_seek_data(file.fd, 0) == 16 << 20)
            #expect(mc_seek_hole(file.fd, 0) == 0)
            #expect(mc_seek_hole(file.fd, 16 << 20) == 16 << 20 + 65536)
            #expect(mc_seek_data(file.fd, 17 << 20) == -Int64(ENXIO))
            #expect(mc_seek_hole(file.fd, 64 << 20) == -Int64(ENXIO))
            let blocks = try status(mount.file("a.img")).st_blocks * 512
            #expect(blocks >= 65536 && blocks < 4 << 20)
            #expect(
                mc_fallocate(
                    file.fd, Int32(MC_PUNCH_HOLE | MC_KEEP_SIZE), 16 << 20, 65536) == 0)
            #expect(mc_seek_data(file.fd, 0) == -Int64(ENXIO))
        }
    }

    @Test func synchronousWritersOfTwoProcesses() throws {
        try Mount.with { mount in
            let path = mount.file("a.img")
            let file = try TestFile(path, O_RDWR | O_CREAT | O_SYNC)
            // The other one writes the odd blocks while this one writes the even ones.
            let script = """
                for i in $(seq 1 2 63); do
                    printf %04096d $i | dd of="$0" bs=4096 seek=$i oflag=dsync conv=notrunc \
                        status=none
                done
                """
            let other = TestThread { try run(["sh", "-c", script, path]) }
            for index in stride(from: 0, to: 64, by: 2) {
                try file.write(Array(repeating: UInt8(index), count: 4096), at: index * 4096)
            }
            let (code, output) = try other.join()
            #expect(code == 0, "\(output)")
            for index in 0..<64 {
                let block = try file.read(4096, at: index * 4096)
                if index.isMultiple(of: 2) {
                    #expect(block == Array(repeating: UInt8(index), count: 4096))
                } else {
                    let digits = String(index)
                    #expect(
                        block
                            == Array(repeating: 0x30, count: 4096 - digits.count)
                            + Array(digits.utf8))
                }
            }
            #expect(mc_pwrite_dsync(file.fd, [1, 2, 3], 3, 0) == 3)
        }
    }

    @Test func contentSurvivesARemount() throws {
        try Mount.with { mount in
            let path = mount.file("a.img")
            try TestFile(path).write(pattern(1 << 20), at: 12345)
            let inode = try status(path).st_ino
            try mount.remount()
            #expect(try TestFile(path).read(1 << 20, at: 12345) == pattern(1 << 20))
            #expect(try status(path).st_ino == inode)
        }
    }
}
