import BlockCore
import Glibc
import SystemIO
import Testing

@testable import Pool

/// A run that is stopped before each of its changes in turn is what a kill leaves: what the kernel
/// was told stays, what it was not told never happened. (Power loss is another test's.)
@Suite struct AdoptTests {
    private let disk = LinuxDisk()

    // MARK: The whole way

    @Test func theFolderBecomesAPoolByRename() throws {
        try Folder.with { (folder) throws in
            try folder.fill()
            let inode = try #require(try disk.status(folder.path + "/a.img")).inode
            let plan = try Adoption.adopt(folder.path)
            #expect(plan.files.count == 6)
            let item = try #require(plan.items.first { $0.path == "a.img" })
            let data = "\(folder.path)/images/\(item.imageID!)/\(item.layerID!).data"
            #expect(try #require(try disk.status(data)).inode == inode)
            #expect(try disk.status(folder.path + "/a.img") == nil)
            #expect(try disk.status(folder.path + "/.doppel-adopt") == nil)
            #expect(try #require(try disk.status(folder.path)).mode == 0o700)
            let store = try PoolStore.open(path: folder.path, disk: disk)
            defer { try? store.close(clean: true, lastSequence: .zero) }
            #expect(!store.wasUnclean)
            let nodes = try store.catalog.read { try $0.nodes() }
            #expect(nodes.count == plan.items.count + 1)
            #expect(
                try disk.status(store.activityPath(image: ImageID(rawValue: item.imageID!))) != nil)
        }
    }

    @Test func adoptAndEjectGiveBackEveryByteAndAttribute() throws {
        try Folder.with { (folder) throws in
            try folder.fill()
            let before = try folder.picture()
            _ = try Adoption.adopt(folder.path)
            try folder.eject()
            #expect(try folder.picture() == before)
        }
    }

    @Test func aDryRunChangesNothing() throws {
        try Folder.with { (folder) throws in
            try folder.fill()
            let before = try folder.picture()
            let plan = try Adoption.plan(folder.path)
            #expect(plan.files.map(\.path).contains("vms/db/data.raw"))
            #expect(try folder.picture() == before)
        }
    }

    @Test func namesThatDifferOnlyInTheirEncodingStayApart() throws {
        try Folder.with { (folder) throws in
            for (name, text) in [("\u{e9}", "one"), ("e\u{301}", "two")] {
                try folder.makeDirectory(name)
                try folder.write("\(name)/x", text)
            }
            let before = try folder.picture()
            _ = try Adoption.adopt(folder.path)
            try folder.eject()
            #expect(try folder.picture() == before)
        }
    }

    // MARK: Kills

    @Test func adoptFinishesAfterAKillBeforeAnyOfItsChanges() throws {
        let changes = try Folder.with { (folder) throws in
            try folder.fill()
            return try Stops.count { _ = try Adoption.adopt(folder.path, beforeChange: $0) }
        }
        #expect(changes > 20)
        for stop in 0..<changes {
            try Folder.with { (folder) throws in
                try folder.fill()
                let before = try folder.picture()
                Stops.stop(at: stop) { _ = try Adoption.adopt(folder.path, beforeChange: $0) }
                if !PoolStore.isPool(folder.path, disk: disk) {
                    // Never taken for a pool, and never made into another one.
                    #expect(throws: PoolError.self) {
                        try PoolStore.open(path: folder.path, disk: disk)
                    }
                    #expect(throws: PoolError.self) {
                        try PoolStore.initialize(path: folder.path, disk: disk)
                    }
                }
                _ = try Adoption.adopt(folder.path)
                try folder.eject()
                // A run that stopped before it had a plan has touched the folder's own times.
                #expect(
                    try folder.picture(ignoringTimesOfRoot: true)
                        == Folder.ignoringTimesOfRoot(before), "stopped before change \(stop)")
            }
        }
    }

    @Test func ejectFinishesAfterAKillBeforeAnyOfItsChanges() throws {
        let changes = try Folder.with { (folder) throws in
            try folder.fill()
            _ = try Adoption.adopt(folder.path)
            try folder.prepareEject()
            return try Stops.count { _ = try Adoption.eject(folder.path, beforeChange: $0) }
        }
        #expect(changes > 20)
        for stop in 0..<changes {
            try Folder.with { (folder) throws in
                try folder.fill()
                let before = try folder.picture()
                _ = try Adoption.adopt(folder.path)
                try folder.prepareEject()
                Stops.stop(at: stop) { _ = try Adoption.eject(folder.path, beforeChange: $0) }
                if Adoption.isHalfEjected(folder.path) {
                    #expect(throws: PoolError.self) {
                        try PoolStore.open(path: folder.path, disk: disk)
                    }
                    #expect(throws: PoolError.self) { try Adoption.adopt(folder.path) }
                    _ = try Adoption.eject(folder.path)
                } else if PoolStore.isPool(folder.path, disk: disk) {
                    try folder.eject()
                }
                Adoption.discardStages(folder.path, disk: disk)
                #expect(
                    try folder.picture(ignoringTimesOfRoot: true)
                        == Folder.ignoringTimesOfRoot(before), "stopped before change \(stop)")
            }
        }
    }

    @Test func aPoolInUseIsLeftAloneByAnAdoptThatHadOnlyToTidyUp() throws {
        try Folder.with { (folder) throws in
            try folder.fill()
            let changes = 1000
            var last = 0
            for stop in 0..<changes {
                last = stop
                Stops.stop(at: stop) { _ = try Adoption.adopt(folder.path, beforeChange: $0) }
                if PoolStore.isPool(folder.path, disk: disk) { break }
            }
            #expect(last < changes - 1)
            let store = try PoolStore.open(path: folder.path, disk: disk)
            #expect(throws: PoolError.self) { try Adoption.adopt(folder.path) }
            try store.catalog.write { try $0.setSetting("still", "here") }
            try store.close(clean: true, lastSequence: .zero)
            let again = try PoolStore.open(path: folder.path, disk: disk)
            #expect(try again.catalog.read { try $0.setting("still") } == "here")
            try again.close(clean: true, lastSequence: .zero)
        }
    }

    @Test func aFileDeletedMeanwhileIsLeftOut() throws {
        try Folder.with { (folder) throws in
            try folder.write("a.img", "a")
            try folder.write("b.img", "b")
            // Stopped when the plan is written and nothing has moved.
            for stop in 0..<100 {
                Stops.stop(at: stop) { _ = try Adoption.adopt(folder.path, beforeChange: $0) }
                if try disk.status(folder.path + "/.doppel-adopt/plan.json") != nil { break }
            }
            try disk.removeFile(folder.path + "/a.img")
            _ = try Adoption.adopt(folder.path)
            try folder.eject()
            #expect(try folder.picture().map(\.path) == ["", "b.img"])
        }
    }

    // MARK: Refusals

    @Test func hardLinksAreRefused() throws {
        try Folder.with { (folder) throws in
            try folder.write("a.img", "a")
            #expect(link(folder.path + "/a.img", folder.path + "/b.img") == 0)
            try folder.expectRefusal("a.img has 2 hard links")
        }
    }

    @Test func specialFilesPoolsAndReservedNamesAreRefusedAllAtOnce() throws {
        try Folder.with { (folder) throws in
            #expect(mkfifo(folder.path + "/pipe", 0o600) == 0)
            try folder.makeDirectory(".snapshots")
            try folder.makeDirectory("inner")
            try PoolStore.initialize(path: folder.path + "/inner", disk: disk)
            try folder.expectRefusal(
                "pipe is neither a file", ".snapshots has a name that Doppel uses",
                "inner is a pool")
        }
    }

    @Test func namesThatAreNoTextAreRefused() throws {
        try Folder.with { (folder) throws in
            let path = (Array((folder.path + "/caf").utf8) + [0xe9, 0]).map {
                CChar(bitPattern: $0)
            }
            let fd = open(path, O_CREAT | O_RDWR, 0o600)
            defer { unlink(path) }
            #expect(fd >= 0)
            close(fd)
            do throws(PoolError) {
                _ = try Adoption.adopt(folder.path)
                Issue.record("it was adopted")
            } catch { #expect(error.kind == .refused && error.message.contains("not UTF-8")) }
        }
    }

    @Test func aFileOpenForWritingIsRefusedNamingTheProcess() throws {
        try Folder.with { (folder) throws in
            try folder.write("a.img", "a")
            let reader = open(folder.path + "/a.img", O_RDONLY)
            _ = try Adoption.plan(folder.path)
            close(reader)
            let writer = open(folder.path + "/a.img", O_RDWR)
            defer { close(writer) }
            try folder.expectRefusal("a.img is open for writing by process \(getpid())")
        }
    }

    @Test func aWriterThatCameDuringTheMoveStopsItUntilItIsGone() throws {
        try Folder.with { (folder) throws in
            try folder.write("a.img", "a")
            let before = try folder.picture()
            var fd: Int32 = -1
            do throws(PoolError) {
                _ = try Adoption.adopt(folder.path) { (what) throws(PoolError) in
                    if what == "move a.img" { fd = open(folder.path + "/a.img", O_RDWR) }
                }
                Issue.record("it was adopted under a writer")
            } catch {
                #expect(error.kind == .refused && error.message.contains("process \(getpid())"))
            }
            #expect(fd >= 0)
            close(fd)
            _ = try Adoption.adopt(folder.path)
            try folder.eject()
            #expect(try folder.picture() == before)
        }
    }

    @Test(.enabled(if: geteuid() == 0 && access("/dev/loop-control", W_OK) == 0))
    func theBackingFileOfALoopDeviceIsRefusedNamingIt() throws {
        try Folder.with { (folder) throws in
            let image = folder.path + "/a.img"
            try folder.write("a.img", String(repeating: "x", count: 1 << 20))
            // Beside the folder, which must stay as it is; by name, which a move does not change.
            let note = folder.path + ".loop"
            let attached = try ProcessControl.runShell("losetup -f --show '\(image)' > '\(note)'")
            defer { _ = try? ProcessControl.runShell("losetup -d $(cat '\(note)'); rm '\(note)'") }
            try #require(attached == 0, "a loop device cannot be attached here")
            try folder.expectRefusal("a.img is the backing file of /dev/loop")
        }
    }

    @Test(.enabled(if: geteuid() == 0 && access("/proc/sys/fs", W_OK) == 0))
    func otherFileSystemsBeneathAreRefused() throws {
        try Folder.with { (folder) throws in
            try folder.makeDirectory("other")
            let mounted = mount("none", folder.path + "/other", "tmpfs", 0, nil) == 0
            try #require(mounted, "a tmpfs cannot be mounted here")
            defer { umount(folder.path + "/other") }
            try folder.expectRefusal("other is on another file system")
        }
    }

    // MARK: Eject refuses

    @Test func ejectRefusesWhileSnapshotsExistAndSaysWhatToDo() throws {
        try Folder.with { (folder) throws in
            try folder.fill()
            _ = try Adoption.adopt(folder.path)
            let store = try PoolStore.open(path: folder.path, disk: disk)
            defer { try? store.close(clean: true, lastSequence: .zero) }
            try store.catalog.write {
                _ = try $0.insertSnapshot(
                    SnapshotRecord(
                        name: "monday", createdNs: 1, sequence: .zero, state: .complete,
                        origin: "user"))
            }
            do throws(PoolError) {
                _ = try Adoption.ejectionPlan(store)
                Issue.record("it was not refused")
            } catch {
                #expect(error.kind == .refused)
                #expect(error.message.contains("doppel snapshot delete \(folder.path) monday"))
            }
        }
    }

    @Test func ejectRefusesAPoolThatWasOpenedAfterItWasPrepared() throws {
        try Folder.with { (folder) throws in
            try folder.fill()
            _ = try Adoption.adopt(folder.path)
            try folder.prepareEject()
            let store = try PoolStore.open(path: folder.path, disk: disk)
            #expect(throws: PoolError.self) { try Adoption.eject(folder.path) }
            try store.close(clean: true, lastSequence: .zero)
            #expect(throws: PoolError.self) { try Adoption.eject(folder.path) }
            #expect(PoolStore.isPool(folder.path, disk: disk))
        }
    }
}
