import BlockCore
import SystemIO
import Testing

@testable import VirtualFS

@Suite struct OpenFileTests {
    @Test func aFileUnlinkedWhileOpenLivesUntilItsLastClose() throws {
        try TestPool.with { pool in
            let first = try pool.open("a")
            let second = try pool.fs.open(first.inode, access: .read)
            try first.put([1, 2, 3], at: 0)
            try pool.unlink("a")
            #expect(try pool.names() == [])
            #expect(try pool.fs.attributes(of: first.inode).linkCount == 0)
            try first.put([9], at: 3)
            try first.flush()
            first.close()
            #expect(try second.get(10, at: 0) == [1, 2, 3, 9])
            #expect(pool.volume.imageIDs.count == 1)
            // A new one of the same name is another file.
            #expect(try pool.create("a", [7]) != second.inode)
            #expect(try second.get(1, at: 0) == [1])
            second.close()
            #expect(pool.volume.imageIDs.count == 1, "the new one")
            #expect(code { _ = try pool.fs.attributes(of: second.inode) } == .stale)
            second.close()
            #expect(try pool.contents("a") == [7], "closing twice closes once")
        }
    }

    @Test func anOrphanCanBeOpenedAgainWhileItIsOpen() throws {
        try TestPool.with { pool in
            let first = try pool.open("a")
            try first.put([5], at: 0)
            try pool.unlink("a")
            let again = try pool.fs.open(first.inode, access: .read)
            first.close()
            #expect(try again.get(1, at: 0) == [5])
            again.close()
            #expect(pool.volume.imageIDs.isEmpty)
        }
    }

    @Test func createOpensWhatIsThere() throws {
        try TestPool.with { pool in
            let inode = try pool.create("a", [1, 2, 3])
            let file = try pool.open("a")
            #expect(file.inode == inode && file.isWritable)
            #expect(try file.get(9, at: 0) == [1, 2, 3])
            file.close()
            let emptied = try pool.open("a", truncates: true)
            #expect(try emptied.get(9, at: 0) == [])
            emptied.close()
            #expect(try pool.attributes("a").sizeBytes == 0)
        }
    }

    @Test func aReaderDoesNotWrite() throws {
        try TestPool.with { pool in
            let inode = try pool.create("a", [1])
            let file = try pool.fs.open(inode, access: .read)
            defer { file.close() }
            #expect(code { try file.put([2], at: 0) } == .badHandle)
            #expect(code { _ = try pool.fs.open(TestPool.root, access: .read) } == .isDirectory)
            #expect(code { _ = try pool.fs.open(9999, access: .read) } == .stale)
        }
    }

    @Test func writersAreToldByProcess() throws {
        try TestPool.with { pool in
            let own = ProcessControl.processID
            let inode = try pool.create("a")
            #expect(pool.fs.openWriters(of: inode).isEmpty)
            let writer = try pool.open("a", pid: own)
            let other = try pool.fs.open(inode, access: .write, clientPID: 0x7fff_fff0)
            let reader = try pool.fs.open(inode, access: .read, clientPID: 1)
            let found = pool.fs.openWriters(of: inode)
            #expect(found.map(\.pid) == [own, 0x7fff_fff0])
            #expect(!found[0].command.isEmpty, "a living process has a name")
            #expect(found[1].command.isEmpty, "a dead one is told by its number")
            [writer, other, reader].forEach { $0.close() }
            #expect(pool.fs.openWriters(of: inode).isEmpty)
        }
    }

    /// Names race with names: whatever the order, each call gets a file or a proper error, and
    /// nothing is left behind.
    @Test(.timeLimit(.minutes(2))) func createOpenAndUnlinkOfOneNameRace() throws {
        try TestPool.with { pool in
            let fs = pool.fs
            let allowed: Set<FSErrorCode> = [.notFound, .stale, .exists]
            let threads = (0..<4).map { thread in
                WorkerThread.start("racer") {
                    let name = Array("contended".utf8)
                    for step in 0..<60 {
                        do throws(FSError) {
                            if (step + thread) % 3 == 0 {
                                try fs.removeFile(parent: 1, name: name)
                            } else {
                                let (_, file) = try fs.createFile(
                                    parent: 1, name: name, mode: 0o600, uid: 0, gid: 0)
                                defer { file.close() }
                                try withUnsafeBytes(of: UInt64(step)) { raw throws(FSError) in
                                    try file.write(raw, at: 0)
                                }
                                if step % 10 == 0 { try file.flush() }
                            }
                        } catch {
                            #expect(allowed.contains(error.code), "\(error)")
                        }
                    }
                }
            }
            threads.forEach { $0.join() }
            let left = try pool.names()
            #expect(pool.volume.imageIDs.count == left.count)
            #expect(fs.openFiles.isEmpty)
            try pool.reopen()
            #expect(try pool.names() == left)
        }
    }
}
