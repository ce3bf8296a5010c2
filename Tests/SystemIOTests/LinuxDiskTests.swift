import Glibc
import SystemIO
import TestSupport
import Testing

/// Folders, names, locks and the clock of the running system.
@Suite struct LinuxDiskTests {
    /// By its base: that is what the product calls.
    private let disk: Disk = LinuxDisk()
    private let linux = LinuxDisk()

    private func withFolder(_ body: (String) throws -> Void) throws {
        let folder = try makeTemporaryFolder()
        defer { _ = try? run(["rm", "-rf", folder]) }
        try body(folder)
    }
    private func failure(_ body: () throws -> Void) -> SystemError? {
        do {
            try body()
            return nil
        } catch { return error as? SystemError }
    }

    @Test func errorsKeepWhatWasTriedWhereAndWhy() throws {
        try withFolder { (folder) throws in
            let missing = failure { _ = try disk.open(folder + "/none", [], mode: 0) }
            #expect(
                missing == SystemError(operation: "open", path: folder + "/none", errno: ENOENT))
            #expect(missing?.isNotFound == true)
            #expect(failure { try disk.removeDirectory(folder + "/none") }?.errno == ENOENT)
            #expect(failure { _ = try disk.list(folder + "/none") }?.errno == ENOENT)
            #expect(failure { try disk.syncDirectory(folder + "/none") }?.errno == ENOENT)
            try disk.createDirectory(folder + "/one", mode: 0o700)
            #expect(
                failure { try disk.createDirectory(folder + "/one", mode: 0o700) }?.errno == EEXIST)
            #expect(failure { try disk.removeFile(folder + "/one") }?.errno == EISDIR)
            #expect(try disk.status(folder + "/none") == nil)
        }
    }

    @Test func foldersListWhatIsInThem() throws {
        try withFolder { (folder) throws in
            try disk.createDirectory(folder + "/folder", mode: 0o750)
            try disk.writeDurably(folder + "/file", contents: [1, 2, 3], mode: 0o640)
            try linux.makeSymlink(folder + "/link", target: "nowhere")
            let found = try disk.list(folder).sorted { $0.name < $1.name }
            #expect(
                found == [
                    DirectoryEntry(name: "file", kind: .file),
                    DirectoryEntry(name: "folder", kind: .directory),
                    DirectoryEntry(name: "link", kind: .symlink),
                ])
            #expect(try disk.status(folder + "/file")?.sizeBytes == 3)
            #expect(try disk.status(folder + "/link")?.kind == .symlink)
            #expect(try disk.status(folder + "/folder")?.mode == 0o750)
            #expect(failure { try disk.removeDirectory(folder) }?.errno == ENOTEMPTY)
        }
    }

    @Test func aNameIsReplacedOnlyWhereThatIsAsked() throws {
        try withFolder { (folder) throws in
            try disk.writeDurably(folder + "/a", contents: [1], mode: 0o600)
            try disk.writeDurably(folder + "/b", contents: [2], mode: 0o600)
            let refused = failure {
                try disk.rename(folder + "/a", to: folder + "/b", noReplace: true)
            }
            #expect(refused?.errno == EEXIST)
            #expect(try disk.readAll(folder + "/b") == [2])
            try disk.rename(folder + "/a", to: folder + "/b")
            #expect(try disk.readAll(folder + "/b") == [1])
            #expect(try disk.list(folder).map(\.name) == ["b"])
        }
    }

    @Test func aFileThatIsWrittenDurablyIsReplacedWhole() throws {
        try withFolder { (folder) throws in
            let path = folder + "/file"
            for count in [0, 1, 70_000, 3] {
                try disk.writeDurably(path, contents: pattern(count), mode: 0o600)
                #expect(try disk.readAll(path) == pattern(count))
            }
            #expect(try disk.list(folder).map(\.name) == ["file"])
            // Where it cannot be written the old one stays.
            try disk.createDirectory(path + ".new", mode: 0o700)
            #expect(
                failure { try disk.writeDurably(path, contents: [9], mode: 0o600) }?.errno == EISDIR
            )
            #expect(try disk.readAll(path) == pattern(3))
        }
    }

    @Test func smallFilesOfTheKernelAreReadToTheirEnd() throws {
        #expect(try disk.readAll("/proc/self/comm").isEmpty, "its size says 0")
        #expect(try !disk.readSmall("/proc/self/comm", limit: 100).isEmpty)
        #expect(try disk.readSmall("/proc/self/maps", limit: 10).count == 10)
    }

    @Test func aLockHasOneHolder() throws {
        try withFolder { (folder) throws in
            let path = folder + "/lock"
            let first = try #require(try disk.tryLock(path))
            #expect(try disk.tryLock(path) == nil)
            // A program that was started meanwhile does not hold it.
            let other = try BackgroundShell("exec sleep 1000")
            defer { other.kill() }
            first.release()
            var second = try disk.tryLock(path)
            #expect(second != nil)
            first.release()
            #expect(try disk.tryLock(path) == nil, "released once")
            second = nil
            #expect(try disk.tryLock(path) != nil, "gone with its object")
        }
    }

    @Test func clocksTellNanoseconds() {
        let (start, wall) = (disk.monotonic(), disk.now())
        #expect(abs(wall / 1_000_000_000 - Int64(time(nil))) <= 2)
        var last = start
        for _ in 0..<10_000 {
            let now = disk.monotonic()
            #expect(now >= last)
            last = now
        }
        #expect(last > start)
    }

    @Test func figuresOfTheFileSystemMakeSense() throws {
        let figures = try disk.fileSystemStatus("/tmp")
        #expect(figures.totalBytes >= figures.freeBytes)
        #expect(figures.freeBytes >= figures.availableBytes)
    }
}
