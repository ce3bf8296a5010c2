import BlockCore
import Pool
import TestSupport
import Testing

@Suite struct NamesCodecTests {
    private static func node(_ random: inout SeededRandom) -> NodeRecord {
        var node = NodeRecord(
            id: NodeID(rawValue: random.next() >> 4 | 1), parentID: nil,
            name: random.bytes(random.below(30)),
            kind: NodeRecord.Kind(rawValue: random.below(3))!,
            mode: UInt32(truncatingIfNeeded: random.next()), uid: 1000, gid: UInt32.max,
            accessNs: Int64(bitPattern: random.next()), modifyNs: .min, changeNs: .max)
        if random.chance(70) { node.parentID = NodeID(rawValue: random.next() >> 4 | 1) }
        if random.chance(30) { node.symlinkTarget = random.bytes(random.below(50)) }
        if random.chance(50) { node.imageID = ImageID(rawValue: 1 + Int64(random.below(1 << 40))) }
        for _ in 0..<random.below(4) {
            node.xattrs["user.\(random.below(1000)).ä"] = random.bytes(random.below(200))
        }
        return node
    }

    private static func changes(_ random: inout SeededRandom) -> [NameChange] {
        (0..<random.below(6)).map { _ in
            random.chance(25)
                ? .remove(NodeID(rawValue: random.next() >> 4 | 1)) : .put(node(&random))
        }
    }

    @Test(arguments: Seeds.run(20)) func everyChangeComesBack(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        for _ in 0..<50 {
            let changes = Self.changes(&random)
            let bytes = NamesCodec.encode(changes)
            #expect(bytes.withUnsafeBytes(NamesCodec.decode) == changes, "seed \(seed)")
        }
    }

    /// Whatever the bytes: nothing, or changes that encode to the same bytes and that a catalog
    /// takes.
    @Test(arguments: Seeds.run(20)) func anyBytesAreRefusedOrUnderstoodWhole(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let catalog = try Catalog.inMemory(identity: PoolIdentity(id: "p", createdNs: 0))
        var understood = 0
        for _ in 0..<1500 {
            var bytes = NamesCodec.encode(Self.changes(&random))
            switch random.below(4) {
            case 0: bytes = random.bytes(random.below(100))
            case 1: bytes.removeLast(random.below(bytes.count))
            case 2: bytes += random.bytes(1 + random.below(9))
            default:
                for _ in 0..<1 + random.below(3) {
                    bytes[random.below(bytes.count)] = UInt8(random.below(256))
                }
            }
            guard let changes = bytes.withUnsafeBytes(NamesCodec.decode) else { continue }
            understood += 1
            #expect(NamesCodec.encode(changes) == bytes, "seed \(seed)")
            // An image that is not there is the caller's mistake, which the catalog says.
            do { try catalog.write { try $0.apply(changes) } } catch is CatalogError {}
        }
        #expect(understood > 0)
    }

    @Test func aHugeCountReservesNothing() {
        let bytes: [UInt8] = [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]
        #expect(bytes.withUnsafeBytes(NamesCodec.decode) == nil)
        #expect([UInt8]().withUnsafeBytes(NamesCodec.decode) == nil)
    }
}
