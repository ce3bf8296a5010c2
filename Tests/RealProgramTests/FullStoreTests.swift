import Glibc
import TestSupport
import Testing

/// G9 on a real disk that is full: a clear error, nothing acknowledged is lost, and a way out.
@Suite(.enabled(if: Machine.canMountGuests, "needs root, /dev/fuse and loop devices"))
struct FullStoreTests {
    private static let pieceBytes = 65536

    /// The pool's device is full. The write says so, at once and every time; what was acknowledged is
    /// durable; and deleting snapshots makes room again, though the disk has not a block left.
    @Test func theWriteSaysItAndDeletingSnapshotsIsTheWayOut() throws {
        try SmallStore.with(megabytes: 64) { store in
            try Sandbox.with(pool: store.path + "/pool") { box in
                let file = try mountImage(box, megabytes: 200)
                var pieces = try fill(file, limit: 200, seed: 1)
                try file.sync()
                try box.ok("snapshot", "create", box.pool, "one")
                let more = try fill(file, limit: 3000, seed: 2)
                #expect(more.count < 3000)
                pieces.merge(more) { $1 }
                #expect(try failure(of: file, at: 3000) == ENOSPC, "again")
                try file.sync()
                try verify(file, pieces)

                let refused = try box.run("snapshot", "create", box.pool, "two")
                #expect(refused.code == 1)
                #expect(refused.errors.contains("full"), "\(refused)")
                try verify(file, pieces)

                try store.fill()
                try box.ok("snapshot", "delete", box.pool, "one")
                try box.until("room", seconds: 60) { store.freeBytes > 4 << 20 }
                try verify(file, pieces)
                pieces.merge(try fill(file, from: 3000, limit: 20, seed: 3)) { $1 }
                try file.sync()
                try box.ok("snapshot", "create", box.pool, "two")
                try verify(file, pieces)
                _ = consume file
                try box.ok("unmount", box.mountPoint)
                try box.mount()
                try verify(try TestFile(box.mountPoint + "/a.img"), pieces)
                try box.ok("scrub", box.pool)
            }
        }
    }

    /// Space is found by the write: when somebody else takes the rest of the disk before the fsync, it
    /// succeeds all the same. The pool also opens again on that disk, after a kill.
    @Test func anFsyncFindsWhatItNeedsAndThePoolOpensOnAFullDisk() throws {
        try SmallStore.with(megabytes: 48) { store in
            try Sandbox.with(pool: store.path + "/pool") { box in
                var file = try mountImage(box, megabytes: 100)
                var pieces = try fill(file, limit: 40, seed: 1)
                try file.sync()
                try box.ok("snapshot", "create", box.pool, "one")
                // New blocks on top of the snapshot, scattered: each needs a record in the map.
                for index in stride(from: 1, to: 400, by: 3) {
                    let bytes = Self.piece(index, seed: 9)
                    try file.write(bytes, at: index * Self.pieceBytes / 4 * 5)
                }
                try store.fill()
                #expect(fsync(file.fd) == 0, "errno \(errno)")
                for index in stride(from: 1, to: 400, by: 3) {
                    let found = try file.read(
                        Self.pieceBytes, at: index * Self.pieceBytes / 4 * 5)
                    #expect(found == Self.piece(index, seed: 9), "piece \(index)")
                }
                #expect(try failure(of: file, at: 1500) == ENOSPC)

                try box.killDaemon()
                try box.mount()
                file = try TestFile(box.mountPoint + "/a.img")
                for index in stride(from: 1, to: 400, by: 3) {
                    let found = try file.read(
                        Self.pieceBytes, at: index * Self.pieceBytes / 4 * 5)
                    #expect(found == Self.piece(index, seed: 9), "piece \(index) after a kill")
                }
                let old = try TestFile(box.mountPoint + "/.snapshots/one/a.img", O_RDONLY)
                try verify(old, pieces)
                _ = consume old

                try box.ok("snapshot", "delete", box.pool, "one")
                store.empty()
                pieces = try fill(file, from: 1500, limit: 10, seed: 4)
                try file.sync()
                try verify(file, pieces)
            }
        }
    }

    /// A merge that finds no room waits; nothing is lost, and it goes on when there is room.
    @Test func aMergeWithoutRoomWaits() throws {
        try SmallStore.with(megabytes: 64) { store in
            try Sandbox.with(pool: store.path + "/pool") { box in
                let file = try mountImage(box, megabytes: 100)
                var pieces = try fill(file, limit: 160, seed: 1)
                try file.sync()
                try box.ok("snapshot", "create", box.pool, "one")
                pieces.merge(try fill(file, from: 300, limit: 150, seed: 2)) { $1 }
                try file.sync()
                let older = pieces
                try box.ok("snapshot", "create", box.pool, "two")
                pieces.merge(try fill(file, from: 500, limit: 100, seed: 3)) { $1 }
                try file.sync()
                try store.fill()
                try box.ok("snapshot", "delete", box.pool, "one")
                // It is tried again and again behind this; what is read must not mind.
                for _ in 0..<5 {
                    try verify(file, pieces)
                    let snapshot = try TestFile(
                        box.mountPoint + "/.snapshots/two/a.img", O_RDONLY)
                    try verify(snapshot, older)
                }
                try box.killDaemon()
                try box.mount()
                try verify(try TestFile(box.mountPoint + "/a.img"), pieces)
                store.empty()
                try box.until("the merge", seconds: 60) {
                    try !box.ok("check", box.pool).contains("is being merged")
                }
                try verify(try TestFile(box.mountPoint + "/a.img"), pieces)
                try verify(
                    try TestFile(box.mountPoint + "/.snapshots/two/a.img", O_RDONLY), older)
            }
        }
    }

    // MARK: Pieces that tell what they are

    private func mountImage(_ box: Sandbox, megabytes: Int) throws -> TestFile {
        try box.ok("init", box.pool)
        try box.ok("create", box.pool, "a.img", "--size", "\(megabytes)M")
        try box.mount()
        return try TestFile(box.mountPoint + "/a.img")
    }

    private static func piece(_ index: Int, seed: Int) -> [UInt8] {
        var random = SeededRandom(seed: UInt64(index * 100 + seed))
        return Array(NoiseSource.slice(pieceBytes, &random))
    }

    /// Writes piece after piece until the disk is full.
    /// - Returns: the seeds of those that were acknowledged.
    private func fill(
        _ file: TestFile, from first: Int = 0, limit: Int, seed: Int
    ) throws -> [Int: Int] {
        var done: [Int: Int] = [:]
        for index in first..<first + limit {
            let bytes = Self.piece(index, seed: seed)
            let count = pwrite(file.fd, bytes, bytes.count, index * Self.pieceBytes)
            if count == bytes.count {
                done[index] = seed
            } else if count >= 0 || errno == ENOSPC {
                break
            } else {
                throw Failure("piece \(index): errno \(errno)")
            }
        }
        return done
    }

    private func failure(of file: TestFile, at index: Int) throws -> Int32 {
        for piece in index..<index + 100 {
            let bytes = Self.piece(piece, seed: 99)
            if pwrite(file.fd, bytes, bytes.count, piece * Self.pieceBytes) < 0 { return errno }
        }
        return 0
    }

    private func verify(_ file: TestFile, _ pieces: [Int: Int]) throws {
        for (index, seed) in pieces {
            let found = try file.read(Self.pieceBytes, at: index * Self.pieceBytes)
            if found != Self.piece(index, seed: seed) {
                throw Failure("piece \(index) is not what was acknowledged")
            }
        }
    }
}
