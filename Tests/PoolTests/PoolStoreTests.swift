import BlockCore
import Glibc
import SystemIO
import Testing

@testable import Pool

@Suite struct PoolStoreTests {
    private let disk = LinuxDisk()

    private func withPool(_ body: (Folder) throws -> Void) throws {
        try Folder.with { (folder) throws in
            try PoolStore.initialize(path: folder.path, disk: disk)
            try body(folder)
        }
    }

    @Test func initMakesAnEmptyPoolAndNeverASecondOne() throws {
        try withPool { (folder) throws in
            #expect(PoolStore.isPool(folder.path, disk: disk))
            for name in ["README", "images", "quarantine"] {
                #expect(try disk.status(folder.path + "/" + name) != nil)
            }
            #expect(throws: PoolError.self) {
                try PoolStore.initialize(path: folder.path, disk: disk)
            }
        }
        try Folder.with { (folder) throws in
            try folder.write("a.img", "a")
            #expect(throws: PoolError.self) {
                try PoolStore.initialize(path: folder.path, disk: disk)
            }
            #expect(try folder.picture().map(\.path) == ["", "a.img"])
        }
    }

    @Test func initFinishesWhatAKilledInitLeft() throws {
        try withPool { (folder) throws in
            try disk.rename(
                folder.path + "/catalog.sqlite", to: folder.path + "/catalog.sqlite.new",
                noReplace: true)
            #expect(throws: PoolError.self) { try PoolStore.open(path: folder.path, disk: disk) }
            try PoolStore.initialize(path: folder.path, disk: disk)
            try PoolStore.open(path: folder.path, disk: disk)
                .close(clean: true, lastSequence: .zero)
        }
    }

    @Test func aPoolHasOneOwnerWhoIsNamed() throws {
        try withPool { (folder) throws in
            let owner = PoolOwner(pid: 4711, command: "someone", mountPoint: "/mnt/vms")
            let store = try PoolStore.open(path: folder.path, disk: disk, owner: owner)
            do throws(PoolError) {
                _ = try PoolStore.open(path: folder.path, disk: disk)
                Issue.record("it was opened twice")
            } catch {
                #expect(error.kind == .inUse && error.owner == owner)
                #expect(error.message.contains("4711") && error.message.contains("/mnt/vms"))
            }
            try store.close(clean: true, lastSequence: .zero)
            #expect(PoolStore.readOwner(path: folder.path, disk: disk) == nil)
        }
    }

    @Test func aDrainingOwnerIsWaitedForAndAStuckOneNotForEver() throws {
        try withPool { (folder) throws in
            let store = try PoolStore.open(path: folder.path, disk: disk)
            store.markDraining()
            #expect(throws: PoolError.self) {
                try PoolStore.open(path: folder.path, disk: disk, drainTimeoutMs: 100)
            }
            let closing = WorkerThread.start("test-drain") {
                usleep(200_000)
                try? store.close(clean: true, lastSequence: .zero)
            }
            try PoolStore.open(path: folder.path, disk: disk)
                .close(clean: true, lastSequence: .zero)
            _ = closing
        }
    }

    @Test func whatADeadOwnerWroteKeepsNobodyOut() throws {
        try withPool { (folder) throws in
            // This very pid, alive, and yet not the owner: only the kernel's lock counts.
            let stale = PoolOwner(pid: getpid(), command: "long gone", isDraining: true)
            try disk.writeDurably(folder.path + "/owner", contents: stale.bytes)
            try PoolStore.open(path: folder.path, disk: disk)
                .close(clean: true, lastSequence: .zero)
        }
    }

    @Test func anUncleanEndBeginsAnIncarnation() throws {
        try withPool { (folder) throws in
            let first = try PoolStore.open(path: folder.path, disk: disk)
            #expect(!first.wasUnclean)
            let before = try first.catalog.read { try $0.poolState() }
            try first.close(clean: false, lastSequence: .zero)
            let second = try PoolStore.open(path: folder.path, disk: disk)
            #expect(second.wasUnclean)
            let after = try second.catalog.read { try $0.poolState() }
            #expect(after.incarnation == before.incarnation + 1)
            #expect(after.incarnationID != before.incarnationID)
            #expect(
                try second.catalog.read { try $0.events(limit: 1) }.first?.kind == "unclean-open")
            try second.close(clean: true, lastSequence: SequenceNumber(rawValue: 6))
            let third = try PoolStore.open(path: folder.path, disk: disk)
            #expect(!third.wasUnclean)
            #expect(try third.catalog.read { try $0.poolState() }.lastSequence.rawValue == 6)
            try third.close(clean: true, lastSequence: .zero)
        }
    }

    @Test func theReserveIsTakenGivenUpAndTakenBack() throws {
        try withPool { (folder) throws in
            let store = try PoolStore.open(path: folder.path, disk: disk)
            defer { try? store.close(clean: true, lastSequence: .zero) }
            #expect(store.makeReserve(lengthBytes: 4 << 20) >= 4 << 20)
            store.releaseReserve()
            #expect(store.reserveBytes == 0)
            #expect(store.makeReserve(lengthBytes: 4 << 20) >= 4 << 20)
            #expect(store.makeReserve(lengthBytes: 1 << 20) <= 2 << 20)
        }
    }

    @Test(.enabled(if: geteuid() == 0))
    func aPoolOnAFullDiskOpens() throws {
        try Folder.with { (folder) throws in
            try #require(mount("none", folder.path, "tmpfs", 0, "size=16m") == 0)
            defer { umount(folder.path) }
            let pool = folder.path + "/pool"
            try PoolStore.initialize(path: pool, disk: disk)
            let first = try PoolStore.open(path: pool, disk: disk)
            first.makeReserve(lengthBytes: 4 << 20)
            try first.close(clean: false, lastSequence: .zero)
            let filler = try disk.open(folder.path + "/filler", [.readWrite, .create], mode: 0o600)
            var at: UInt64 = 0
            let page = [UInt8](repeating: 1, count: 4096)
            while (try? page.withUnsafeBytes { try filler.write($0, at: at) }) != nil { at += 4096 }
            filler.close()
            let store = try PoolStore.open(path: pool, disk: disk)
            #expect(store.wasUnclean)
            try store.catalog.write { try $0.setSetting("room", "yes") }
            try store.close(clean: true, lastSequence: .zero)
        }
    }

    @Test func quarantineMovesAndTells() throws {
        try withPool { (folder) throws in
            let store = try PoolStore.open(path: folder.path, disk: disk)
            defer { try? store.close(clean: true, lastSequence: .zero) }
            try folder.write("images/torn", "half a thing")
            store.quarantine(folder.path + "/images/torn", reason: "it is torn")
            #expect(try disk.status(folder.path + "/images/torn") == nil)
            #expect(try disk.list(folder.path + "/quarantine").count == 1)
            let event = try store.catalog.read { try $0.events(limit: 1) }.first
            #expect(event?.kind == "quarantine" && event?.message == "it is torn")
        }
    }

    @Test func filesOfDeletedLayersAreSweptAndOfUnknownOnesKept() throws {
        try withPool { (folder) throws in
            let first = try PoolStore.open(path: folder.path, disk: disk)
            let (image, dead) = try first.catalog.write { (tx) throws in
                let image = try tx.insertImage()
                let layer = try tx.insertLayer(LayerRecord(imageID: image, parentID: nil))
                try tx.deleteLayer(layer)
                return (image, layer)
            }
            try disk.createDirectory(first.imageDirectory(image), mode: 0o700)
            let unknown = LayerID(rawValue: dead.rawValue + 100)
            for layer in [dead, unknown] {
                try disk.writeDurably(
                    first.dataPath(image: image, layer: layer), contents: [1, 2, 3])
                try disk.writeDurably(
                    first.mapPath(image: image, layer: layer), contents: [4])
            }
            try first.close(clean: true, lastSequence: .zero)
            let second = try PoolStore.open(path: folder.path, disk: disk)
            defer { try? second.close(clean: true, lastSequence: .zero) }
            #expect(try disk.list(second.imageDirectory(image)).isEmpty)
            // The dead layer's row went first, durably: its files are garbage. A layer that this
            // catalog never knew is somebody's data, with its map.
            #expect(try disk.list(folder.path + "/quarantine").count == 2)
        }
    }
}
