/// The fixed sizes of the mapping layer. They are part of the on-disk format: changing one is a
/// new format version.
package enum Geometry {
    /// The unit of mapping and dirty tracking.
    package static let blockSizeBytes: UInt64 = 4096
    package static let blockShift: UInt64 = 12
    /// The unit of the activity log.
    package static let regionSizeBytes: UInt64 = 4 << 20
    package static let regionShift: UInt64 = 22
    package static let blocksPerRegion: UInt64 = 1024
    package static let maxImageSizeBytes: UInt64 = 64 << 40

    /// Number of blocks that hold `sizeBytes` bytes; the last may be partial.
    @inlinable
    package static func blockCount(sizeBytes: UInt64) -> UInt64 {
        (sizeBytes + blockSizeBytes - 1) >> blockShift
    }
}

/// A run of blocks, `start ..< start + count`.
package struct BlockRange: Hashable, Sendable, Codable {
    package var start: UInt64
    package var count: UInt64

    @inlinable
    package init(start: UInt64, count: UInt64) {
        self.start = start
        self.count = count
    }

    /// The blocks that hold any byte of `offset ..< offset + lengthBytes`.
    @inlinable
    package init(coveringBytesAt offset: UInt64, lengthBytes: UInt64) {
        start = offset >> Geometry.blockShift
        count =
            lengthBytes == 0 ? 0 : ((offset + lengthBytes - 1) >> Geometry.blockShift) - start + 1
    }

    /// The blocks that lie wholly inside `offset ..< offset + lengthBytes`.
    @inlinable
    package init(insideBytesAt offset: UInt64, lengthBytes: UInt64) {
        start = (offset + Geometry.blockSizeBytes - 1) >> Geometry.blockShift
        let end = (offset + lengthBytes) >> Geometry.blockShift
        count = end > start ? end - start : 0
    }

    @inlinable package var end: UInt64 { start + count }
    @inlinable package var isEmpty: Bool { count == 0 }
    @inlinable package var startByte: UInt64 { start << Geometry.blockShift }
    @inlinable package var lengthBytes: UInt64 { count << Geometry.blockShift }

    @inlinable
    package func contains(_ block: UInt64) -> Bool { block >= start && block < end }
}
