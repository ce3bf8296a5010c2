import BlockCore
import Testing

@Suite struct GeometryTests {
    @Test(
        arguments: [
            // offset, length, covering start, count, inside start, count
            (0, 0, 0, 0, 0, 0), (0, 1, 0, 1, 0, 0), (0, 4096, 0, 1, 0, 1), (1, 4096, 0, 2, 1, 0),
            (4095, 2, 0, 2, 1, 0), (4095, 4098, 0, 3, 1, 1), (8192, 8192, 2, 2, 2, 2),
        ] as [(UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)])
    func rangesOfBlocksCoverOrLieInside(
        offset: UInt64, length: UInt64, start: UInt64, count: UInt64, insideStart: UInt64,
        insideCount: UInt64
    ) {
        let covering = BlockRange(coveringBytesAt: offset, lengthBytes: length)
        #expect(covering.count == count)
        if count > 0 { #expect(covering.start == start) }
        let inside = BlockRange(insideBytesAt: offset, lengthBytes: length)
        #expect(inside.count == insideCount)
        if insideCount > 0 { #expect(inside.start == insideStart) }
    }

    @Test func theLastBlockMayBePartial() {
        #expect(Geometry.blockCount(sizeBytes: 0) == 0)
        #expect(Geometry.blockCount(sizeBytes: 1) == 1)
        #expect(Geometry.blockCount(sizeBytes: 4096) == 1)
        #expect(Geometry.blockCount(sizeBytes: 4097) == 2)
        #expect(Geometry.blockCount(sizeBytes: Geometry.maxImageSizeBytes) == 1 << 34)
    }
}
