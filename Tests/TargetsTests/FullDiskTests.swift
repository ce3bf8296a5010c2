import BlockCore
import Pool
import Replication
import SystemIO
import TestSupport
import Testing
import Volume

@testable import Targets

/// What a target lacks is written down on a full disk, too: the reserve is for that (G9).
@Suite struct FullDiskTests {
    private static let target = TargetID(rawValue: 1)

    /// A pool with an image of 64 blocks and a target that is away.
    private final class AwayPool {
        let disk: SimulatedDisk
        let store: PoolStore
        let volume: Volume
        let stream: WriteStream
        let hub: TargetHub

        init(_ disk: SimulatedDisk, _ catalog: Catalog) throws {
            self.disk = disk
            store = try PoolStore(
                disk: disk, path: "/pool", catalog: catalog, lock: nil, owner: .current())
            volume = try Volume(store: store, options: VolumeOptions(runsInBackground: false))
            stream = volume.attachStream()
            var options = HubOptions()
            options.runsInBackground = false
            options.connects = false
            hub = try TargetHub(
                volume: volume, stream: stream, suspects: volume.suspects(), options: options
            ) { (_) throws(TargetError) in throw TargetError(.absent, "it is away") }
            volume.attach(hub)
            hub.start(names: { { [] } })
        }

        static func make() throws -> (AwayPool, Catalog) {
            let disk = SimulatedDisk()
            for path in ["/pool", "/pool/images", "/pool/quarantine"] {
                try disk.createDirectory(path, mode: 0o700)
                try disk.syncDirectory(parentPath(path))
            }
            let catalog = try Catalog.inMemory(identity: PoolIdentity(id: "pool", createdNs: 0))
            try catalog.write { tx in
                try PoolStore.initializeRows(
                    tx,
                    root: NodeRecord(
                        id: .root, parentID: nil, name: [], kind: .directory, mode: 0o755, uid: 0,
                        gid: 0, accessNs: 0, modifyNs: 0, changeNs: 0))
            }
            let pool = try AwayPool(disk, catalog)
            _ = try pool.hub.add(
                TargetRecord(
                    address: "/mirror", poolID: "mirror", mode: .flush, timeoutMs: 5000, addedNs: 0)
            )
            return (pool, catalog)
        }

        func write(_ image: Image, blocks: Range<UInt64>) throws {
            let bytes = pattern(blocks.count * 4096)
            try bytes.withUnsafeBytes { try image.write($0, at: blocks.lowerBound * 4096) }
        }

        var dirtyBlocks: UInt64 { stream.standing(FullDiskTests.target)?.dirtyBlocks ?? 0 }
    }

    @Test(arguments: [true, false])
    func whatATargetLacksIsWrittenDownWithTheReserve(hasReserve: Bool) throws {
        let (pool, catalog) = try AwayPool.make()
        let image = try pool.volume.createImage()
        try image.resize(to: 64 * 4096)
        try pool.write(image, blocks: 0..<64)
        try image.flush()
        try pool.volume.settle(image, all: true)
        if hasReserve { #expect(pool.store.makeReserve(lengthBytes: 1 << 20) == 1 << 20) }
        #expect(pool.dirtyBlocks == 64)
        // So scattered that the list of it needs pages.
        let more = try pool.volume.createImage()
        try more.resize(to: 40 * Geometry.blocksPerRegion * 4096)
        for region in 0..<UInt64(40) {
            for block in 0..<UInt64(32) {
                let start = region * Geometry.blocksPerRegion + block * 3
                try pool.write(more, blocks: start..<start + 1)
            }
        }
        try more.flush()
        pool.disk.limitSpace(toBytes: 0)
        if hasReserve {
            try pool.volume.settle(more, all: true)
        } else {
            let failure = #expect(throws: VolumeError.self) {
                try pool.volume.settle(more, all: true)
            }
            #expect(failure?.kind == .noSpace)
        }
        // What was lent and not used is the reserve's again.
        if hasReserve { #expect(pool.store.reserveBytes > 512 << 10 && pool.store.owesReserve) }
        // Power goes: whoever opens the pool knows what the target lacks, one way or the other.
        var random = SeededRandom(seed: 1)
        pool.disk.limitSpace(toBytes: 64 << 20)
        let disk = pool.disk.crash(&random)
        let again = try AwayPool(disk, catalog)
        let standing = try #require(again.stream.standing(Self.target))
        if hasReserve {
            #expect(standing.dirtyBlocks >= 64 + 40 * 32)
            #expect(standing.unknownBlocks == 0)
        } else {
            #expect(standing.unknownBlocks >= Geometry.blocksPerRegion)
        }
    }

    @Test func aSnapshotSaysThatTheDiskIsFull() throws {
        let (pool, _) = try AwayPool.make()
        let image = try pool.volume.createImage()
        try image.resize(to: 64 * 4096)
        try pool.write(image, blocks: 0..<64)
        try image.flush()
        pool.disk.limitSpace(toBytes: 0)
        let failure = #expect(throws: VolumeError.self) {
            try pool.volume.createSnapshot(name: "one") { { [] } }
        }
        #expect(failure?.kind == .noSpace)
    }
}
