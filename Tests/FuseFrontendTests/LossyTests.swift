import Glibc
import MountCalls
import TestSupport
import Testing

/// That the lossy file system forgets and keeps what it says, and that a pool on top of it loses
/// nothing that was flushed.
@Suite(.enabled(if: hasFuse)) struct LossyTests {
    @Test func whatWasNotSyncedIsForgotten() throws {
        try LossyMount.with { lossy in
            let path = lossy.file("a")
            let file = try TestFile(path)
            try file.write(pattern(10_000), at: 0)
            try file.sync()
            try lossy.syncFolder()
            try file.write(pattern(10_000, seed: 5), at: 5000)
            #expect(try file.read(100, at: 9000) == Array(pattern(10_000, seed: 5)[4000..<4100]))
            try TestFile(lossy.file("b")).sync()
            #expect(rename(path, lossy.file("c")) == 0)
            try lossy.tell("drop")
            #expect(openError(lossy.file("b"), O_RDONLY) == ENOENT)
            #expect(openError(lossy.file("c"), O_RDONLY) == ENOENT)
            #expect(try contents(path) == pattern(10_000))
        }
    }

    @Test func theSameSeedForgetsTheSame() throws {
        func run(seed: Int) throws -> ([String], [UInt8]) {
            try LossyMount.with { lossy in
                let file = try TestFile(lossy.file("a"))
                try file.write(pattern(100_000), at: 0)
                try file.sync()
                try lossy.syncFolder()
                try file.write(pattern(100_000, seed: 5), at: 0)
                for index in 0..<20 { _ = try TestFile(lossy.file("f\(index)")) }
                try lossy.tell("drop \(seed)")
                return (try names(in: lossy.path), try contents(lossy.file("a")))
            }
        }
        let first = try run(seed: 42)
        #expect(try run(seed: 42) == first)
        // A prefix of the changes of names, and bytes that are one or the other.
        let created = (0..<20).map { "f\($0)" }
        #expect(Set(first.0) == Set(["a"] + created.prefix(first.0.count - 1)))
        let (old, new) = (pattern(100_000), pattern(100_000, seed: 5))
        #expect(first.1.indices.allSatisfy { first.1[$0] == old[$0] || first.1[$0] == new[$0] })
        #expect(first.1 != old && first.1 != new)
    }

    @Test func failuresComeWhenAskedFor() throws {
        try LossyMount.with { lossy in
            let file = try TestFile(lossy.file("a"))
            try file.write(pattern(4096), at: 0)
            try lossy.tell("sync-fails 1")
            #expect(fsync(file.fd) == -1 && errno == EIO)
            #expect(fsync(file.fd) == 0, "the kernel forgets, too")
            try lossy.tell("write-fails 1")
            #expect(pwrite(file.fd, [1], 1, 0) == -1 && errno == EIO)
            try lossy.tell("space 8192")
            try file.write(pattern(4096), at: 0)
            #expect(pwrite(file.fd, pattern(8192), 8192, 4096) == -1 && errno == ENOSPC)
            try lossy.tell("space -")
            try file.write(pattern(8192), at: 4096)
        }
    }

    /// G1, with the real order of catalog and layer files below.
    @Test(arguments: [nil, 1, 2, 3, 4, 5, 6] as [UInt64?])
    func aPoolKeepsWhatWasFlushed(seed: UInt64?) throws {
        try LossyMount.with { lossy in
            try Mount.with(pool: lossy.file("pool")) { mount in
                let a = try TestFile(mount.file("a.img"))
                try a.write(pattern(200_000), at: 0)
                try a.sync()
                try mount.tell("snapshot one")
                try a.write(pattern(50_000, seed: 2), at: 100_000)
                try a.sync()
                try a.write(pattern(50_000, seed: 3), at: 3_000_000)
                let b = try TestFile(mount.file("b.img"))
                try b.write(pattern(5000, seed: 4), at: 0)
                mount.kill()
                try lossy.tell(seed.map { "drop \($0)" } ?? "drop")
                try mount.serveAgain()

                let image = try TestFile(mount.file("a.img"), O_RDONLY)
                var expected = pattern(200_000)
                expected.replaceSubrange(100_000..<150_000, with: pattern(50_000, seed: 2))
                #expect(try image.read(200_000, at: 0) == expected)
                let old = try TestFile(mount.file(".snapshots/one/a.img"), O_RDONLY)
                #expect(try old.read(300_000, at: 0) == pattern(200_000))
            }
        }
    }

    @Test func aFailedSyncIsNotForgotten() throws {
        try LossyMount.with { lossy in
            try Mount.with(pool: lossy.file("pool")) { mount in
                let file = try TestFile(mount.file("a.img"))
                try file.write(pattern(8192), at: 0)
                try file.sync()
                try file.write(pattern(8192, seed: 2), at: 8192)
                try lossy.tell("sync-fails 1")
                #expect(fsync(file.fd) == -1 && errno == EIO)
                #expect(fsync(file.fd) == -1 && errno == EIO, "nothing is retried and hoped over")
                #expect(try file.read(8192, at: 0) == pattern(8192))
            }
        }
    }

    @Test func aFullStoreIsToldByTheWrite() throws {
        try LossyMount.with { lossy in
            try Mount.with(pool: lossy.file("pool")) { mount in
                let file = try TestFile(mount.file("a.img"))
                try file.write(pattern(1 << 20), at: 0)
                try file.sync()
                try lossy.tell("space 2097152")
                var failure: Int32 = 0
                for index in 1..<64 where failure == 0 {
                    if pwrite(file.fd, pattern(65536), 65536, index << 20) < 0 { failure = errno }
                }
                #expect(failure == ENOSPC)
                #expect(try file.read(1 << 20, at: 0) == pattern(1 << 20))
                try lossy.tell("space -")
                try file.write(pattern(65536), at: 100 << 20)
                try file.sync()
            }
        }
    }
}
